//! Power cuts: a file system on a loop device is shut down without writing its log, and mounted again.

use crate::{find_tool, skipped};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A mounted file system that can lose its power.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    /// Makes a file system of that kind (btrfs, ext4 or xfs) in `directory`, and mounts it on `directory/kind`. None, with the
    /// reason printed, where nothing can be mounted.
    pub fn new(directory: &Path, kind: &str) -> Option<Self> {
        let mkfs = find_tool(&format!("mkfs.{kind}"))?;
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            skipped("mounting needs root and loop devices");
            return None;
        }
        if !fs::read_to_string("/proc/filesystems").unwrap().contains(kind) {
            skipped(&format!("this kernel has no {kind}"));
            return None;
        }
        // This thread gets its own mount namespace. Otherwise the namespace of another program could get a copy of the
        // mount, which would keep the file system alive after it is unmounted here.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let disk = Self { image: directory.join(format!("{kind}.disk")), point: directory.join(kind) };
        File::create(&disk.image).unwrap().set_len(400 << 20).unwrap();
        fs::create_dir(&disk.point).unwrap();
        assert!(Command::new(mkfs).arg("-q").arg(&disk.image).status().unwrap().success());
        disk.mount();
        Some(disk)
    }

    /// Returns the directory on which the file system is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        assert!(mount.args(["-o", "loop"]).args([&self.image, &self.point]).status().unwrap().success());
    }

    /// Makes the file system commit the metadata of all files, as it does after some seconds anyway. The data of other
    /// files stays in memory.
    pub fn commit_metadata(&self) {
        let file = File::create(self.point.join("committed")).unwrap();
        file.set_len(1).unwrap();
        file.sync_all().unwrap();
    }

    /// Shuts the file system down without writing its log, and mounts it again.
    #[allow(unsafe_code, reason = "no crate wraps this ioctl")]
    pub fn cut_power(&self) {
        /// `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN`: linux/fs/ext4/ext4.h, linux/fs/xfs/libxfs/xfs_fs.h.
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.point).unwrap();
        // SAFETY: the ioctl reads four bytes from the pointer, which points to a constant of that size.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN as _, &NO_LOG_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        drop(root);
        // A child that another test forks has the files of this process until it executes its program.
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let output = Command::new("umount").arg(&self.point).output().unwrap();
            if output.status.success() {
                break;
            }
            assert!(Instant::now() < end, "{}", String::from_utf8_lossy(&output.stderr));
            std::thread::sleep(Duration::from_millis(10));
        }
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.point).status();
    }
}
