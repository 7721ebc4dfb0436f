//! The main test of the builder: the kernel, unsquashfs, backhand and our own reader must find exactly the store's
//! content in its images. There is one test for each difficulty of the format, and one with random trees.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod support;

use imagebuilder::image::{FileTree, Image};
use imagebuilder::settings::{Compression, ImageSettings};
use imagebuilder::verify::{NarCheck, VerifyOptions, verify};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use support::built::{build_image, closure, settings};
use support::readers::{self, Snapshot};
use support::store_tree::{Content, Item, Store, base_name, mixed_tree};
use support::tools::KernelMount;

/// The readers to compare. backhand refuses symlink targets of 256 bytes or more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readers {
    All,
    NotBackhand,
}

/// Builds an image of the store and compares the results of the readers.
fn assert_all_agree(store: &Store, settings: ImageSettings, asked: Readers) {
    let directory = support::scratch::directory();
    let path = directory.path().join("image");
    build_image(store.path(), settings, &path);
    let wanted = readers::store(store.path());
    let name = settings.compression().name();
    readers::assert_same(&format!("our reader ({name})"), &readers::our_reader(&path), &wanted);
    assert_verified(store.path(), &path);
    let others: [(&str, Option<Snapshot>); 3] = [
        ("backhand", (asked == Readers::All).then(|| readers::backhand(&path))),
        ("unsquashfs", readers::unsquashfs(&path)),
        ("the kernel", readers::kernel(&path)),
    ];
    for (reader, snapshot) in others {
        if let Some(snapshot) = snapshot {
            readers::assert_same(&format!("{reader} ({name})"), &snapshot, &wanted);
        }
    }
}

fn assert_verified(store_dir: &Path, path: &Path) {
    let image = Image::open(path).unwrap();
    let closure = closure(store_dir);
    let options = VerifyOptions { closure: Some(&closure), nar: NarCheck::Skip, jobs: 2, problems_max: 10 };
    let report = verify(&image, options).unwrap();
    assert!(report.ok, "{:#?}", report.problems);
    let report = verify(&image, VerifyOptions { closure: None, ..options }).unwrap();
    assert!(report.ok, "{:#?}", report.problems);
}

/// Tests a store path with these entries, with the default settings and with the smallest block size.
fn assert_tree_agrees<N: Into<Vec<u8>>>(entries: impl IntoIterator<Item = (N, Item)>) {
    let store = Store::new([("tree", Item::directory(entries))]);
    assert_all_agree(&store, ImageSettings::default(), Readers::All);
    assert_all_agree(&store, settings(Compression::Zstd, 4096), Readers::All);
}

#[test]
fn readers_agree_for_every_codec() {
    let store = Store::new([("tree", mixed_tree(1)), ("other", mixed_tree(2)), ("file", Item::file("a file"))]);
    for compression in Compression::ALL {
        assert_all_agree(&store, settings(compression, 131_072), Readers::NotBackhand);
    }
}

/// Nix creates missing parts even if it only reads a store, which fails on a read-only disk.
#[test]
fn the_root_directory_has_what_nix_expects_of_a_store() {
    let store = Store::new([("tree", mixed_tree(1))]);
    let directory = support::scratch::directory();
    let path = directory.path().join("image");
    build_image(store.path(), ImageSettings::default(), &path);
    let image = Image::open(&path).unwrap();
    let (_, root) = image.find(b"").unwrap();
    assert_eq!((root.mode, root.user_id, root.group_id), (0o1775, 0, 30_000));
    let (_, links) = image.find(b".links").unwrap();
    assert_eq!((links.mode, links.user_id, links.group_id, links.links), (0o755, 0, 0, 2));
    let Some(mount) = KernelMount::new(&path) else { return };
    let owner = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(owner(mount.path()), (0o1775, 0, 30_000));
    assert_eq!(owner(&mount.path().join(".links")), (0o755, 0, 0));
    assert_eq!(std::fs::read_dir(mount.path().join(".links")).unwrap().count(), 0);
}

#[test]
fn readers_agree_for_every_block_size() {
    let store = Store::new([("tree", mixed_tree(3))]);
    for block_size_bytes in [4096, 16_384, 262_144, 1 << 20] {
        assert_all_agree(&store, settings(Compression::Zstd, block_size_bytes), Readers::NotBackhand);
    }
}

#[test]
fn two_files_with_the_same_first_block_keep_their_second_blocks() {
    let mut seeded = support::seeded::Seeded::new(4);
    for block in [4096, ImageSettings::DEFAULT_BLOCK_SIZE_BYTES as usize] {
        let first = seeded.text(block);
        let file = |rest: Vec<u8>| Item::file([first.clone(), rest].concat());
        let (a, b, tail) = (seeded.text(block), seeded.noise(block), seeded.text(100));
        assert_tree_agrees([
            ("a", file(a.clone())),
            ("b", file(b)),
            ("c", file(tail)),
            ("d", file(Vec::new())),
            ("e", file(a)),
        ]);
    }
}

#[test]
fn readers_agree_on_empty_files_and_directories() {
    assert_tree_agrees([
        ("a", Item::file("")),
        ("b", Item::program("")),
        ("d", Item::directory::<&str>([])),
        ("e", Item::directory([("f", Item::file(""))])),
    ]);
}

#[test]
fn readers_agree_on_a_store_with_only_an_empty_directory() {
    let store = Store::new([("nothing", Item::directory::<&str>([]))]);
    assert_all_agree(&store, ImageSettings::default(), Readers::All);
}

#[test]
fn a_store_path_may_be_a_file_or_a_symlink() {
    let store = Store::new([
        ("file", Item::program("#! /bin/sh\n")),
        ("link", Item::symlink("/nix/store/elsewhere")),
        ("empty", Item::file("")),
    ]);
    assert_all_agree(&store, ImageSettings::default(), Readers::All);
}

#[test]
fn readers_agree_on_file_sizes_around_multiples_of_the_block_size() {
    let mut seeded = support::seeded::Seeded::new(5);
    let block = ImageSettings::DEFAULT_BLOCK_SIZE_BYTES as usize;
    let sizes = [1, 4095, 4096, 4097, 8192, block - 1, block, block + 1, 2 * block, 3 * block - 1];
    let files = sizes.iter().flat_map(|size| {
        [
            (format!("text-{size}"), Item::file(seeded.text(*size))),
            (format!("noise-{size}"), Item::file(seeded.noise(*size))),
        ]
    });
    assert_tree_agrees(files.collect::<Vec<_>>());
}

#[test]
fn readers_agree_on_an_image_with_only_fragments() {
    let mut seeded = support::seeded::Seeded::new(6);
    let files = (0..1000).map(|number| {
        let length = 1 + seeded.index(900);
        (format!("small-{number}"), Item::file(seeded.noise(length)))
    });
    assert_tree_agrees(files.collect::<Vec<_>>());
}

#[test]
fn readers_agree_on_directories_with_over_256_entries_and_over_a_metadata_block() {
    for (count, name_bytes) in [(255, 5), (256, 5), (257, 5), (600, 5), (300, 200), (2000, 40)] {
        let entries = (0..count).map(|number| {
            let item = match number % 7 {
                0 => Item::symlink(format!("target-{number}")),
                1 => Item::directory([("inner", Item::file(format!("{number}")))]),
                _ => Item::file(format!("file {number}")),
            };
            (format!("{number:05}{}", "n".repeat(name_bytes - 5)), item)
        });
        let store = Store::new([("tree", Item::directory(entries.collect::<Vec<_>>()))]);
        assert_all_agree(&store, ImageSettings::default(), Readers::All);
    }
}

/// The inode numbers of entries are signed 16-bit differences, so a single header is not enough for this many.
#[test]
fn readers_agree_on_a_directory_with_seventy_thousand_entries() {
    let entries = (0..70_000).map(|number| {
        let item = match number % 50 {
            0 => Item::file(format!("{}", number % 1000)),
            1..25 => Item::file(""),
            _ => Item::symlink(format!("{number}")),
        };
        (format!("entry-{number:05}"), item)
    });
    let store = Store::in_memory([("tree", Item::directory(entries.collect::<Vec<_>>()))]);
    assert_all_agree(&store, ImageSettings::default(), Readers::All);
}

#[test]
fn readers_agree_on_names_of_255_bytes_and_names_that_are_not_utf8() {
    let names: [&[u8]; 8] =
        [&[b'n'; 255], &[0xff; 255], b"\xff\xfe\x80", b"\x01", b" ", b"a\nb", b"-rf", "\u{1f4a9}".as_bytes()];
    assert_tree_agrees(names.map(|name| (name, Item::file(name))));
}

/// Names whose first byte is above 127 must be sorted after ASCII, because a lookup by name relies on the order.
#[test]
fn the_kernel_finds_every_name_in_a_directory_with_an_index() {
    let names = (0..3000_u32).map(|number| {
        let byte = u8::try_from(33 + number % 200).unwrap();
        let mut name = vec![if byte == b'/' { b'0' } else { byte }];
        name.extend(format!("-{number}-{}", "x".repeat(30)).into_bytes());
        (name, Item::file(number.to_string()))
    });
    let entries: BTreeMap<_, _> = names.collect();
    let store = Store::new([("tree", Item::directory(entries))]);
    assert_all_agree(&store, ImageSettings::default(), Readers::All);
}

#[test]
fn readers_agree_on_symlink_targets_up_to_4095_bytes() {
    let targets = [1, 255, 256, 1000, 4095];
    let links = targets.map(|length| (format!("link-{length}"), Item::symlink("t".repeat(length))));
    let store = Store::new([("tree", Item::directory(links))]);
    assert_all_agree(&store, ImageSettings::default(), Readers::NotBackhand);
}

#[test]
fn readers_agree_on_sparse_files_over_4_gib() {
    let pieces = [(0, b"begin".to_vec()), (4 << 30, b"after 4 GiB".to_vec()), ((4 << 30) + 300_000, vec![7; 5000])];
    let store = Store::in_memory([(
        "tree",
        Item::directory([
            ("large", Item::sparse((4 << 30) + 1_000_000, pieces)),
            ("only-holes", Item::sparse(5_000_001, [])),
            ("ends-in-a-block", Item::sparse(1 << 22, [((1 << 22) - 1, b"!".to_vec())])),
        ]),
    )]);
    assert_all_agree(&store, ImageSettings::default(), Readers::NotBackhand);
}

#[test]
fn hard_links_in_the_store_give_the_same_image_as_copies() {
    let content = support::seeded::Seeded::new(7).text(500_000);
    let first = format!("{}/first", base_name("a"));
    let linked = Store::new([
        ("a", Item::directory([("first", Item::file(content.clone()))])),
        ("b", Item::directory([("second", Item::HardLink(first.into_bytes()))])),
    ]);
    let copied = Store::new([
        ("a", Item::directory([("first", Item::file(content.clone()))])),
        ("b", Item::directory([("second", Item::file(content))])),
    ]);
    let directory = tempfile::tempdir().unwrap();
    let images = [("linked", &linked), ("copied", &copied)].map(|(name, store)| {
        let path = directory.path().join(name);
        build_image(store.path(), ImageSettings::default(), &path);
        std::fs::read(path).unwrap()
    });
    assert!(images[0] == images[1], "optimising the store changes the image");
    assert_all_agree(&linked, ImageSettings::default(), Readers::All);
}

fn content() -> impl Strategy<Value = Content> {
    let noise = prop::collection::vec(any::<u8>(), 0..2000);
    let repeated = (any::<u8>(), 0..20_000_usize).prop_map(|(byte, length)| vec![byte; length]);
    let seeded = (0..6_u64, 0..30_000_usize).prop_map(|(seed, length)| support::seeded::Seeded::new(seed).text(length));
    let bytes = prop_oneof![noise, repeated, seeded].prop_map(Content::Bytes);
    let sparse = (1..200_000_u64, prop::collection::vec((0..200_000_u64, any::<u8>()), 0..3));
    let sparse = sparse.prop_map(|(size_bytes, pieces)| Content::Sparse {
        size_bytes,
        pieces: pieces.into_iter().filter(|(at, _)| *at < size_bytes).map(|(at, byte)| (at, vec![byte])).collect(),
    });
    prop_oneof![4 => bytes, 1 => sparse]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let any_bytes =
        prop::collection::vec(any::<u8>().prop_filter("no separators", |byte| !matches!(byte, 0 | b'/')), 1..40);
    prop_oneof![3 => "[a-z]{1,8}".prop_map(String::into_bytes), 1 => any_bytes]
        .prop_filter("no dots alone", |name| name != b"." && name != b"..")
}

fn item() -> impl Strategy<Value = Item> {
    let file = (content(), any::<bool>()).prop_map(|(content, executable)| Item::File { content, executable });
    let target = prop::collection::vec(1..=255_u8, 1..200).prop_map(Item::Symlink);
    let leaf = prop_oneof![5 => file, 1 => target];
    leaf.prop_recursive(4, 60, 12, |inner| prop::collection::btree_map(name(), inner, 0..12).prop_map(Item::Directory))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn readers_agree_on_random_trees(
        items in prop::collection::vec(item(), 1..4),
        compression in prop::sample::select(Compression::ALL.to_vec()),
        block_log in 12..=17_u32,
    ) {
        let names: Vec<String> = (0..items.len()).map(|number| format!("member-{number}")).collect();
        let store = Store::new(names.iter().map(String::as_str).zip(items));
        assert_all_agree(&store, settings(compression, 1 << block_log), Readers::All);
    }
}
