//! `extract` restores the files of an image, and fails with a clear error if it cannot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod support;

use imagebuilder::extract::{ExtractError, ExtractOptions, ExtractReport, SpecialFiles, extract};
use imagebuilder::image::Image;
use imagebuilder::settings::ImageSettings;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use support::built::build_image;
use support::store_tree::{Item, Store, base_name, mixed_tree};
use support::{readers, tools};

struct Built {
    store: Store,
    directory: tempfile::TempDir,
    image: Image,
}

impl Built {
    fn new(item: Item) -> Self {
        let store = Store::new([("tree", item)]);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        build_image(store.path(), ImageSettings::default(), &path);
        let image = Image::open(&path).unwrap();
        Self { store, directory, image }
    }

    fn output(&self) -> PathBuf {
        self.directory.path().join("output")
    }

    fn extract(&self, path: &str, output: &Path) -> Result<ExtractReport, ExtractError> {
        let options = ExtractOptions { path: path.as_bytes(), output, special_files: SpecialFiles::Refuse, jobs: 2 };
        extract(&self.image, options, &AtomicBool::new(false))
    }
}

#[test]
fn extracted_files_equal_those_in_the_store_and_have_its_times() {
    let built = Built::new(mixed_tree(21));
    let output = built.output();
    let report = built.extract("", &output).unwrap();
    readers::assert_same("extract", &readers::directory(&output), &readers::store(built.store.path()));
    let tree = output.join(base_name("tree"));
    for name in ["", "many", "many/file-007", "link", "sparse", "deep/beside"] {
        assert_eq!(fs::symlink_metadata(tree.join(name)).unwrap().mtime(), 1, "{name}");
    }
    let sparse = fs::metadata(tree.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < sparse.len() / 2, "holes take {} blocks", sparse.blocks());
    assert!(report.files > 400 && report.directories > 30 && report.symlinks > 30);
    support::tools::run("chmod", ["-R".as_ref(), "u+w".as_ref(), output.as_os_str()]);
}

#[test]
fn a_path_is_extracted_under_its_last_name() {
    let built = Built::new(mixed_tree(22));
    let path = format!("{}/deep/level-29/level-28", base_name("tree"));
    let output = built.output();
    built.extract(&path, &output).unwrap();
    let wanted = readers::store_path(&built.store.path().join(&path));
    readers::assert_same("directory", &readers::directory(&output.join("level-28")), &wanted);
    for name in ["program", "link"] {
        let output = built.directory.path().join(name);
        built.extract(&format!("{}/{name}", base_name("tree")), &output).unwrap();
        let names: Vec<_> = fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [name]);
    }
    support::tools::run("chmod", ["-R".as_ref(), "u+w".as_ref(), output.as_os_str()]);
}

#[test]
fn a_path_that_does_not_exist_leaves_nothing_behind() {
    let built = Built::new(Item::directory([("file", Item::file("content"))]));
    let error = built.extract("nothing", &built.output()).unwrap_err();
    assert_eq!(error.to_string(), "/nothing is not in the image");
    assert!(!built.output().exists());
}

#[test]
fn the_output_must_be_missing_or_empty_and_may_be_a_symlink() {
    let built = Built::new(Item::directory([("file", Item::file("content"))]));
    let empty = built.directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let link = built.directory.path().join("link");
    symlink(&empty, &link).unwrap();
    built.extract("", &link).unwrap();
    let file = empty.join(base_name("tree")).join("file");
    assert_eq!(fs::read(&file).unwrap(), b"content");
    for taken in [&empty, &link] {
        let error = built.extract("", taken).unwrap_err();
        assert_eq!(error.to_string(), format!("{} is not empty", taken.display()));
    }
    assert!(matches!(built.extract("", &file), Err(ExtractError::Write { .. })), "a file is not a directory");
    let error = built.extract("", Path::new("/nowhere/at/all")).unwrap_err();
    assert_eq!(error.to_string(), "cannot create directory /nowhere/at/all");
    support::tools::run("chmod", ["-R".as_ref(), "u+w".as_ref(), empty.as_os_str()]);
}

#[test]
fn an_interrupted_extraction_is_an_error() {
    let built = Built::new(mixed_tree(23));
    let output = built.output();
    let options = ExtractOptions { path: b"", output: &output, special_files: SpecialFiles::Refuse, jobs: 2 };
    let error = extract(&built.image, options, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, ExtractError::Interrupted));
}

#[test]
fn a_failed_extraction_removes_the_directory_that_it_created() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("mounting needs root");
    }
    let noise = support::seeded::Seeded::new(25).noise(3_000_000);
    let built = Built::new(Item::directory([("fits", Item::file("x")), ("large", Item::file(noise))]));
    let output = built.output();
    fs::create_dir(&output).unwrap();
    tools::run("mount", ["-t", "tmpfs", "-o", "size=1m", "none", output.to_str().unwrap()]);
    let result = built.extract("", &output.join("made"));
    let left = fs::read_dir(&output).unwrap().count();
    tools::run("umount", [&output]);
    assert_eq!((result.is_err(), left), (true, 0));
}

#[test]
fn the_error_for_a_full_disk_names_the_file_and_no_partial_file_remains() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("mounting needs root");
    }
    let noise = support::seeded::Seeded::new(24).noise(3_000_000);
    let built = Built::new(Item::directory([("fits", Item::file("x")), ("large", Item::file(noise))]));
    let output = built.output();
    fs::create_dir(&output).unwrap();
    tools::run("mount", ["-t", "tmpfs", "-o", "size=1m", "none", output.to_str().unwrap()]);
    let result = built.extract("", &output);
    let left: Vec<_> =
        fs::read_dir(output.join(base_name("tree"))).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    tools::run("umount", [&output]);
    let error = result.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(error.to_string(), format!("cannot write {}", output.join(base_name("tree")).join("large").display()));
    assert!(source.starts_with("No space left on device"), "{source}");
    assert!(left.iter().all(|name| name == "fits"), "{left:?}");
}
