//! Telling the service manager how far a machine is, and listening to the guest that tells it.

use crate::launch::{GuestNotification, NotificationSocket};
use crate::path::HostPath;
use crate::sockets::{SocketError, remove_stale};
use nix::errno::Errno;
use nix::libc::VMADDR_CID_HOST;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, VsockAddr, accept4, bind, getpeername, listen,
    recv, sendto, socket,
};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// More than this is no notification of systemd.
const LONGEST_NOTIFICATION_BYTES: usize = 4096;

/// Why the launcher cannot listen for the guest.
#[derive(Debug, thiserror::Error)]
pub enum ReadinessError {
    /// The socket cannot be made.
    #[error("cannot listen for the guest's notification on {place}: {source}")]
    Listen {
        /// The socket.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// The service manager that started the launcher, if any does: sd_notify(3).
#[derive(Debug, Default)]
pub struct ServiceManager {
    address: Option<OsString>,
}

impl ServiceManager {
    /// The one in `$NOTIFY_SOCKET`.
    pub fn of_environment() -> Self {
        Self { address: std::env::var_os("NOTIFY_SOCKET").filter(|value| !value.is_empty()) }
    }

    /// Whether somebody wants to know.
    pub fn is_there(&self) -> bool {
        self.address.is_some()
    }

    /// Tells it, as lines of `VARIABLE=value`. A service manager that does not listen is no reason to stop a machine.
    pub fn tell(&self, lines: &str) -> io::Result<()> {
        let Some(address) = &self.address else { return Ok(()) };
        let bytes = address.as_bytes();
        let target = match bytes.strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name)?,
            None => UnixAddr::new(bytes)?,
        };
        let sender = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        sendto(sender.as_raw_fd(), lines.as_bytes(), &target, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }
}

/// A socket on which the guest's systemd reports: each connection brings one notification.
#[derive(Debug)]
pub struct GuestListener {
    listener: OwnedFd,
    path: Option<PathBuf>,
    peer_cid: Option<u32>,
}

/// What the guest has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestWord {
    /// It has booted.
    pub is_ready: bool,
    /// What it is doing.
    pub status: Option<String>,
}

impl GuestListener {
    /// Listens, before the guest starts.
    ///
    /// # Errors
    /// [`ReadinessError`].
    pub fn listen(notification: &GuestNotification, working_directory: &HostPath) -> Result<Self, ReadinessError> {
        let (place, path, peer_cid) = match &notification.listen {
            NotificationSocket::Unix(path) => {
                let path = path.below(working_directory);
                remove_stale(path.as_path())?;
                (path.to_string(), Some(path.as_path().to_owned()), None)
            }
            NotificationSocket::Vsock { cid } => (format!("vsock port {}", notification.port), None, Some(*cid)),
        };
        let made = match &path {
            Some(path) => UnixAddr::new(path.as_path()).map_err(io::Error::from).and_then(|address| {
                let socket = new_socket(AddressFamily::Unix)?;
                bind(socket.as_raw_fd(), &address)?;
                Ok(socket)
            }),
            None => new_socket(AddressFamily::Vsock).and_then(|socket| {
                bind(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_HOST, notification.port))?;
                Ok(socket)
            }),
        };
        let listening = made.and_then(|socket| {
            listen(&socket, Backlog::new(16)?)?;
            Ok(socket)
        });
        let listener = listening.map_err(|source| ReadinessError::Listen { place, source })?;
        Ok(Self { listener, path, peer_cid })
    }

    /// Where it listens on the file system.
    pub fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// What the next connection brings; nothing when there is none, or when it is somebody else's.
    pub fn take(&self) -> Option<GuestWord> {
        let descriptor = match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(descriptor) => own(descriptor),
            Err(_) => return None,
        };
        if let Some(cid) = self.peer_cid {
            let peer = getpeername::<VsockAddr>(descriptor.as_raw_fd()).ok()?;
            if peer.cid() != cid {
                return None;
            }
        }
        Some(understand(&read_all(&descriptor)))
    }
}

impl AsFd for GuestListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

fn new_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

#[expect(unsafe_code, reason = "nix gives the accepted socket as a number")]
fn own(descriptor: i32) -> OwnedFd {
    // SAFETY: the number comes straight from accept4, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// All that comes within a moment: a guest that does not end its message is not waited for.
fn read_all(descriptor: &OwnedFd) -> String {
    let limit = nix::sys::time::TimeVal::new(1, 0);
    // Without the limit the read below could wait for ever; then it is better not done.
    if nix::sys::socket::setsockopt(descriptor, nix::sys::socket::sockopt::ReceiveTimeout, &limit).is_err() {
        return String::new();
    }
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while text.len() < LONGEST_NOTIFICATION_BYTES {
        match recv(descriptor.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(count) if count > 0 => text.extend(&buffer[..count]),
            Err(Errno::EINTR) => {}
            _ => break,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Only these two are taken: the guest is not to tell the host's service manager which process to watch.
fn understand(text: &str) -> GuestWord {
    let status = text.lines().find_map(|line| line.strip_prefix("STATUS=")).map(printable);
    GuestWord { is_ready: text.lines().any(|line| line == "READY=1"), status }
}

fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn the_service_manager_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let told = ServiceManager { address: Some(path.clone().into()) };
        told.tell("READY=1\nSTATUS=runs").unwrap();
        let mut buffer = [0; 64];
        let count = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"READY=1\nSTATUS=runs");
        ServiceManager::default().tell("READY=1").unwrap();
        drop(manager);
        assert!(told.tell("STOPPING=1").is_err());
    }

    #[test]
    fn the_guest_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let notification =
            GuestNotification { port: 8888, listen: NotificationSocket::Unix("notify.vsock_8888".into()) };
        let state = HostPath::new(directory.path().to_str().unwrap());
        let listener = GuestListener::listen(&notification, &state).unwrap();
        assert_eq!(listener.take(), None);
        let mut guest = UnixStream::connect(listener.path().unwrap()).unwrap();
        guest.write_all(b"STATUS=Startup\x1b[31m finished\nMAINPID=1\n").unwrap();
        drop(guest);
        let word = listener.take().unwrap();
        assert_eq!(word, GuestWord { is_ready: false, status: Some("Startup[31m finished".to_owned()) });
        let mut guest = UnixStream::connect(listener.path().unwrap()).unwrap();
        guest.write_all(b"READY=1").unwrap();
        drop(guest);
        assert!(listener.take().unwrap().is_ready);
        assert!(matches!(GuestListener::listen(&notification, &state), Err(ReadinessError::Socket(_))));
    }
}
