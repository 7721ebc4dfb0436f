//! qemu's protocol, QMP: JSON lines. A greeting and a handshake, then commands; events may come at any time.

use super::connection::Connection;
use super::{ControlError, Controller};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;

/// The longest line. qemu sends no longer ones, but a guest may have taken control of it.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Connects, performs the handshake, sends one command, and returns the response.
pub(super) fn execute(controller: &Controller, command: &str, arguments: Value) -> Result<Value, ControlError> {
    match Session::open(controller)?.execute(command, arguments) {
        // After `quit`, qemu may end before it has sent the response.
        Err(ControlError::NoAnswer { .. }) if command == "quit" => Ok(Value::Null),
        answer => answer,
    }
}

/// A connection after the handshake, for commands that must be sent over the same connection.
pub(super) struct Session<'controller> {
    controller: &'controller Controller,
    lines: BufReader<Connection>,
}

impl<'controller> Session<'controller> {
    /// Connects and performs the handshake.
    pub(super) fn open(controller: &'controller Controller) -> Result<Self, ControlError> {
        let mut session = Self { controller, lines: BufReader::new(Connection::open(controller)?) };
        let greeting = session.read()?;
        if greeting.get("QMP").is_none() {
            return Err(controller.unexpected_response(&greeting.to_string()));
        }
        session.execute("qmp_capabilities", Value::Null)?;
        Ok(session)
    }

    /// Sends one command and returns the response.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ControlError> {
        self.exchange(command, arguments, None)
    }

    /// Sends one command together with a file descriptor, and returns the response.
    pub(super) fn execute_with_file(
        &mut self,
        command: &str,
        arguments: Value,
        file: BorrowedFd<'_>,
    ) -> Result<Value, ControlError> {
        self.exchange(command, arguments, Some(file))
    }

    fn exchange(
        &mut self,
        command: &str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value, ControlError> {
        let mut request = json!({"execute": command});
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let (connection, text) = (self.lines.get_mut(), format!("{request}\n"));
        let sent = match file {
            Some(file) => connection.send_with_file(text.as_bytes(), file),
            None => connection.write_all(text.as_bytes()),
        };
        sent.map_err(|source| self.controller.no_answer(source))?;
        // Skips events; the connection's deadline ends the loop.
        loop {
            let answer = self.read()?;
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or_default();
                return Err(self.controller.refused(command, reason));
            }
            if answer.get("event").is_none() {
                return Err(self.controller.unexpected_response(&answer.to_string()));
            }
        }
    }

    fn read(&mut self) -> Result<Value, ControlError> {
        let mut line = String::new();
        let read = (&mut self.lines).take(MAX_LINE_BYTES).read_line(&mut line);
        if read.map_err(|source| self.controller.no_answer(source))? == 0 {
            return Err(self.controller.no_answer(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
        }
        serde_json::from_str(&line).map_err(|_| self.controller.unexpected_response(&line))
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
