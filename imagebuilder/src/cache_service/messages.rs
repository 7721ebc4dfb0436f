//! Messages and descriptors over a `SOCK_SEQPACKET` socket.

use super::protocol::MESSAGE_BYTES_MAX;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors that a client has room for: one is right, more are taken to be counted and closed.
const DESCRIPTORS_MAX: usize = 4;

/// A message as it came.
#[derive(Debug)]
pub(super) struct Message {
    /// Its bytes; none when the other side has gone.
    pub(super) bytes: Vec<u8>,
    /// Descriptors that came with it, closed with this message unless they are taken.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Sends a message, with a descriptor where there is one. Waits for nothing when the socket does not block.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when the other side does not read; whatever else the kernel says.
pub(super) fn send(socket: impl AsFd, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors
        && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = retry(|| sendmsg(&socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL))?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives a message and drops descriptors that come with it: there is no room for any, so the kernel does not even
/// install them.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is none, [`io::ErrorKind::InvalidData`] for one that is too long.
pub(super) fn receive_without_descriptors(socket: impl AsFd) -> io::Result<Message> {
    receive_into(socket, &mut RecvAncillaryBuffer::default())
}

/// Receives a message and up to [`DESCRIPTORS_MAX`] descriptors.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when none comes in time, [`io::ErrorKind::InvalidData`] for one that is too long.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Message> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    receive_into(socket, &mut RecvAncillaryBuffer::new(&mut space))
}

fn receive_into(socket: impl AsFd, ancillary: &mut RecvAncillaryBuffer<'_>) -> io::Result<Message> {
    // One byte more than any message has, so that a longer one is recognised.
    let mut bytes = vec![0; MESSAGE_BYTES_MAX + 1];
    let received = retry(|| recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], ancillary, RecvFlags::CMSG_CLOEXEC))?;
    let descriptors = ancillary
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes > MESSAGE_BYTES_MAX || received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(received.bytes);
    Ok(Message { bytes, descriptors })
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
