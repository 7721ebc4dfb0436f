//! Sending requests to a running hypervisor over its control socket, in the hypervisor's own protocol.

mod condition;
mod connection;
mod crosvm;
mod http;
mod kvmtool;
mod migration;
mod qmp;
mod suspend;

pub use condition::{Condition, condition_of};
pub use http::HttpAnswer;
pub use migration::{MigrationStatus, migrates_by_file};
pub use suspend::{MemoryLoading, SavedMachine, saves_to_file};

use crate::launch::{ControlProtocol, ControlSocket, ForcedStop, GracefulStep, HttpRequest};
use crate::path::HostPath;
use program::escape::one_line;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;

/// How long a hypervisor may take to respond. A busy host is slow, but a hypervisor that has not responded by then will
/// not.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How much of a response is shown in an error.
const MAX_SHOWN_CHARACTERS: usize = 300;

/// Why a request to a hypervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No process listens on the socket.
    #[error("no process listens on the control socket {path}: {source}")]
    NotListening {
        /// The socket.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// Whether a process listens on the socket cannot be determined.
    #[error("cannot connect to the control socket {path}: {source}")]
    Unreachable {
        /// The socket.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// A process listens, but does not respond in time.
    #[error("the control socket {path} accepts connections but does not answer: {source}")]
    NoAnswer {
        /// The socket.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// The response is not part of the protocol.
    #[error("the control socket {path} sent a response of another protocol: {answer}")]
    UnexpectedResponse {
        /// The socket.
        path: HostPath,
        /// The response, as text.
        answer: String,
    },
    /// The hypervisor refuses the request.
    #[error("the hypervisor refused {request}: {answer}")]
    Refused {
        /// The request.
        request: String,
        /// The response, as text.
        answer: String,
    },
    /// The configuration that the hypervisor has saved cannot be changed for a clone.
    #[error("{path}: {reason}")]
    SavedConfiguration {
        /// The file.
        path: HostPath,
        /// Why it failed, as it follows a colon.
        reason: String,
    },
    /// The hypervisor does not support the request.
    #[error("{0}")]
    Unsupported(String),
}

/// A client of a control socket. Each request opens its own connection: qemu serves one client at a time, and a client
/// that stays connected blocks all others.
#[derive(Clone, Debug)]
pub struct Controller {
    protocol: ControlProtocol,
    path: HostPath,
    timeout: Duration,
}

impl Controller {
    /// Creates a client of this socket. A relative path is resolved against `working_directory`.
    pub fn new(socket: &ControlSocket, working_directory: &HostPath) -> Self {
        Self { protocol: socket.protocol, path: socket.path.below(working_directory), timeout: TIMEOUT }
    }

    /// Sets how long each request may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &HostPath {
        &self.path
    }

    /// Returns the machine's state in the hypervisor's terms. A response shows that the hypervisor runs.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn status(&self) -> Result<String, ControlError> {
        let unexpected_response = |answer: &Value| self.unexpected_response(&answer.to_string());
        let field_of = |answer: &Value, field: &str| {
            answer.get(field).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| unexpected_response(answer))
        };
        match self.protocol {
            ControlProtocol::Qmp => field_of(&self.qmp("query-status", Value::Null)?, "status"),
            ControlProtocol::CloudHypervisorHttp => field_of(&self.get("/api/v1/vm.info")?, "state"),
            ControlProtocol::FirecrackerHttp => field_of(&self.get("/")?, "state"),
            // crosvm has no request without side effects, so an accepted connection has to suffice.
            ControlProtocol::CrosvmSeqpacket => crosvm::connect(self).map(|_| "running".to_owned()),
            ControlProtocol::Kvmtool => kvmtool::status(self),
        }
    }

    /// Returns whether the machine runs.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn condition(&self) -> Result<Condition, ControlError> {
        match self.status() {
            // It has no machine until it has received one.
            Err(ControlError::Refused { .. }) if self.protocol == ControlProtocol::CloudHypervisorHttp => {
                Ok(Condition::Waits)
            }
            status => Ok(condition_of(self.protocol, &status?)),
        }
    }

    /// Sends a request to shut down to the guest.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn request_shutdown(&self, step: &GracefulStep) -> Result<(), ControlError> {
        match step {
            GracefulStep::QmpSystemPowerdown => self.qmp("system_powerdown", Value::Null).map(|_| ()),
            GracefulStep::QmpCtrlAltDelete => self.qmp("input-send-event", qmp::ctrl_alt_delete()).map(|_| ()),
            GracefulStep::Http(request) => self.http(request).map(|_| ()),
            GracefulStep::CrosvmPowerButton => crosvm::request(self, &json!("Powerbtn")).map(|_| ()),
            GracefulStep::KvmtoolSysrq(key) => kvmtool::magic_key(self, *key),
        }
    }

    /// Ends the hypervisor. [`ForcedStop::Terminate`] needs no control socket and is refused.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn force_stop(&self, stop: &ForcedStop) -> Result<(), ControlError> {
        match stop {
            ForcedStop::QmpQuit => self.qmp("quit", Value::Null).map(|_| ()),
            ForcedStop::Http(request) => self.http(request).map(|_| ()),
            ForcedStop::CrosvmExit => crosvm::request(self, &json!("Exit")).map(|_| ()),
            ForcedStop::KvmtoolStop => kvmtool::stop(self),
            ForcedStop::Terminate => {
                Err(ControlError::Unsupported("the hypervisor can be ended only by a signal".to_owned()))
            }
        }
    }

    /// Sends one QMP command and returns the response.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value, ControlError> {
        qmp::execute(self, command, arguments)
    }

    /// Sends one HTTP request and returns the response. Any status other than 2xx counts as a refusal.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn http(&self, request: &HttpRequest) -> Result<HttpAnswer, ControlError> {
        http::request(self, request)
    }

    /// Returns the JSON document at an HTTP path.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn get(&self, path: &str) -> Result<Value, ControlError> {
        let request = HttpRequest { method: "GET".to_owned(), path: path.to_owned(), body: None };
        let answer = self.http(&request)?;
        serde_json::from_str(&answer.body).map_err(|_| self.unexpected_response(&answer.body))
    }

    /// Sends one message to crosvm and returns the response.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn crosvm(&self, request: &Value) -> Result<Value, ControlError> {
        crosvm::request(self, request)
    }

    /// Changes the target size of kvmtool's balloon by this number of MiB.
    ///
    /// # Errors
    /// Returns [`ControlError`].
    pub fn kvmtool_balloon(&self, change_mib: i32) -> Result<(), ControlError> {
        kvmtool::balloon(self, change_mib)
    }

    fn unexpected_response(&self, answer: &str) -> ControlError {
        ControlError::UnexpectedResponse { path: self.path.clone(), answer: excerpt(answer) }
    }

    fn refused(&self, request: impl Into<String>, answer: &str) -> ControlError {
        ControlError::Refused { request: request.into(), answer: excerpt(answer) }
    }

    fn no_answer(&self, source: io::Error) -> ControlError {
        ControlError::NoAnswer { path: self.path.clone(), source }
    }
}

/// Returns one line of bounded length: the hypervisor may be in the hands of its guest.
fn excerpt(answer: &str) -> String {
    let line = one_line(answer.trim());
    match line.char_indices().nth(MAX_SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.into_owned(),
    }
}

#[cfg(test)]
mod tests;
