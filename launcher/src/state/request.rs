//! What the caller of a start asks of it besides the machine spec. The resource agent of a cluster writes it into the
//! runtime directory, because it starts machines through their services as well.

use super::{MachineState, ProcessIdentity, StateError};
use program::place::{Directory, Place};
use program::user::Identity;
use serde::{Deserialize, Serialize};

/// The file that contains the [`StartRequest`].
pub(super) const REQUEST: &str = "start-request.json";
/// The file that contains the [`StopRequest`].
pub(super) const STOP: &str = "stop-requested";

/// What the caller of a start asks of it. The default is a start by hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartRequest {
    /// Whether the machine migrates to this host while it runs. Its hypervisor then waits for it.
    pub is_incoming: bool,
    /// Whether a suspended machine boots if it can no longer be resumed, because another host has run it since.
    pub boots_if_changed: bool,
    /// How long to wait for volumes that another host has locked, in seconds: a storage server keeps the locks of a host
    /// that was fenced until its lease ends.
    #[serde(default)]
    pub lock_wait_seconds: u64,
}

/// Tells the supervisor of a running machine that a command stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StopRequest {
    /// The process that stops the machine. If it has ended, for example at Ctrl-C, it no longer stops the machine.
    requester: ProcessIdentity,
    /// The hypervisor that it stops: a later run of the machine has another one.
    hypervisor: ProcessIdentity,
}

/// A recorded request to stop a machine. Its creator must keep it until the machine's supervisor has ended.
#[derive(Debug)]
#[must_use]
pub struct RecordedStop<'state> {
    state: &'state MachineState,
    /// `None` if it could not be recorded.
    request: Option<StopRequest>,
}

impl Drop for RecordedStop<'_> {
    fn drop(&mut self) {
        // Another command may stop the machine too.
        if self.request.is_some() && self.state.stop_request() == self.request {
            self.state.clear_stop_request();
        }
    }
}

impl MachineState {
    /// Records a request for the next start, which that user will read.
    ///
    /// # Errors
    /// Returns [`StateError::File`].
    pub fn write_request(&self, request: StartRequest, reader: Option<&Identity>) -> Result<(), StateError> {
        let failed = |source| StateError::File { path: self.directory.clone(), source };
        if !self.directory.exists() {
            Directory::make(&self.directory, 0o750, None).map_err(failed)?;
        }
        let text = serde_json::to_vec(&request).map_err(|error| failed(error.into()))?;
        Place::nofollow(&self.file(REQUEST)).and_then(|place| place.replace(&text, 0o640, reader)).map_err(failed)
    }

    /// Returns the request for the next start.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn request(&self) -> Result<StartRequest, StateError> {
        Ok(self.read(REQUEST)?.map(|(request, _)| request).unwrap_or_default())
    }

    /// Returns the request for the next start if root has recorded it.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn request_of_root(&self) -> Result<Option<StartRequest>, StateError> {
        Ok(self.read(REQUEST)?.filter(|(_, writer)| writer.is_root()).map(|(request, _)| request))
    }

    /// Removes the request, which is for one start only.
    pub fn clear_request(&self) {
        self.remove(REQUEST);
    }

    /// Records that this process stops the machine that this hypervisor runs, so that its supervisor does not report the
    /// end as a failure. The record counts only until the returned value is dropped or this process ends.
    pub fn request_stop(&self, hypervisor: ProcessIdentity) -> RecordedStop<'_> {
        let request = ProcessIdentity::current().ok().map(|requester| StopRequest { requester, hypervisor });
        // A machine is stopped even if this fails, on a full disk for example. Its supervisor then reports a failure if
        // the guest has not booted.
        let request = request.filter(|request| self.write(STOP, request).is_ok());
        RecordedStop { state: self, request }
    }

    /// Whether a command that is still running stops the machine that this hypervisor runs.
    pub fn is_stop_requested(&self, hypervisor: ProcessIdentity) -> bool {
        self.stop_request().is_some_and(|request| request.hypervisor == hypervisor && request.requester.is_alive())
    }

    /// Returns the recorded request. An unreadable one is ignored.
    fn stop_request(&self) -> Option<StopRequest> {
        Some(self.read(STOP).ok()??.0)
    }

    /// Removes a request that concerned an earlier run.
    pub(super) fn clear_stop_request(&self) {
        self.remove(STOP);
    }
}
