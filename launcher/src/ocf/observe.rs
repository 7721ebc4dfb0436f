//! Whether a machine runs on this node. The hypervisor is asked over its control socket: a record of its process id
//! would be wrong in another namespace, or after the machine has migrated.

use crate::control::{Condition, ControlError, Controller};
use crate::launch::Launch;
use crate::state::{Activity, MachineState, StateError, unix_seconds};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a hypervisor may take to answer. Pacemaker's timeout of a monitor is longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The observed state of a machine on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Observed {
    /// None of its processes runs.
    Stopped,
    /// A launcher prepares its start, or its hypervisor does not listen yet.
    Starting,
    /// Its hypervisor answers.
    Answers(Condition),
    /// Its hypervisor runs, but cannot be asked, for this reason.
    Unresponsive(String),
}

/// Observes a machine.
///
/// # Errors
/// Returns [`StateError`].
pub fn observe(state: &MachineState) -> Result<Observed, StateError> {
    // Before the hypervisor is asked: if it answers, a record that is written in the meantime changes nothing.
    let activity = state.activity()?;
    let launch = state.last_launch()?;
    if let Activity::Starting(_) = activity {
        return Ok(Observed::Starting);
    }
    let runs = activity != Activity::Stopped;
    Ok(match controller_of(launch.as_ref()).map(|controller| controller.with_timeout(ANSWER_TIMEOUT).condition()) {
        Some(Ok(condition)) => Observed::Answers(condition),
        None if runs => Observed::Answers(Condition::Runs),
        Some(Err(ControlError::NotListening { .. })) if runs && is_new(&activity) => Observed::Starting,
        Some(Err(error)) if runs => Observed::Unresponsive(error.to_string()),
        Some(Err(ControlError::NotListening { .. })) | None => Observed::Stopped,
        // No process of the machine is recorded, but something answers on its socket.
        Some(Err(error)) => Observed::Unresponsive(error.to_string()),
    })
}

/// Returns the client of the machine's control socket, if it has one.
pub(super) fn controller_of(launch: Option<&Launch>) -> Option<Controller> {
    let launch = launch?;
    Some(Controller::new(launch.control.as_ref()?, &launch.working_directory))
}

/// How long a hypervisor may take from its start until it listens on its control socket.
const LISTEN_TIMEOUT_SECONDS: u64 = 120;

fn is_new(activity: &Activity) -> bool {
    let started = activity.running().map(|machine| machine.started_unix_seconds);
    started.is_some_and(|started| seconds_since(started) < LISTEN_TIMEOUT_SECONDS)
}

/// Returns how many seconds have passed since a time in seconds since 1970.
pub(super) fn seconds_since(time: u64) -> u64 {
    unix_seconds().saturating_sub(time)
}
