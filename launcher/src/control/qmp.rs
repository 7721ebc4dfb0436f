//! qemu's protocol, QMP: JSON lines. A greeting and a handshake, then commands; events may come at any time.

use super::connection::Connection;
use super::{ControlError, Controller};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};

/// The longest line. qemu sends no longer ones, but a guest may have taken control of it.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Connects, performs the handshake, sends one command, and returns the response.
pub(super) fn execute(controller: &Controller, command: &str, arguments: Value) -> Result<Value, ControlError> {
    let mut lines = BufReader::new(Connection::open(controller)?);
    let greeting = read(controller, &mut lines)?;
    if greeting.get("QMP").is_none() {
        return Err(controller.misunderstood(&greeting.to_string()));
    }
    exchange(controller, &mut lines, "qmp_capabilities", Value::Null)?;
    match exchange(controller, &mut lines, command, arguments) {
        // After `quit`, qemu may end before it has sent the response.
        Err(ControlError::NoAnswer { .. }) if command == "quit" => Ok(Value::Null),
        answer => answer,
    }
}

/// Returns the keys in the form of `input-send-event`: pressed in order, then released.
pub(super) fn ctrl_alt_delete() -> Value {
    let key =
        |name: &str, down: bool| json!({"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}});
    let keys = ["ctrl", "alt", "delete"];
    let events: Vec<Value> =
        keys.iter().map(|name| key(name, true)).chain(keys.iter().map(|name| key(name, false))).collect();
    json!({"events": events})
}

fn exchange(
    controller: &Controller,
    lines: &mut BufReader<Connection>,
    command: &str,
    arguments: Value,
) -> Result<Value, ControlError> {
    let mut request = json!({"execute": command});
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    let sent = lines.get_mut().write_all(format!("{request}\n").as_bytes());
    sent.map_err(|source| controller.no_answer(source))?;
    // Skips events; the connection's deadline ends the loop.
    loop {
        let answer = read(controller, lines)?;
        if let Some(result) = answer.get("return") {
            return Ok(result.clone());
        }
        if let Some(error) = answer.get("error") {
            let reason = error.get("desc").and_then(Value::as_str).unwrap_or_default().to_owned();
            return Err(ControlError::Refused { request: command.to_owned(), answer: reason });
        }
        if answer.get("event").is_none() {
            return Err(controller.misunderstood(&answer.to_string()));
        }
    }
}

fn read(controller: &Controller, lines: &mut BufReader<Connection>) -> Result<Value, ControlError> {
    let mut line = String::new();
    let count = lines.take(MAX_LINE_BYTES).read_line(&mut line).map_err(|source| controller.no_answer(source))?;
    if count == 0 {
        return Err(controller.no_answer(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
    }
    serde_json::from_str(&line).map_err(|_| controller.misunderstood(&line))
}
