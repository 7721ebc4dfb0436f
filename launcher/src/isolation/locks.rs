//! The lock files of volumes outside the state directory, which `volumes::lock` names. A machine's root directory
//! contains only the lock files of its own volumes, so that it cannot lock another machine's volumes.

use super::IsolationError;
use crate::launch::{Access, VolumeNeed};
use crate::volumes::{ImageNumber, LOCK_ENDING};
use nix::libc::O_NOFOLLOW;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// A lock file on the host, and its path in the machine's root directory.
pub(super) struct LockFile {
    pub(super) on_host: PathBuf,
    pub(super) inside: PathBuf,
}

/// Creates the lock files of an existing volume.
///
/// # Errors
/// Returns [`IsolationError::File`].
pub(super) fn of_volume(volume: &VolumeNeed, runtime: &Path) -> Result<Vec<LockFile>, IsolationError> {
    let image = volume.image.as_path();
    if volume.access != Access::ReadWrite || !volume.image.is_absolute() {
        return Ok(Vec::new());
    }
    let resolved = image.canonicalize().map_err(IsolationError::file(image))?;
    let metadata = fs::metadata(&resolved).map_err(IsolationError::file(&resolved))?;
    let by_number = |number: ImageNumber| {
        let path = number.lock(runtime);
        LockFile { on_host: path.clone(), inside: path }
    };
    if metadata.file_type().is_block_device() {
        let lock = by_number(ImageNumber::BlockDevice(metadata.rdev()));
        // Writable by all: only machines whose spec names the device have this file in their root directory.
        make(&lock.on_host, (0, 0, 0o666))?;
        return Ok(vec![lock]);
    }
    let rights = (metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o666);
    let beside = LockFile { on_host: with_ending(&resolved), inside: with_ending(image) };
    make(&beside.on_host, rights)?;
    let mut locks = vec![beside];
    if metadata.nlink() > 1 {
        let lock = by_number(ImageNumber::File(metadata.dev(), metadata.ino()));
        make(&lock.on_host, rights)?;
        locks.push(lock);
    }
    Ok(locks)
}

fn with_ending(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(LOCK_ENDING);
    name.into()
}

/// Creates a file with that owner and mode. Leaves an existing file unchanged.
fn make(path: &Path, (user, group, mode): (u32, u32, u32)) -> Result<(), IsolationError> {
    let failed = || IsolationError::file(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed())?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW).open(path) {
        Ok(file) => {
            fchown(&file, Some(user), Some(group)).map_err(failed())?;
            file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed()(error)),
    }
}
