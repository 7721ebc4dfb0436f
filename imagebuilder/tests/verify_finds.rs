//! `verify` reports every problem with an image once, and names the path.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod support;

use imagebuilder::closure::Closure;
use imagebuilder::image::{FileTree, Image};
use imagebuilder::nar::nar_digest;
use imagebuilder::plan::PlannedPath;
use imagebuilder::settings::Compression;
use imagebuilder::store_path::StorePath;
use imagebuilder::verify::{NarCheck, ProblemKind, VerifyOptions, VerifyReport, verify};
use sha2::{Digest, Sha256};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use support::built::{PlainImage, build_image, closure, in_tree, settings};
use support::seeded::Seeded;
use support::stock;
use support::store_tree::{Item, Store, base_name, mixed_tree};

fn check(image: &Image, closure: Option<&Closure>, nar: NarCheck) -> VerifyReport {
    verify(image, VerifyOptions { closure, nar, jobs: 2, problems_max: 50 }).unwrap()
}

fn problems(report: &VerifyReport) -> Vec<String> {
    report.problems.iter().map(|problem| format!("{:?} {problem}", problem.kind)).collect()
}

/// Builds an image, changes the store, and returns the problems that are reported.
fn problems_after(change: impl FnOnce(&Store)) -> Vec<String> {
    let mut seeded = Seeded::new(11);
    let store = Store::new([(
        "tree",
        Item::directory([
            ("directory", Item::directory([("inner", Item::file("inner")), ("other", Item::file("other"))])),
            ("large", Item::file(seeded.noise(20_000_000))),
            ("link", Item::symlink("target")),
            ("program", Item::program("#! /bin/sh")),
            ("text", Item::file(seeded.text(300_000))),
        ]),
    )]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    build_image(store.path(), settings(Compression::Lz4, 65_536), &path);
    let before = closure(store.path());
    let image = Image::open(&path).unwrap();
    assert_eq!(problems(&check(&image, Some(&before), NarCheck::Skip)), Vec::<String>::new());
    change(&store);
    let report = check(&image, Some(&before), NarCheck::Skip);
    assert_eq!(report.problem_count, report.problems.len() as u64);
    assert_eq!(report.ok, report.problems.is_empty());
    problems(&report)
}

fn allow_writing(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn names_that_only_one_side_has_are_reported() {
    let problems = problems_after(|store| {
        let tree = store.store_path("tree");
        fs::remove_file(tree.join("directory/inner")).unwrap();
        fs::write(tree.join("directory/zzz"), "").unwrap();
        fs::create_dir(tree.join("a-new-one")).unwrap();
        fs::remove_file(tree.join("link")).unwrap();
    });
    assert_eq!(
        problems,
        [
            format!("Missing {}: is in the store but not in the image", in_tree("a-new-one")),
            format!("Extra {}: is in the image but not in the store", in_tree("directory/inner")),
            format!("Missing {}: is in the store but not in the image", in_tree("directory/zzz")),
            format!("Extra {}: is in the image but not in the store", in_tree("link")),
        ]
    );
}

#[test]
fn differing_types_modes_sizes_and_targets_are_reported() {
    let problems = problems_after(|store| {
        let tree = store.store_path("tree");
        fs::remove_file(tree.join("link")).unwrap();
        symlink("other target", tree.join("link")).unwrap();
        fs::set_permissions(tree.join("program"), Permissions::from_mode(0o444)).unwrap();
        allow_writing(&tree.join("directory/other"));
        fs::write(tree.join("directory/other"), "longer than before").unwrap();
        fs::set_permissions(tree.join("directory/other"), Permissions::from_mode(0o444)).unwrap();
        fs::remove_file(tree.join("text")).unwrap();
        fs::create_dir(tree.join("text")).unwrap();
    });
    assert_eq!(
        problems,
        [
            format!("Size {}: has 5 bytes in the image, but 18 in the store", in_tree("directory/other")),
            format!("Target {}: points to target in the image, but to other\\x20target in the store", in_tree("link")),
            format!("Mode {}: has mode 0555 in the image, but 0444 in the store", in_tree("program")),
            format!("Type {}: is a file in the image, but a directory in the store", in_tree("text")),
        ]
    );
}

/// The large file is compared in several parts; each part that differs is reported.
#[test]
fn single_bytes_of_content_that_differ_are_reported() {
    let at = |offset: u64, path: &Path| {
        use std::os::unix::fs::FileExt;
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
    };
    let problems = problems_after(|store| {
        let tree = store.store_path("tree");
        at(0, &tree.join("directory/inner"));
        at(299_999, &tree.join("text"));
        at(1_000_000, &tree.join("large"));
        at(19_999_999, &tree.join("large"));
    });
    let wanted = [("directory/inner", 0), ("large", 1_000_000), ("large", 19_999_999), ("text", 299_999)];
    assert_eq!(problems.len(), wanted.len(), "{problems:#?}");
    for (problem, (path, byte)) in problems.iter().zip(wanted) {
        let start = format!("Content {}: differs from the store at byte {byte} (BLAKE3 ", in_tree(path));
        assert!(problem.starts_with(&start) && problem.ends_with(" in the store)"), "{problem}");
    }
}

#[test]
fn store_paths_that_only_one_side_has_are_reported() {
    let store = Store::new([("a", Item::file("a")), ("b", Item::directory([("file", Item::file("b"))]))]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    build_image(store.path(), settings(Compression::Zstd, 4096), &path);
    let mut other = closure(store.path());
    other.paths.retain(|planned| planned.path.name() == "b");
    let absent = StorePath::from_base_name(&base_name("c")).unwrap();
    other.paths.push(PlannedPath { path: absent, nar_hash: None, nar_size_bytes: None });
    other.paths.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let report = check(&Image::open(&path).unwrap(), Some(&other), NarCheck::Skip);
    let mut seen: Vec<_> =
        report.problems.iter().map(|problem| (problem.kind, problem.path.as_ref().unwrap().to_string())).collect();
    seen.sort_unstable();
    let wanted =
        [(ProblemKind::Missing, format!("/{}", base_name("c"))), (ProblemKind::Extra, format!("/{}", base_name("a")))];
    assert_eq!(seen, wanted);
}

#[test]
fn wrong_owners_times_and_modes_of_an_image_by_another_tool_are_reported() {
    let store = Store::new([("tree", Item::directory([("file", Item::file("content"))]))]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    if stock::mksquashfs(store.path(), &path, &["-all-time", "7", "-force-uid", "12", "-force-gid", "34"]).is_none() {
        return;
    }
    let image = Image::open(&path).unwrap();
    let closure = closure(store.path());
    let report = check(&image, Some(&closure), NarCheck::Skip);
    let tree = format!("/{}", base_name("tree"));
    assert_eq!(
        problems(&report),
        [
            "Mode /: has mode 0755, not 1775".to_owned(),
            "Owner /: belongs to 12:34, not to 0:30000".to_owned(),
            "Time /: was modified at 7, not at 1".to_owned(),
            "Missing /.links: is not in the image, and Nix in a guest cannot create it in a read-only store".to_owned(),
            format!("Mode {tree}: has mode 0755 in the image, but 0555 in the store"),
            format!("Owner {tree}: belongs to 12:34, not to 0:0"),
            format!("Time {tree}: was modified at 7, not at 1"),
            format!("Owner {tree}/file: belongs to 12:34, not to 0:0"),
            format!("Time {tree}/file: was modified at 7, not at 1"),
        ]
    );
    // With a limit, the problems of the first paths are reported and all are counted.
    let options = VerifyOptions { closure: Some(&closure), nar: NarCheck::Skip, jobs: 2, problems_max: 2 };
    let capped = verify(&image, options).unwrap();
    assert_eq!((capped.problems.as_slice(), capped.problem_count), (&report.problems[..2], 9));
}

/// The output of `nix-store --dump` for a directory with an executable, an empty file and a symlink, written by hand.
fn nar_by_hand() -> Vec<u8> {
    let mut nar = Vec::new();
    let mut put = |string: &[u8]| {
        nar.extend_from_slice(&(string.len() as u64).to_le_bytes());
        nar.extend_from_slice(string);
        nar.resize(nar.len().next_multiple_of(8), 0);
    };
    let entry_start = ["entry", "(", "name"];
    let mut texts = vec!["nix-archive-1", "(", "type", "directory"];
    texts.extend(entry_start);
    texts.extend(["empty", "node", "(", "type", "regular", "contents", "", ")", ")"]);
    texts.extend(entry_start);
    texts.extend(["inner", "node", "(", "type", "directory"]);
    texts.extend(entry_start);
    texts.extend(["link", "node", "(", "type", "symlink", "target", "../program", ")", ")"]);
    texts.extend([")", ")"]);
    texts.extend(entry_start);
    texts.extend(["program", "node", "(", "type", "regular", "executable", "", "contents", "#! /bin/sh\n", ")", ")"]);
    texts.push(")");
    texts.iter().for_each(|text| put(text.as_bytes()));
    nar
}

fn nar_store() -> (Store, Vec<u8>) {
    let store = Store::new([(
        "tree",
        Item::directory([
            ("empty", Item::file("")),
            ("inner", Item::directory([("link", Item::symlink("../program"))])),
            ("program", Item::program("#! /bin/sh\n")),
        ]),
    )]);
    (store, nar_by_hand())
}

#[test]
fn nar_hashes_equal_those_of_a_serialisation_written_by_hand() {
    let (store, nar) = nar_store();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    build_image(store.path(), settings(Compression::Zstd, 4096), &path);
    let image = Image::open(&path).unwrap();
    let digest = nar_digest(&image, base_name("tree").as_bytes()).unwrap();
    assert_eq!((digest.sha256, digest.size_bytes), (Sha256::digest(&nar).into(), nar.len() as u64));

    let mut closure = closure(store.path());
    closure.paths[0].nar_hash = Some(digest.sha256);
    closure.paths[0].nar_size_bytes = Some(digest.size_bytes);
    let report = check(&image, Some(&closure), NarCheck::Compute);
    assert_eq!((report.nars_hashed, report.problem_count), (1, 0));
    closure.paths[0].nar_hash = Some([0xab; 32]);
    let report = check(&image, Some(&closure), NarCheck::Compute);
    assert_eq!(report.problems[0].kind, ProblemKind::NarHash);
    assert!(report.problems[0].detail.ends_with(&format!(
        "the closure says {} and {} bytes",
        "ab".repeat(32),
        nar.len()
    )));
}

#[test]
fn nar_hashes_equal_those_of_nix() {
    let Some(nix_store) = testing::find_tool("nix-store") else { return };
    let store =
        Store::new([("tree", mixed_tree(13)), ("file", Item::program("alone")), ("link", Item::symlink("a b"))]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    build_image(store.path(), settings(Compression::Zstd, 131_072), &path);
    let image = Image::open(&path).unwrap();
    for name in ["tree", "file", "link"] {
        let output = std::process::Command::new(&nix_store).arg("--dump").arg(store.store_path(name)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let digest = nar_digest(&image, base_name(name).as_bytes()).unwrap();
        let wanted: [u8; 32] = Sha256::digest(&output.stdout).into();
        assert_eq!((digest.sha256, digest.size_bytes), (wanted, output.stdout.len() as u64), "{name}");
    }
}

/// Builds an image with a directory of a few files, lets `change` modify it, and returns the problems that are
/// reported.
fn problems_of_patched(change: impl FnOnce(&mut PlainImage, &Image)) -> Vec<String> {
    let many = (0..300).map(|number| (format!("entry-{number:03}"), Item::file(format!("{number}"))));
    let mut image = PlainImage::new(Item::directory([
        ("directory", Item::directory([("inner", Item::file("inner"))])),
        ("many", Item::directory(many.collect::<Vec<_>>())),
        ("text", Item::file("text")),
    ]));
    let opened = Image::from_source(Box::new(image.bytes.clone())).unwrap();
    assert!(check(&opened, None, NarCheck::Skip).ok);
    change(&mut image, &opened);
    problems(&check(&Image::from_source(Box::new(image.bytes)).unwrap(), None, NarCheck::Skip))
}

fn number(image: &Image, path: &str) -> u32 {
    image.find(in_tree(path).as_bytes()).unwrap().1.number
}

#[test]
fn wrong_link_counts_and_parents_are_reported() {
    let mut numbers = (0, 0);
    let problems = problems_of_patched(|image, opened| {
        numbers = (number(opened, "directory"), number(opened, ""));
        let directory = image.inode(numbers.0);
        image.put(directory + 20, &9_u32.to_le_bytes());
        image.put(directory + 28, &1_u32.to_le_bytes());
    });
    let path = in_tree("directory");
    let wanted = [
        format!("Links {path}: has the link count 9, but should have 2"),
        format!("Directory {path}: says inode 1 holds it, inode {} does", numbers.1),
    ];
    assert_eq!(problems, wanted);
}

#[test]
fn an_export_table_with_a_wrong_position_is_reported() {
    let problems = problems_of_patched(|image, _| {
        // The index of the table has the position of its only block. The entries follow two bytes later.
        let block = image.u64_at(image.u64_at(88) as usize) as usize;
        let first = image.bytes[block + 2..block + 10].to_vec();
        image.put(block + 10, &first);
    });
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("Export export table: says inode 2 is at "), "{problems:?}");
}

#[test]
fn a_directory_index_with_a_wrong_name_is_reported() {
    let mut found = false;
    let problems = problems_of_patched(|image, opened| {
        let many = image.inode(number(opened, "many"));
        let index_entries = u16::from_le_bytes(image.bytes[many + 32..many + 34].try_into().unwrap());
        found = index_entries > 0;
        if found {
            // After 40 bytes of the inode, an entry has the listing offset, the block, the length of the name, and the
            // name.
            let name = many + 40 + 12;
            image.put(name, b"x");
        }
    });
    assert!(found, "300 entries have an index");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with(&format!("Directory {}: its index entry for byte ", in_tree("many"))),
        "{problems:?}"
    );
    assert!(problems[0].ends_with("does not name the first entry after it"), "{problems:?}");
}

#[test]
fn an_entry_that_contradicts_its_inode_is_reported() {
    let problems = problems_of_patched(|image, _| {
        let entry = image.entry(b"text");
        image.put(entry + 4, &3_u16.to_le_bytes());
    });
    let printed = problems.join("\n");
    assert!(printed.contains(&format!("Damaged {}: inode at byte ", in_tree("text"))), "{printed}");
    assert!(printed.contains("it is file ") && printed.contains("its directory entry says symlink "), "{printed}");
}

#[test]
fn nonzero_bytes_after_the_file_system_are_reported() {
    let problems = problems_of_patched(|image, _| *image.bytes.last_mut().unwrap() = 1);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("Padding padding: byte ") && problems[0].contains(" is not zero"), "{problems:?}");
}

#[test]
fn a_length_that_differs_from_the_end_of_the_tables_is_reported() {
    let problems = problems_of_patched(|image, _| {
        let used = image.u64_at(40);
        image.put(40, &(used + 8).to_le_bytes());
    });
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("Layout superblock: says "), "{problems:?}");
}

#[test]
fn a_fragment_for_an_empty_file_which_the_kernel_refuses_is_reported() {
    let problems = problems_of_patched(|image, opened| {
        let text = image.inode(number(opened, "text"));
        assert_ne!(image.u32_at(text + 20), u32::MAX, "a small file is in a fragment");
        image.put(text + 28, &0_u32.to_le_bytes());
    });
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].ends_with("has a fragment for an empty tail"), "{problems:?}");
}
