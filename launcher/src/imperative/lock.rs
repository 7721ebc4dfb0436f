//! Locks that let only one process at a time create, update or delete a machine, or give machines their names.

use super::layout::DIRECTORY_MODE;
use super::{ImperativeError, Layout, MachineName};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use program::escape::one_line;
use program::output::message;
use program::place::{Directory, Place};
use program::presence::is_still_at;
use program::user::Identity;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// How much of a command line is read and shown.
const MAX_COMMAND_BYTES: u64 = 1 << 10;
const MAX_COMMAND_CHARACTERS: usize = 200;
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
        Ok(Self { _lock: FileLock::take(layout, NAMES, "creating or deleting a machine")? })
    }
}

/// A locked file in the directory of the machines.
#[derive(Debug)]
struct FileLock {
    path: PathBuf,
    lock: Flock<File>,
}

impl FileLock {
    fn take(layout: &Layout, name: &str, activity: &str) -> Result<Self, ImperativeError> {
        let directory = Directory::make(layout.machines(), DIRECTORY_MODE, None)
            .map_err(ImperativeError::file(layout.machines()))?;
        let file_name = format!(".{name}.lock");
        let path = layout.machines().join(&file_name);
        let place = directory.place(&file_name);
        loop {
            let file = open_or_create(&place, layout.machines()).map_err(ImperativeError::file(&path))?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Err((file, Errno::EWOULDBLOCK)) => {
                    message(&format!("waiting for {}, which is {activity}", holder(&file)));
                    Flock::lock(file, FlockArg::LockExclusive)
                }
                other => other,
            };
            let lock = lock.map_err(|(_, errno)| ImperativeError::file(&path)(errno.into()))?;
            if is_still_at(&lock, &path) {
                return Ok(Self { path, lock });
            }
        }
    }
}

/// Opens a lock file, or creates an empty one. Several users may share the directory: each of them can lock the file of
/// another, which stays if its process is killed.
fn open_or_create(place: &Place, machines: &Path) -> io::Result<File> {
    loop {
        let opened = match place.open(OFlag::O_RDWR) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => place.open(OFlag::O_RDONLY),
            opened => opened,
        };
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match create(place, &fs::metadata(machines)?) {
            // Another process has created it in the meantime: open that one.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => created?,
        }
    }
}

/// Creates a lock file that only the users who can write to its directory can open: anyone who can open a file can lock
/// it, and the others would wait for that process without end.
fn create(place: &Place, directory: &fs::Metadata) -> io::Result<()> {
    let user = geteuid();
    let owner = if user.is_root() { directory.uid() } else { user.as_raw() };
    let readers = (directory.mode() & 0o022) << 1;
    let shared = place.create()?.finish(0o600 | readers, Some(&Identity::of_ids(owner, directory.gid())));
    match shared.as_ref().map_err(io::Error::kind) {
        // This process cannot give it to the directory's group.
        Err(io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => place.create()?.finish(0o600, None),
        _ => shared,
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // A file of that name that a user has written stays.
        if self.lock.metadata().is_ok_and(|file| file.len() > 0) {
            return;
        }
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
    let command = command_line(&process);
    if command.is_empty() { format!("process {process}") } else { format!("process {process} ({command})") }
}

/// Returns the beginning of a process's command line on one line: its user has chosen it.
fn command_line(process: &str) -> String {
    let mut bytes = Vec::new();
    // Empty if the process has ended.
    let _ = File::open(format!("/proc/{process}/cmdline"))
        .and_then(|file| file.take(MAX_COMMAND_BYTES).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let command = text.split_terminator('\0').collect::<Vec<_>>().join(" ");
    one_line(&command.chars().take(MAX_COMMAND_CHARACTERS).collect::<String>()).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use crate::imperative::create::discard;
    use crate::imperative::{Machine, delete, removal};
    use nix::unistd::{Uid, setfsuid};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::process::{Command, Stdio};
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
        fs::hard_link(&path, host.path().join("left")).unwrap();
        drop(left);
        fs::rename(host.path().join("left"), &path).unwrap();
        as_nobody(move || NamesLock::take(&layout).map(drop)).unwrap();
        assert!(!path.exists());
    }

    /// Calls a function with the permissions of nobody for files.
    fn as_nobody<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
        let called = thread::spawn(|| {
            setfsuid(Uid::from_raw(65534));
            call()
        });
        called.join().unwrap()
    }

    #[test]
    fn any_local_user_could_hold_the_lock_of_a_machine() {
        if !geteuid().is_root() {
            return testing::skipped("needs root, to become another user");
        }
        let (_host, layout) = host();
        // The mode and the owner of the directory, and whether nobody can open the lock file.
        let cases = [
            (0o755, (0, 0), false),
            (0o755, (65534, 0), true),
            (0o770, (0, 7), false),
            (0o775, (0, 7), false),
            (0o1777, (0, 0), true),
        ];
        for (mode, (user, group), can_open) in cases {
            chown(layout.machines(), Some(user), Some(group)).unwrap();
            fs::set_permissions(layout.machines(), fs::Permissions::from_mode(mode)).unwrap();
            let lock = NamesLock::take(&layout).unwrap();
            let file = fs::metadata(&lock._lock.path).unwrap();
            let readers = (mode & 0o022) << 1;
            assert_eq!((file.mode() & 0o777, file.uid(), file.gid()), (0o600 | readers, user, group));
            fs::set_permissions(layout.machines().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
            let path = lock._lock.path.clone();
            assert_eq!(as_nobody(|| File::open(path)).is_ok(), can_open, "{mode:o}");
        }
    }

    #[test]
    fn a_user_who_cannot_write_to_the_directory_was_told_that_the_lock_file_does_not_exist() {
        if !geteuid().is_root() {
            return testing::skipped("needs root, to become another user");
        }
        let (host, layout) = host();
        for directory in [host.path(), layout.machines()] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let taken = |layout: &Layout| {
            let layout = layout.clone();
            as_nobody(move || NamesLock::take(&layout).map(drop)).unwrap_err().to_string()
        };
        assert!(taken(&layout).ends_with("Permission denied (os error 13)"), "{}", taken(&layout));
        let _lock = NamesLock::take(&layout).unwrap();
        assert!(taken(&layout).ends_with("Permission denied (os error 13)"), "{}", taken(&layout));
    }

    #[test]
    fn the_command_line_of_the_process_that_holds_the_lock_moved_the_cursor_of_roots_terminal() {
        let mut sleeping = Command::new("sh");
        sleeping.args(["-c", "echo; read line", "\x1b[31mroot\nerror: no", &"long".repeat(1000)]);
        let mut sleeping = sleeping.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        sleeping.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let shown = command_line(&sleeping.id().to_string());
        drop(sleeping.stdin.take());
        sleeping.wait().unwrap();
        assert!(shown.starts_with("sh -c echo; read line \\u{1b}[31mroot\\nerror: no longlong"), "{shown}");
        assert!(shown.len() < 250, "{}", shown.len());
    }

    #[test]
    fn a_users_file_with_the_name_of_a_lock_file_was_removed() {
        let (_host, layout) = host();
        let path = layout.machines().join(".names@.lock");
        fs::write(&path, "notes").unwrap();
        drop(NamesLock::take(&layout).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
    }

    /// Waits until a thread waits for the lock.
    fn wait_until_it_waits<T>(names: &NamesLock, waiting: &thread::JoinHandle<T>) {
        let inode = format!(":{}", fs::metadata(&names._lock.path).unwrap().ino());
        let is_waiting = || {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            let mut lines = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            lines.any(|words| words.get(1) == Some(&"->") && words.iter().any(|word| word.ends_with(&inode)))
        };
        while !is_waiting() {
            assert!(!waiting.is_finished(), "it has not waited");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_failed_creation_removed_the_root_of_a_machine_that_was_created_meanwhile() {
        let (host, layout) = host();
        let web = layout.machine(&MachineName::new("web").unwrap());
        layout.add_gc_roots(&web).unwrap();
        // A machine `booted-web` is being created.
        let names = NamesLock::take(&layout).unwrap();
        let failed = thread::spawn({
            let (layout, machine) = (layout.clone(), web.clone());
            let making = Machine { name: machine.name.clone(), directory: layout.unfinished(&machine) };
            move || discard(&layout, &making, &machine)
        });
        wait_until_it_waits(&names, &failed);
        let root = host.path().join("gcroots/booted-web");
        let other = layout.machine(&MachineName::new("booted-web").unwrap());
        fs::remove_file(&root).unwrap();
        symlink(other.current(), &root).unwrap();
        drop(names);
        failed.join().unwrap();
        assert_eq!(fs::read_link(&root).unwrap(), other.current());
        assert!(!host.path().join("gcroots/web").exists());
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
        let deletion = thread::spawn({
            let (layout, name) = (layout.clone(), web.name.clone());
            move || delete(&layout, &name)
        });
        wait_until_it_waits(&names, &deletion);
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
