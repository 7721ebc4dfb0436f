//! crosvm's protocol: one JSON message in each direction, each in one packet (vm_control/src/lib.rs, `VmRequest`).

use super::connection::packets;
use super::{ControlError, Controller};
use nix::sys::socket::{MsgFlags, recv, send};
use serde_json::Value;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Connects without sending a message.
pub(super) fn connect(controller: &Controller) -> Result<OwnedFd, ControlError> {
    packets(controller)
}

pub(super) fn request(controller: &Controller, request: &Value) -> Result<Value, ControlError> {
    let socket = packets(controller)?;
    let text = request.to_string();
    send(socket.as_raw_fd(), text.as_bytes(), MsgFlags::MSG_NOSIGNAL)
        .map_err(|errno| controller.no_answer(errno.into()))?;
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let count =
        recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(|errno| controller.no_answer(errno.into()))?;
    // After `Exit`, crosvm may end before it has sent the response.
    if count == 0 {
        let ended = io::Error::from(io::ErrorKind::UnexpectedEof);
        return if text == "\"Exit\"" { Ok(Value::Null) } else { Err(controller.no_answer(ended)) };
    }
    let answer = serde_json::from_slice(&buffer[..count])
        .map_err(|_| controller.unexpected_response(&String::from_utf8_lossy(&buffer[..count])))?;
    match refusal(&answer) {
        Some(reason) => Err(controller.refused(text, &reason)),
        None => Ok(answer),
    }
}

/// Returns the reason in `{"Err": errno}` and similar responses.
fn refusal(answer: &Value) -> Option<String> {
    let (name, value) = answer.as_object()?.iter().next()?;
    name.starts_with("Err").then(|| match value.as_i64().and_then(|errno| i32::try_from(errno).ok()) {
        Some(errno) => io::Error::from_raw_os_error(errno).to_string(),
        None => value.to_string(),
    })
}
