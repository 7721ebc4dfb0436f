//! kvmtool's protocol: a header with type and length, little-endian, then the message (include/kvm/kvm-ipc.h).
//!
//! The server accepts one client per wake-up and can miss a second one that follows immediately, so a request without a
//! response is retried.

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

const ATTEMPTS: u32 = 3;
/// The time that the server needs to be ready for the next client.
const RETRY_INTERVAL: Duration = Duration::from_millis(300);

/// Returns `running` or `paused`.
pub(super) fn status(controller: &Controller) -> Result<String, ControlError> {
    let mut outcome = Err(ControlError::Unsupported("not asked yet".to_owned()));
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(RETRY_INTERVAL);
        }
        outcome = ask_state(controller);
        if !matches!(outcome, Err(ControlError::NoAnswer { .. })) {
            break;
        }
    }
    outcome
}

fn ask_state(controller: &Controller) -> Result<String, ControlError> {
    let controller = controller.clone().with_timeout(controller.timeout / ATTEMPTS);
    let mut connection = Connection::open(&controller)?;
    let mut answer = [0; 4];
    let outcome = connection.write_all(&message(VMSTATE, &[])).and_then(|()| connection.read_exact(&mut answer));
    outcome.map_err(|source| controller.no_answer(source))?;
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
    let mut connection = Connection::open(controller)?;
    let mut answer = [0; 64];
    let received = connection.write_all(&message(kind, content)).and_then(|()| {
        connection.finish_writing()?;
        connection.read(&mut answer)
    });
    match received {
        Ok(0) => {}
        Ok(count) => return Err(controller.unexpected_response(&String::from_utf8_lossy(&answer[..count]))),
        // After a stop, the server may end before it has read everything.
        Err(error) if kind == STOP && error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(source) => return Err(controller.no_answer(source)),
    }
    std::thread::sleep(RETRY_INTERVAL);
    Ok(())
}

fn message(kind: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&kind.to_le_bytes(), &length.to_le_bytes(), content].concat()
}
