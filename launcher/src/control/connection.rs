//! Connections to unix sockets that end in time, whatever the other side does.

use super::{ControlError, Controller};
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::stat::Mode;
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A stream to the controller's socket.
pub(super) fn stream(controller: &Controller) -> Result<UnixStream, ControlError> {
    open_socket(controller, SockType::Stream).map(UnixStream::from)
}

/// A packet socket to the controller's socket.
pub(super) fn packets(controller: &Controller) -> Result<OwnedFd, ControlError> {
    open_socket(controller, SockType::SeqPacket)
}

fn open_socket(controller: &Controller, kind: SockType) -> Result<OwnedFd, ControlError> {
    connected(controller, kind).map_err(|source| match source.kind() {
        // The kernel waits in connect when the other side does not take connections: unix(7).
        io::ErrorKind::WouldBlock => ControlError::NoAnswer { path: controller.path.clone(), source },
        _ => ControlError::NobodyThere { path: controller.path.clone(), source },
    })
}

fn connected(controller: &Controller, kind: SockType) -> io::Result<OwnedFd> {
    let descriptor = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = controller.patience;
    let microseconds = i64::from(patience.subsec_micros());
    let limit = TimeVal::new(i64::try_from(patience.as_secs()).unwrap_or(i64::MAX), microseconds);
    setsockopt(&descriptor, sockopt::SendTimeout, &limit)?;
    setsockopt(&descriptor, sockopt::ReceiveTimeout, &limit)?;
    with_address(controller.path.as_path(), |address| {
        connect(descriptor.as_raw_fd(), address).map_err(io::Error::from)
    })?;
    Ok(descriptor)
}

/// A hypervisor binds a relative path; the absolute one may be longer than the kernel takes, and then leads through an
/// open directory.
fn with_address<T>(path: &Path, act: impl FnOnce(&UnixAddr) -> io::Result<T>) -> io::Result<T> {
    if let Ok(address) = UnixAddr::new(path) {
        return act(&address);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = open(directory, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    act(&UnixAddr::new(&short)?)
}
