//! Loop devices, which show the content of a file as a block device (loop(4)). A machine that uses the device and one that
//! uses the file write to one volume.
//!
//! The kernel identifies the file by device and inode, to everyone who can open the device. It also has a path in sysfs, which
//! can lead to any other file: the file may have been removed or moved, and the device may have been attached in another mount
//! namespace. So a file that is found by this path is compared before it is used.

use nix::fcntl::OFlag;
use nix::libc::{S_IFBLK, S_IFMT, dev_t};
use nix::sys::stat::{FileStat, fstat, major, minor};
use program::place::Place;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Block devices by number.
const BY_NUMBER: &str = "/sys/dev/block";
/// Block devices by name.
const BY_NAME: &str = "/sys/block";
/// How the names of loop devices begin.
const LOOP: &str = "loop";
/// The major number of loop devices: Documentation/admin-guide/devices.txt of the kernel.
const LOOP_MAJOR: u64 = 7;
/// `LO_FLAGS_READ_ONLY` of linux/loop.h.
const READ_ONLY: u32 = 1;
/// How many loop devices may show one another.
const MAX_DEPTH: usize = 8;

/// What a loop device shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The device and the inode of a file.
    File(u64, u64),
    /// The number of a block device.
    Device(u64),
}

/// A loop device that shows a file.
pub(super) struct LoopDevice {
    /// The path of the device.
    pub(super) path: PathBuf,
    /// Whether nobody can write to the file by this device.
    pub(super) is_read_only: bool,
}

/// Returns what a loop device shows from beginning to end. Returns `None` for another device, for one that this user cannot
/// open, and for a device with an offset or a limit: several of those show different parts of one file, such as partitions.
pub(super) fn shown_by(device: &Path) -> Option<Shown> {
    let mut shown = shown_directly_by(device)?;
    for _ in 0..MAX_DEPTH {
        let Shown::Device(number) = shown else { break };
        let Some(below) = name_of(number).and_then(|name| shown_directly_by(&name)) else { break };
        shown = below;
    }
    Some(shown)
}

fn shown_directly_by(device: &Path) -> Option<Shown> {
    let status = status_of(device)?;
    (status.offset == 0 && status.size_limit == 0).then(|| status.shown())
}

/// Returns the directory of a block device in sysfs.
fn directory_of(number: dev_t) -> PathBuf {
    Path::new(BY_NUMBER).join(format!("{}:{}", major(number), minor(number)))
}

/// Returns the path of a block device.
fn name_of(number: dev_t) -> Option<PathBuf> {
    let directory = fs::read_link(directory_of(number)).ok()?;
    Some(Path::new("/dev").join(directory.file_name()?))
}

/// Opens the file that a loop device shows from beginning to end. Returns `None` if it is not found, or cannot be opened.
pub(super) fn open_shown_file(device: &Path, number: dev_t) -> Option<File> {
    let Some(shown @ Shown::File(..)) = shown_by(device) else { return None };
    let directory = directory_of(number).join(LOOP);
    let place = Place::nofollow(&backing_file(&directory)?).ok()?;
    let is_shown = |found: &FileStat| shown == Shown::File(found.st_dev, found.st_ino);
    // Another file is not even opened, which would wait for a user who has a lease on it.
    place.stat().ok()?.filter(is_shown)?;
    let file = place.open(OFlag::O_RDONLY).ok()?;
    is_shown(&fstat(&file).ok()?).then_some(file)
}

/// Returns the loop devices of this host that show a file, or a part of it. Leaves out those that this user cannot open.
pub(super) fn devices_of(file: &FileStat) -> Vec<LoopDevice> {
    let Ok(devices) = fs::read_dir(BY_NAME) else { return Vec::new() };
    let names = devices.filter_map(|device| device.ok().map(|device| device.file_name()));
    // A device that shows nothing has no such directory.
    let is_attached = |name: &OsStr| Path::new(BY_NAME).join(name).join(LOOP).exists();
    let loops = names.filter(|name| name.as_bytes().starts_with(LOOP.as_bytes()) && is_attached(name));
    let found = loops.filter_map(|name| {
        let path = Path::new("/dev").join(name);
        let status = status_of(&path)?;
        let is_file = status.shown() == Shown::File(file.st_dev, file.st_ino);
        is_file.then_some(LoopDevice { path, is_read_only: status.flags & READ_ONLY != 0 })
    });
    found.collect()
}

fn status_of(device: &Path) -> Option<request::Status> {
    let place = Place::of(device).ok()?;
    // The kernel describes a partition like the whole device. It has this major number with the parameter `loop.max_part`.
    let is_partition = |found: &FileStat| directory_of(found.st_rdev).join("partition").exists();
    let is_loop = |found: &FileStat| {
        found.st_mode & S_IFMT == S_IFBLK && major(found.st_rdev) == LOOP_MAJOR && !is_partition(found)
    };
    // Other devices are not opened: some take long.
    place.stat().ok()?.filter(is_loop)?;
    let file = place.open(OFlag::O_RDONLY).ok()?;
    if is_loop(&fstat(&file).ok()?) { request::status(file.as_fd()).ok() } else { None }
}

impl request::Status {
    fn shown(&self) -> Shown {
        if self.block_device == 0 {
            Shown::File(self.file_device, self.inode)
        } else {
            Shown::Device(self.block_device)
        }
    }
}

/// Reads the path of the file from the directory of a loop device.
fn backing_file(directory: &Path) -> Option<PathBuf> {
    let text = fs::read(directory.join("backing_file")).ok()?;
    let path = text.strip_suffix(b"\n").unwrap_or(&text);
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

/// The ioctl request of linux/loop.h.
#[expect(unsafe_code, reason = "no crate wraps the ioctls of loop devices")]
mod request {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};

    const LOOP_GET_STATUS64: u64 = 0x4c05;

    /// `struct loop_info64`. The kernel encodes numbers of devices as stat(2) does.
    #[repr(C)]
    pub(super) struct Status {
        /// The device of the file.
        pub(super) file_device: u64,
        /// The inode of the file.
        pub(super) inode: u64,
        /// The number of the block device, if the file is one.
        pub(super) block_device: u64,
        pub(super) offset: u64,
        pub(super) size_limit: u64,
        _number: u32,
        _encryption: [u32; 2],
        pub(super) flags: u32,
        _names_and_key: [u8; 160],
        _unused: [u64; 2],
    }

    nix::ioctl_read_bad!(loop_get_status, LOOP_GET_STATUS64, Status);

    /// Returns what a loop device shows. Fails if it shows nothing.
    pub(super) fn status(device: BorrowedFd<'_>) -> io::Result<Status> {
        let mut status = Status {
            file_device: 0,
            inode: 0,
            block_device: 0,
            offset: 0,
            size_limit: 0,
            _number: 0,
            _encryption: [0; 2],
            flags: 0,
            _names_and_key: [0; 160],
            _unused: [0; 2],
        };
        // SAFETY: the pointer is to a structure of the size that the kernel writes, 232 bytes.
        unsafe { loop_get_status(device.as_raw_fd(), &raw mut status) }?;
        Ok(status)
    }

    const _: () = assert!(size_of::<Status>() == 232);
}
