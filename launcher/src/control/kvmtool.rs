//! kvmtool's protocol: a header with type and length, little-endian, then the message (include/kvm/kvm-ipc.h).
//!
//! The server accepts one client each time one connects, however many wait: its epoll is edge-triggered. It then reads
//! from that client until the client leaves or sends something else than messages (kvm-ipc.c). So a client that stayed for
//! a while leaves others behind that wait in front of this one, and each further connection makes the server accept the next.

use super::connection::Connection;
use super::{ControlError, Controller};
use std::io::{self, Read, Write};
use std::time::Duration;

const BALLOON: u32 = 1;
const DEBUG: u32 = 2;
const STOP: u32 = 6;
const VMSTATE: u32 = 8;

/// Bit 2 of `struct debug_cmd_params`: {type, cpu, key, padding}.
const DEBUG_MAGIC_KEY: u32 = 4;

/// How long to wait for an answer before making the server accept the next client.
const NEXT_CLIENT_AFTER: Duration = Duration::from_millis(300);

/// Returns `running` or `paused`.
pub(super) fn status(controller: &Controller) -> Result<String, ControlError> {
    let mut answer = [0; 4];
    exchange(controller, &message(VMSTATE, &[]))
        .and_then(|mut connection| connection.read_exact(&mut answer).map_err(|source| controller.no_answer(source)))?;
    match i32::from_le_bytes(answer) {
        0 => Ok("running".to_owned()),
        1 => Ok("paused".to_owned()),
        other => Err(controller.unexpected_response(&format!("state {other}"))),
    }
}

/// Sends a magic system request key to the guest over its serial port.
pub(super) fn magic_key(controller: &Controller, key: char) -> Result<(), ControlError> {
    let mut parameters = Vec::new();
    parameters.extend(DEBUG_MAGIC_KEY.to_le_bytes());
    parameters.extend(0u32.to_le_bytes());
    let key = u8::try_from(key).map_err(|_| ControlError::Unsupported(format!("`{key}` is not a key of one byte")))?;
    parameters.extend([key, 0, 0, 0]);
    send(controller, DEBUG, &parameters)
}

pub(super) fn balloon(controller: &Controller, change_mib: i32) -> Result<(), ControlError> {
    send(controller, BALLOON, &change_mib.to_le_bytes())
}

pub(super) fn stop(controller: &Controller) -> Result<(), ControlError> {
    send(controller, STOP, &[])
}

/// Sends a message that has no response: the server closes the connection once it has handled the message.
fn send(controller: &Controller, kind: u32, content: &[u8]) -> Result<(), ControlError> {
    let mut connection = exchange(controller, &message(kind, content))?;
    let mut answer = [0; 64];
    match connection.read(&mut answer) {
        Ok(0) => Ok(()),
        Ok(count) => Err(controller.unexpected_response(&String::from_utf8_lossy(&answer[..count]))),
        // After a stop, the server may end before it has read everything.
        Err(error) if kind == STOP && error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(source) => Err(controller.no_answer(source)),
    }
}

/// Sends a message, and waits until the server has answered or closed the connection.
fn exchange(controller: &Controller, message: &[u8]) -> Result<Connection, ControlError> {
    let mut connection = Connection::open(controller)?;
    let failed = |source| controller.no_answer(source);
    connection.write_all(message).and_then(|()| connection.finish_writing()).map_err(failed)?;
    while !connection.is_readable_within(NEXT_CLIENT_AFTER).map_err(failed)? {
        // Fails if too many clients wait; the server then accepts them one after another.
        let _ = Connection::open(&controller.clone().with_timeout(NEXT_CLIENT_AFTER));
    }
    Ok(connection)
}

fn message(kind: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&kind.to_le_bytes(), &length.to_le_bytes(), content].concat()
}
