//! Unix sockets on the file system: whether somebody listens, and removing those where nobody does.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// `__SO_ACCEPTCON` in the flags column of /proc/net/unix: a socket that listens.
const LISTENS: u32 = 0x10000;

/// Why a left-over socket was not removed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{0}: another process listens on this socket; is the machine running already?")]
    InUse(PathBuf),
    /// What is there is no socket.
    #[error("{0}: there is a file where a socket is to be made, and it is not a socket; move it away")]
    NoSocket(PathBuf),
    /// A file operation failed.
    #[error("{path}: {source}")]
    File {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Whether some process listens on the socket, found out by a connection if it must be.
pub fn is_listening(path: &Path) -> bool {
    listed(|name| name == path) || connects(path)
}

/// Whether a daemon of this network namespace serves the socket, found out without a connection: it might serve only
/// one. A daemon that has bound a relative path is known by the end of it.
pub fn is_served(path: &Path) -> bool {
    let is_this = |name: &Path| name == path || (name.is_relative() && path.ends_with(name));
    path.exists() && listed(is_this)
}

fn listed(is_wanted: impl Fn(&Path) -> bool) -> bool {
    let Ok(list) = fs::read_to_string("/proc/net/unix") else { return false };
    list.lines().skip(1).any(|line| {
        let (fields, name) = split_entry(line);
        let flags = fields.get(3).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0);
        flags & LISTENS != 0 && !name.is_empty() && is_wanted(Path::new(name))
    })
}

/// A line of /proc/net/unix: Num RefCount Protocol Flags Type St Inode, padded with spaces, and the path, which may
/// hold some itself.
fn split_entry(line: &str) -> (Vec<&str>, &str) {
    let mut fields = Vec::new();
    let mut rest = line;
    while fields.len() < 7 {
        let (field, remaining) = rest.split_once(' ').unwrap_or((rest, ""));
        fields.push(field);
        rest = if fields.len() < 7 { remaining.trim_start() } else { remaining };
        if rest.is_empty() {
            break;
        }
    }
    (fields, rest)
}

fn connects(path: &Path) -> bool {
    if UnixStream::connect(path).is_ok() {
        return true;
    }
    // crosvm's is of another type.
    let Ok(address) = UnixAddr::new(path) else { return false };
    let opened = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None);
    opened
        .is_ok_and(|descriptor| connect(descriptor.as_raw_fd(), &address) != Err(Errno::ECONNREFUSED) && path.exists())
}

/// Removes a socket that a process has left behind; never one on which somebody listens.
///
/// # Errors
/// [`SocketError`].
pub fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::File { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(SocketError::NoSocket(path.to_owned())),
        Ok(_) if is_listening(path) => Err(SocketError::InUse(path.to_owned())),
        Ok(_) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, bind, listen};
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_a_socket_that_nobody_serves_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.sock");
        remove_stale(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_served(&path));
        assert!(matches!(remove_stale(&path), Err(SocketError::InUse(_))));
        assert!(path.exists());
        drop(listener);
        assert!(!is_listening(&path));
        remove_stale(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn packet_sockets_are_told_apart_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("crosvm.sock");
        let server = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(server.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&server, Backlog::new(1).unwrap()).unwrap();
        assert!(connects(&path));
        assert!(matches!(remove_stale(&path), Err(SocketError::InUse(_))));
        drop(server);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn entries_of_the_kernel_are_split() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01   507 /run/a b.sock";
        let (fields, path) = split_entry(line);
        assert_eq!((fields[3], fields[6], path), ("00010000", "507", "/run/a b.sock"));
        assert_eq!(split_entry("0: 3 0 0 1 3 5001").1, "");
    }

    #[test]
    fn a_file_of_the_user_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        fs::write(&path, "dear diary").unwrap();
        assert!(matches!(remove_stale(&path), Err(SocketError::NoSocket(_))));
        assert!(path.exists());
    }
}
