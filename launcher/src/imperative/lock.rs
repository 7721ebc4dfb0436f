//! Locks that let only one process at a time create, update or delete a machine, or give machines their names.

use super::layout::DIRECTORY_MODE;
use super::{ImperativeError, Layout, MachineName};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use program::output::message;
use program::place::{Directory, Place};
use program::presence::is_still_at;
use std::fs::{self, File};
use std::io;
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

/// Anyone who can read a file can lock it: flock(2).
const LOCK_MODE: u32 = 0o644;
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
            let file = open_or_create(&place).map_err(ImperativeError::file(&path))?;
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

/// Opens a lock file, or creates an empty one. Several users may share the directory: each of them can lock the file of
/// another, which stays if its process is killed.
fn open_or_create(place: &Place) -> io::Result<File> {
    match place.open_or_create(LOCK_MODE) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => place.open(OFlag::O_RDONLY),
        opened => opened,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use crate::imperative::{delete, removal};
    use nix::unistd::{Uid, geteuid, setfsuid};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;
    use std::time::Duration;

    fn host() -> (tempfile::TempDir, Layout) {
        let host = tempfile::tempdir().unwrap();
        let layout = Layout::at(host.path().join("machines"), host.path().join("gcroots"));
        fs::create_dir(layout.machines()).unwrap();
        (host, layout)
    }

    #[test]
    fn a_lock_file_that_a_killed_process_of_another_user_left_blocked_all_others() {
        if !geteuid().is_root() {
            return testing::skipped("needs root, to become another user");
        }
        let (host, layout) = host();
        for directory in [host.path(), layout.machines()] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let left = NamesLock::take(&layout).unwrap();
        let path = left._lock.path.clone();
        // The file of a process that was killed: it is no longer locked, but has not been removed.
        let copy = fs::metadata(&path).unwrap().permissions();
        drop(left);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, copy).unwrap();
        let taken = thread::spawn(move || {
            setfsuid(Uid::from_raw(65534));
            NamesLock::take(&layout).map(drop)
        });
        taken.join().unwrap().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_deletion_removed_the_root_of_a_machine_that_was_created_meanwhile() {
        let (host, layout) = host();
        let web = layout.machine(&MachineName::new("web").unwrap());
        fs::create_dir(&web.directory).unwrap();
        symlink("/nix/store/runner", web.current()).unwrap();
        layout.add_gc_roots(&web).unwrap();
        removal(&layout, &web.name).unwrap();
        // A machine `booted-web` is being created.
        let names = NamesLock::take(&layout).unwrap();
        let inode = format!(":{}", fs::metadata(&names._lock.path).unwrap().ino());
        let deletion = thread::spawn({
            let (layout, name) = (layout.clone(), web.name.clone());
            move || delete(&layout, &name)
        });
        let is_waiting = || {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            let mut lines = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            lines.any(|words| words.get(1) == Some(&"->") && words.iter().any(|word| word.ends_with(&inode)))
        };
        while !is_waiting() {
            assert!(!deletion.is_finished(), "it has not waited");
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!web.directory.exists());
        let root = host.path().join("gcroots/booted-web");
        assert_eq!(fs::read_link(&root).unwrap(), web.booted());
        let other = layout.machine(&MachineName::new("booted-web").unwrap());
        fs::remove_file(&root).unwrap();
        symlink(other.current(), &root).unwrap();
        drop(names);
        deletion.join().unwrap().unwrap();
        assert_eq!(fs::read_link(&root).unwrap(), other.current());
        assert!(!host.path().join("gcroots/web").exists());
    }
}
