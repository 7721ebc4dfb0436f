//! The socket of the server, which is private to its user from the beginning, and the message to the service manager.

use nix::sys::stat::{Mode, umask};
use program::own_socket::{Obstacle, OwnSocket, clear_stale};
use rustix::net::SocketType;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
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
    /// The thread that removes it cannot be started.
    #[error("cannot start the thread that removes the socket")]
    Thread(#[source] io::Error),
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

/// Creates the socket. Only this user can connect to it. A socket that a killed server left behind is replaced.
///
/// No other thread may create files at this time, because the umask is changed for a moment. The file is removed when the
/// returned value is dropped.
///
/// # Errors
/// [`SocketError`].
pub fn bind(path: &Path) -> Result<(UnixListener, OwnSocket), SocketError> {
    let fail = |source| SocketError::Bind { path: path.to_owned(), source };
    match clear_stale(path, SocketType::STREAM).map_err(fail)? {
        Some(Obstacle::NotASocket) => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Some(Obstacle::InUse) => return Err(SocketError::InUse { path: path.to_owned() }),
        None => (),
    }
    let former = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(former);
    let listener = bound.map_err(fail)?;
    Ok((listener, OwnSocket::at(path).map_err(fail)?))
}

/// Removes the socket of the server at the end. The work is done by a thread that starts before the server is confined, because
/// the serving threads can remove no files.
#[derive(Clone, Debug)]
pub struct SocketRemover(SyncSender<SyncSender<()>>);

impl SocketRemover {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`SocketError::Thread`].
    pub fn start(own_socket: OwnSocket) -> Result<Self, SocketError> {
        let (requests, received) = sync_channel::<SyncSender<()>>(1);
        let work = move || {
            for done in received {
                own_socket.remove();
                // An error means that the other thread no longer waits.
                let _ = done.send(());
            }
        };
        thread::Builder::new().name("socket".to_owned()).spawn(work).map_err(SocketError::Thread)?;
        Ok(Self(requests))
    }

    /// Removes the socket's file, if it is still the one that this process created.
    pub fn remove(&self) {
        let (done, wait) = sync_channel(1);
        if self.0.send(done).is_ok() {
            // An error means that the thread has ended, which it does not do while there is a sender.
            let _ = wait.recv();
        }
    }
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
