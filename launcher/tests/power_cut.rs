//! Power cuts: files that the launcher has written are complete afterwards, or do not exist.
//!
//! A file system on a loop device is shut down without writing its log, as in a power cut, and mounted again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and a skipped one says so"
)]

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use program::place::Place;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system whose power can be cut.
struct Disk {
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    /// Returns `None` and prints the reason if nothing can be mounted.
    fn new(directory: &Path, kind: &str) -> Option<Self> {
        let disk = Self { image: directory.join(format!("{kind}.disk")), point: directory.join(kind) };
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("skipped: mounting needs root and loop devices");
            return None;
        }
        if !fs::read_to_string("/proc/filesystems").unwrap().contains(kind) {
            eprintln!("skipped: this kernel has no {kind}");
            return None;
        }
        // In a mount namespace of this thread, because a copy of the mount in another program's namespace would keep
        // the file system alive after it is unmounted here.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        File::create(&disk.image).unwrap().set_len(400 << 20).unwrap();
        fs::create_dir(&disk.point).unwrap();
        match command(&format!("mkfs.{kind}")).arg("-q").arg(&disk.image).status() {
            Ok(status) => assert!(status.success()),
            Err(error) => {
                assert!(std::env::var_os("MICROVM_TEST_REQUIRE_TOOLS").is_none(), "mkfs.{kind}: {error}");
                eprintln!("skipped: mkfs.{kind}: {error}");
                return None;
            }
        }
        disk.mount();
        Some(disk)
    }

    fn mount(&self) {
        assert!(command("mount").args(["-o", "loop"]).args([&self.image, &self.point]).status().unwrap().success());
    }

    /// Makes the file system commit the metadata of all files, as it does by itself after some seconds, while the data
    /// of other files is still in memory.
    fn commit_metadata(&self) {
        let file = File::create(self.point.join("committed")).unwrap();
        file.set_len(1).unwrap();
        file.sync_all().unwrap();
    }

    /// Cuts the power, and mounts the file system again.
    #[allow(unsafe_code, reason = "no crate wraps this ioctl")]
    fn cut_power(&self) {
        /// `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN`: linux/fs/ext4/ext4.h, linux/fs/xfs/libxfs/xfs_fs.h.
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        const WITHOUT_THE_LOG: u32 = 2;
        let root = File::open(&self.point).unwrap();
        // SAFETY: the ioctl reads four bytes through the pointer, which refers to a live `u32`.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN as _, &WITHOUT_THE_LOG) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        drop(root);
        assert!(command("umount").arg(&self.point).status().unwrap().success());
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = command("umount").arg("-l").arg(&self.point).status();
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()));
    command
}

/// Runs `microvm volumes` in that state directory.
fn volumes(state: &Path, spec: &Path) {
    let microvm = env!("CARGO_BIN_EXE_microvm");
    let done = command(microvm).arg("volumes").arg(spec).arg("--state-dir").arg(state).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn files_written_just_before_a_power_cut_are_complete_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("machine.json");
    let document = serde_json::json!({
        "version": 1, "name": "web", "kernel": "/k/bzImage", "initrd": "/k/initrd",
        "volumes": [{"image": "var.img", "size": 32, "fsType": "ext4", "label": "state", "mountPoint": "/var"}],
    });
    fs::write(&spec, document.to_string()).unwrap();
    for kind in ["ext4", "xfs"] {
        let Some(disk) = Disk::new(directory.path(), kind) else { continue };
        let (old, new) = (vec![b'o'; 100_000], vec![b'n'; 200_000]);
        let files = ["machine.json", "state.json", "plan.json"].map(|name| disk.point.join(name));
        for content in [&old, &new] {
            for file in &files {
                Place::itself(file).unwrap().replace(content, 0o640, None).unwrap();
            }
        }
        volumes(&disk.point, &spec);
        disk.commit_metadata();
        disk.cut_power();
        for file in &files {
            let found = fs::read(file).unwrap();
            assert!(found == new, "{kind}: {}: {} bytes", file.display(), found.len());
        }
        let image = disk.point.join("var.img");
        let check = command("e2fsck").args(["-f", "-n"]).arg(&image).output().unwrap();
        assert!(check.status.success(), "{kind}: {}", String::from_utf8_lossy(&check.stdout));
        // It matches the spec, so it is not created again.
        volumes(&disk.point, &spec);
        let names = fs::read_dir(&disk.point).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!names.into_iter().any(|name| name.ends_with(".new")), "{kind}: half a file is left");
    }
}
