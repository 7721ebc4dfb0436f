//! Our reader accepts images of the stock tools and reads their content correctly.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod support;

use imagebuilder::extract::{ExtractOptions, SpecialFiles, extract};
use imagebuilder::image::{FileTree, Image, InodeKind, InodeType};
use imagebuilder::inspect::inspect;
use imagebuilder::verify::{NarCheck, VerifyOptions, verify};
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use support::store_tree::{Store, mixed_tree};
use support::{readers, stock, tools};

fn assert_sound(name: &str, path: &Path) {
    let image = Image::open(path).unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
    let options = VerifyOptions { closure: None, nar: NarCheck::Skip, jobs: 2, problems_max: 10 };
    let report = verify(&image, options).unwrap();
    assert!(report.ok, "{name}: {:#?}", report.problems);
}

/// Makes an image of a tree with a program's options; `None` if the program is not installed.
type Maker = fn(&Path, &Path, &[&str]) -> Option<()>;

#[test]
fn every_codec_and_option_of_the_stock_tools_is_read() {
    let store = Store::new([("tree", mixed_tree(1))]);
    let wanted = readers::directory(store.path());
    let directory = tempfile::tempdir().unwrap();
    for (name, image) in stock::images(store.path(), directory.path()) {
        readers::assert_same(&name, &readers::our_reader(&image), &wanted);
        assert_sound(&name, &image);
        fs::remove_file(image).unwrap();
    }
}

#[test]
fn files_extracted_from_a_stock_image_equal_the_original_ones() {
    let store = Store::new([("tree", mixed_tree(2))]);
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    if stock::mksquashfs(store.path(), &image, &["-comp", "zstd"]).is_none() {
        return;
    }
    let output = directory.path().join("out");
    let options = ExtractOptions { path: b"", output: &output, special_files: SpecialFiles::Refuse, jobs: 2 };
    extract(&Image::open(&image).unwrap(), options, &AtomicBool::new(false)).unwrap();
    readers::assert_same("extract", &readers::directory(&output), &readers::directory(store.path()));
}

/// Creates a tree with files that a Nix store cannot contain: devices, a pipe, hard links, extended attributes, a
/// setuid file.
fn special_tree(directory: &Path) {
    let run = |program: &str, arguments: &[&str]| {
        let arguments = arguments.iter().map(|argument| match argument.strip_prefix("TREE/") {
            Some(name) => directory.join(name).into_os_string(),
            None => argument.into(),
        });
        tools::run(program, arguments.collect::<Vec<_>>());
    };
    fs::write(directory.join("first"), "content").unwrap();
    fs::hard_link(directory.join("first"), directory.join("second")).unwrap();
    fs::create_dir(directory.join("sub")).unwrap();
    fs::hard_link(directory.join("first"), directory.join("sub/third")).unwrap();
    fs::write(directory.join("setuid"), "content of another").unwrap();
    run("chmod", &["4755", "TREE/setuid"]);
    run("mkfifo", &["TREE/pipe"]);
    run("mknod", &["TREE/character", "c", "259", "4660"]);
    run("mknod", &["TREE/block", "b", "8", "3"]);
}

#[test]
fn devices_pipes_and_hard_links_of_stock_images_are_shown_and_extracted_only_on_request() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("making devices needs root");
    }
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    special_tree(&tree);
    let path = directory.path().join("image");
    if stock::mksquashfs(&tree, &path, &[]).is_none() {
        return;
    }
    assert_sound("mksquashfs", &path);
    let image = Image::open(&path).unwrap();
    let facts = inspect(&image).unwrap();
    assert_eq!((facts.inodes.special, facts.inodes.hard_links, facts.inodes.files), (3, 2, 2));
    assert!(matches!(image.find(b"character").unwrap().1.kind, InodeKind::CharacterDevice(0x0121_0334)));
    assert!(matches!(image.find(b"block").unwrap().1.kind, InodeKind::BlockDevice(0x0803)));
    let first = image.find(b"first").unwrap().1;
    assert_eq!((first.links, first.number), (3, image.find(b"/sub//third").unwrap().1.number));

    let cancel = AtomicBool::new(false);
    let refused = directory.path().join("refused");
    let options = ExtractOptions { path: b"", output: &refused, special_files: SpecialFiles::Refuse, jobs: 1 };
    let error = extract(&image, options, &cancel).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/block is a block-device, and there are 2 more such files: devices, pipes and sockets are not extracted"
    );
    assert!(!refused.exists(), "a refused image leaves nothing behind");

    let output = directory.path().join("out");
    let options = ExtractOptions { path: b"", output: &output, special_files: SpecialFiles::Skip, jobs: 2 };
    let report = extract(&image, options, &cancel).unwrap();
    assert_eq!((report.special_files_skipped, report.hard_links, report.set_id_bits_dropped), (3, 2, 1));
    use std::os::unix::fs::MetadataExt;
    let links = ["first", "second", "sub/third"].map(|name| fs::metadata(output.join(name)).unwrap());
    assert!(links.iter().all(|metadata| metadata.ino() == links[0].ino() && metadata.nlink() == 3));
    assert_eq!(fs::metadata(output.join("setuid")).unwrap().mode() & 0o7777, 0o755);
    assert!(!output.join("pipe").exists());
}

#[test]
fn extended_attributes_of_stock_images_are_read() {
    let Some(setfattr) = testing::find_tool("setfattr") else { return };
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let value = "v".repeat(3000);
    for name in ["a", "b"] {
        fs::write(tree.join(name), "content").unwrap();
        for (xattr, value) in [("user.short", "x"), ("user.long", value.as_str())] {
            let file = tree.join(name);
            tools::run(&setfattr, ["-n".as_ref(), xattr.as_ref(), "-v".as_ref(), value.as_ref(), file.as_os_str()]);
        }
    }
    fs::write(tree.join("without"), "").unwrap();
    let path = directory.path().join("image");
    let makers: [Maker; 2] = [stock::mksquashfs, |tree, image, _| stock::gensquashfs(tree, image, &["-x", "-f"])];
    for make in makers {
        if make(&tree, &path, &[]).is_none() {
            continue;
        }
        assert_sound("with xattrs", &path);
        let image = Image::open(&path).unwrap();
        for name in ["a", "b"] {
            let mut xattrs = image.xattrs(&image.find(name.as_bytes()).unwrap().1).unwrap();
            xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let seen: Vec<_> = xattrs.iter().map(|xattr| (xattr.name.as_slice(), xattr.value.as_slice())).collect();
            assert_eq!(seen, [(&b"user.long"[..], value.as_bytes()), (&b"user.short"[..], &b"x"[..])]);
        }
        assert_eq!(image.xattrs(&image.find(b"without").unwrap().1).unwrap(), []);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_path_is_found_with_any_slashes_around_it() {
    let store = Store::new([("tree", mixed_tree(3))]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    if stock::mksquashfs(&store.store_path("tree"), &path, &[]).is_none() {
        return;
    }
    let image = Image::open(&path).unwrap();
    for path in ["many", "/many", "many/", "//many//", "./many/."] {
        assert_eq!(image.find(path.as_bytes()).unwrap().1.inode_type(), InodeType::Directory, "{path}");
    }
    for path in ["many/nothing", "nothing", "program/x", "..", "many/../many"] {
        let error = image.find(path.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), format!("/{path} is not in the image"));
    }
}
