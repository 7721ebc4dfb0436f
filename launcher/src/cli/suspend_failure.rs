//! Failures of suspending and resuming, with hints.

use super::machine::failed;
use launcher::suspend::{SameMac, SuspendError};
use program::failure::{Failure, INTERRUPTED};

/// Returns the failure of a command that could not suspend, resume or discard a machine.
pub(crate) fn suspend_failure(error: SuspendError) -> Failure {
    match &error {
        SuspendError::Refused(_) => {
            let hint = "shut it down instead with `microvm stop`";
            Failure::problems(error.problems()).with_hint(hint)
        }
        SuspendError::Changed { .. } => Failure::problems(error.problems()),
        SuspendError::NotSaved { source, .. } if matches!(**source, SuspendError::Interrupted) => {
            failed(error).with_code(INTERRUPTED)
        }
        _ => failed(error),
    }
}

/// Returns the failure of a start that could not resume its machine.
pub(crate) fn resume_failure(error: SuspendError, name: &str) -> Failure {
    let hint = match &error {
        SuspendError::Changed { .. } => format!(
            "undo the changes, or delete what was saved with `microvm resume --discard`; {name} then boots, and finds its \
             volumes as after a power cut"
        ),
        _ => format!("{name} is still suspended; delete what was saved with `microvm resume --discard`"),
    };
    suspend_failure(error).with_hint(hint)
}

/// Returns the failure of a start that was refused because another guest has the same MAC address.
pub(crate) fn same_mac_failure(error: SameMac) -> Failure {
    let hint = format!(
        "stop or suspend {} first, connect the two to different bridges, or use `microvm clone --allow-same-mac` and keep \
         their networks apart",
        error.other
    );
    failed(error).with_hint(hint)
}
