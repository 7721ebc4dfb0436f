//! Why a machine's most recent start or run failed. As systemd does for a failed service, `status` shows it until the next
//! start or the next boot of the host.

use super::{MachineState, StateError, is_same_directory};
use nix::time::ClockId;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file that contains a [`RunFailure`] for each state directory, the most recent one last.
pub(super) const FAILURES: &str = "failures.json";
/// Maximum number of state directories whose failures are recorded.
const MAX_RECORDS: usize = 4;
/// The longest file: for each directory all reasons and the longest path, with every character escaped.
const MAX_FILE_BYTES: u64 = 256 << 10;
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
        // An unreadable file is replaced.
        let mut failures = self.failures().unwrap_or_default();
        failures.retain(|failure| !failure.is_in(&working_directory));
        failures.push(RunFailure { problems, monotonic_microseconds, working_directory });
        failures.drain(..failures.len().saturating_sub(MAX_RECORDS));
        let _ = self.write(FAILURES, &failures);
    }

    /// Returns why the most recent start or run that has failed did so, in any directory, or `None` if none has failed.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn failure(&self) -> Result<Option<RunFailure>, StateError> {
        Ok(self.failures()?.pop())
    }

    /// Returns why the most recent start or run of the machine in this state directory failed, or `None` if it has not
    /// failed.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn failure_in(&self, directory: &Path) -> Result<Option<RunFailure>, StateError> {
        Ok(self.failures()?.into_iter().find(|failure| failure.is_in(directory)))
    }

    /// Removes the records of all directories.
    pub fn clear_failures(&self) {
        self.remove(FAILURES);
    }

    /// Removes the record of the machine in this state directory: when it starts, when it is stopped again, and when it is
    /// deleted. Those of machines of the same name in other directories stay. An unreadable file belongs to none of them.
    pub fn clear_failure_in(&self, directory: &Path) {
        let Ok(mut failures) = self.failures() else { return self.clear_failures() };
        let recorded = failures.len();
        failures.retain(|failure| !failure.is_in(directory));
        if failures.is_empty() {
            self.clear_failures();
        } else if failures.len() < recorded {
            // The machine is not affected by an old reason that cannot be removed.
            let _ = self.write(FAILURES, &failures);
        }
    }

    fn failures(&self) -> Result<Vec<RunFailure>, StateError> {
        let found: Option<(Vec<RunFailure>, _)> = self.read_at_most(FAILURES, MAX_FILE_BYTES)?;
        let failures = found.map(|(failures, _)| failures).unwrap_or_default();
        let shown = |failure: RunFailure| RunFailure { problems: shortened(failure.problems), ..failure };
        Ok(failures.into_iter().map(shown).collect())
    }
}

impl RunFailure {
    fn is_in(&self, directory: &Path) -> bool {
        is_same_directory(&self.working_directory, directory)
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
    fn a_start_in_another_directory_removed_the_failure_of_a_machine_with_this_name() {
        let runtime = tempfile::tempdir().unwrap();
        let directories = [0, 1, 2, 3, 4].map(|index| runtime.path().join(format!("web{index}")));
        let [web, other, ..] = &directories;
        let state = RuntimeDirectory::at(runtime.path()).machine("web").unwrap();
        state.lock_for_start(web).unwrap().record_failure(vec!["no kernel".to_owned()]);
        drop(state.lock_for_start(other).unwrap());
        assert_eq!(state.failure_in(web).unwrap().unwrap().problems, ["no kernel"]);
        // A failure there does not replace it either.
        state.lock_for_start(other).unwrap().record_failure(vec!["no initrd".to_owned()]);
        assert_eq!(state.failure_in(web).unwrap().unwrap().problems, ["no kernel"]);
        assert_eq!(state.failure().unwrap().unwrap().problems, ["no initrd"]);
        drop(state.lock_for_start(web).unwrap());
        assert_eq!(state.failure_in(web).unwrap(), None);
        assert_eq!(state.failure_in(other).unwrap().unwrap().problems, ["no initrd"]);
        for directory in &directories {
            state.lock_for_start(directory).unwrap().record_failure(vec!["again".to_owned()]);
        }
        // The oldest record is dropped.
        let recorded = directories.iter().map(|directory| state.failure_in(directory).unwrap().is_some());
        assert_eq!(recorded.collect::<Vec<_>>(), [false, true, true, true, true]);
        state.clear_failures();
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
        let write = |text: &str| fs::write(runtime.path().join("web").join(FAILURES), text).unwrap();
        write(&serde_json::json!([record]).to_string());
        let problems = state.failure().unwrap().unwrap().problems;
        assert_eq!(problems, vec![format!("{}…", "é".repeat(MAX_PROBLEM_LENGTH)); MAX_PROBLEMS]);
        // A value of another type was quoted whole, and a record of 64 MiB was read.
        write(&format!("\"{}\"", "x".repeat(60 << 10)));
        let error = state.failure().unwrap_err().to_string();
        assert!(error.len() < 600 && error.contains("xxx…xxx") && error.contains("a sequence at line 1"), "{error}");
        write(&" ".repeat(1 << 20));
        let error = state.failure().unwrap_err().to_string();
        assert!(error.ends_with("it is longer than 256 KiB, the limit for such a file"), "{error}");
        // It belongs to no machine, so each of them may remove it.
        state.clear_failure_in(Path::new("/var/lib/web"));
        assert_eq!(state.failure().unwrap(), None);
    }
}
