//! Connections to Unix sockets with a deadline.

use super::{ControlError, Controller};
use crate::sockets::look;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use program::place::descriptor_path;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A stream with a deadline for the whole exchange, so that a server that sends one byte at a time cannot extend it.
pub(super) struct Connection {
    stream: UnixStream,
    deadline: Instant,
}

impl Connection {
    /// Connects to the controller's socket.
    pub(super) fn open(controller: &Controller) -> Result<Self, ControlError> {
        let deadline = Instant::now() + controller.timeout;
        let stream = open_socket(controller, SockType::Stream).map(UnixStream::from)?;
        Ok(Self { stream, deadline })
    }

    /// Shuts the connection down for writing.
    pub(super) fn finish_writing(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// Waits for an answer or for the end of the connection, for at most this time. Fails after the deadline.
    pub(super) fn is_readable_within(&self, longest: Duration) -> io::Result<bool> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_late());
        }
        // Rounded up, because a wait of 0 ms would be repeated until the deadline.
        let timeout = left.min(longest) + Duration::from_millis(1);
        let mut descriptors = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes a message, and passes a file descriptor with it.
    pub(super) fn send_with_file(&mut self, bytes: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
        let sent = self.in_time(|stream| {
            let passed = [file.as_raw_fd()];
            let control = [ControlMessage::ScmRights(&passed)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &control, flags, None)?)
        })?;
        // The descriptor went with the first bytes.
        self.write_all(&bytes[sent..])
    }

    /// Runs a read or a write, limited to the remaining time.
    fn in_time(&mut self, act: impl FnOnce(&mut UnixStream) -> io::Result<usize>) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(too_late());
        }
        limit(&self.stream, left)?;
        act(&mut self.stream).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => too_late(),
            _ => error,
        })
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.in_time(|stream| stream.read(buffer))
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.in_time(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a seqpacket connection to the controller's socket.
pub(super) fn packets(controller: &Controller) -> Result<OwnedFd, ControlError> {
    open_socket(controller, SockType::SeqPacket)
}

fn too_late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

fn open_socket(controller: &Controller, kind: SockType) -> Result<OwnedFd, ControlError> {
    connected(controller, kind).map_err(|source| match source.kind() {
        // connect(2) blocks while the other side does not accept connections: unix(7).
        io::ErrorKind::WouldBlock => controller.no_answer(too_late()),
        // Only these show that the process has ended. Without a free descriptor, for example, nothing is known about it.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused => {
            ControlError::NotListening { path: controller.path.clone(), source }
        }
        _ => ControlError::Unreachable { path: controller.path.clone(), source },
    })
}

fn connected(controller: &Controller, kind: SockType) -> io::Result<OwnedFd> {
    let descriptor = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    limit(&descriptor, controller.timeout)?;
    let listener = look(controller.path.as_path())?;
    connect(descriptor.as_raw_fd(), &UnixAddr::new(&descriptor_path(&listener))?)?;
    Ok(descriptor)
}

/// Limits each further call on the socket. Zero would mean no limit: socket(7).
fn limit(socket: &impl AsFd, timeout: Duration) -> io::Result<()> {
    let microseconds = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1);
    let limit = TimeVal::microseconds(microseconds);
    setsockopt(&socket.as_fd(), sockopt::SendTimeout, &limit)?;
    setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &limit)?;
    Ok(())
}
