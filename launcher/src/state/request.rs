//! What the caller of a start asks of it besides the machine spec. The resource agent of a cluster writes it into the
//! runtime directory, because it starts machines through their services as well.

use super::{MachineState, StateError};
use program::place::{Directory, Place};
use program::user::Identity;
use serde::{Deserialize, Serialize};

/// The file that contains the [`StartRequest`].
const REQUEST: &str = "start-request.json";
/// The file that tells the supervisor of a running machine that a command stops it.
const STOP: &str = "stop-requested";

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

    /// Records that a command stops the running machine, so that its supervisor does not take the end for a failure.
    pub fn request_stop(&self) {
        // A machine is stopped even if this fails, on a full disk for example. Its supervisor then reports a failure if
        // the guest has not booted.
        let _ = Place::nofollow(&self.file(STOP)).and_then(|place| place.replace(b"", 0o640, None));
    }

    /// Whether a command has stopped the running machine, or is about to.
    pub fn is_stop_requested(&self) -> bool {
        Place::nofollow(&self.file(STOP)).and_then(|place| place.stat()).is_ok_and(|found| found.is_some())
    }

    /// Forgets such a command, which concerned an earlier run.
    pub(super) fn clear_stop_request(&self) {
        self.remove(STOP);
    }
}
