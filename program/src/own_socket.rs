//! Sockets on the file system that this process has bound, and those that a killed process has left behind.

use crate::place::Place;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The file of a socket that this process has bound. It is removed when this value is dropped, or earlier by
/// [`OwnSocket::remove`], unless another file has its name by then. Keep the socket itself open until then: the number
/// of the file's inode can be given to another file as soon as nothing uses it.
#[derive(Debug)]
pub struct OwnSocket {
    directory: OwnedFd,
    name: OsString,
    /// Device and inode; `None` if the file was removed, or was already moved away, for example by the launcher.
    identity: Mutex<Option<(u64, u64)>>,
}

impl OwnSocket {
    /// Identifies the socket at `path`, which this process has just bound. The kernel resolves the path as it did for
    /// bind(2).
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn at(path: &Path) -> io::Result<Self> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::new(openat(CWD, parent, flags, Mode::empty())?, path)
    }

    /// Identifies the socket at `place`, which this process has just bound.
    ///
    /// # Errors
    /// The process has no free descriptor.
    pub fn bound(place: &Place) -> io::Result<Self> {
        Self::new(place.directory().as_fd().try_clone_to_owned()?, &place.path())
    }

    fn new(directory: OwnedFd, path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let own_socket = Self { directory, name, identity: Mutex::new(None) };
        *own_socket.identity.lock().unwrap_or_else(PoisonError::into_inner) = own_socket.found();
        Ok(own_socket)
    }

    /// Returns device and inode of the file that has the name now.
    fn found(&self) -> Option<(u64, u64)> {
        let stat = statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// Returns the descriptor of the directory that contains the file.
    #[must_use]
    pub fn directory(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    /// Removes the file, so that clients find no socket instead of one that refuses connections. Does nothing when it
    /// is called again.
    pub fn remove(&self) {
        let own = self.identity.lock().unwrap_or_else(PoisonError::into_inner).take();
        if own.is_some() && own == self.found() {
            // If this fails, the next start of the server replaces the file.
            let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
        }
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The path of a socket, with its final NUL, has at most 108 bytes: `sun_path` in unix(7).
const MAX_PATH_BYTES: usize = 107;

/// What prevents a process from creating its socket at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Another process listens on the socket that is there.
    InUse,
    /// A file of another type is there.
    NotASocket,
}

/// Removes the socket that a killed process has left at `path`. Does nothing if there is no file, even if another
/// process removes it at the same time. Returns what cannot be removed.
///
/// # Errors
/// The file cannot be inspected or removed, this user must not connect to the socket, or its path is too long.
pub fn clear_stale(path: &Path, kind: SocketType) -> io::Result<Option<Obstacle>> {
    let length = path.as_os_str().len();
    if length > MAX_PATH_BYTES {
        let reason = format!("the path has {length} bytes, but that of a socket has at most {MAX_PATH_BYTES}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let cleared = || {
        if !fs::symlink_metadata(path)?.file_type().is_socket() {
            return Ok(Some(Obstacle::NotASocket));
        }
        if is_answering(path, kind)? {
            return Ok(Some(Obstacle::InUse));
        }
        fs::remove_file(path).map(|()| None)
    };
    match cleared() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result,
    }
}

/// Returns whether a process accepts connections on the socket at `path`. Does not wait, even if that process is busy.
///
/// # Errors
/// The socket is missing, this user must not connect to it, or its path is too long.
fn is_answering(path: &Path, kind: SocketType) -> io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    let probe = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => Ok(false),
        // Another type of socket, or too many clients wait.
        Ok(()) | Err(Errno::PROTOTYPE | Errno::AGAIN) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    #[test]
    fn a_socket_that_replaced_this_process_own_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let own = OwnSocket::at(&path).unwrap();
        // The inode is in use as long as the file has another name, so the new socket has another one.
        fs::rename(&path, directory.path().join("moved")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        own.remove();
        assert!(UnixStream::connect(&path).is_ok());
        // A second removal does nothing, although the inode could be that of a new socket by then.
        fs::rename(directory.path().join("moved"), &path).unwrap();
        own.remove();
        drop(own);
        assert!(path.exists());
        drop(OwnSocket::at(&path).unwrap());
        assert!(!path.exists());
        // It was moved before it could be identified.
        let moved = OwnSocket::at(&path).unwrap();
        fs::write(&path, "another file").unwrap();
        drop((moved, listener));
        assert!(path.exists());
        assert!(OwnSocket::at(&directory.path().join("missing/socket")).is_err());
    }

    #[test]
    fn only_a_socket_without_a_process_is_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(clear_stale(&path, SocketType::STREAM).unwrap(), None);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(clear_stale(&path, SocketType::STREAM).unwrap(), Some(Obstacle::InUse));
        drop(listener);
        assert_eq!(clear_stale(&path, SocketType::STREAM).unwrap(), None);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert_eq!(clear_stale(&path, SocketType::STREAM).unwrap(), Some(Obstacle::NotASocket));
        let error = clear_stale(Path::new(&"x".repeat(108)), SocketType::STREAM).unwrap_err();
        assert_eq!(error.to_string(), "the path has 108 bytes, but that of a socket has at most 107");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_without_a_process_does_not_answer_and_others_do_even_if_they_accept_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
            assert!(!is_answering(&path, kind).unwrap());
        }
        fs::remove_file(&path).unwrap();
        let _datagrams = UnixDatagram::bind(&path).unwrap();
        assert!(is_answering(&path, SocketType::STREAM).unwrap());
        fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let waiting: Vec<_> = (0..2).filter_map(|_| is_answering(&path, SocketType::STREAM).ok()).collect();
        assert_eq!(waiting, [true, true]);
        assert!(is_answering(&directory.path().join("missing"), SocketType::STREAM).is_err());
    }
}
