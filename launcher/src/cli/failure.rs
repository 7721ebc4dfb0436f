//! The failure of a command: its problems, a hint, and the exit code.

use program::escape::lines;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// The exit code of a command that failed.
pub(crate) const FAILED: u8 = 1;
/// The exit code for invalid input.
pub(crate) const BAD_INPUT: u8 = 2;
/// The exit code of a command that was interrupted by a signal.
pub(crate) const INTERRUPTED: u8 = 130;

/// The failure of a command.
pub(crate) struct Failure {
    code: u8,
    problems: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// Creates a failure for invalid input, with all problems.
    pub(crate) fn bad_input(problems: Vec<String>) -> Self {
        Self { code: BAD_INPUT, problems, hint: None }
    }

    /// Creates a failure with several problems.
    pub(crate) fn many(problems: Vec<String>) -> Self {
        Self { code: FAILED, problems, hint: None }
    }

    /// Creates a failure from an error and its causes.
    pub(crate) fn failed(error: &(dyn Error + 'static)) -> Self {
        Self { code: FAILED, problems: vec![chain(error)], hint: storage_hint(error) }
    }

    /// Changes the exit code.
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Adds a hint.
    pub(crate) fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Prints the failure on stderr and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        for problem in &self.problems {
            // stderr may be closed; the exit code still reports the failure.
            let _ = writeln!(stderr, "error: {}", lines(problem));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "hint: {}", lines(hint));
        }
        ExitCode::from(self.code)
    }
}

/// Returns the error and its causes on one line, outermost first. Many errors include their cause in their own text, so
/// a cause is added only if the text does not contain it yet.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// Returns a hint if the storage of the output is the reason.
fn storage_hint(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let hint = match error.downcast_ref().map(io::Error::kind) {
            Some(io::ErrorKind::StorageFull) => "free some space on that file system, or use another one",
            Some(io::ErrorKind::QuotaExceeded) => "your quota on that file system is used up: free some of it",
            Some(io::ErrorKind::ReadOnlyFilesystem) => "that file system is mounted read-only: use another one",
            _ => {
                next = error.source();
                continue;
            }
        };
        return Some(hint.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use launcher::path::HostPath;
    use launcher::run::RunError;
    use launcher::volumes::VolumeError;

    #[test]
    fn an_error_is_printed_once_with_a_hint() {
        let full = || io::Error::from_raw_os_error(28);
        let path = HostPath::from("/srv/var.img");
        let failure = Failure::failed(&RunError::Volume(VolumeError::File { path: path.clone(), source: full() }));
        assert_eq!(failure.problems, ["volume /srv/var.img: No space left on device (os error 28)"]);
        assert_eq!(failure.hint.as_deref(), Some("free some space on that file system, or use another one"));
        let failure = Failure::failed(&RunError::File { path, source: full() });
        assert_eq!(failure.problems, ["/srv/var.img: No space left on device (os error 28)"]);
    }
}
