//! The socket that the service listens on. systemd passes it, or the service creates it.

use listenfd::ListenFd;
use nix::libc;
use program::own_socket::{Obstacle, OwnSocket, clear_stale};
use rustix::fs::{Mode, chmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Maximum number of clients that wait to be accepted.
const BACKLOG: i32 = 128;

/// There is no socket to listen on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The file descriptor from systemd is not a suitable socket.
    #[error("the socket that systemd passed cannot be used; the socket unit needs ListenSequentialPacket=")]
    HandedOver(#[source] io::Error),
    /// systemd passed several sockets.
    #[error("systemd passed {0} sockets, but the service listens on only one")]
    Several(usize),
    /// The socket cannot be created.
    #[error("cannot listen on {}", .path.display())]
    Bind {
        /// Its path.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// Another process listens on the path.
    #[error("another process already listens on {}", .path.display())]
    InUse {
        /// Its path.
        path: PathBuf,
    },
}

/// Returns the socket that systemd passed to this process, if it did: sd_listen_fds(3).
///
/// # Errors
/// systemd passed something else, or several sockets.
pub fn from_service_manager() -> Result<Option<OwnedFd>, ListenError> {
    let mut handed = ListenFd::from_env();
    match handed.len() {
        0 => Ok(None),
        1 => handed
            .take_custom(0, libc::AF_UNIX, libc::SOCK_SEQPACKET, "unix seqpacket socket")
            .map_err(ListenError::HandedOver),
        several => Err(ListenError::Several(several)),
    }
}

/// Creates a socket that every user can connect to. The socket of a service that was killed is replaced. The file is
/// removed when the returned [`OwnSocket`] is dropped.
///
/// # Errors
/// Another file or a used socket exists at the path, or the socket cannot be created.
pub fn make(path: &Path) -> Result<(OwnedFd, OwnSocket), ListenError> {
    let fail = |source| ListenError::Bind { path: path.to_owned(), source };
    // bind(2) reports a file of another type.
    if clear_stale(path, SocketType::SEQPACKET).map_err(fail)? == Some(Obstacle::InUse) {
        return Err(ListenError::InUse { path: path.to_owned() });
    }
    let address = SocketAddrUnix::new(path).map_err(|error| fail(error.into()))?;
    let made = || -> io::Result<(OwnedFd, OwnSocket)> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &address)?;
        // If one of the calls that follow fails, the file is removed.
        let own_socket = OwnSocket::at(path)?;
        chmod(path, Mode::from_raw_mode(0o666))?;
        listen(&socket, BACKLOG)?;
        Ok((socket, own_socket))
    };
    made().map_err(fail)
}
