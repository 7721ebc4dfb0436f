//! Sending requests to a running hypervisor over its control socket, each in its own protocol.

mod connection;
mod crosvm;
mod http;
mod kvmtool;
mod qmp;

pub use http::HttpAnswer;

use crate::launch::{ControlProtocol, ControlSocket, ForcedStop, GracefulStep, HttpRequest};
use crate::path::HostPath;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;

/// How long a hypervisor may take to answer. A busy host is slow, but a hypervisor that says nothing for this long
/// will not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a request to a hypervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No process listens.
    #[error("no process listens on the control socket {path}: {source}")]
    NobodyThere {
        /// The socket.
        path: HostPath,
        /// Why.
        source: io::Error,
    },
    /// A process listens, but does not answer in time.
    #[error("the control socket {path} accepts connections but does not answer: {source}")]
    NoAnswer {
        /// The socket.
        path: HostPath,
        /// Why.
        source: io::Error,
    },
    /// The answer is not one of this protocol.
    #[error("the control socket {path} gave an answer of another protocol: {answer}")]
    Misunderstood {
        /// The socket.
        path: HostPath,
        /// What it answered.
        answer: String,
    },
    /// The hypervisor refuses.
    #[error("the hypervisor refused {request}: {answer}")]
    Refused {
        /// What it was asked.
        request: String,
        /// What it answered.
        answer: String,
    },
    /// The hypervisor has no such command.
    #[error("{0}")]
    Unsupported(String),
}

/// A control socket, ready to be asked. Each request is a connection of its own: qemu serves one client at a time, and
/// a client that stays connected locks the others out.
#[derive(Clone, Debug)]
pub struct Controller {
    protocol: ControlProtocol,
    path: HostPath,
    patience: Duration,
}

impl Controller {
    /// Talks to this socket, whose relative path is taken from `working_directory`.
    pub fn new(socket: &ControlSocket, working_directory: &HostPath) -> Self {
        Self { protocol: socket.protocol, path: socket.path.below(working_directory), patience: PATIENCE }
    }

    /// Waits less long for each answer.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The socket.
    pub fn path(&self) -> &HostPath {
        &self.path
    }

    /// The machine's state as the hypervisor names it; an answer means that the hypervisor runs.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn status(&self) -> Result<String, ControlError> {
        let misunderstood = |answer: &Value| self.misunderstood(&answer.to_string());
        let field_of = |answer: &Value, field: &str| {
            answer.get(field).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| misunderstood(answer))
        };
        match self.protocol {
            ControlProtocol::Qmp => field_of(&self.qmp("query-status", Value::Null)?, "status"),
            ControlProtocol::CloudHypervisorHttp => field_of(&self.get("/api/v1/vm.info")?, "state"),
            ControlProtocol::FirecrackerHttp => field_of(&self.get("/")?, "state"),
            // It has no question that changes nothing: that it takes the connection must do.
            ControlProtocol::CrosvmSeqpacket => crosvm::connect(self).map(|_| "running".to_owned()),
            ControlProtocol::Kvmtool => kvmtool::status(self),
        }
    }

    /// Asks the guest to shut down.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn ask_guest(&self, step: &GracefulStep) -> Result<(), ControlError> {
        match step {
            GracefulStep::QmpSystemPowerdown => self.qmp("system_powerdown", Value::Null).map(|_| ()),
            GracefulStep::QmpCtrlAltDelete => self.qmp("input-send-event", qmp::ctrl_alt_delete()).map(|_| ()),
            GracefulStep::Http(request) => self.http(request).map(|_| ()),
            GracefulStep::CrosvmPowerButton => crosvm::request(self, &json!("Powerbtn")).map(|_| ()),
            GracefulStep::KvmtoolSysrq(key) => kvmtool::magic_key(self, *key),
        }
    }

    /// Ends the hypervisor; [`ForcedStop::Terminate`] is not for a control socket, and refused.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn force(&self, stop: &ForcedStop) -> Result<(), ControlError> {
        match stop {
            ForcedStop::QmpQuit => self.qmp("quit", Value::Null).map(|_| ()),
            ForcedStop::Http(request) => self.http(request).map(|_| ()),
            ForcedStop::CrosvmExit => crosvm::request(self, &json!("Exit")).map(|_| ()),
            ForcedStop::KvmtoolStop => kvmtool::stop(self),
            ForcedStop::Terminate => Err(ControlError::Unsupported("the hypervisor ends by a signal only".to_owned())),
        }
    }

    /// One QMP command and its answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value, ControlError> {
        qmp::execute(self, command, arguments)
    }

    /// One HTTP request; an answer other than 2xx is a refusal.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn http(&self, request: &HttpRequest) -> Result<HttpAnswer, ControlError> {
        http::request(self, request)
    }

    /// The JSON at an HTTP path.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn get(&self, path: &str) -> Result<Value, ControlError> {
        let request = HttpRequest { method: "GET".to_owned(), path: path.to_owned(), body: None };
        let answer = self.http(&request)?;
        serde_json::from_str(&answer.body).map_err(|_| self.misunderstood(&answer.body))
    }

    /// One crosvm message and its answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn crosvm(&self, request: &Value) -> Result<Value, ControlError> {
        crosvm::request(self, request)
    }

    /// Changes the target of kvmtool's balloon by so many MiB.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn kvmtool_balloon(&self, change_mib: i32) -> Result<(), ControlError> {
        kvmtool::balloon(self, change_mib)
    }

    fn misunderstood(&self, answer: &str) -> ControlError {
        ControlError::Misunderstood { path: self.path.clone(), answer: answer.trim().to_owned() }
    }

    fn no_answer(&self, source: io::Error) -> ControlError {
        ControlError::NoAnswer { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests;
