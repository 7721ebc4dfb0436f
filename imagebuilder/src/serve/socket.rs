//! The socket of the server, which is private to its user from the beginning, and the message to the service manager.

use nix::sys::stat::{Mode, umask};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The socket cannot be used.
#[derive(Debug, Error)]
pub enum SocketError {
    /// It cannot be created.
    #[error("cannot listen on {}", .path.display())]
    Bind {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// Another process listens on it.
    #[error("another process already listens on {}", .path.display())]
    InUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// A file of another type exists at its path.
    #[error("{} exists and is not a socket", .path.display())]
    NotASocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The socket of the service manager cannot be reached.
    #[error("cannot reach the service manager at NOTIFY_SOCKET={}", .address.display())]
    Notify {
        /// The value of the variable.
        address: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// Creates the socket. Only this user can connect to it. A socket that an earlier server left behind is replaced.
///
/// No other thread may create files at this time, because the umask is changed for a moment.
///
/// # Errors
/// [`SocketError`].
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(fail)?,
            _ => return Err(SocketError::InUse { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(fail(error)),
    }
    let former = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(former);
    bound.map_err(fail)
}

/// The service manager, if one waits for this process to be ready: sd_notify(3).
#[derive(Debug)]
pub struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    /// Connects to the service manager. Call this before the server is confined.
    ///
    /// # Errors
    /// [`SocketError::Notify`].
    pub fn connect() -> Result<Self, SocketError> {
        let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Ok(Self(None));
        };
        let connected = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&notify_address(&address)?)?;
            Ok(socket)
        };
        connected().map(|socket| Self(Some(socket))).map_err(|source| SocketError::Notify {
            address: PathBuf::from(OsString::from_vec(address.as_bytes().to_vec())),
            source,
        })
    }

    /// Reports that the socket accepts connections and the disk is ready.
    pub fn ready(self) {
        if let Some(socket) = self.0 {
            // An error means that the service manager no longer waits.
            let _ = socket.send(b"READY=1");
        }
    }
}

fn notify_address(value: &OsString) -> io::Result<SocketAddr> {
    match value.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(value),
    }
}
