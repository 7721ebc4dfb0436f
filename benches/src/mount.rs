//! Loop mounts of images and the dropping of the kernel's caches. Needs root.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, file};
use crate::workspace::run;

/// An image mounted read-only on a directory of its own; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    /// Mounts the file `image` (squashfs or erofs, recognised by its magic number) through a loop device.
    ///
    /// # Errors
    /// When the image is of another type or `mount` fails.
    pub fn new(image: &Path) -> Result<Self, Error> {
        let directory = tempfile::tempdir().map_err(file("create a directory in", std::env::temp_dir()))?;
        let metadata = fs::metadata(image).map_err(file("read", image))?;
        let options = if metadata.file_type().is_block_device() { "ro" } else { "loop,ro" };
        run(Command::new("mount").args(["-o", options, "-t", file_system(image)?]).arg(image).arg(directory.path()))?;
        Ok(Self { directory })
    }

    /// Returns the mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(self.directory.path())) {
            crate::message(&format!("{error}"));
        }
    }
}

/// `squashfs` or `erofs`, by the magic number of the superblock.
///
/// # Errors
/// When the file can't be read or is neither.
pub fn file_system(image: &Path) -> Result<&'static str, Error> {
    use std::os::unix::fs::FileExt;
    let opened = fs::File::open(image).map_err(file("open", image))?;
    let mut magic = [0; 4];
    opened.read_exact_at(&mut magic, 0).map_err(file("read", image))?;
    if &magic == b"hsqs" {
        return Ok("squashfs");
    }
    opened.read_exact_at(&mut magic, 1024).map_err(file("read", image))?;
    if u32::from_le_bytes(magic) == 0xe0f5_e1e2 {
        return Ok("erofs");
    }
    Err(Error::Unexpected(format!("{} is neither squashfs nor erofs", image.display())))
}

/// Empties the kernel's page, directory and inode caches, so that the next read is a first read.
///
/// # Errors
/// When `/proc/sys/vm/drop_caches` can't be written: needs root.
pub fn drop_caches() -> Result<(), Error> {
    let control = PathBuf::from("/proc/sys/vm/drop_caches");
    fs::write(&control, "3").map_err(file("write (needs root)", control))
}
