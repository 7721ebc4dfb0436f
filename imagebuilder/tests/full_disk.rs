//! The cache and the image are on the same full disk: the image has priority.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use program::{Workspace, has_tool};
use std::fs;
use std::process::{Command, Output};

const NAMES: [&str; 3] =
    ["3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a", "4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-b", "5aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-c"];

/// Creates three store paths of 1 MB each that do not compress, a list for each, and their images.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("store")).unwrap();
    fs::create_dir(workspace.path("small")).unwrap();
    for (list, name) in ["a", "b", "c"].into_iter().zip(NAMES) {
        // Many files and a large one: fragment blocks and data blocks.
        let noise = |count: u64, what: u64| -> Vec<u8> {
            let block = |number: u64| *blake3::hash(format!("{name} {what} {number}").as_bytes()).as_bytes();
            (0..count).flat_map(block).collect()
        };
        fs::create_dir(workspace.path("store").join(name)).unwrap();
        fs::write(workspace.path("store").join(name).join("large"), noise(16_000, 0)).unwrap();
        for number in 1..=16 {
            fs::write(workspace.path("store").join(name).join(format!("{number}")), noise(1000, number)).unwrap();
        }
        workspace.write(list, &format!("{name}\n"));
        workspace.run(&format!("build --paths-from {list} --store-dir store --no-cache -q -o {list}.image")).success();
    }
    workspace
}

/// Runs a script in which `small` is a disk of a number of KiB. If it cannot be mounted, prints the reason and returns
/// `None`.
fn on_small_disk(workspace: &Workspace, kibibytes: u32, script: &str) -> Option<Output> {
    if !has_tool("unshare") {
        return None;
    }
    let script = format!(
        "mount -t tmpfs -o size={kibibytes}k small small || exit 99\n\
         build() {{ \"$0\" build --paths-from $1 --store-dir store --cache small/cache -q -j2 -o $2; }}\n{script}"
    );
    let program = workspace.command([] as [&str; 0]).get_program().to_owned();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", &script]).arg(program);
    let output = command.current_dir(workspace.root()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(99) || stderr.starts_with("unshare:") {
        testing::missing(&format!("no tmpfs can be mounted: {stderr}"));
        return None;
    }
    Some(output)
}

#[track_caller]
fn assert_succeeded(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn new_packs_are_discarded_to_make_room_for_the_image() {
    let workspace = workspace();
    for kibibytes in [1200, 1500, 1800, 2050] {
        let script = "for n in 1 2 3; do rm -f small/image; build a small/image; cmp small/image a.image; done";
        let Some(output) = on_small_disk(&workspace, kibibytes, script) else { return };
        assert_succeeded(&output);
    }
}

#[test]
fn older_packs_are_removed_to_make_room_for_the_image() {
    let workspace = workspace();
    let script = "build a other; build b other; rm other; build c small/image; cmp small/image c.image\n\
                  build a small/image; cmp small/image a.image";
    for kibibytes in [2300, 2600] {
        let Some(output) = on_small_disk(&workspace, kibibytes, script) else { return };
        assert_succeeded(&output);
    }
}

#[test]
fn a_disk_too_small_for_the_image_is_an_error_and_nothing_remains() {
    let workspace = workspace();
    let script = "build a small/image || code=$?; ls -A small; exit $code";
    let Some(output) = on_small_disk(&workspace, 700, script) else { return };
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"cache\n".as_slice()));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("error: cannot write small/image: No space left on device (os error 28)\n"), "{stderr}");
}
