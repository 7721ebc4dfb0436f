//! Why a machine's most recent start or run failed. As systemd does for a failed service, `status` shows it until the next
//! start or the next boot of the host.

use super::{MachineState, StateError, unix_seconds};
use serde::{Deserialize, Serialize};

/// The file that contains the [`RunFailure`].
const FAILURE: &str = "failure.json";

/// A start that failed, or a run that ended with an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunFailure {
    /// The reasons, as the launcher has printed them.
    pub problems: Vec<String>,
    /// When it failed, in seconds since 1970.
    pub unix_seconds: u64,
}

impl MachineState {
    /// Records why the start or the run failed. Call this only while the machine is locked for the start.
    pub(crate) fn write_failure(&self, problems: Vec<String>) {
        // The caller reports the failure. If it cannot be recorded too, on a full disk for example, nothing is lost.
        let _ = self.write(FAILURE, &RunFailure { problems, unix_seconds: unix_seconds() });
    }

    /// Returns why the most recent start or run failed, or `None` if it has not failed.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn failure(&self) -> Result<Option<RunFailure>, StateError> {
        Ok(self.read(FAILURE)?.map(|(failure, _)| failure))
    }

    /// Removes the record, at the next start.
    pub(super) fn clear_failure(&self) {
        self.remove(FAILURE);
    }
}
