//! Why a machine's most recent start or run failed. As systemd does for a failed service, `status` shows it until the next
//! start or the next boot of the host.

use super::{MachineState, StateError, is_same_directory};
use nix::time::ClockId;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file that contains the [`RunFailure`].
const FAILURE: &str = "failure.json";
/// The longest record: all reasons and the longest path, with every character escaped.
const MAX_RECORD_BYTES: u64 = 64 << 10;
/// Maximum number of reasons that are recorded or shown.
const MAX_PROBLEMS: usize = 8;
/// Maximum length of a reason, in characters. The machine's user writes the record, and root shows it.
const MAX_PROBLEM_LENGTH: usize = 400;

/// A start that failed, or a run that ended with an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunFailure {
    /// The reasons, as the launcher has printed them.
    pub problems: Vec<String>,
    /// When it failed, in microseconds of CLOCK_MONOTONIC. systemd reports when units started in this clock, too, which
    /// nobody can set. The record does not outlive a boot.
    pub monotonic_microseconds: u64,
    /// The state directory, because a machine of another one may have the same name.
    pub working_directory: PathBuf,
}

impl MachineState {
    /// Records why the start or the run in that state directory failed. Call this only while the machine is locked for the
    /// start.
    pub(super) fn write_failure(&self, problems: Vec<String>, working_directory: &Path) {
        let (problems, working_directory) = (shortened(problems), working_directory.to_owned());
        // The caller reports the failure. If it cannot be recorded too, on a full disk for example, nothing is lost.
        let now = ClockId::CLOCK_MONOTONIC.now().map_or(Duration::ZERO, Duration::from);
        let monotonic_microseconds = u64::try_from(now.as_micros()).unwrap_or_default();
        let _ = self.write(FAILURE, &RunFailure { problems, monotonic_microseconds, working_directory });
    }

    /// Returns why the most recent start or run failed, or `None` if it has not failed.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn failure(&self) -> Result<Option<RunFailure>, StateError> {
        let found: Option<(RunFailure, _)> = self.read_at_most(FAILURE, MAX_RECORD_BYTES)?;
        Ok(found.map(|(failure, _)| RunFailure { problems: shortened(failure.problems), ..failure }))
    }

    /// Like [`Self::failure`], but only of the machine in this state directory.
    ///
    /// # Errors
    /// The same.
    pub fn failure_in(&self, directory: &Path) -> Result<Option<RunFailure>, StateError> {
        Ok(self.failure()?.filter(|failure| is_same_directory(&failure.working_directory, directory)))
    }

    /// Removes the record, as at the next start.
    pub fn clear_failure(&self) {
        self.remove(FAILURE);
    }

    /// Removes the record when the stopped machine in this state directory is stopped again, and when it is deleted. That of
    /// a machine of the same name in another directory stays. An unreadable one is nobody's.
    pub fn clear_failure_in(&self, directory: &Path) {
        if !matches!((self.failure(), self.failure_in(directory)), (Ok(Some(_)), Ok(None))) {
            self.clear_failure();
        }
    }
}

fn shortened(problems: Vec<String>) -> Vec<String> {
    let short = |problem: String| match problem.char_indices().nth(MAX_PROBLEM_LENGTH) {
        Some((end, _)) => format!("{}…", &problem[..end]),
        None => problem,
    };
    problems.into_iter().take(MAX_PROBLEMS).map(short).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use crate::state::RuntimeDirectory;
    use std::fs;

    #[test]
    fn a_failure_of_another_machine_with_this_name_was_shown() {
        let runtime = tempfile::tempdir().unwrap();
        let [web, other] = ["web", "other"].map(|name| runtime.path().join(name));
        let state = RuntimeDirectory::at(runtime.path()).machine("web").unwrap();
        state.lock_for_start(&other).unwrap().record_failure(vec!["no kernel".to_owned()]);
        assert_eq!(state.failure_in(&web).unwrap(), None);
        assert_eq!(state.failure_in(&other).unwrap().unwrap().problems, ["no kernel"]);
        // Stopping or deleting this machine does not remove it either.
        state.clear_failure_in(&web);
        assert_eq!(state.failure_in(&other).unwrap().unwrap().problems, ["no kernel"]);
        state.clear_failure_in(&other);
        assert_eq!(state.failure().unwrap(), None);
    }

    #[test]
    fn a_long_record_flooded_the_terminal_and_a_field_of_a_later_release_made_the_machine_unknown() {
        let runtime = tempfile::tempdir().unwrap();
        let state = RuntimeDirectory::at(runtime.path()).machine("web").unwrap();
        drop(state.lock_for_start(Path::new("/var/lib/web")).unwrap());
        let record = serde_json::json!({
            "problems": vec!["é".repeat(1 << 10); 20], "monotonicMicroseconds": 1, "workingDirectory": "/var/lib/web", "later": 1,
        });
        let write = |text: &str| fs::write(runtime.path().join("web").join(FAILURE), text).unwrap();
        write(&record.to_string());
        let problems = state.failure().unwrap().unwrap().problems;
        assert_eq!(problems, vec![format!("{}…", "é".repeat(MAX_PROBLEM_LENGTH)); MAX_PROBLEMS]);
        // A value of another type was quoted whole, and a record of 64 MiB was read.
        write(&format!("\"{}\"", "x".repeat(60 << 10)));
        let error = state.failure().unwrap_err().to_string();
        assert!(error.len() < 600 && error.contains("xxx…xxx") && error.contains("RunFailure at line 1"), "{error}");
        write(&" ".repeat(1 << 20));
        let error = state.failure().unwrap_err().to_string();
        assert!(error.ends_with("it is longer than 64 KiB, the limit for such a file"), "{error}");
        // It belongs to no machine, so each of them may remove it.
        state.clear_failure_in(Path::new("/var/lib/web"));
        assert_eq!(state.failure().unwrap(), None);
    }
}
