//! Unix sockets on the file system: detecting whether a process listens, and removing stale sockets.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use program::place::{Place, descriptor_path};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// `__SO_ACCEPTCON` in the flags column of /proc/net/unix: a listening socket.
const LISTENS: u32 = 0x10000;

/// Why a stale socket was not removed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A process listens on it.
    #[error("{0}: another process listens on this socket; is the machine already running?")]
    InUse(PathBuf),
    /// The file is not a socket.
    #[error("{0} exists and is not a socket; move it away")]
    NoSocket(PathBuf),
    /// A file operation failed.
    #[error("{path}: {source}")]
    File {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Opens a socket in order to connect to it through its descriptor. Another user then cannot redirect the connection to
/// another socket with a symbolic link, and the path can be longer than an address.
///
/// # Errors
/// Fails if there is no socket, or it is one that root must not open.
pub fn look(path: &Path) -> io::Result<OwnedFd> {
    Place::nofollow(path)?.open_path()
}

/// Connects to a socket.
///
/// # Errors
/// Fails as [`look`] does, or if no process listens.
pub fn connect_to(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(descriptor_path(&look(path)?))
}

/// Whether a process listens on the socket. Connects to it if that cannot be determined otherwise.
pub fn is_listening(path: &Path) -> bool {
    is_served(path) || connects(path)
}

/// Whether a process in this network namespace listens on the socket. Does not connect, because some daemons serve only
/// one connection. If the daemon has bound a relative path or one through a descriptor, it is identified by the
/// socket's inode, because sockets in other directories can have the same relative path.
pub fn is_served(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    let is_this = |listener: &Listener| {
        listener.path == path
            || ((listener.path.starts_with("/proc/self/fd")
                || (listener.path.is_relative() && path.ends_with(&listener.path)))
                // The kernel reports only the lower 32 bits: struct unix_diag_vfs.
                && listener.inode == Some(metadata.ino() as u32))
    };
    listeners().iter().any(is_this)
}

/// Whether a process listens on a socket that was bound with exactly this path.
pub fn is_bound(path: &Path) -> bool {
    listeners().iter().any(|listener| listener.path == path)
}

/// A socket on the file system on which a process listens.
struct Listener {
    /// The path with which it was bound.
    path: PathBuf,
    inode: Option<u32>,
}

/// Returns all listening sockets of this network namespace. A kernel without sock_diag reports no inodes.
fn listeners() -> Vec<Listener> {
    diagnosis::listeners().unwrap_or_else(|_| {
        // Any user can bind a name that is not UTF-8.
        listed_in(&fs::read("/proc/net/unix").unwrap_or_default())
    })
}

fn listed_in(list: &[u8]) -> Vec<Listener> {
    list.split(|byte| *byte == b'\n').skip(1).filter_map(|line| listed(&String::from_utf8_lossy(line))).collect()
}

fn listed(line: &str) -> Option<Listener> {
    let (fields, name) = split_entry(line);
    let flags = fields.get(3).and_then(|flags| u32::from_str_radix(flags, 16).ok())?;
    (flags & LISTENS != 0 && !name.is_empty()).then(|| Listener { path: name.into(), inode: None })
}

/// Splits a line of /proc/net/unix: Num RefCount Protocol Flags Type St Inode, padded with spaces, and the path, which
/// may contain spaces.
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
    let Ok(found) = look(path) else { return false };
    let path = descriptor_path(&found);
    if UnixStream::connect(&path).is_ok() {
        return true;
    }
    // crosvm's socket is of another type.
    let Ok(address) = UnixAddr::new(&path) else { return false };
    let opened = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None);
    opened.is_ok_and(|descriptor| connect(descriptor.as_raw_fd(), &address) != Err(Errno::ECONNREFUSED))
}

/// Removes a stale socket. Never removes one on which a process listens.
///
/// # Errors
/// Returns [`SocketError`].
pub fn remove_stale(path: &Path) -> Result<(), SocketError> {
    if require_stale(path)? == SocketFile::Missing {
        return Ok(());
    }
    let removed = Place::nofollow(path).and_then(|place| place.remove());
    removed.map_err(|source| SocketError::File { path: path.to_owned(), source })
}

/// Whether there is a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFile {
    /// There is no file.
    Missing,
    /// There is one on which no process listens.
    Stale,
}

/// Checks that a socket can be created at the path once a stale one is removed.
///
/// # Errors
/// Returns [`SocketError`].
pub fn require_stale(path: &Path) -> Result<SocketFile, SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SocketFile::Missing),
        Err(source) => Err(SocketError::File { path: path.to_owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(SocketError::NoSocket(path.to_owned())),
        Ok(_) if is_listening(path) => Err(SocketError::InUse(path.to_owned())),
        Ok(_) => Ok(SocketFile::Stale),
    }
}

/// The kernel's list of Unix sockets, which `ss -xl` also prints: sock_diag(7), linux/unix_diag.h.
mod diagnosis {
    use super::Listener;
    use nix::errno::Errno;
    use nix::libc::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
    use std::ffi::OsStr;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;

    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    /// `1 << TCP_LISTEN`
    const LISTENING: u32 = 1 << 10;
    /// `UDIAG_SHOW_NAME | UDIAG_SHOW_VFS`
    const NAME_AND_FILE: u32 = 3;
    const UNIX_DIAG_NAME: u16 = 0;
    const UNIX_DIAG_VFS: u16 = 1;
    const HEADER_BYTES: usize = 16;
    const MESSAGE_BYTES: usize = 16;

    pub(super) fn listeners() -> io::Result<Vec<Listener>> {
        let protocol = SockProtocol::NetlinkSockDiag;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        send(socket.as_raw_fd(), &request(), MsgFlags::empty())?;
        let mut found = Vec::new();
        // The kernel's largest single message: `NLMSG_GOODSIZE` or more.
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..count).unwrap_or_default();
            while let Some((kind, payload, next)) = message(rest) {
                match i32::from(kind) {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => return Err(Errno::EOPNOTSUPP.into()),
                    _ => found.extend(listener(payload)),
                }
                rest = next;
            }
        }
    }

    fn request() -> Vec<u8> {
        let mut bytes = Vec::new();
        let flags = u16::try_from(NLM_F_REQUEST | NLM_F_DUMP).unwrap_or(0);
        bytes.extend(40u32.to_ne_bytes());
        bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // The sequence number and the port id, which are not used.
        bytes.extend([0; 8]);
        // struct unix_diag_req: family, protocol, padding, states, inode, what to show, cookie.
        bytes.extend([nix::libc::AF_UNIX as u8, 0, 0, 0]);
        bytes.extend(LISTENING.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(NAME_AND_FILE.to_ne_bytes());
        bytes.extend([0xff; 8]);
        bytes
    }

    /// Returns the kind and the payload of the first message, and the rest.
    fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let payload = bytes.get(HEADER_BYTES..length)?;
        Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
    }

    fn listener(payload: &[u8]) -> Option<Listener> {
        let (mut path, mut inode) = (None, None);
        for (kind, value) in crate::network::netlink::attributes(payload.get(MESSAGE_BYTES..)?) {
            match kind {
                // An abstract name starts with a NUL and is not on the file system.
                UNIX_DIAG_NAME if value.first().is_some_and(|byte| *byte != 0) => {
                    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                    path = Some(OsStr::from_bytes(&value[..end]).into());
                }
                UNIX_DIAG_VFS => {
                    inode = value.get(..4).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)))
                }
                _ => {}
            }
        }
        Some(Listener { path: path?, inode })
    }
}

/// Forwards everything until the end of `from`. Unlike `std::io::copy`, it never uses splice(2): from a socket to a pipe,
/// that keeps the pipe locked while it waits for the socket, so the pipe's reader cannot get what the pipe contains.
///
/// # Errors
/// Returns the error of either side.
pub fn forward(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(&buffer[..count])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, bind, listen};
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_a_stale_socket_is_removed() {
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
    fn a_socket_with_the_same_relative_path_in_another_directory_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind('fs.sock')\ns.listen(1)\nprint()\n\
                      sys.stdout.flush()\nsys.stdin.read()\n";
        let mut daemon = std::process::Command::new("python3")
            .args(["-c", script])
            .current_dir(directory.path().join("a"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        io::Read::read_exact(daemon.stdout.as_mut().unwrap(), &mut ready).unwrap();
        // A stale socket of the same name.
        drop(UnixListener::bind(directory.path().join("b/fs.sock")).unwrap());
        let served = ["a", "b"].map(|name| is_served(&directory.path().join(name).join("fs.sock")));
        drop(daemon.stdin.take());
        daemon.wait().unwrap();
        assert_eq!(served, [true, false]);
        assert!(!is_served(&directory.path().join("a/fs.sock")));
    }

    #[test]
    fn a_connection_does_not_follow_a_symbolic_link_to_a_socket_of_another_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("other.sock"), directory.path().join("web.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(connects(&path));
        assert!(!connects(&link) && !is_listening(&link));
        connect_to(&path).unwrap();
        assert_eq!(connect_to(&link).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        drop(listener);
    }

    #[test]
    fn a_listening_packet_socket_is_not_removed() {
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

    /// Kernels without sock_diag have only this list.
    #[test]
    fn a_socket_whose_name_is_not_utf_8_does_not_hide_the_others_in_proc_net_unix() {
        use std::os::unix::ffi::OsStrExt;
        let directory = tempfile::tempdir().unwrap();
        let names = [b"bad \xff name".as_slice(), b"web one.sock", b"last.sock"];
        let paths = names.map(|name| directory.path().join(std::ffi::OsStr::from_bytes(name)));
        let listeners = paths.clone().map(|path| UnixListener::bind(path).unwrap());
        let found = listed_in(&fs::read("/proc/net/unix").unwrap());
        for path in &paths[1..] {
            assert!(found.iter().any(|listener| listener.path == *path), "{}", path.display());
        }
        drop(listeners);
        let connected = UnixListener::bind(directory.path().join("connected.sock")).unwrap();
        let client = UnixStream::connect(directory.path().join("connected.sock")).unwrap();
        let found = listed_in(&fs::read("/proc/net/unix").unwrap());
        assert_eq!(found.iter().filter(|listener| listener.path.ends_with("connected.sock")).count(), 1);
        assert!(!found.iter().any(|listener| paths.contains(&listener.path)));
        drop((connected, client));
    }

    #[test]
    fn lines_of_proc_net_unix_are_split_and_paths_may_contain_spaces() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01   507 /run/a b.sock";
        let (fields, path) = split_entry(line);
        assert_eq!((fields[3], fields[6], path), ("00010000", "507", "/run/a b.sock"));
        assert_eq!(split_entry("0: 3 0 0 1 3 5001").1, "");
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notes.txt");
        fs::write(&path, "dear diary").unwrap();
        assert!(matches!(remove_stale(&path), Err(SocketError::NoSocket(_))));
        assert!(path.exists());
    }
}
