//! Disks that are full, and that share blocks between files.
//!
//! If the cache and the image are on the same full disk, the image has priority.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use program::{Workspace, has_tool};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use testing::Disk;

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
         build() {{ \"$0\" build --paths-from $1 --store-dir store --cache small/cache -q -j2 -o $2 $3; }}\n{script}"
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
    for kibibytes in (2200..2700).step_by(50) {
        let Some(output) = on_small_disk(&workspace, kibibytes, script) else { return };
        assert_succeeded(&output);
    }
}

#[test]
fn packs_are_discarded_to_make_room_for_the_seal() {
    let workspace = workspace();
    workspace.run("build --paths-from a --store-dir store --no-cache --verity -q -o sealed").success();
    let image = fs::metadata(workspace.path("sealed")).unwrap().len() / 1024;
    let mut counts = Vec::new();
    // One of these disks is full when the image and its pack are complete.
    for kibibytes in (2 * image - 40..2 * image + 40).step_by(4) {
        let script = "build a small/image --verity; cmp small/image sealed\n\
                      cmp small/image.verity.json sealed.verity.json; find small/cache/v2/packs -type f | wc -l";
        let Some(output) = on_small_disk(&workspace, u32::try_from(kibibytes).unwrap(), script) else { return };
        assert_succeeded(&output);
        // After the path of the image.
        counts.extend(String::from_utf8(output.stdout).unwrap().lines().last().map(str::to_owned));
    }
    assert!(counts.contains(&"0".to_owned()), "every disk had room for the pack: {counts:?}");
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

#[test]
fn an_image_that_fitted_on_a_disk_without_a_cache_did_not_fit_when_its_packs_were_there() {
    let workspace = workspace();
    for options in ["", "--verity", "--format erofs", "--format erofs --verity"] {
        workspace
            .run(format!("build --paths-from b --store-dir store --no-cache -q -o right {options}").trim())
            .success();
        let image = u32::try_from(fs::metadata(workspace.path("right")).unwrap().len().div_ceil(1024)).unwrap();
        // The packs are about as large as the image, so all of these are full with both.
        for kibibytes in [image - 8, image, image + 4, image + 8, image + 40, image * 3 / 2, image * 2 - 8, image * 2] {
            let script = format!(
                "try() {{ \"$0\" build --paths-from b --store-dir store -q -j2 {options} \"$@\" 2>>errors && code=0 || code=1; }}\n\
                 check() {{ [ $code = 1 ] || cmp small/image right; rm -f small/image*; }}\n\
                 head -c 8192 /dev/zero >small/records; try --no-cache -o small/image; without=$code; check\n\
                 rm small/records\n\
                 try --cache small/cache -o small/image; first=$code; check\n\
                 rm -rf small/cache; try --cache small/cache -o other; rm -f other*\n\
                 try --cache small/cache -o small/image; second=$code; check\n\
                 echo $without $first $second"
            );
            let Some(output) = on_small_disk(&workspace, kibibytes, &script) else { return };
            assert_succeeded(&output);
            let codes = String::from_utf8(output.stdout).unwrap();
            let codes: Vec<&str> = codes.lines().last().unwrap().split(' ').collect();
            // A cache keeps its records of images, but nothing else.
            let fits = codes[0] == "0";
            assert!(!fits || codes == ["0", "0", "0"], "{options} on {kibibytes} KiB: {codes:?}, image {image} KiB");
        }
    }
}

#[test]
fn a_limit_of_the_size_of_files_ended_the_program_without_a_message() {
    let workspace = workspace();
    // In 512 bytes, or in 1024 with some shells: less than a pack and an image.
    let limited = |line: &str| {
        let script = format!("ulimit -f 600 && exec \"$0\" {line}");
        let program = workspace.command([] as [&str; 0]).get_program().to_owned();
        let mut command = workspace.command_of(Path::new("sh"), ["-c", &script]);
        command.arg(program).output().unwrap()
    };
    let hint =
        "hint: raise the limit of this process (`ulimit -f`), or write to a file system that allows larger files\n";
    for options in ["--no-cache", "--cache cache", "--format erofs --verity --no-cache"] {
        let output = limited(&format!("build --paths-from a --store-dir store {options} -q -o image"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{options}: {stderr}");
        assert!(stderr.ends_with(&format!("image: File too large (os error 27)\n{hint}")), "{options}: {stderr}");
        assert!(!workspace.path("image").exists());
    }
    workspace.run("cache fsck --cache cache").success();
    let output = limited("volume create volume --size 64M --fs ext4");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && stderr.contains("File too large (os error 27)"), "{stderr}");
    assert!(!workspace.path("volume").exists());
    // The right image comes from what the cache has kept.
    workspace.run("build --paths-from a --store-dir store --cache cache -q -o image").success();
    assert!(workspace.read("image") == workspace.read("a.image"));
}

#[test]
fn an_image_from_the_cache_shares_its_data_with_the_cache_on_btrfs_and_xfs() {
    let workspace = workspace();
    workspace.write("all", &NAMES.map(|name| format!("{name}\n")).concat());
    workspace.run("build --paths-from all --store-dir store --no-cache -q -o all.image").success();
    for kind in ["btrfs", "xfs"] {
        let Some(disk) = Disk::new(workspace.root(), kind) else { continue };
        let build = |image: &str| {
            let line = format!("build --paths-from all --store-dir store --cache {kind}/cache -q -o {kind}/{image}");
            workspace.run(&line).success();
            assert!(workspace.read(&format!("{kind}/{image}")) == workspace.read("all.image"), "{kind}: {image}");
        };
        let used_bytes = || {
            // btrfs counts only what is written to disk, not what is in memory.
            assert!(Command::new("sync").arg("-f").arg(disk.path()).status().unwrap().success());
            let counts = nix::sys::statvfs::statvfs(disk.path()).unwrap();
            (counts.blocks() - counts.blocks_free()) * counts.fragment_size()
        };
        build("first");
        let (before, images) = (used_bytes(), 8);
        (0..images).for_each(|number| build(&format!("{number}")));
        let (added, image) = (used_bytes() - before, fs::metadata(workspace.path("all.image")).unwrap().len());
        assert!(added * 10 < image * images, "{kind}: {images} images of {image} bytes took {added} bytes");
    }
}

#[test]
fn a_store_that_is_not_in_memory_gives_the_same_image() {
    let workspace = workspace();
    let Some(disk) = Disk::new(workspace.root(), "ext4") else { return };
    workspace.write("all", &NAMES.map(|name| format!("{name}\n")).concat());
    let copied = Command::new("cp").arg("-a").arg(workspace.path("store")).arg(disk.path()).status().unwrap();
    assert!(copied.success());
    for format in ["squashfs", "erofs"] {
        for (image, cache) in [("memory", "--no-cache"), ("disk", "--no-cache"), ("filled", "--cache cache")] {
            if image != "memory" {
                assert!(Command::new("sync").arg("-f").arg(disk.path()).status().unwrap().success());
                // Mounting it again leaves nothing in memory.
                disk.cut_power();
            }
            let line =
                format!("build --paths-from all --store-dir ext4/store --format {format} {cache} -j2 -q -o {image}");
            workspace.run(&line).success();
            assert!(workspace.read(image) == workspace.read("memory"), "{format}: {image}");
        }
    }
}
