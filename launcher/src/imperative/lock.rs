//! Locks that let only one process at a time create, update or delete a machine.

use super::create::DIRECTORY_MODE;
use super::{ImperativeError, Layout, MachineName};
use nix::fcntl::{Flock, FlockArg};
use program::place::{Directory, Place};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Prevents other processes from changing the machine while it is held. The lock file is next to the state directory,
/// because that may not exist yet and can be changed by the machine's user.
#[derive(Debug)]
pub(super) struct MachineLock {
    path: PathBuf,
    _lock: Flock<File>,
}

impl MachineLock {
    /// Waits until no other process is changing the machine.
    pub(super) fn take(layout: &Layout, name: &MachineName) -> Result<Self, ImperativeError> {
        let directory = Directory::make(layout.machines(), DIRECTORY_MODE, None)
            .map_err(ImperativeError::file(layout.machines()))?;
        let file_name = format!(".{name}.lock");
        let path = layout.machines().join(&file_name);
        let place = directory.place(&file_name);
        loop {
            let file = place.open_or_create(0o600).map_err(ImperativeError::file(&path))?;
            let lock = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| ImperativeError::file(&path)(errno.into()))?;
            if is_still_at(&lock, &path) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for MachineLock {
    fn drop(&mut self) {
        // Removed while the lock is held: a process that waits for the lock detects this and creates a new file.
        let _ = Place::itself(&self.path).and_then(|place| place.remove());
    }
}

/// Whether the lock file is still at its path, rather than removed by its former holder.
fn is_still_at(lock: &File, path: &Path) -> bool {
    match (lock.metadata(), fs::symlink_metadata(path)) {
        (Ok(locked), Ok(found)) => (locked.dev(), locked.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}
