//! `diff` between two images, and `size` of the store paths in one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use imagebuilder::diff::{DiffOptions, diff};
use imagebuilder::image::Image;
use imagebuilder::path_sizes::{PathSizes, path_sizes};
use imagebuilder::settings::{Compression, ImageSettings};
use std::process::Command;
use support::built::{build_image, settings};
use support::seeded::Seeded;
use support::store_tree::{Item, Store, base_name, mixed_tree};

fn image_of(store: &Store, settings: ImageSettings) -> Image {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    build_image(store.path(), settings, &path);
    // The open file stays readable after the directory is removed.
    Image::open(&path).unwrap()
}

fn differences(first: &Image, second: &Image) -> Vec<String> {
    let report = diff(first, second, DiffOptions { jobs: 2, max_differences: 100 }).unwrap();
    assert_eq!(report.difference_count, report.differences.len() as u64);
    report.differences.iter().map(ToString::to_string).collect()
}

#[test]
fn images_of_one_store_are_equal_for_all_settings() {
    let store = Store::new([("tree", mixed_tree(31)), ("file", Item::file("x"))]);
    let images = [
        image_of(&store, settings(Compression::Zstd, 4096)),
        image_of(&store, settings(Compression::None, 1 << 20)),
        image_of(&store, settings(Compression::Lz4, 131_072)),
    ];
    for second in &images[1..] {
        assert_eq!(differences(&images[0], second), Vec::<String>::new());
    }
}

#[test]
fn every_difference_is_reported_once_and_whole_trees_in_one_line() {
    let noise = Seeded::new(32).noise(600_000);
    let mut changed_noise = noise.clone();
    changed_noise[599_999] ^= 1;
    let mut holes = vec![(0, b"start".to_vec())];
    let sparse = |pieces: &[(u64, Vec<u8>)]| Item::sparse(900_000, pieces);
    let first_sparse = sparse(&holes);
    holes.push((700_001, vec![1]));
    let tree = |last: u8| Item::directory([("x", Item::directory([("y", Item::file([last]))]))]);
    let first = Store::new([
        (
            "common",
            Item::directory([
                ("-", tree(1)),
                ("becomes-link", Item::file("file")),
                ("large", Item::file(noise)),
                ("link", Item::symlink("one target")),
                ("program", Item::program("same")),
                ("same", tree(2)),
                ("shorter", Item::file("longer")),
                ("sparse", first_sparse),
            ]),
        ),
        ("gone", tree(3)),
    ]);
    let second = Store::new([
        (
            "common",
            Item::directory([
                ("becomes-link", Item::symlink("file")),
                ("large", Item::file(changed_noise)),
                ("link", Item::symlink("other")),
                ("new", tree(4)),
                ("program", Item::file("same")),
                ("same", tree(2)),
                ("shorter", Item::file("short")),
                ("sparse", sparse(&holes)),
            ]),
        ),
        ("new", tree(5)),
    ]);
    let first = image_of(&first, settings(Compression::Zstd, 4096));
    let second = image_of(&second, settings(Compression::Zstd, 131_072));
    let common = format!("/{}", base_name("common"));
    let mut wanted = vec![
        format!("- {common}/-"),
        format!("~ {common}/becomes-link: type file became symlink, mode 0444 became 0777"),
        format!("~ {common}/large: content differs at byte 599999"),
        format!("~ {common}/link: target one\\x20target became other"),
        format!("+ {common}/new"),
        format!("~ {common}/program: mode 0555 became 0444"),
        format!("~ {common}/shorter: size 6 became 5"),
        format!("~ {common}/sparse: content differs at byte 700001"),
        format!("- /{}", base_name("gone")),
        format!("+ /{}", base_name("new")),
    ];
    let by_path = |line: &String| line.split([' ', ':']).nth(1).unwrap().to_owned();
    wanted.sort_by_key(by_path);
    assert_eq!(differences(&first, &second), wanted);
}

fn sizes(store: &Store, settings: ImageSettings) -> PathSizes {
    let sizes = path_sizes(&image_of(store, settings)).unwrap();
    let stored: u64 = sizes.paths.iter().map(|path| path.stored_bytes).sum();
    assert_eq!(stored + sizes.tables_bytes, sizes.bytes_used, "the parts are the whole");
    sizes
}

#[test]
fn shared_content_counts_for_the_first_path() {
    let noise = Seeded::new(33).noise(1_000_000);
    let store = Store::new([
        ("alone", Item::file(Seeded::new(34).noise(500_000))),
        ("one", Item::file(noise.clone())),
        ("other", Item::directory([("same", Item::file(noise)), ("holes", Item::sparse(5_000_000, []))])),
    ]);
    let sizes = sizes(&store, settings(Compression::Zstd, 131_072));
    let of = |name: &str| {
        let path = format!("/{}", base_name(name));
        let size = sizes.paths.iter().find(|size| size.path.to_string() == path).unwrap();
        (size.files, size.content_bytes, size.stored_bytes, size.shared_bytes)
    };
    let mut pair = [("one", of("one")), ("other", of("other"))];
    pair.sort_by_key(|(name, _)| base_name(name));
    assert_eq!((pair[0].1.2, pair[0].1.3), (1_000_000, 0));
    assert_eq!((pair[1].1.2, pair[1].1.3), (0, 1_000_000));
    assert_eq!((of("other").0, of("other").1), (2, 6_000_000));
    assert_eq!(of("alone"), (1, 500_000, 500_000, 0));
    assert!(sizes.paths.is_sorted_by_key(|path| std::cmp::Reverse(path.stored_bytes)));
}

#[test]
fn fragment_blocks_count_for_each_path_in_proportion_to_its_bytes() {
    let names: Vec<String> = (0..20).map(|number| format!("small-{number}")).collect();
    let store_paths = names.iter().map(|name| (name.as_str(), Item::file(name.repeat(30))));
    let store = Store::new(store_paths.chain([("tree", mixed_tree(35))]));
    for compression in [Compression::None, Compression::Zstd] {
        let sizes = sizes(&store, settings(compression, 131_072));
        assert_eq!(sizes.paths.len(), 21);
        assert!(sizes.paths.iter().all(|path| path.stored_bytes > 0), "{sizes:#?}");
    }
}

#[test]
fn the_commands_print_lines_or_json_and_exit_with_the_requested_code() {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in [("first", "one"), ("second", "two")] {
        let store = Store::new([("tree", Item::file(content))]);
        build_image(store.path(), ImageSettings::default(), &directory.path().join(name));
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm-image"));
        let output = command.args(arguments).current_dir(directory.path()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let line = format!("~ /{}: content differs at byte 0\n", base_name("tree"));
    assert_eq!(run(&["diff", "first", "second"]), (0, line.clone(), String::new()));
    let failed = (1, line, "error: 1 difference\n".to_owned());
    assert_eq!(run(&["diff", "first", "second", "--exit-code"]), failed);
    assert_eq!(run(&["diff", "first", "first", "--exit-code"]), (0, String::new(), String::new()));
    let (_, json, _) = run(&["diff", "first", "second", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((report["version"].as_u64(), &report["differences"][0]["change"]), (Some(1), &"changed".into()));
    let (code, text, _) = run(&["size", "first"]);
    assert_eq!((code, text.lines().count()), (0, 3), "{text}");
    let (_, top, _) = run(&["size", "first", "--top", "0"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(top.lines().collect::<Vec<_>>(), [lines[0], lines[2]]);
    let (_, json, _) = run(&["size", "first", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((report["version"].as_u64(), report["paths"][0]["contentBytes"].as_u64()), (Some(1), Some(3)));
}
