//! A private view of a store with some of its paths only: what a closure-only share serves.
//!
//! The view exists in a mount namespace of its own, so it needs no space and no cleaning up: a file system in memory,
//! on which each store path is a read-only bind mount of the original. Without root, the namespace belongs to a user
//! namespace.
//!
//! `microvm serve-view` makes it. virtiofsd then runs in the same namespace, and its own namespace receives mounts that
//! are added later, because the view is a shared mount (Documentation/filesystems/sharedsubtree.rst of the kernel).
//! qemu, which serves 9p shares itself, stays in the host's namespace and inherits a descriptor of the view's root
//! directory.
//!
//! A guest can name only files below the view's root: virtiofsd and qemu resolve its names there, follow no symbolic
//! link, and accept no file handle from it. A virtiofsd that a guest has taken over cannot leave the view by file
//! handles either: it has no capability to open them.

use crate::launch::{ClosureView, VIEW};
use crate::path::HostPath;
use crate::sockets::{connect_to, remove_stale};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::libc::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, getsockopt, listen, socket, sockopt::PeerCredentials,
};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{UnlinkatFlags, getegid, geteuid, symlinkat, unlinkat};
use program::child::try_namespaces;
use program::place::{Place, descriptor_path};
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Only the user who serves the share can add paths to it.
const CONTROL_MODE: u32 = 0o600;
/// The most bytes of one request: a few hundred thousand store paths.
const MAX_REQUEST_BYTES: u64 = 32 << 20;
/// The most clients at a time. Others wait until one of them disconnects.
const MAX_CLIENTS: usize = 64;
/// How long a client may send nothing, or not read its answer, before it is disconnected.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a failed accept(2).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// The length of the hash in the name of a store path.
const HASH_CHARACTERS: usize = 32;
/// The directory of a store that has the files of `nix-store --optimise`. A view has an empty one.
const OPTIMISED_FILES: &str = ".links";
/// The namespaces of a view that a user other than root makes.
const USERS_NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER.union(CloneFlags::CLONE_NEWNS);

/// Why a view cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The list of store paths cannot be read.
    #[error("{path}: {source}")]
    List {
        /// The file that lists the closure.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// A line of the list is not a store path.
    #[error("{path}: line {line}: `{}` is not a store path", program::escape::one_line(.text))]
    Line {
        /// The file that lists the closure.
        path: HostPath,
        /// The number of the line, from 1.
        line: usize,
        /// The line that is not a store path.
        text: String,
    },
    /// The list is empty.
    #[error("{path}: lists no store path, so the guest would see an empty store")]
    Empty {
        /// The file that lists the closure.
        path: HostPath,
    },
    /// The kernel does not allow this user to create the namespace.
    #[error(
        "closureOnly: this user cannot create a mount namespace: {0}; allow user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns), or run this as root"
    )]
    Namespace(io::Error),
    /// The program that serves the view could open files outside it.
    #[error("closureOnly: the capability to open file handles cannot be dropped: {0}")]
    FileHandles(io::Error),
    /// A store path does not exist.
    #[error("{path}: there is no such store path on this host")]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// Something could not be mounted or created.
    #[error("{path}: {source}")]
    Mount {
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The socket for further paths cannot be used.
    #[error("{path}: {source}")]
    Control {
        /// The socket.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// The program that serves the view cannot be started.
    #[error("{program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The program that serves the view failed.
    #[error("{program} ended with {status}")]
    Ended {
        /// The program.
        program: String,
        /// Its exit status.
        status: ExitStatus,
    },
    /// An argument is not a store path.
    #[error("`{}` is not a store path", program::escape::one_line(.0))]
    NotStorePath(String),
    /// The process that serves the share refused a path.
    #[error("{0}")]
    Refused(String),
}

/// Returns the names of the store paths in the list, which has one path per line.
///
/// # Errors
/// Fails if the list cannot be read, a line is not a store path, or there is none.
pub fn read_list(path: &HostPath) -> Result<BTreeSet<String>, ViewError> {
    let failed = |source| ViewError::List { path: path.clone(), source };
    let read = Place::of(path.as_path()).and_then(|place| place.read()).map_err(failed)?;
    let (bytes, _) = read.ok_or_else(|| failed(Errno::ENOENT.into()))?;
    let text = String::from_utf8(bytes).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let line = |(index, text): (usize, &str)| {
        let wrong = || ViewError::Line { path: path.clone(), line: index + 1, text: text.to_owned() };
        store_name(text).map(str::to_owned).ok_or_else(wrong)
    };
    let names: BTreeSet<String> = text.lines().enumerate().map(line).collect::<Result<_, _>>()?;
    if names.is_empty() { Err(ViewError::Empty { path: path.clone() }) } else { Ok(names) }
}

/// Checks the list of a view and that its store paths exist, without making the view. A missing list is reported as a
/// missing file.
///
/// # Errors
/// Returns [`ViewError`].
pub fn inspect(view: &ClosureView, working_directory: &HostPath) -> Result<(), ViewError> {
    let list = view.closure.below(working_directory);
    if !list.as_path().exists() {
        return Ok(());
    }
    let source = view.source.below(working_directory);
    let paths = read_list(&list)?.into_iter().map(|name| source.as_path().join(name));
    let missing = paths.into_iter().find(|path| path.symlink_metadata().is_err());
    missing.map_or(Ok(()), |path| Err(ViewError::Missing { path }))
}

/// Checks that this process may create the namespace of a view.
///
/// # Errors
/// Returns [`ViewError::Namespace`].
pub fn check_namespace() -> Result<(), ViewError> {
    if geteuid().is_root() && try_namespaces(CloneFlags::CLONE_NEWNS, None).is_ok() {
        return Ok(());
    }
    try_namespaces(USERS_NAMESPACES, None).map_err(ViewError::Namespace)
}

/// Returns the name of a store path, without its directory: a hash, a dash and a name, in the characters that Nix
/// allows.
fn store_name(path: &str) -> Option<&str> {
    let (directory, name) = path.rsplit_once('/')?;
    let (hash, rest) = name.split_at_checked(HASH_CHARACTERS)?;
    let is_hash = hash.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
    let is_store_path = directory.starts_with('/') && is_hash && rest.len() > 1 && rest.starts_with('-');
    (is_store_path && rest.bytes().all(is_name)).then_some(name)
}

/// A view in the namespace of this process.
#[derive(Debug)]
pub struct View {
    source: PathBuf,
    /// The directory with all store paths, mounted read-only below the view.
    originals: OwnedFd,
    /// The root directory of the view, in a mount that only this process has. All others have it read-only.
    root: OwnedFd,
    adding: Mutex<()>,
}

impl View {
    /// Moves this process, which must have a single thread, to a new mount namespace, and makes the view there.
    ///
    /// # Errors
    /// Returns [`ViewError`].
    pub fn make(source: &HostPath, names: &BTreeSet<String>) -> Result<Self, ViewError> {
        enter_namespace().map_err(ViewError::Namespace)?;
        let view = Path::new(VIEW);
        let at = |path: &Path| {
            let path = path.to_owned();
            move |errno: Errno| ViewError::Mount { path, source: errno.into() }
        };
        let none = None::<&Path>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(at(Path::new("/")))?;
        let failed = at(source.as_path());
        // Recursively, because a user namespace must not uncover what is below other mounts.
        mount(Some(source.as_path()), view, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(failed)?;
        let originals = open_directory(view).map_err(at(view))?;
        let status = fstat(&originals).map_err(at(view))?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept_flags(&originals);
        mount(none, view, none, flags, none).map_err(at(view))?;
        let memory = Some(Path::new("tmpfs"));
        let mode = format!("mode={:o}", status.st_mode & 0o7777);
        mount(memory, view, memory, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(mode.as_str())).map_err(at(view))?;
        let root = open_tree(CWD, view, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .map_err(|errno| at(view)(Errno::from_raw(errno.raw_os_error())))?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept_flags(&root);
        mount(none, view, none, flags, none).map_err(at(view))?;
        mount(none, view, none, MsFlags::MS_SHARED, none).map_err(at(view))?;
        give_group(&root, &status);
        // Nix creates it when it opens a store as root, and fails if it cannot.
        mkdirat(&root, OPTIMISED_FILES, Mode::from_bits_truncate(0o755)).map_err(at(&view.join(OPTIMISED_FILES)))?;
        let made = Self { source: source.as_path().to_owned(), originals, root, adding: Mutex::default() };
        names.iter().try_for_each(|name| made.add(name))?;
        Ok(made)
    }

    /// Adds a store path; one that is there already is not an error.
    fn add(&self, name: &str) -> Result<(), ViewError> {
        // A path whose name exists is mounted: no other thread is between the two steps.
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let path = || self.source.join(name);
        let failed = |errno: Errno| ViewError::Mount { path: path(), source: errno.into() };
        let status = match fstatat(&self.originals, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Err(ViewError::Missing { path: path() }),
            status => status.map_err(failed)?,
        };
        let made = match status.st_mode & S_IFMT {
            S_IFDIR => mkdirat(&self.root, name, Mode::from_bits_truncate(0o555)),
            S_IFREG => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                openat(&self.root, name, flags, Mode::from_bits_truncate(0o444)).map(drop)
            }
            S_IFLNK => {
                let target = readlinkat(&self.originals, name).map_err(failed)?;
                return match symlinkat(target.as_os_str(), &self.root, name) {
                    Ok(()) | Err(Errno::EEXIST) => Ok(()),
                    Err(errno) => Err(failed(errno)),
                };
            }
            _ => return Err(failed(Errno::EINVAL)),
        };
        match made {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        }
        let original = descriptor_path(&self.originals).join(name);
        // The bind mount is read-only as the mount of the originals is.
        let bound = mount(
            Some(&original),
            &Path::new(VIEW).join(name),
            None::<&Path>,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            None::<&Path>,
        );
        bound.map_err(|errno| {
            // Otherwise the empty name would count as a path that was added. If this fails too, it does.
            let flag =
                if status.st_mode & S_IFMT == S_IFDIR { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
            let _ = unlinkat(&self.root, name, flag);
            failed(errno)
        })
    }

    /// Adds the paths that programs send to the socket, until the process ends. Each client has a thread, so that one
    /// that sends nothing does not keep the others waiting.
    pub fn serve_requests(&self, listener: &UnixListener) {
        let clients = Clients::default();
        thread::scope(|scope| {
            loop {
                clients.wait_for_room();
                let Ok((stream, _)) = listener.accept() else {
                    // For example, there is no free descriptor until a client has left.
                    thread::sleep(ACCEPT_PAUSE);
                    continue;
                };
                clients.enter();
                scope.spawn(|| {
                    self.serve_client(stream);
                    clients.leave();
                });
            }
        });
    }

    fn serve_client(&self, stream: UnixStream) {
        let limited = stream
            .set_read_timeout(Some(CLIENT_TIMEOUT))
            .and_then(|()| stream.set_write_timeout(Some(CLIENT_TIMEOUT)))
            .map_err(|error| ViewError::Refused(error.to_string()));
        let answer = match limited.and_then(|()| self.answer(&stream)) {
            Ok(()) => "ok\n".to_owned(),
            Err(error) => format!("{error}\n"),
        };
        // A client that has gone needs no answer.
        let _ = (&stream).write_all(answer.as_bytes());
    }

    fn answer(&self, stream: &UnixStream) -> Result<(), ViewError> {
        for line in BufReader::new(stream.take(MAX_REQUEST_BYTES)).lines() {
            let line = line.map_err(|error| ViewError::Refused(error.to_string()))?;
            self.add(store_name(&line).ok_or_else(|| ViewError::NotStorePath(line.clone()))?)?;
        }
        Ok(())
    }
}

/// Takes from this thread's future children what a file handle of a file outside the view is opened with
/// (open_by_handle_at(2)): a handle reaches every file of a file system, whatever part of it is mounted.
///
/// # Errors
/// Fails if the kernel does not allow it.
pub fn forbid_file_handles() -> Result<(), ViewError> {
    remove_capability_from_bounding_set(CapabilitySet::DAC_READ_SEARCH)
        .map_err(|errno| ViewError::FileHandles(errno.into()))
}

/// The number of clients that are served at the moment.
#[derive(Debug, Default)]
struct Clients {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Clients {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_room(&self) {
        let is_full = |count: &mut usize| *count >= MAX_CLIENTS;
        drop(self.changed.wait_while(self.count(), is_full).unwrap_or_else(PoisonError::into_inner));
    }

    fn enter(&self) {
        *self.count() += 1;
    }

    fn leave(&self) {
        *self.count() -= 1;
        self.changed.notify_all();
    }
}

/// The socket for further paths, under a temporary name until it accepts clients: one that refuses them would be stale for
/// another process, which removes it.
#[derive(Debug)]
pub struct ControlSocket {
    path: HostPath,
    place: Place,
    temporary: Place,
    bound: OwnedFd,
}

impl ControlSocket {
    /// Makes the socket. This is done before the namespace is entered, in which its directory may be covered.
    ///
    /// # Errors
    /// Returns [`ViewError::Control`].
    pub fn make(path: &HostPath) -> Result<Self, ViewError> {
        let failed = |source| ViewError::Control { path: path.clone(), source };
        let new = HostPath::new(format!("{path}.new"));
        for socket in [path, &new] {
            // One that a killed process has left.
            remove_stale(socket.as_path()).map_err(|error| failed(io::Error::other(error)))?;
        }
        let made = || {
            let bound = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            let place = Place::nofollow(path.as_path())?;
            let temporary = place.sibling(".new")?;
            temporary.bind(&bound, CONTROL_MODE)?;
            Ok(Self { path: path.clone(), place, temporary, bound })
        };
        made().map_err(failed)
    }

    /// Listens on the socket, and gives it its name. The launcher waits for this, so the view must be complete.
    ///
    /// # Errors
    /// Returns [`ViewError::Control`].
    pub fn listen(self) -> Result<UnixListener, ViewError> {
        let failed = |source| ViewError::Control { path: self.path.clone(), source };
        Backlog::new(16).and_then(|backlog| listen(&self.bound, backlog)).map_err(|errno| failed(errno.into()))?;
        self.temporary.rename_to(&self.place).map_err(failed)?;
        Ok(UnixListener::from(self.bound))
    }
}

/// Asks the process that serves a share to add store paths.
///
/// # Errors
/// Fails if it cannot be reached or refuses a path; earlier paths are then added.
pub fn request(view: &ClosureView, working_directory: &HostPath, paths: &[String]) -> Result<(), ViewError> {
    if let Some(path) = paths.iter().find(|path| store_name(path).is_none()) {
        return Err(ViewError::NotStorePath(path.clone()));
    }
    let control = view.control.below(working_directory);
    let failed = |source| ViewError::Control { path: control.clone(), source };
    let mut stream = connect_to(control.as_path()).map_err(failed)?;
    let text: String = paths.iter().map(|path| format!("{path}\n")).collect();
    let mut answer = String::new();
    let exchanged = stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        .and_then(|()| stream.take(4096).read_to_string(&mut answer));
    exchanged.map_err(failed)?;
    match answer.trim_end() {
        "ok" => Ok(()),
        other => Err(ViewError::Refused(program::escape::one_line(other).into_owned())),
    }
}

/// Opens the root directory of a view that another process has made, for a hypervisor in this namespace.
///
/// # Errors
/// Fails if the process has ended, or belongs to another user.
pub fn open_root(view: &ClosureView, working_directory: &HostPath) -> Result<OwnedFd, ViewError> {
    let control = view.control.below(working_directory);
    let opened = || {
        let peer = getsockopt(&connect_to(control.as_path())?, PeerCredentials)?;
        let root = PathBuf::from(format!("/proc/{}/root{VIEW}", peer.pid()));
        Ok(open_directory(&root)?)
    };
    opened().map_err(|source| ViewError::Control { path: control.clone(), source })
}

/// Root needs only a mount namespace. Other users become root of a user namespace, in which only they exist.
fn enter_namespace() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() && unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        return Ok(());
    }
    unshare(USERS_NAMESPACES)?;
    let write = |name: &str, text: String| {
        File::options().write(true).open(format!("/proc/self/{name}"))?.write_all(text.as_bytes())
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {user} 1"))?;
    write("gid_map", format!("0 {group} 1"))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(AT_FDCWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The flags of a mount that a user namespace must not remove: mount_namespaces(7).
fn kept_flags(mounted: &OwnedFd) -> MsFlags {
    let found = fstatvfs(mounted).map_or(FsFlags::empty(), |status| status.flags());
    let pairs = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    pairs.into_iter().filter(|(flag, _)| found.contains(*flag)).map(|(_, flag)| flag).collect()
}

/// Gives the view the group of the store. In a user namespace only the user's own group exists; the guest then sees
/// another.
fn give_group(root: &OwnedFd, store: &FileStat) {
    let _ =
        nix::unistd::fchownat(root, "", None, Some(nix::unistd::Gid::from_raw(store.st_gid)), AtFlags::AT_EMPTY_PATH);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise a view that cannot be made would seem to be served for a moment.
    #[test]
    fn a_view_is_served_only_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = HostPath::new(directory.path().join("view.sock").to_str().unwrap());
        let control = ControlSocket::make(&path).unwrap();
        assert!(!crate::sockets::is_served(path.as_path()));
        // There was one that refused clients, and another process could remove it.
        assert!(!path.as_path().exists());
        let _listener = control.listen().unwrap();
        assert!(crate::sockets::is_served(path.as_path()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_regular_file_with_the_temporary_name_of_the_control_socket_was_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let path = HostPath::new(directory.path().join("view.sock").to_str().unwrap());
        let file = directory.path().join("view.sock.new");
        std::fs::write(&file, "content").unwrap();
        let refused = ControlSocket::make(&path).unwrap_err();
        assert!(program::failure::chain(&refused).contains("view.sock.new"), "{refused:?}");
        assert_eq!(std::fs::read(&file).unwrap(), b"content");
    }

    #[test]
    fn a_list_without_store_paths_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = HostPath::new(directory.path().join("closure").to_str().unwrap());
        std::fs::write(path.as_path(), "").unwrap();
        assert!(matches!(read_list(&path), Err(ViewError::Empty { .. })));
    }

    #[test]
    fn only_names_that_nix_allows_are_store_paths() {
        let hash = "0".repeat(32);
        for name in ["a", "bash-5.2", "x+y?z=1_.sh"] {
            assert_eq!(store_name(&format!("/nix/store/{hash}-{name}")), Some(format!("{hash}-{name}").as_str()));
        }
        for path in [
            String::new(),
            "/nix/store/..".to_owned(),
            format!("/nix/store/{hash}-"),
            format!("/nix/store/{hash}"),
            format!("{hash}-a"),
            format!("store/{hash}-a"),
            format!("/nix/store/{hash}-a/b"),
            format!("/nix/store/{hash}-a/.."),
            format!("/nix/store/{}-a", "A".repeat(32)),
            format!("/nix/store/{hash}-a\u{e9}"),
        ] {
            assert_eq!(store_name(&path), None, "{path}");
        }
    }
}
