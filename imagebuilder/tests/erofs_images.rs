//! EROFS images: their content as several readers see it, the limits of the format, and hostile images.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use imagebuilder::block_map::{BlockMap, Extent, FileId, Source, StoreFiles, StorePathTree};
use imagebuilder::build::{BuildOptions, CacheTrust, Digests, Durability, build};
use imagebuilder::diff::{DiffOptions, diff};
use imagebuilder::erofs::reader::ErofsImage;
use imagebuilder::erofs::{Profile, SameContent, block_map};
use imagebuilder::extract::{ExtractOptions, SpecialFiles, extract};
use imagebuilder::image::{FileTree, ImageError, ImageSource, InodeKind, Node, Piece};
use imagebuilder::inspect::inspect_erofs;
use imagebuilder::open_image::OpenImage;
use imagebuilder::path_sizes::path_sizes_erofs;
use imagebuilder::plan::ImagePlan;
use imagebuilder::progress::Silent;
use imagebuilder::report::{BuildReport, Outcome};
use imagebuilder::settings::{Compression, ImageFormat};
use imagebuilder::store_path::StorePath;
use imagebuilder::tree::{Entry, FileMode, Tree};
use imagebuilder::verify::{NarCheck, VerifyOptions, VerifyReport, verify, verify_erofs};
use imagebuilder::verity::Seal;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use support::built::{build_image, closure, settings};
use support::readers;
use support::seeded::Seeded;
use support::store_tree::{Item, Store, base_name, mixed_tree};
use support::tools::{self, KernelMount};

const PROFILES: [Profile; 2] = [Profile::Disk, Profile::Dax];

fn check(image: &ErofsImage) -> VerifyReport {
    verify_erofs(image, VerifyOptions { closure: None, nar: NarCheck::Skip, jobs: 2, problems_max: 10 }).unwrap()
}

/// A store with a path that is a file, one that is a symbolic link, and one with everything else.
fn mixed_store() -> Store {
    let twice = Seeded::new(9).noise(9000);
    Store::new([
        ("tree", mixed_tree(7)),
        ("same", Item::directory([("first", Item::file(twice.clone())), ("second", Item::file(twice))])),
        ("file", Item::program("#!/bin/sh\n")),
        ("link", Item::symlink("tree/program")),
    ])
}

#[test]
fn every_reader_sees_the_store_in_an_image_of_either_profile() {
    let store = mixed_store();
    let wanted = readers::store(store.path());
    let directory = tempfile::tempdir().unwrap();
    let squashfs = directory.path().join("squashfs");
    build_image(store.path(), settings(Compression::Lz4, 131_072), &squashfs);
    for profile in PROFILES {
        let path = directory.path().join(format!("{profile:?}"));
        build_image(store.path(), ImageFormat::Erofs(profile), &path);
        readers::assert_same("our reader", &readers::our_reader(&path), &wanted);
        readers::assert_same("erofs-rs", &other_reader(&fs::read(&path).unwrap()), &wanted);
        if let Some(seen) = readers::kernel(&path) {
            readers::assert_same("the kernel", &seen, &wanted);
        }
        if let Some(program) = testing::find_tool("fsck.erofs") {
            tools::run(program, [&path]);
        }
        let image = ErofsImage::open(&path).unwrap();
        let closure = closure(store.path());
        let options = VerifyOptions { closure: Some(&closure), nar: NarCheck::Skip, jobs: 2, problems_max: 10 };
        let report = verify_erofs(&image, options).unwrap();
        assert!(report.ok, "{:?}", report.problems);

        // The whole image is the same tree as a squashfs of the store, and can be extracted like one.
        let other = OpenImage::open(&squashfs).unwrap();
        let differences = diff(other.tree(), &image, DiffOptions { jobs: 2, max_differences: 10 }).unwrap().differences;
        assert_eq!(differences, []);
        let output = directory.path().join(format!("{profile:?}-extracted"));
        let options = ExtractOptions { path: b"", output: &output, special_files: SpecialFiles::Refuse, jobs: 2 };
        extract(&image, options, &AtomicBool::new(false)).unwrap();
        readers::assert_same("the extracted files", &readers::directory(&output), &wanted);

        let facts = inspect_erofs(&image).unwrap();
        assert_eq!((facts.format, facts.inodes.total), ("erofs", image.superblock().inodes));
        assert_eq!(facts.inodes.hard_links, 0);
        assert!(facts.duplicate_files >= 2, "equal files have the same blocks");
        let sizes = path_sizes_erofs(&image).unwrap();
        let paid: u64 = sizes.paths.iter().map(|path| path.stored_bytes).sum();
        assert_eq!(paid + sizes.tables_bytes, sizes.bytes_used);
        let length = fs::metadata(&path).unwrap().len();
        assert_eq!(length % if profile == Profile::Dax { 2 << 20 } else { 4096 }, 0);
    }
}

/// The image as erofs-rs reads it.
fn other_reader(bytes: &[u8]) -> readers::Snapshot {
    let image = EroFS::new(SliceImage::new(bytes)).unwrap();
    let mut snapshot = readers::Snapshot::new();
    for entry in image.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let inode = entry.inode;
        let what = if inode.is_dir() {
            readers::What::Directory
        } else if inode.is_symlink() {
            let target = image.read_link_inode(inode).unwrap();
            readers::What::Symlink(target.as_bytes().escape_ascii().to_string())
        } else {
            let file = image.open_inode_file(inode).unwrap();
            let mut content = vec![0; usize::try_from(file.size()).unwrap()];
            let mut done = 0;
            while done < content.len() {
                done += file.read_at(&mut content[done..], done as u64).unwrap();
            }
            readers::What::File { size_bytes: file.size(), blake3: blake3::hash(&content).to_string() }
        };
        let path = entry.dir_entry.path();
        let path = path.as_bytes().strip_prefix(b"/").unwrap_or(path.as_bytes()).escape_ascii().to_string();
        snapshot.insert(path, readers::Seen { mode: u32::from(inode.permissions()), what });
    }
    snapshot
}

#[test]
fn the_bytes_of_an_image_are_unchanged_and_do_not_depend_on_hard_links() {
    let store = mixed_store();
    let directory = tempfile::tempdir().unwrap();
    let build = |profile| {
        let path = directory.path().join("image");
        build_image(store.path(), ImageFormat::Erofs(profile), &path);
        fs::read(&path).unwrap()
    };
    let images = PROFILES.map(build);
    // `nix-store --optimise` makes links of equal files.
    let (first, second) = (store.store_path("same").join("first"), store.store_path("same").join("second"));
    fs::remove_file(&second).unwrap();
    fs::hard_link(&first, &second).unwrap();
    assert!(PROFILES.map(build) == images, "hard links change the image");
    let digests = images.map(|bytes| blake3::hash(&bytes).to_hex()[..16].to_owned());
    assert_eq!(
        digests,
        ["220c44f0ee047135", "92b3888b3fd15a33"],
        "a changed layout needs another EROFS_LAYOUT_VERSION"
    );
}

/// An image that is generated while it is read. The content of a file depends on its number and the offset.
#[derive(Debug)]
struct Imagined(BlockMap);

fn imagined_byte(file: FileId, offset: u64) -> u8 {
    (u64::from(file.node) * 31 + offset * 7 + offset / 4096) as u8
}

impl ImageSource for Imagined {
    fn length_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        for Extent { length, source, .. } in self.0.extents_in(offset..offset + buffer.len() as u64) {
            let part = &mut buffer[done..done + length as usize];
            match source {
                Source::Metadata { offset } => {
                    part.copy_from_slice(&self.0.metadata()[offset as usize..][..length as usize]);
                }
                Source::Zeros => part.fill(0),
                Source::File { file, offset } => {
                    part.iter_mut().zip(offset..).for_each(|(byte, offset)| *byte = imagined_byte(file, offset));
                }
            }
            done += length as usize;
        }
        if done == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

fn store_files(trees: impl IntoIterator<Item = (String, Tree)>) -> Arc<StoreFiles> {
    let store_paths = trees.into_iter().map(|(name, tree)| {
        let path = StorePath::from_base_name(&base_name(&name)).unwrap();
        StorePathTree { path, tree }
    });
    Arc::new(StoreFiles::new(PathBuf::from("/nix/store"), store_paths.collect()))
}

fn imagine(files: &Arc<StoreFiles>, profile: Profile) -> Imagined {
    Imagined(block_map(Arc::clone(files), profile, &SameContent::default()).unwrap())
}

/// Directories with 100,000 files and with 70,000 directories, files of every length near the end of a block, a file of
/// 5 GiB, and the longest names and targets.
fn limits() -> Arc<StoreFiles> {
    let mut tree = Tree::default();
    let root = tree.open_directory(b"").unwrap();
    let big = tree.open_directory(b"directories").unwrap();
    for number in 0..70_000 {
        let directory = tree.open_directory(format!("d{number:05}").as_bytes()).unwrap();
        tree.close_directory(directory);
    }
    tree.close_directory(big);
    let many = tree.open_directory(b"files").unwrap();
    for number in 0..100_000 {
        tree.add_file(format!("file-with-a-name-{number:06}").as_bytes(), number % 3, FileMode::Regular).unwrap();
    }
    tree.close_directory(many);
    tree.add_file(b"huge", (5 << 30) + 1, FileMode::Regular).unwrap();
    let long = tree.open_directory(b"long").unwrap();
    for number in 0..40_u8 {
        tree.add_symlink(&[&[b'n'; 253][..], &[b'a' + number / 26, b'a' + number % 26]].concat(), &[b't'; 4095])
            .unwrap();
    }
    tree.close_directory(long);
    let tails = tree.open_directory(b"tails").unwrap();
    for number in 0..200 {
        let name = [format!("{number:03}").as_bytes(), b"\xff\xfe"].concat();
        tree.add_file(&name, 4096 + 3996 + number, FileMode::Executable).unwrap();
    }
    tree.close_directory(tails);
    tree.close_directory(root);
    store_files([("limits".to_owned(), tree)])
}

#[test]
fn images_at_the_limits_of_the_format_are_built_and_read() {
    let files = limits();
    let image = ErofsImage::from_source(Box::new(imagine(&files, Profile::Dax))).unwrap();
    let report = check(&image);
    assert!(report.ok, "{:?}", report.problems);
    let find = |path: &str| image.find(format!("{}/{path}", base_name("limits")).as_bytes()).unwrap().1;
    assert_eq!(find("directories").links, 70_002);
    assert_eq!(find("files/file-with-a-name-099999").inode_type().name(), "file");
    let InodeKind::File(huge) = find("huge").kind else { panic!("huge is not a file") };
    assert_eq!(huge.size_bytes, (5 << 30) + 1);
    let last = image.parts(&huge, 1 << 30).last().unwrap();
    let mut content = last.content;
    let Some(Piece::Data(bytes)) = content.next_piece().unwrap() else { panic!("it ends with data") };
    assert_eq!(
        (last.offset, bytes),
        (5 << 30, &[imagined_byte(FileId { store_path: 0, node: huge_node(&files) }, 5 << 30)][..])
    );
}

fn huge_node(files: &StoreFiles) -> u32 {
    let tree = &files.store_paths()[0].tree;
    (0..tree.len()).find(|node| tree.name(*node) == b"huge").unwrap()
}

#[test]
fn the_kernel_reads_an_image_at_the_limits_of_the_format() {
    let files = limits();
    let map = block_map(files, Profile::Disk, &SameContent::default()).unwrap();
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(map.size_bytes()).unwrap();
    // All content is zero, so only metadata is written.
    for Extent { start, length, source } in map.extents() {
        if let Source::Metadata { offset } = source {
            path.as_file().write_all_at(&map.metadata()[offset as usize..][..length as usize], start).unwrap();
        }
    }
    if let Some(program) = testing::find_tool("fsck.erofs") {
        tools::run(program, [path.path()]);
    }
    let Some(mount) = KernelMount::new(path.path()) else { return };
    let root = mount.path().join(base_name("limits"));
    assert_eq!(fs::metadata(root.join("directories")).unwrap().nlink(), 70_002);
    assert_eq!(fs::read_dir(root.join("directories")).unwrap().count(), 70_000);
    assert_eq!(fs::read_dir(root.join("files")).unwrap().count(), 100_000);
    assert_eq!(fs::metadata(root.join("files/file-with-a-name-054321")).unwrap().len(), 0);
    let huge = File::open(root.join("huge")).unwrap();
    assert_eq!(huge.metadata().unwrap().len(), (5 << 30) + 1);
    assert_eq!(huge.read_at(&mut [1; 2], 5 << 30).unwrap(), 1);
    let targets = fs::read_dir(root.join("long")).unwrap();
    assert!(
        targets
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
            .all(|target| target.as_os_str().len() == 4095)
    );
}

/// A random directory with names of any bytes, and lengths that reach the ends of blocks.
fn tree() -> impl Strategy<Value = Tree> {
    let length = prop_oneof![0..200_u64, 3900..4200_u64, 8100..8300_u64, Just(4096), Just(0)];
    let name = prop::collection::vec(prop_oneof![Just(b'.'), Just(b'-'), 1..=255_u8], 1..40);
    let leaf = prop_oneof![
        3 => (length, any::<bool>()).prop_map(|(length, executable)| Node2::File(length, executable)),
        1 => prop::collection::vec(1..=255_u8, 1..300).prop_map(Node2::Symlink),
    ];
    let nested = leaf.prop_recursive(4, 60, 20, move |inner| {
        prop::collection::btree_map(name.clone(), inner, 0..20).prop_map(Node2::Directory)
    });
    nested.prop_map(|node| {
        let mut tree = Tree::default();
        node.add(b"", &mut tree);
        tree
    })
}

#[derive(Clone, Debug)]
enum Node2 {
    File(u64, bool),
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Node2>),
}

impl Node2 {
    fn add(&self, name: &[u8], tree: &mut Tree) {
        match self {
            Self::File(length, executable) => {
                let mode = if *executable { FileMode::Executable } else { FileMode::Regular };
                tree.add_file(name, *length, mode).unwrap();
            }
            Self::Symlink(target) => {
                tree.add_symlink(name, target).unwrap();
            }
            Self::Directory(entries) => {
                let directory = tree.open_directory(name).unwrap();
                for (name, node) in entries {
                    if !matches!(name.as_slice(), b"." | b"..") && !name.contains(&b'/') {
                        node.add(name, tree);
                    }
                }
                tree.close_directory(directory);
            }
        }
    }
}

/// The expected content of an image of imagined files.
fn wanted(files: &StoreFiles) -> readers::Snapshot {
    let mut snapshot = readers::Snapshot::new();
    snapshot.insert(".links".to_owned(), readers::Seen { mode: 0o755, what: readers::What::Directory });
    for (StorePathTree { path, tree }, store_path) in files.store_paths().iter().zip(0..) {
        for node in 0..tree.len() {
            let relative = files.file_path(FileId { store_path, node }).unwrap().relative;
            let mut full = path.base_name().as_bytes().to_vec();
            if node > 0 {
                full.extend([&b"/"[..], &relative].concat());
            }
            let (mode, what) = match tree.entry(node) {
                Entry::Directory { .. } => (0o555, readers::What::Directory),
                Entry::Symlink { target } => (0o777, readers::What::Symlink(target.escape_ascii().to_string())),
                Entry::File { executable, size_bytes, .. } => {
                    let content: Vec<u8> =
                        (0..size_bytes).map(|offset| imagined_byte(FileId { store_path, node }, offset)).collect();
                    let blake3 = blake3::hash(&content).to_string();
                    (if executable { 0o555 } else { 0o444 }, readers::What::File { size_bytes, blake3 })
                }
            };
            snapshot.insert(full.escape_ascii().to_string(), readers::Seen { mode, what });
        }
    }
    snapshot
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn two_readers_read_random_trees_correctly(trees in prop::collection::vec(tree(), 1..4)) {
        let files = store_files(trees.into_iter().enumerate().map(|(number, tree)| (format!("t{number}"), tree)));
        for profile in PROFILES {
            let source = imagine(&files, profile);
            let mut bytes = vec![0; usize::try_from(source.length_bytes()).unwrap()];
            source.read_exact_at(&mut bytes, 0).unwrap();
            readers::assert_same("erofs-rs", &other_reader(&bytes), &wanted(&files));
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), &bytes).unwrap();
            readers::assert_same("our reader", &readers::our_reader(file.path()), &wanted(&files));
            let report = check(&ErofsImage::from_source(Box::new(bytes)).unwrap());
            prop_assert!(report.ok, "{:?}", report.problems);
        }
    }
}

/// A small image in memory.
fn small_image() -> Vec<u8> {
    let store = Store::new([(
        "tree",
        Item::directory([
            ("a", Item::directory([("file", Item::file("content")), ("link", Item::symlink("../b"))])),
            ("b", Item::directory([("big", Item::file(vec![7; 9000]))])),
        ]),
    )]);
    let path = tempfile::NamedTempFile::new().unwrap();
    build_image(store.path(), ImageFormat::Erofs(Profile::Disk), path.path());
    fs::read(path.path()).unwrap()
}

/// Reads the whole image. Anything wrong is an error.
fn read_all(bytes: Vec<u8>) -> Result<(), ImageError> {
    let image = ErofsImage::from_source(Box::new(bytes))?;
    let _ = check(&image);
    let _ = inspect_erofs(&image);
    let _ = path_sizes_erofs(&image);
    let _ = imagebuilder::dump::dump_erofs(&image, &mut io::sink());
    let _ = imagebuilder::nar::nar_digest(&image, b"");
    Ok(())
}

#[test]
fn damaged_images_are_reported_and_never_crash_the_reader() {
    let sound = small_image();
    assert!(check(&ErofsImage::from_source(Box::new(sound.clone())).unwrap()).ok);
    let mut seeded = Seeded::new(3);
    for _ in 0..800 {
        let mut bytes = sound.clone();
        // Without the checksum, so that the reader also reads the rest.
        bytes[1024 + 8] &= !1;
        for _ in 0..=seeded.index(3) {
            let at = 1024 + seeded.index(4096);
            bytes[at.min(sound.len() - 1)] = [0, 1, 0x7f, 0x80, 0xff, seeded.next() as u8][seeded.index(6)];
        }
        let _ = read_all(bytes);
    }
    for length in (0..sound.len()).step_by(97) {
        let _ = read_all(sound[..length].to_vec());
    }
    let mut bytes = sound;
    bytes[1024 + 30] ^= 1;
    let error = ErofsImage::from_source(Box::new(bytes)).unwrap_err().to_string();
    assert!(error.starts_with("superblock: its checksum is"), "{error}");
}

/// Returns the position of the directory entry with this name, and its inode number.
fn entry(bytes: &[u8], image: &ErofsImage, path: &str) -> (usize, u64) {
    let number = image.find(path.as_bytes()).unwrap().1.number;
    let wanted = u64::from(number).to_le_bytes();
    let found = bytes.windows(8).enumerate().find(|(at, window)| at % 4 == 0 && *window == wanted);
    (found.unwrap().0, u64::from(number))
}

#[test]
fn a_directory_that_is_reached_twice_is_refused() {
    // `b` becomes another name of `a`. With enough levels of this, a walk would never end.
    let mut bytes = small_image();
    bytes[1024 + 8] &= !1;
    let image = ErofsImage::from_source(Box::new(bytes.clone())).unwrap();
    let tree = base_name("tree");
    let (_, first) = entry(&bytes, &image, &format!("{tree}/a"));
    let second = u64::from(image.find(format!("{tree}/b").as_bytes()).unwrap().1.number);
    for at in (0..bytes.len() - 8).step_by(4) {
        if bytes[at..at + 8] == second.to_le_bytes() && bytes[at + 10] == 2 {
            bytes[at..at + 8].copy_from_slice(&first.to_le_bytes());
        }
    }
    let image = ErofsImage::from_source(Box::new(bytes)).unwrap();
    let errors: Vec<String> = image.walk().unwrap().filter_map(Result::err).map(|error| error.chain()).collect();
    assert!(errors.iter().any(|error| error.contains("is reached a second time")), "{errors:?}");
    assert!(!check(&image).ok);
    let nodes: Vec<Node> = image.walk().unwrap().filter_map(Result::ok).collect();
    assert!(nodes.len() < 20);
}

#[test]
fn a_file_with_both_magic_numbers_is_refused() {
    let mut bytes = small_image();
    bytes[..4].copy_from_slice(b"hsqs");
    let error = OpenImage::from_source(Box::new(bytes)).unwrap_err();
    assert!(matches!(error, ImageError::TwoFormats), "{error}");
}

#[test]
fn on_a_file_system_with_reflinks_an_image_takes_only_the_space_of_its_metadata() {
    let Some(mkfs) = testing::find_tool("mkfs.btrfs") else { return };
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(300 << 20).unwrap();
    tools::run(mkfs, [disk.path()]);
    let Some(mount) = KernelMount::writable(disk.path(), "btrfs") else { return };
    let store = mount.path().join("store");
    fs::create_dir(&store).unwrap();
    let content = Seeded::new(5).noise(60 << 20);
    Item::file(content).write(&store.join(base_name("large")), &store);
    let used = || {
        tools::run("sync", ["-f".as_ref(), mount.path().as_os_str()]);
        let found = nix::sys::statvfs::statvfs(mount.path()).unwrap();
        (found.blocks() - found.blocks_free()) * found.fragment_size()
    };
    let before = used();
    let image = mount.path().join("image");
    build_image(&store, ImageFormat::Erofs(Profile::Dax), &image);
    assert_eq!(fs::metadata(&image).unwrap().len(), 62 << 20);
    let more = used() - before;
    assert!(more < 4 << 20, "the image takes {more} bytes");
    readers::assert_same("our reader", &readers::our_reader(&image), &readers::store(&store));
}

/// Builds a sealed image with a record in a cache, and returns the report.
fn build_sealed(store: &Store, format: ImageFormat, path: &Path, cache: &Path) -> BuildReport {
    let mut closure = closure(store.path());
    for planned in &mut closure.paths {
        // There are no records without hashes.
        planned.nar_hash = Some(testing::nar_sha256(&store.path().join(planned.path.base_name())));
    }
    let plan = ImagePlan { verity: true, ..ImagePlan::new(closure, format) };
    let options = BuildOptions {
        output: path.to_owned(),
        cache: Some(cache.to_owned()),
        packs: None,
        cache_trust: CacheTrust::Checksums,
        jobs: 2,
        digests: Digests::Skip,
        durability: Durability::Synced,
    };
    build(&plan, &options, &mut Silent, &AtomicBool::new(false)).unwrap()
}

#[test]
fn a_sealed_image_equals_that_of_veritysetup_and_a_flipped_bit_is_found() {
    let store = mixed_store();
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    for format in [settings(Compression::Zstd, 131_072).into(), ImageFormat::Erofs(Profile::Disk)] {
        let path = directory.path().join("image");
        let report = build_sealed(&store, format, &path, &cache);
        let seal = report.verity.unwrap();
        let beside = directory.path().join("image.verity.json");
        assert_eq!(serde_json::from_slice::<Seal>(&fs::read(&beside).unwrap()).unwrap(), seal);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, report.image_bytes);

        // Without the document the image is not complete, so it is built again.
        assert_eq!(build_sealed(&store, format, &path, &cache).outcome, Outcome::Unchanged);
        fs::remove_file(&beside).unwrap();
        assert_eq!(build_sealed(&store, format, &path, &cache).outcome, Outcome::Built);
        assert_eq!(build_sealed(&store, format, &path, &cache).outcome, Outcome::Unchanged);
        assert!(fs::read(&path).unwrap() == bytes);

        if let Some(image) = readers::kernel(&path) {
            readers::assert_same("the kernel", &image, &readers::store(store.path()));
        }
        let options = VerifyOptions { closure: None, nar: NarCheck::Skip, jobs: 2, problems_max: 10 };
        // A damaged table is found when the image is opened.
        let is_intact = |path: &Path| match OpenImage::open(path) {
            Ok(OpenImage::Squashfs(image)) => verify(&image, options).unwrap().ok,
            Ok(OpenImage::Erofs(image)) => check(&image).ok,
            Err(_) => false,
        };
        assert!(is_intact(&path));
        let veritysetup = testing::find_tool("veritysetup");
        if let Some(program) = &veritysetup {
            let other = directory.path().join("other");
            fs::write(&other, &bytes[..seal.hash_offset_bytes as usize]).unwrap();
            let options = [
                format!("--salt={}", seal.salt),
                "--uuid=6d696372-6f76-4d00-8069-6d6167650001".to_owned(),
                format!("--hash-offset={}", seal.hash_offset_bytes),
            ];
            let arguments = ["format".to_owned(), other.display().to_string(), other.display().to_string()];
            let printed = tools::run(program, arguments.iter().chain(&options));
            assert!(printed.contains(&seal.root_hash), "{printed}\n{}", seal.root_hash);
            assert!(fs::read(&other).unwrap() == bytes, "the tree of veritysetup is different");
        }
        let opens = |path: &Path| {
            let mut command = Command::new(veritysetup.as_deref()?);
            command.arg("verify").args([path, path]).arg(&seal.root_hash);
            command.arg(format!("--hash-offset={}", seal.hash_offset_bytes));
            Some(command.output().unwrap().status.success())
        };
        assert_ne!(opens(&path), Some(false));
        // In the content of a file, in the superblock of the tree, and in its highest and its lowest level.
        let tree_at = seal.hash_offset_bytes as usize;
        for at in [tree_at - 4096, tree_at + 70, tree_at + 4096 + 5, bytes.len() - 4096] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            let path = directory.path().join("flipped");
            fs::write(&path, &flipped).unwrap();
            assert_ne!(opens(&path), Some(true), "byte {at}");
            assert!(!is_intact(&path), "byte {at}");
        }
    }
}
