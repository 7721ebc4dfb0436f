//! The socket that the service listens on: handed over by systemd, or made by itself.

use listenfd::ListenFd;
use nix::libc;
use rustix::fs::{Mode, chmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why there is no socket to listen on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// What systemd handed over is something else.
    #[error("the socket that systemd handed over cannot be used; it needs ListenSequentialPacket=")]
    HandedOver(#[source] io::Error),
    /// systemd handed over several.
    #[error("systemd handed over {0} sockets, but the service listens on one")]
    Several(usize),
    /// It cannot be made.
    #[error("cannot listen at {}", .path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another service listens there.
    #[error("something else listens at {} already", .path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
}

/// The socket that systemd started this process for, if it did: sd_listen_fds(3).
///
/// # Errors
/// It handed over something else.
pub fn handed_over() -> Result<Option<OwnedFd>, ListenError> {
    let mut handed = ListenFd::from_env();
    match handed.len() {
        0 => Ok(None),
        1 => handed
            .take_custom(0, libc::AF_UNIX, libc::SOCK_SEQPACKET, "unix seqpacket socket")
            .map_err(ListenError::HandedOver),
        several => Err(ListenError::Several(several)),
    }
}

/// Makes a socket that every user may connect to. One that is left of a service that was killed is replaced.
///
/// # Errors
/// Something else is there, or it cannot be made.
pub fn make(path: &Path) -> Result<OwnedFd, ListenError> {
    let fail = |source| ListenError::Bind { path: path.to_owned(), source };
    let address = SocketAddrUnix::new(path).map_err(|error| fail(error.into()))?;
    let socket = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        let probe = socket().map_err(|error| fail(error.into()))?;
        match connect(&probe, &address) {
            Err(rustix::io::Errno::CONNREFUSED) => fs::remove_file(path).map_err(fail)?,
            _ => return Err(ListenError::InUse { path: path.to_owned() }),
        }
    }
    let made = || -> rustix::io::Result<OwnedFd> {
        let socket = socket()?;
        bind(&socket, &address)?;
        chmod(path, Mode::from_raw_mode(0o666))?;
        listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    made().map_err(|error| fail(error.into()))
}
