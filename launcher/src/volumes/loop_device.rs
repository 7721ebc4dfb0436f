//! Loop devices, which show the content of a file as a block device (loop(4)). A machine that uses the device and one that
//! uses the file write to one volume. The kernel names the file in sysfs.

use nix::libc::dev_t;
use nix::sys::stat::{FileStat, major, minor, stat};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Block devices by number.
const BY_NUMBER: &str = "/sys/dev/block";
/// Block devices by name.
const BY_NAME: &str = "/sys/block";
/// How the names of loop devices begin.
const LOOP: &str = "loop";

/// Returns the file that a loop device shows from beginning to end. Returns `None` for another device, and for a device
/// with an offset or a limit: several of those show different parts of one file, such as partitions.
pub(super) fn shown_file(device: dev_t) -> Option<PathBuf> {
    let directory = Path::new(BY_NUMBER).join(format!("{}:{}", major(device), minor(device))).join(LOOP);
    let is_zero = |name: &str| fs::read_to_string(directory.join(name)).is_ok_and(|text| text.trim() == "0");
    if is_zero("offset") && is_zero("sizelimit") { backing_file(&directory) } else { None }
}

/// Returns the loop devices of this host that show a file, or a part of it.
pub(super) fn devices_of(file: &FileStat) -> Vec<PathBuf> {
    let Ok(devices) = fs::read_dir(BY_NAME) else { return Vec::new() };
    let names = devices.filter_map(|device| device.ok().map(|device| device.file_name()));
    let shows_file = |name: &OsStr| {
        let shown = backing_file(&Path::new(BY_NAME).join(name).join(LOOP)).and_then(|shown| stat(&shown).ok());
        shown.is_some_and(|shown| (shown.st_dev, shown.st_ino) == (file.st_dev, file.st_ino))
    };
    let loops = names.filter(|name| name.as_bytes().starts_with(LOOP.as_bytes()) && shows_file(name));
    loops.map(|name| Path::new("/dev").join(name)).collect()
}

/// Reads the path of the file from the directory of a loop device. No file has the path if it was removed.
fn backing_file(directory: &Path) -> Option<PathBuf> {
    let text = fs::read(directory.join("backing_file")).ok()?;
    let path = text.strip_suffix(b"\n").unwrap_or(&text);
    Some(PathBuf::from(OsStr::from_bytes(path)))
}
