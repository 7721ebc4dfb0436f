//! `microvm-image volume create`: volumes are sparse, complete, and never replace a file. Three other programs read
//! them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use ext4_rs::{BLOCK_SIZE, BlockDevice, Ext4};
use program::{Workspace, has_tool};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// A file with an ext4 filesystem, for ext4_rs.
struct Volume(File);

impl BlockDevice for Volume {
    /// Reads a block and the one after it, because ext4_rs reads past the end of a block with its last entries.
    fn read_offset(&self, offset: usize) -> Vec<u8> {
        let mut bytes = vec![0; 2 * BLOCK_SIZE];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.0.read_at(&mut bytes[filled..], (offset + filled) as u64).unwrap() {
                0 => break,
                read => filled += read,
            }
        }
        bytes
    }

    fn write_offset(&self, _offset: usize, _data: &[u8]) {
        unreachable!("nothing is written");
    }
}

/// The inode number of the root directory in every ext4.
const ROOT_INODE: u64 = 2;

/// Returns uid, gid and mode of a directory, read by ext4_rs.
fn directory_facts(ext4: &Ext4, names: &[&str]) -> (u16, u16, u16) {
    let number = names.iter().fold(ROOT_INODE, |inode, name| ext4.fuse_lookup(inode, name).unwrap().ino);
    let inode = ext4.get_inode_ref(number.try_into().unwrap()).inode;
    assert!(inode.is_dir());
    (inode.uid(), inode.gid(), inode.mode() & 0o7777)
}

fn open_ext4(path: &Path) -> Ext4 {
    Ext4::open(Arc::new(Volume(File::open(path).unwrap())))
}

/// Runs a program that checks a file, and expects success.
#[track_caller]
fn content(program: &str, arguments: &[&str], file: &Path) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program).args(arguments).arg(file).env("PATH", path).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {text}");
    text
}

#[test]
fn an_ext4_volume_has_its_label_and_directories() {
    if !has_tool("mkfs.ext4") || !has_tool("e2fsck") || !has_tool("debugfs") {
        return;
    }
    let workspace = Workspace::new();
    let line = "volume create volume --size 64M --fs ext4 --label rw-store --dir store --dir /work/inner/";
    assert_eq!(workspace.run(line).success(), "volume\n");
    assert_eq!(workspace.names(), ["volume"]);
    let path = workspace.path("volume");
    let ext4 = open_ext4(&path);
    assert_eq!(ext4.super_block.block_size(), 4096);
    for names in [&[][..], &["store"], &["work"], &["work", "inner"]] {
        assert_eq!(directory_facts(&ext4, names), (0, 0, 0o755), "{names:?}");
    }
    assert!(ext4.fuse_lookup(ROOT_INODE, "absent").is_err());
    content("e2fsck", &["-fn"], &path);
    let facts = content("debugfs", &["-R", "stats"], &path);
    assert!(
        facts.lines().any(|line| line.split_whitespace().eq(["Filesystem", "volume", "name:", "rw-store"])),
        "{facts}"
    );
}

#[test]
fn directories_in_a_volume_belong_to_root_even_if_another_user_creates_it() {
    if !has_tool("mkfs.ext4") || !has_tool("e2fsck") {
        return;
    }
    let workspace = Workspace::new();
    let arguments = "volume create volume --size 16M --fs ext4 --dir store --dir work/inner".split(' ');
    let output = workspace.command_of_ordinary_user(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ext4 = open_ext4(&workspace.path("volume"));
    for names in [&[][..], &["store"], &["work"], &["work", "inner"]] {
        assert_eq!(directory_facts(&ext4, names), (0, 0, 0o755), "{names:?}");
    }
    content("e2fsck", &["-fn"], &workspace.path("volume"));
}

#[test]
fn every_filesystem_is_valid_sparse_and_labelled() {
    for (file_system, checker, arguments) in [
        ("ext4", "e2fsck", &["-fn"][..]),
        ("xfs", "xfs_repair", &["-n"]),
        ("btrfs", "btrfs", &["check", "--readonly"]),
        ("vfat", "fsck.vfat", &["-n"]),
    ] {
        if !has_tool(&format!("mkfs.{file_system}")) || !has_tool(checker) || !has_tool("blkid") {
            continue;
        }
        let workspace = Workspace::new();
        workspace.run(&format!("volume create volume --size 320M --fs {file_system} --label DATA")).success();
        let path = workspace.path("volume");
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 320 << 20);
        assert!(metadata.blocks() * 512 < 4 << 20, "{file_system} takes {} bytes", metadata.blocks() * 512);
        assert_eq!(metadata.mode() & 0o777, 0o644);
        content(checker, arguments, &path);
        let facts = content("blkid", &["-p", "-o", "export"], &path);
        for line in [format!("TYPE={file_system}"), "LABEL=DATA".to_owned()] {
            assert!(facts.lines().any(|found| found == line), "{line} is not in {facts}");
        }
    }
}

#[test]
fn arguments_for_mkfs_override_the_default_ones() {
    if !has_tool("mkfs.ext4") {
        return;
    }
    let workspace = Workspace::new();
    workspace.run("volume create volume --size 64M --fs ext4 --dir store --mkfs-arg=-b --mkfs-arg 1024").success();
    let mut block_size = [0; 4];
    File::open(workspace.path("volume")).unwrap().read_exact_at(&mut block_size, 1024 + 24).unwrap();
    assert_eq!(1024 << u32::from_le_bytes(block_size), 1024);
}

#[test]
fn the_report_is_json() {
    if !has_tool("mkfs.ext4") {
        return;
    }
    let workspace = Workspace::new();
    let run = workspace.run("volume create volume --size 16M --fs ext4 --dir store --json");
    let report: serde_json::Value = serde_json::from_str(&run.success()).unwrap();
    let expected = serde_json::json!({
        "version": 1, "path": "volume", "sizeBytes": 16 << 20, "fileSystem": "ext4", "label": null, "directories": ["store"],
    });
    assert_eq!(report, expected);
}

#[test]
fn an_existing_file_is_never_replaced() {
    let workspace = Workspace::new();
    workspace.write("file", "precious");
    fs::create_dir(workspace.path("directory")).unwrap();
    symlink("nowhere", workspace.path("link")).unwrap();
    for name in ["file", "directory", "link", "/dev/null"] {
        workspace.run(&format!("volume create {name} --size 16M --fs ext4")).failure(
            2,
            &format!(
                "error: cannot create the volume {name}: {name} exists, and a volume never replaces an existing file\n"
            ),
        );
    }
    assert_eq!(workspace.read("file"), b"precious");
    assert_eq!(workspace.names(), ["directory", "file", "link"]);
}

#[test]
fn a_file_that_another_process_creates_in_the_meantime_is_not_replaced() {
    let workspace = Workspace::new();
    // This mkfs creates the output itself, as another process could in the meantime.
    let mkfs = workspace.path("mkfs.vfat");
    let script = "#!/bin/sh\necho precious > volume\nfor file; do :; done\n\
                  printf '\\125\\252' | dd of=\"$file\" bs=1 seek=510 conv=notrunc 2>/dev/null\n\
                  printf FAT16 | dd of=\"$file\" bs=1 seek=54 conv=notrunc 2>/dev/null\n";
    testing::write_program(&mkfs, script);
    let path = format!("{}:{}", workspace.root().display(), std::env::var("PATH").unwrap());
    let mut command = workspace.command("volume create volume --size 1M --fs vfat".split(' '));
    let output = command.env("PATH", path).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: volume was created by another process in the meantime, and a volume never replaces an existing file\n"
    );
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(workspace.read("volume"), b"precious\n");
    assert_eq!(workspace.names(), ["mkfs.vfat", "volume"]);
}

#[test]
fn all_problems_of_an_invalid_request_are_reported() {
    let workspace = Workspace::new();
    workspace.run("volume create missing/volume --size 1000 --fs xfs --label thirteen-long --dir store --dir ../up").failure(
        2,
        "error: cannot create the volume missing/volume:\n  \
         there is no directory missing\n  \
         the size is 1000 bytes, but it must be a multiple of 512 bytes and not 0\n  \
         xfs does not support the label \"thirteen-long\": it has 13 bytes, but the maximum is 12\n  \
         directories can be created in ext4 only, not in xfs\n  \
         \"../up\" cannot be created in the volume: it must be a path of plain names, without `..`, quotes and control characters\n",
    );
    workspace.run("volume create volume --size 0 --fs vfat --label a.b").failure(
        2,
        "error: cannot create the volume volume:\n  \
         the size is 0 bytes, but it must be a multiple of 512 bytes and not 0\n  \
         vfat does not support the label \"a.b\": it contains '.'\n",
    );
    workspace.run("volume create volume --size big --fs ext4").failure(
        2,
        "error: invalid value 'big' for '--size <SIZE>': \"big\" is not a size: write a number of bytes, \
         or a number with a unit, such as 128K or 2GiB\n\nFor more information, try '--help'.\n",
    );
    assert_eq!(workspace.names(), [""; 0]);
}

#[test]
fn a_mkfs_that_fails_leaves_nothing() {
    if !has_tool("mkfs.xfs") {
        return;
    }
    let workspace = Workspace::new();
    let run = workspace.run("volume create volume --size 1M --fs xfs --mkfs-arg=-q");
    assert_eq!(run.code, 1);
    assert!(run.stderr.starts_with("error: mkfs.xfs failed (exit status: 1): "), "{}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert_eq!(workspace.names(), [""; 0]);
}

#[test]
fn a_volume_that_is_too_small_for_its_filesystem_is_refused_before_mkfs_runs() {
    let workspace = Workspace::new();
    for (file_system, min_bytes, min) in [
        ("ext4", 224 << 10, "224 KiB"),
        ("vfat", 50 << 10, "50 KiB"),
        ("btrfs", 109 << 20, "109 MiB"),
        ("xfs", 300 << 20, "300 MiB"),
    ] {
        for (bytes, size) in [(512, "512 bytes".to_owned()), (min_bytes - 512, format!("{} bytes", min_bytes - 512))] {
            workspace.run(&format!("volume create volume --size {bytes} --fs {file_system}")).failure(
                2,
                &format!(
                    "error: cannot create the volume volume: {file_system} needs at least {min}, but the size is {size}\n"
                ),
            );
        }
        if has_tool(&format!("mkfs.{file_system}")) {
            // The minimum depends on the version of mkfs.
            let bytes = min_bytes / 4 * 5;
            workspace.run(&format!("volume create {file_system} --size {bytes} --fs {file_system}")).success();
        }
    }
    assert!(!workspace.path("volume").exists());
}

#[test]
fn a_mkfs_that_creates_another_filesystem_is_an_error() {
    let workspace = Workspace::new();
    let mkfs = workspace.path("mkfs.btrfs");
    testing::write_program(&mkfs, "#!/bin/sh\nexit 0\n");
    let path = format!("{}:{}", workspace.root().display(), std::env::var("PATH").unwrap());
    let mut command = workspace.command("volume create volume --size 128M --fs btrfs".split(' '));
    let output = command.env("PATH", path).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: mkfs.btrfs did not create the requested volume: there is no btrfs in it\n"
    );
    assert_eq!(workspace.names(), ["mkfs.btrfs"]);
}
