//! The commands that read images: their output on stdout and stderr, and their exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod support;

use imagebuilder::settings::{Compression, ImageSettings};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::built::{build_image, settings};
use support::store_tree::{Item, Store, base_name};

struct Fixture {
    store: Store,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let tree = Item::directory([
            ("bin", Item::directory([("run", Item::program("#! /bin/sh\n"))])),
            ("empty", Item::file("")),
            ("link to", Item::symlink("bin/run\n")),
            ("text", Item::file("text ".repeat(2000))),
            ("zeros", Item::file(vec![0; 10_000])),
        ]);
        let store = Store::new([("tree", tree)]);
        let directory = tempfile::tempdir().unwrap();
        let names: String = fs::read_dir(store.path())
            .unwrap()
            .map(|entry| format!("/nix/store/{}\n", entry.unwrap().file_name().to_str().unwrap()))
            .collect();
        fs::write(directory.path().join("paths"), names).unwrap();
        let fixture = Self { store, directory };
        build_image(fixture.store.path(), settings(Compression::None, 4096), &fixture.image());
        fixture
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm-image"));
        command.args(arguments).current_dir(self.directory.path()).output().unwrap()
    }

    fn run_with_closure(&self, arguments: &[&str]) -> Output {
        let store_dir = self.store.path().to_str().unwrap();
        self.run(&[arguments, &["--paths-from", "paths", "--store-dir", store_dir]].concat())
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, stderr: &str) {
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(code), stderr), "{}", text(&output.stdout));
}

#[test]
fn verify_prints_what_it_compared() {
    let fixture = Fixture::new();
    assert_ends(&fixture.run(&["verify", "image"]), 0, "ok: 9 inodes\n");
    let output = fixture.run_with_closure(&["verify", "image"]);
    assert_ends(&output, 0, "ok: 9 inodes, 1 store paths match the store\n");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn verify_prints_all_problems_and_exits_with_1() {
    let fixture = Fixture::new();
    let tree = fixture.store.store_path("tree");
    fs::remove_file(tree.join("empty")).unwrap();
    fs::remove_file(tree.join("text")).unwrap();
    let path = format!("/{}", base_name("tree"));
    let problems = format!(
        "{path}/empty: is in the image but not in the store\n{path}/text: is in the image but not in the store\n"
    );
    let output = fixture.run_with_closure(&["verify", "image"]);
    assert_ends(&output, 1, &format!("{problems}error: image: 2 problems found\n"));
    let output = fixture.run_with_closure(&["verify", "image", "--json", "--max-problems", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["version"], 1);
    assert_eq!((report["ok"].as_bool(), report["problemCount"].as_u64()), (Some(false), Some(2)));
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    assert_eq!(report["problems"][0]["kind"], "extra");
    assert_eq!(report["problems"][0]["path"], format!("{path}/empty"));
}

#[test]
fn a_store_without_any_path_of_the_closure_is_one_error_with_the_remedy() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.directory.path().join("elsewhere")).unwrap();
    let output = fixture.run(&["verify", "image", "--paths-from", "paths", "--store-dir", "elsewhere"]);
    let store = fixture.directory.path().join("elsewhere");
    let error = format!(
        "error: the store path of the closure is not in {}\n\
         hint: use --store-dir DIR if the store paths are in another directory\n",
        store.display()
    );
    assert_ends(&output, 2, &error);
}

#[test]
fn every_command_refuses_a_file_that_is_not_an_image() {
    let fixture = Fixture::new();
    fs::write(fixture.directory.path().join("short"), &fs::read(fixture.image()).unwrap()[..5000]).unwrap();
    for command in [&["verify"][..], &["inspect"], &["inspect", "--tree"], &["extract", "-o", "out"]] {
        let output = fixture.run(&[command, &["paths"]].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {stderr}");
        assert!(
            stderr.starts_with("error: paths: neither a squashfs 4.0 nor an erofs image: it "),
            "{command:?}: {stderr}"
        );
        let output = fixture.run(&[command, &["short"]].concat());
        let stderr = text(&output.stderr);
        assert!(
            stderr.starts_with("error: short: superblock: says ") && stderr.ends_with("it is truncated\n"),
            "{stderr}"
        );
        let output = fixture.run(&[command, &["nothing"]].concat());
        assert_ends(&output, 1, "error: cannot open image nothing: No such file or directory (os error 2)\n");
    }
    assert!(!fixture.directory.path().join("out").exists());
    let report = fixture.run(&["verify", "short", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((report["ok"].as_bool(), &report["problems"][0]["kind"]), (Some(false), &"damaged".into()));
}

#[test]
fn an_image_on_a_block_device_may_be_followed_by_other_bytes() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        return testing::missing("loop devices need root");
    }
    let fixture = Fixture::new();
    let image = fs::read(fixture.image()).unwrap();
    let disk = fixture.directory.path().join("disk");
    fs::write(&disk, [&image[..], &[0xaa; 8192]].concat()).unwrap();
    let output = fixture.run(&["verify", "disk"]);
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("padding: byte ") && stderr.ends_with("error: disk: 1 problem found\n"), "{stderr}");
    let device = support::tools::run("losetup", ["--find".as_ref(), "--show".as_ref(), disk.as_os_str()]);
    let output = fixture.run_with_closure(&["verify", device.trim()]);
    support::tools::run("losetup", ["--detach", device.trim()]);
    assert_ends(&output, 0, "ok: 9 inodes, 1 store paths match the store\n");
}

#[test]
fn checking_nar_hashes_without_a_closure_is_refused() {
    let output = Fixture::new().run(&["verify", "image", "--nar"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("error: --nar was given without a closure to compare with\nhint: "));
}

/// The golden file has the position of everything in an image, so that a change of the format or the order is noticed.
#[test]
fn the_tree_of_an_image_is_the_golden_one() {
    let fixture = Fixture::new();
    let output = fixture.run(&["inspect", "--tree", "image"]);
    assert_ends(&output, 0, "");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/inspect-tree.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &output.stdout).unwrap();
    }
    assert_eq!(text(&output.stdout), fs::read_to_string(&golden).unwrap(), "UPDATE_GOLDEN=1 updates the golden file");
}

#[test]
fn inspect_prints_the_facts() {
    let fixture = Fixture::new();
    let output = fixture.run(&["inspect", "image", "--json"]);
    assert_ends(&output, 0, "");
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["version"], 1);
    assert_eq!(facts["imageBytes"], fs::metadata(fixture.image()).unwrap().len());
    assert_eq!((facts["inodes"]["files"].as_u64(), facts["inodes"]["symlinks"].as_u64()), (Some(4), Some(1)));
    assert_eq!(facts["contentBytes"], 11 + 10_000 + 10_000);
    let output = fixture.run(&["inspect", "image"]);
    assert!(text(&output.stdout).contains("\ninodes            9\n"), "{}", text(&output.stdout));
    assert_eq!(fixture.run(&["inspect", "--tree", "--json", "image"]).status.code(), Some(2));
}

#[test]
fn the_level_is_printed_if_the_image_contains_it() {
    let fixture = Fixture::new();
    for (compression, level) in [(Compression::Zstd, 3), (Compression::Gzip, 4)] {
        let settings = ImageSettings::new(compression, Some(level), None, None).unwrap();
        build_image(fixture.store.path(), settings, &fixture.image());
        let output = fixture.run(&["inspect", "image"]);
        let line = format!("\ncodec             {} level {level}\n", compression.name());
        assert!(text(&output.stdout).contains(&line), "{}", text(&output.stdout));
    }
}

#[test]
fn extract_prints_the_output_directory() {
    let fixture = Fixture::new();
    let output = fixture.run(&["extract", "image", "-o", "out"]);
    assert_ends(&output, 0, "");
    assert_eq!(text(&output.stdout), "out\n");
    let tree = fixture.directory.path().join("out").join(base_name("tree"));
    assert_eq!(fs::read(tree.join("bin/run")).unwrap(), b"#! /bin/sh\n");
    let again = fixture.run(&["extract", "image", "-o", "out"]);
    assert_ends(&again, 2, "error: out is not empty\nhint: choose a directory that does not exist yet\n");
    let part = fixture.run(&["extract", "image", &format!("/{}/bin", base_name("tree")), "-o", "part", "--json"]);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&part.stdout).unwrap()["files"], 1);
    assert!(fixture.directory.path().join("part/bin/run").exists());
    support::tools::run("chmod", ["-R".as_ref(), "u+w".as_ref(), fixture.directory.path().as_os_str()]);
}
