//! `microvm volume grow` on a full disk.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

/// Grows the only volume of the spec in that directory.
fn grow(directory: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
    command.args(["volume", "grow", "machine.json", "var.img", "8G", "--state-dir", "small"]);
    command.current_dir(directory).output().unwrap()
}

// The disk is filled to the byte, so no other thread of this process may create processes: they inherit its files for a
// moment.
#[test]
fn an_ext4_whose_disk_becomes_full_while_it_grows_loses_nothing_and_grows_later() {
    let (Some(mkfs), Some(check)) = (testing::find_tool("mkfs.ext4"), testing::find_tool("e2fsck")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("small");
    let Some(disk) = testing::SmallDisk::mount(&place, 16 << 10) else { return };
    let (image, tree) = (place.join("var.img"), directory.path().join("tree"));
    let spec = serde_json::json!({
        "version": 1, "name": "web", "kernel": "/k/bzImage",
        "volumes": [{"image": "var.img", "size": 32, "mountPoint": "/var"}],
    });
    fs::write(directory.path().join("machine.json"), spec.to_string()).unwrap();
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), vec![7; 4 << 20]).unwrap();
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    assert!(Command::new(mkfs).args(["-q", "-d"]).arg(&tree).arg(&image).status().unwrap().success());
    let require_intact = |left_bytes| {
        let checked = Command::new(&check).args(["-f", "-n"]).arg(&image).output().unwrap();
        assert!(checked.status.success(), "{left_bytes}: {}", String::from_utf8_lossy(&checked.stdout));
        let dumped = Command::new("debugfs").args(["-R", "cat file"]).arg(&image).output().unwrap();
        assert!(dumped.stdout == vec![7; 4 << 20], "{left_bytes}: the content has changed");
    };
    for left_bytes in [0, 64 << 10, 4 << 20, 5 << 20, 5500 << 10] {
        disk.fill(left_bytes);
        let output = grow(directory.path());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{left_bytes}: {error}");
        let expected = format!("error: {} cannot grow, and keeps its size: ", image.display());
        let remedy = "; the disk of the image is almost full: free some space there\n";
        assert!(error.starts_with(&expected) && error.ends_with(remedy), "{left_bytes}: {error}");
        assert!(
            !error.contains("e2fsck") && !error.contains("/proc/") && error.lines().count() == 1,
            "{left_bytes}: {error}"
        );
        assert_eq!(fs::metadata(&image).unwrap().len(), 32 << 20);
        require_intact(left_bytes);
        disk.free();
    }
    let output = grow(directory.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::metadata(&image).unwrap().len(), 8 << 30);
    require_intact(0);
}
