//! The lock files of volumes outside the state directory, which `volumes::lock` names. A machine's root directory
//! contains only the lock files of its own volumes, so that it cannot lock another machine's volumes.

use super::IsolationError;
use crate::launch::{Access, LOCK_ENDING, VolumeNeed};
use crate::volumes::{ImageNumber, LOCK_DIRECTORY_MODE, require_no_loop_user};
use nix::errno::Errno;
use nix::libc::{S_IFBLK, S_IFMT};
use program::place::Place;
use std::fs;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// A lock file on the host, and its path in the machine's root directory.
pub(super) struct LockFile {
    pub(super) on_host: PathBuf,
    pub(super) inside: PathBuf,
}

/// Creates the lock files of an existing volume.
///
/// # Errors
/// Returns [`IsolationError::File`], or [`IsolationError::Volume`] if another process uses the volume by a loop device.
pub(super) fn of_volume(volume: &VolumeNeed, runtime: &Path) -> Result<Vec<LockFile>, IsolationError> {
    let image = volume.image.as_path();
    if !volume.image.is_absolute() || (volume.access == Access::Read && image.starts_with("/nix/store")) {
        return Ok(Vec::new());
    }
    let failed = || IsolationError::file(image);
    let place = Place::of(image).map_err(failed())?;
    let stat = place.stat().map_err(failed())?.ok_or_else(|| failed()(Errno::ENOENT.into()))?;
    // The machine does not see the loop devices of its images, nor the files of its loop devices.
    require_no_loop_user(&stat, volume)?;
    let by_number = |number: ImageNumber, rights| -> Result<LockFile, IsolationError> {
        let path = number.lock(runtime);
        let place = Place::with_parents(&path, LOCK_DIRECTORY_MODE, None).map_err(IsolationError::file(&path))?;
        make(&place, rights)?;
        Ok(LockFile { on_host: place.path(), inside: path })
    };
    if stat.st_mode & S_IFMT == S_IFBLK {
        // Writable by all: only machines whose spec names the device have this file in their root directory.
        return Ok(vec![by_number(ImageNumber::BlockDevice(stat.st_rdev), (0, 0, 0o666))?]);
    }
    let rights = (stat.st_uid, stat.st_gid, stat.st_mode & 0o666);
    let beside = place.sibling(LOCK_ENDING).map_err(failed())?;
    make(&beside, rights)?;
    let mut locks = vec![LockFile { on_host: beside.path(), inside: with_ending(image) }];
    if stat.st_nlink > 1 {
        locks.push(by_number(ImageNumber::File(stat.st_dev, stat.st_ino), rights)?);
    }
    Ok(locks)
}

fn with_ending(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(LOCK_ENDING);
    name.into()
}

/// Creates a file with that owner and mode. Leaves an existing file unchanged.
fn make(place: &Place, (user, group, mode): (u32, u32, u32)) -> Result<(), IsolationError> {
    let path = place.path();
    let failed = || IsolationError::file(&path);
    if place.stat().map_err(failed())?.is_some() {
        return Ok(());
    }
    let file = place.open_or_create(0o600).map_err(failed())?;
    fchown(&file, Some(user), Some(group)).map_err(failed())?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed())
}
