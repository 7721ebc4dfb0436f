//! Sends and receives messages and descriptors over a `SOCK_SEQPACKET` socket.

use super::protocol::MAX_MESSAGE_BYTES;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Maximum number of descriptors that a client receives. One is expected; more are received only to be counted and
/// closed.
const MAX_DESCRIPTORS: usize = 4;

/// A message as received.
#[derive(Debug)]
pub(super) struct Message {
    /// Its bytes; empty if the other side has closed the connection.
    pub(super) bytes: Vec<u8>,
    /// The descriptors in it. Those that are not taken are closed when the message is dropped.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Sends a message, optionally with a descriptor. It does not wait if the socket is non-blocking.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if the other side does not read, or another error of the kernel.
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

/// Receives a message without descriptors. There is no room for any, so the kernel does not even install them.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if there is no message, [`io::ErrorKind::InvalidData`] if it is too long.
pub(super) fn receive_without_descriptors(socket: impl AsFd) -> io::Result<Message> {
    receive_into(socket, &mut RecvAncillaryBuffer::default())
}

/// Receives a message and up to [`MAX_DESCRIPTORS`] descriptors.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if no message arrives in time, [`io::ErrorKind::InvalidData`] if it is too long.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Message> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    receive_into(socket, &mut RecvAncillaryBuffer::new(&mut space))
}

fn receive_into(socket: impl AsFd, ancillary: &mut RecvAncillaryBuffer<'_>) -> io::Result<Message> {
    // One byte more than the longest valid message, so that a longer one is detected.
    let mut bytes = vec![0; MAX_MESSAGE_BYTES + 1];
    let received = retry(|| recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], ancillary, RecvFlags::CMSG_CLOEXEC))?;
    let descriptors = ancillary
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes > MAX_MESSAGE_BYTES || received.flags.contains(ReturnFlags::TRUNC) {
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
