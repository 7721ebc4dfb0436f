//! Malicious and damaged images: the program never panics, loops for ever, uses unbounded memory, or writes outside of
//! the output directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod support;

use imagebuilder::dump::dump;
use imagebuilder::extract::{ExtractError, ExtractOptions, SpecialFiles, extract};
use imagebuilder::image::{FileTree, Image, ImageError};
use imagebuilder::inspect::inspect;
use imagebuilder::nar::nar_digest;
use imagebuilder::settings::Compression;
use imagebuilder::verify::{NarCheck, VerifyOptions, VerifyReport, verify};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use support::built::{PlainImage, build_image, in_tree, settings};
use support::seeded::Seeded;
use support::stock;
use support::store_tree::{Item, Store, base_name};

/// Limit for dumps of the small images in these tests. A longer dump means that the reader loops.
const MAX_DUMP_BYTES: usize = 64 << 20;
/// Larger files are not extracted in these tests. A hole of terabytes would be valid.
const MAX_EXTRACT_BYTES: u64 = 256 << 20;

/// A writer that fails the test after a number of bytes.
struct Limited(usize);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(bytes.len() <= self.0, "the dump does not end");
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn check(image: &Image) -> VerifyReport {
    let options = VerifyOptions { closure: None, nar: NarCheck::Skip, jobs: 1, problems_max: 20 };
    verify(image, options).unwrap()
}

fn try_extract(image: &Image, output: &Path) -> Result<(), ExtractError> {
    let options = ExtractOptions { path: b"", output, special_files: SpecialFiles::Skip, jobs: 1 };
    extract(image, options, &AtomicBool::new(false)).map(drop)
}

/// Runs all operations of this crate on the image, extracts it if there is a jail, and returns whether the image is
/// sound.
fn use_up(bytes: Vec<u8>, jail: Option<&Jail>) -> bool {
    let Ok(image) = Image::from_source(Box::new(bytes)) else { return false };
    // Errors are expected; panics, endless loops and unbounded memory are not.
    let facts = inspect(&image);
    let _ = dump(&image, &mut Limited(MAX_DUMP_BYTES));
    let sound = check(&image).ok;
    if facts.is_ok_and(|facts| facts.content_bytes < MAX_EXTRACT_BYTES) {
        let _ = nar_digest(&image, b"");
        if let Some(jail) = jail {
            jail.extract(&image);
        }
    }
    sound
}

/// A directory that contains an output directory and files that an extraction must not change.
struct Jail {
    around: tempfile::TempDir,
}

impl Jail {
    fn new() -> Self {
        let around = support::scratch::directory();
        fs::write(around.path().join("victim"), "untouched").unwrap();
        Self { around }
    }

    fn extract(&self, image: &Image) {
        let output = self.around.path().join("output");
        let _ = try_extract(image, &output);
        if output.exists() && fs::remove_dir_all(&output).is_err() {
            // The modes of damaged directories may not allow their removal.
            support::tools::run("chmod", ["-R".as_ref(), "u+rwX".as_ref(), output.as_os_str()]);
            fs::remove_dir_all(&output).unwrap();
        }
        self.assert_untouched();
    }

    fn assert_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.around.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["victim"], "something was made outside of the output directory");
        assert_eq!(fs::read(self.around.path().join("victim")).unwrap(), b"untouched");
    }
}

/// Returns a small tree with files of all types.
fn small_tree() -> Item {
    let mut seeded = Seeded::new(9);
    let many = (0..300).map(|number| (format!("entry-{number:03}"), Item::file(format!("{number}"))));
    Item::directory([
        ("empty", Item::file("")),
        ("text", Item::file(seeded.text(20_000))),
        ("noise", Item::program(seeded.noise(9000))),
        ("sparse", Item::sparse(100_000, [(50_000, b"middle".to_vec())])),
        ("link", Item::symlink("../../../../../../tmp/victim")),
        ("many", Item::directory(many.collect::<Vec<_>>())),
        ("nested", Item::directory([("deeper", Item::directory([("file", Item::file("deep"))]))])),
    ])
}

/// Returns images of the small tree, made by our builder and the stock tools.
fn small_images() -> Vec<(String, Vec<u8>)> {
    let store = Store::new([("tree", small_tree()), ("file", Item::file("alone"))]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let mut images = Vec::new();
    for compression in Compression::ALL {
        build_image(store.path(), settings(compression, 4096), &path);
        images.push((format!("our builder, {}", compression.name()), fs::read(&path).unwrap()));
    }
    for (name, path) in stock::images(store.path(), directory.path()) {
        images.push((name, fs::read(path).unwrap()));
    }
    images.extend(image_with_xattrs());
    images
}

/// Returns a small image with uncompressed tables and with extended attributes, some equal, some longer than a metadata
/// block.
fn image_with_xattrs() -> Option<(String, Vec<u8>)> {
    let setfattr = testing::find_tool("setfattr")?;
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..6_usize {
        let file = tree.join(format!("file-{number}"));
        fs::write(&file, "content").unwrap();
        for (name, value) in [("user.a", "x".to_owned()), ("user.b", "y".repeat(number / 2 * 1500))] {
            let arguments = ["-n", name, "-v", &value, file.to_str().unwrap()];
            support::tools::run(&setfattr, arguments);
        }
    }
    let path = directory.path().join("image");
    stock::mksquashfs(&tree, &path, &["-noI", "-noX"])?;
    Some(("mksquashfs with xattrs".to_owned(), fs::read(path).unwrap()))
}

/// Mutates an image: flips bits, sets single values, writes runs of ones or zeros, copies pieces, or truncates it. The
/// superblock and tables are changed more often than the data.
fn mutate(bytes: &mut Vec<u8>, seeded: &mut Seeded) {
    let tables = u64::from_le_bytes(bytes[64..72].try_into().unwrap()) as usize;
    for _ in 0..=seeded.below(4) {
        let length = bytes.len();
        let at = match seeded.below(8) {
            0 | 1 => seeded.index(96),
            2 => seeded.index(length),
            _ => tables.min(length - 1) + seeded.index(length - tables.min(length - 1)),
        };
        let run = (1 + seeded.index(8)).min(length - at);
        match seeded.below(8) {
            0..=2 => bytes[at] ^= 1 << seeded.below(8),
            3 => bytes[at] = seeded.next() as u8,
            4 => bytes[at..at + run].fill(0xff),
            5 => bytes[at..at + run].fill(0),
            6 => {
                let from = seeded.index(length - run);
                bytes.copy_within(from..from + run, at);
            }
            _ if seeded.below(4) == 0 => bytes.truncate(at.max(1)),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
        if bytes.len() < 97 {
            return;
        }
    }
}

/// Number of mutations of each image.
const MUTATIONS: u64 = 200;

#[test]
fn mutated_images_are_read_or_refused_without_a_panic() {
    let jail = Jail::new();
    let (mut tried, mut refused) = (0, 0);
    for (name, original) in small_images() {
        assert!(use_up(original.clone(), Some(&jail)), "{name} is not sound to begin with");
        let mut seeded = Seeded::new(original.len() as u64);
        for case in 0..MUTATIONS {
            let mut bytes = original.clone();
            mutate(&mut bytes, &mut seeded);
            let unchanged = bytes == original;
            let jail = (case % 25 == 0).then_some(&jail);
            let sound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| use_up(bytes, jail)));
            let sound = sound.unwrap_or_else(|_| panic!("{name}: mutation {case} panics"));
            tried += 1;
            refused += u64::from(!sound && !unchanged);
        }
    }
    // Some bytes have no meaning (creation time, padding of codecs), and some changes result in another valid image.
    assert!(tried >= 5 * MUTATIONS && refused * 10 > tried * 6, "only {refused} of {tried} mutations were detected");
    assert!(peak_memory_bytes() < 512 << 20, "{} bytes of memory", peak_memory_bytes());
}

/// Returns the highest resident size of this process in bytes.
fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

#[test]
fn every_truncation_of_an_image_is_refused() {
    let store = Store::new([("tree", small_tree())]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    build_image(store.path(), settings(Compression::Zstd, 4096), &path);
    let bytes = fs::read(&path).unwrap();
    let used = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    for length in (0..used).step_by(37).chain([95, 96, 97, used - 1]) {
        let error = Image::from_source(Box::new(bytes[..length].to_vec())).unwrap_err().chain();
        assert!(
            ["truncated", "cut off", "superblock alone"].iter().any(|words| error.contains(words)),
            "{length}: {error}"
        );
    }
}

fn opening_fails(bytes: Vec<u8>) -> ImageError {
    Image::from_source(Box::new(bytes)).unwrap_err()
}

#[test]
fn a_superblock_that_claims_four_billion_inodes_is_refused_before_anything_is_held_for_them() {
    let original = PlainImage::new(small_tree());
    let mut image = PlainImage { bytes: original.bytes.clone() };
    image.put(4, &u32::MAX.to_le_bytes());
    assert!(opening_fails(image.bytes).chain().contains("export table"));
    let mut alone = PlainImage { bytes: original.bytes[..96].to_vec() };
    alone.put(4, &u32::MAX.to_le_bytes());
    assert!(opening_fails(alone.bytes).chain().contains("truncated"));
    // Without an export table, only the size of the inode table contradicts the number.
    let mut image = PlainImage { bytes: original.bytes };
    image.put(4, &u32::MAX.to_le_bytes());
    image.put(88, &u64::MAX.to_le_bytes());
    let error = opening_fails(image.bytes).chain();
    assert!(error.starts_with("superblock: says there are 4294967295 inodes, but the inode table has only"), "{error}");
}

#[test]
fn a_superblock_that_claims_millions_of_fragments_is_refused() {
    let mut image = PlainImage::new(small_tree());
    image.put(16, &u32::MAX.to_le_bytes());
    let error = opening_fails(image.bytes).chain();
    assert_eq!(error, "fragment table: 4294967295 fragment blocks (the limit of this reader is 16777216)");
}

/// Opens an image, expects the check and the extraction to fail, and returns all messages.
fn assert_refused(image: PlainImage) -> String {
    let jail = Jail::new();
    let image = Image::from_source(Box::new(image.bytes)).unwrap();
    let report = check(&image);
    assert!(!report.ok);
    let output = jail.around.path().join("output");
    let error = match try_extract(&image, &output) {
        Err(ExtractError::Image(error)) => error.chain(),
        result => panic!("{result:?}"),
    };
    assert!(!output.exists(), "damage to the tree is found before anything is made");
    jail.assert_untouched();
    let mut printed: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    printed.push(error);
    printed.join("\n")
}

#[test]
fn names_that_point_out_of_the_directory_are_refused() {
    for (from, to) in [
        ("aa", "..".as_bytes()),
        ("~", b"."),
        ("aaaa", b"../x"),
        ("aaaaaa", b"/etc/x"),
        ("aaa", b"a/b"),
        ("aaa", b"a\0b"),
    ] {
        let mut image = PlainImage::new(Item::directory([(from, Item::file("content"))]));
        image.rename(from.as_bytes(), to);
        let printed = assert_refused(image);
        assert!(printed.contains("cannot be a name"), "{to:?}: {printed}");
    }
}

#[test]
fn a_name_that_is_listed_twice_is_refused_so_that_no_link_can_redirect_a_later_file() {
    let mut image = PlainImage::new(Item::directory([
        ("aaaaaa", Item::symlink("/tmp")),
        ("bbbbbb", Item::directory([("victim", Item::file("overwritten"))])),
    ]));
    image.rename(b"bbbbbb", b"aaaaaa");
    let printed = assert_refused(image);
    assert!(printed.contains("its names are not in ascending order: aaaaaa follows aaaaaa"), "{printed}");
}

#[test]
fn symlinks_to_outside_paths_are_created_but_never_followed() {
    let jail = Jail::new();
    let image = PlainImage::new(Item::directory([
        ("absolute", Item::symlink(jail.around.path().join("victim").to_str().unwrap())),
        ("relative", Item::symlink("../../victim")),
        ("up", Item::symlink("../../..")),
    ]));
    let output = jail.around.path().join("output");
    try_extract(&Image::from_source(Box::new(image.bytes)).unwrap(), &output).unwrap();
    let tree = output.join(base_name("tree"));
    assert_eq!(fs::read_link(tree.join("relative")).unwrap(), Path::new("../../victim"));
    assert!(fs::symlink_metadata(tree.join("up")).unwrap().is_symlink());
    assert_eq!(fs::read(jail.around.path().join("victim")).unwrap(), b"untouched");
}

/// Returns an image with a directory `outer` that contains a directory `inner`, and the positions of their inodes.
fn nested() -> (PlainImage, usize, usize) {
    let inner = Item::directory([("file", Item::file("content"))]);
    // The entries after it make the table long enough for a listing that is read twice.
    let behind = Item::directory([("n".repeat(200), Item::file("")), ("o".repeat(200), Item::file(""))]);
    let image = PlainImage::new(Item::directory([("outer", Item::directory([("inner", inner)])), ("z", behind)]));
    let opened = Image::from_source(Box::new(image.bytes.clone())).unwrap();
    let number = |path: &str| opened.find(in_tree(path).as_bytes()).unwrap().1.number;
    let (outer, inner) = (image.inode(number("outer")), image.inode(number("outer/inner")));
    (image, outer, inner)
}

#[test]
fn a_directory_that_contains_itself_is_refused() {
    let (mut image, outer, inner) = nested();
    // Copy the position and length of the listing, so that `inner` has the entries of `outer`.
    for (at, length) in [(16, 4), (24, 4)] {
        let bytes = image.bytes[outer + at..outer + at + length].to_vec();
        image.put(inner + at, &bytes);
    }
    let printed = assert_refused(image);
    assert!(printed.contains("is reached a second time"), "{printed}");
}

#[test]
fn directories_that_share_a_listing_are_refused_so_that_a_tree_cannot_double_at_every_level() {
    let directory = |name: &str| Item::directory([(name.to_owned(), Item::file("content"))]);
    let mut image = PlainImage::new(Item::directory([
        ("a", directory("long-enough-to-notice")),
        ("b", directory("x")),
        ("c", directory("y")),
    ]));
    let opened = Image::from_source(Box::new(image.bytes.clone())).unwrap();
    let inode = |path: &str| image.inode(opened.find(in_tree(path).as_bytes()).unwrap().1.number);
    let (a, others) = (inode("a"), [inode("b"), inode("c")]);
    for other in others {
        for (at, length) in [(16, 4), (24, 4)] {
            let bytes = image.bytes[a + at..a + at + length].to_vec();
            image.put(other + at, &bytes);
        }
    }
    let printed = assert_refused(image);
    assert!(printed.contains("listings overlap"), "{printed}");
}

#[test]
fn a_file_that_claims_more_blocks_than_it_lists_is_refused() {
    let mut image = PlainImage::new(Item::directory([("file", Item::file(Seeded::new(1).noise(9000)))]));
    let opened = Image::from_source(Box::new(image.bytes.clone())).unwrap();
    let file = image.inode(opened.find(in_tree("file").as_bytes()).unwrap().1.number);
    image.put(file + 28, &u32::MAX.to_le_bytes());
    let printed = assert_refused(image);
    assert!(printed.contains("more blocks than it lists"), "{printed}");
}

/// Returns an image with a file of noise that has three blocks and a tail, and the positions of its inode and its size
/// words.
fn file_of_blocks() -> (PlainImage, usize, usize) {
    let image = PlainImage::new(Item::directory([("file", Item::file(Seeded::new(1).noise(3 * 4096)))]));
    let opened = Image::from_source(Box::new(image.bytes.clone())).unwrap();
    let file = image.inode(opened.find(in_tree("file").as_bytes()).unwrap().1.number);
    (image, file, file + 32)
}

fn problems_of(image: PlainImage) -> String {
    let report = check(&Image::from_source(Box::new(image.bytes)).unwrap());
    assert!(!report.ok);
    report.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn blocks_that_are_outside_of_the_data_overlap_or_have_a_wrong_length_are_found() {
    const PLAIN: u32 = 1 << 24;
    let wrong_words = [
        (PLAIN | 4095, "it has 4095 bytes, but 4096 are needed"),
        (4096, "does not decompress with gzip"),
        (PLAIN | 5000, "it is stored in 5000 bytes, more than a block has"),
        (PLAIN, "its size word is 0x1000000"),
        (1 << 25 | 4096, "its size word is 0x2001000"),
    ];
    for (word, wanted) in wrong_words {
        let (mut image, _, words) = file_of_blocks();
        image.put(words, &word.to_le_bytes());
        let printed = problems_of(image);
        assert!(printed.contains(wanted), "{word:#x}: {printed}");
    }
    for start in [0_u32, 95, u32::MAX] {
        let (mut image, file, _) = file_of_blocks();
        image.put(file + 16, &start.to_le_bytes());
        let printed = problems_of(image);
        assert!(printed.contains("outside of the data"), "{start}: {printed}");
    }
}

#[test]
fn a_decompression_bomb_is_limited_to_one_block() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    let store = Store::new([("tree", Item::directory([("file", Item::file(Seeded::new(1).text(20 * 4096)))]))]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    build_image(store.path(), settings(Compression::Zstd, 1 << 20), &path);
    let mut bytes = fs::read(&path).unwrap();
    let block = Image::from_source(Box::new(bytes.clone())).unwrap().superblock().bytes_used as usize;
    assert!(bomb.len() < block, "the bomb has {} bytes", bomb.len());
    bytes[98..98 + bomb.len()].copy_from_slice(&bomb);
    let image = Image::from_source(Box::new(bytes)).unwrap();
    let printed = check(&image).problems.iter().map(ToString::to_string).collect::<String>();
    assert!(printed.contains("does not decompress with zstd"), "{printed}");
}

#[test]
fn files_that_are_not_images_are_refused() {
    let elf = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(opening_fails(elf).to_string().starts_with("not a squashfs 4.0 image: it begins with"));
    assert!(opening_fails(Vec::new()).to_string().contains("it has 0 bytes"));
    let error = Image::open(Path::new("/does/not/exist")).unwrap_err();
    assert_eq!(error.chain(), "cannot open image /does/not/exist: No such file or directory (os error 2)");
}
