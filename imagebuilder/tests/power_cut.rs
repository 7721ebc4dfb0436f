//! After a power cut, the disk has the old image or the new one, never a mixture.
//!
//! The tests shut down a file system on a loop device without writing its log, which has the effect of a power cut, and
//! mount it again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use program::Workspace;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use testing::Disk;

const OLD: &str = "3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-old";
const NEW: &str = "4aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-new";

/// A store with two paths that do not compress, and their images.
struct Images {
    workspace: Workspace,
    old: Vec<u8>,
    new: Vec<u8>,
    sealed_old: SealedImage,
    sealed_new: SealedImage,
}

/// A sealed image, and the file beside it.
#[derive(PartialEq)]
struct SealedImage {
    image: Vec<u8>,
    seal: Vec<u8>,
}

impl SealedImage {
    fn read(image: &Path) -> Self {
        let seal = fs::read(image.with_extension("verity.json"));
        Self { image: fs::read(image).unwrap(), seal: seal.unwrap() }
    }
}

impl Images {
    fn new() -> Self {
        let workspace = Workspace::new();
        fs::create_dir(workspace.path("store")).unwrap();
        let mut images = [OLD, NEW].map(|name| {
            let noise: Vec<u8> = (0..80_000_u64)
                .flat_map(|number| blake3::hash(format!("{name} {number}").as_bytes()).as_bytes()[..32].to_vec())
                .collect();
            fs::write(workspace.path("store").join(name), noise).unwrap();
            workspace.write(name, &format!("{name}\n"));
            // With NAR hashes, so that an existing image is kept.
            let plan = workspace.run(&format!("plan --paths-from {name} --store-dir store"));
            let plan: serde_json::Value = serde_json::from_str(&plan.success()).unwrap();
            let mut plan = plan;
            let hash = testing::nar_sha256(&workspace.path("store").join(name));
            plan["paths"][0]["narHash"] = imagebuilder::nar_hash::print(&hash).into();
            workspace.write(&format!("{name}.json"), &plan.to_string());
            workspace.run(&format!("build --plan {name}.json --no-cache -q -o {name}.image")).success();
            plan["verity"] = true.into();
            workspace.write(&format!("{name}.sealed.json"), &plan.to_string());
            workspace.run(&format!("build --plan {name}.sealed.json --no-cache -q -o {name}-sealed")).success();
            workspace.read(&format!("{name}.image"))
        });
        let [old, new] = images.each_mut().map(std::mem::take);
        let [sealed_old, sealed_new] =
            [OLD, NEW].map(|name| SealedImage::read(&workspace.path(&format!("{name}-sealed"))));
        Self { workspace, old, new, sealed_old, sealed_new }
    }

    fn build(&self, disk: &str, name: &str) {
        self.workspace.run(&format!("build --plan {name}.json --cache {disk}/cache -q -o {disk}/image")).success();
    }

    fn build_sealed(&self, disk: &str, name: &str) {
        self.build(disk, &format!("{name}.sealed"));
    }
}

#[test]
fn an_image_is_complete_after_a_power_cut_right_after_its_build() {
    let images = Images::new();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(images.workspace.root(), kind) else { continue };
        images.build(kind, OLD);
        images.build(kind, NEW);
        disk.commit_metadata();
        disk.cut_power();
        let found = fs::read(disk.path().join("image")).unwrap();
        let zeros = found.chunks(4096).filter(|block| block.iter().all(|byte| *byte == 0)).count();
        assert!(found == images.new, "{kind}: {} bytes, {zeros} blocks of zeros", found.len());
        // Whatever happened to the cache, a build gives the right image.
        for (name, image) in [(NEW, &images.new), (OLD, &images.old)] {
            images.build(kind, name);
            assert!(fs::read(disk.path().join("image")).unwrap() == *image, "{kind}: {name}");
        }
    }
}

#[test]
fn a_sealed_image_and_its_seal_are_complete_after_a_power_cut_right_after_the_build() {
    let images = Images::new();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(images.workspace.root(), kind) else { continue };
        for (name, expected) in [(OLD, &images.sealed_old), (NEW, &images.sealed_new)] {
            images.build_sealed(kind, name);
            disk.commit_metadata();
            disk.cut_power();
            assert!(SealedImage::read(&disk.path().join("image")) == *expected, "{kind}: {name}");
        }
    }
}

#[test]
fn a_power_cut_during_a_build_leaves_the_old_image_or_the_new_one_with_its_seal() {
    let images = Images::new();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(images.workspace.root(), kind) else { continue };
        images.build_sealed(kind, OLD);
        for milliseconds in [0, 5, 10, 20, 40, 80, 160, 320] {
            let line = format!("build --plan {NEW}.sealed.json --cache {kind}/cache -q -o {kind}/image");
            let mut child = images.workspace.command(line.split(' ')).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(milliseconds));
            disk.commit_metadata();
            // The mount is busy while the program runs. It ends by itself or with an I/O error.
            child.kill().unwrap();
            child.wait().unwrap();
            disk.cut_power();
            let found = SealedImage::read(&disk.path().join("image"));
            let is_old = found.image == images.sealed_old.image;
            // The new seal alone makes the kernel refuse the old image.
            let is_new = found == images.sealed_new;
            let has_a_seal = [&images.sealed_old.seal, &images.sealed_new.seal].contains(&&found.seal);
            assert!((is_old && has_a_seal) || is_new, "{kind} after {milliseconds} ms: {}", found.image.len());
            images.build_sealed(kind, OLD);
            let found = SealedImage::read(&disk.path().join("image"));
            assert!(found == images.sealed_old, "{kind} after {milliseconds} ms");
        }
    }
}

#[test]
fn an_image_that_was_not_synced_is_built_again_after_a_restart_of_the_host() {
    let images = Images::new();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(images.workspace.root(), kind) else { continue };
        let build = |name: &str, option: &str| {
            let line = format!("build --plan {name}.json --cache {kind}/cache --json {option} -o {kind}/image");
            let report: serde_json::Value = serde_json::from_str(&images.workspace.run(line.trim()).success()).unwrap();
            report["outcome"].as_str().unwrap().to_owned()
        };
        assert_eq!(build(OLD, "--no-sync"), "built", "{kind}");
        assert_eq!(build(OLD, "--no-sync"), "unchanged", "{kind}");
        start_host_again(&images.workspace, kind);
        assert_eq!(build(OLD, "--no-sync"), "built", "{kind}: it can be damaged");

        fs::remove_file(disk.path().join("image")).unwrap();
        assert_eq!(build(OLD, "--no-sync"), "built", "{kind}");
        // Without the option, an image that is reported is on disk.
        assert_eq!(build(OLD, "-q"), "built", "{kind}: it is not on disk");
        assert_eq!(build(OLD, "-q"), "unchanged", "{kind}");
        assert_eq!(build(OLD, "--no-sync"), "unchanged", "{kind}");

        // An image that replaces another is on disk before it gets its name.
        assert_eq!(build(NEW, "--no-sync"), "built", "{kind}");
        disk.commit_metadata();
        disk.cut_power();
        assert!(fs::read(disk.path().join("image")).unwrap() == images.new, "{kind}");

        fs::remove_file(disk.path().join("image")).unwrap();
        assert_eq!(build(NEW, "--no-sync"), "built", "{kind}");
        disk.commit_metadata();
        disk.cut_power();
        start_host_again(&images.workspace, kind);
        assert_eq!(build(NEW, "--no-sync"), "built", "{kind}");
        assert!(fs::read(disk.path().join("image")).unwrap() == images.new, "{kind}");
    }
}

/// Gives the kernel another boot id, as seen by the programs that this thread starts. It has its own mount namespace.
fn start_host_again(workspace: &Workspace, kind: &str) {
    let number = fs::read_dir(workspace.root()).unwrap().count();
    let id = format!("boot-id-{kind}-{number}");
    workspace.write(&id, &format!("00000000-0000-4000-8000-{number:012}\n"));
    let mut mount = Command::new("mount");
    mount.arg("--bind").arg(workspace.path(&id)).arg("/proc/sys/kernel/random/boot_id");
    assert!(mount.status().unwrap().success());
}

#[test]
fn a_plan_is_complete_after_a_power_cut_right_after_it_was_written() {
    let images = Images::new();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(images.workspace.root(), kind) else { continue };
        for name in [OLD, NEW] {
            images.workspace.run(&format!("plan --paths-from {name} --store-dir store -o {kind}/plan")).success();
        }
        disk.commit_metadata();
        disk.cut_power();
        assert!(fs::read_to_string(disk.path().join("plan")).unwrap().contains(NEW), "{kind}");
    }
}
