//! Locks that let only one process at a time create, update or delete a machine, or give machines their names.

use super::layout::DIRECTORY_MODE;
use super::{ImperativeError, Layout, MachineName};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use program::output::message;
use program::place::{Directory, Place};
use program::presence::is_still_at;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Prevents other processes from changing the machine while it is held. The lock file is next to the state directory,
/// because that may not exist yet and can be changed by the machine's user.
#[derive(Debug)]
pub(super) struct MachineLock {
    _lock: FileLock,
}

impl MachineLock {
    /// Waits until no other process is changing the machine.
    pub(super) fn take(layout: &Layout, name: &MachineName) -> Result<Self, ImperativeError> {
        Ok(Self { _lock: FileLock::take(layout, name.as_str(), &format!("changing {name}"))? })
    }
}

/// The name of the lock that all new machines share. No machine can have it, because the names of machines contain no
/// `@`.
const NAMES: &str = "names@";

/// Prevents other processes from giving a new machine its name while it is held. A process that has the lock of a
/// machine may wait for it, but not the reverse.
#[derive(Debug)]
pub struct NamesLock {
    _lock: FileLock,
}

impl NamesLock {
    /// Waits until no other process is giving a machine its name.
    pub(super) fn take(layout: &Layout) -> Result<Self, ImperativeError> {
        Ok(Self { _lock: FileLock::take(layout, NAMES, "creating a machine")? })
    }
}

/// A locked file in the directory of the machines.
#[derive(Debug)]
struct FileLock {
    path: PathBuf,
    _lock: Flock<File>,
}

impl FileLock {
    fn take(layout: &Layout, name: &str, activity: &str) -> Result<Self, ImperativeError> {
        let directory = Directory::make(layout.machines(), DIRECTORY_MODE, None)
            .map_err(ImperativeError::file(layout.machines()))?;
        let file_name = format!(".{name}.lock");
        let path = layout.machines().join(&file_name);
        let place = directory.place(&file_name);
        loop {
            let file = place.open_or_create(0o600).map_err(ImperativeError::file(&path))?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Err((file, Errno::EWOULDBLOCK)) => {
                    message(&format!("waiting for {}, which is {activity}", holder(&file)));
                    Flock::lock(file, FlockArg::LockExclusive)
                }
                other => other,
            };
            let lock = lock.map_err(|(_, errno)| ImperativeError::file(&path)(errno.into()))?;
            if is_still_at(&lock, &path) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Removed while the lock is held: a process that waits for the lock detects this and creates a new file.
        let _ = Place::nofollow(&self.path).and_then(|place| place.remove());
    }
}

/// Returns the process that holds a lock, according to proc_locks(5).
fn holder(file: &File) -> String {
    let unknown = || "another process".to_owned();
    let (Ok(locked), Ok(locks)) = (file.metadata(), fs::read_to_string("/proc/locks")) else { return unknown() };
    // 1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF
    let inode = format!(":{}", locked.ino());
    let process = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find_map(|words| {
        let is_this = words.get(1) == Some(&"FLOCK") && words.get(5).is_some_and(|place| place.ends_with(&inode));
        is_this.then(|| words.get(4).copied().unwrap_or_default().to_owned())
    });
    let Some(process) = process.filter(|process| process != "0") else { return unknown() };
    let command = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let command = command.split_terminator('\0').collect::<Vec<_>>().join(" ");
    if command.is_empty() { format!("process {process}") } else { format!("process {process} ({command})") }
}
