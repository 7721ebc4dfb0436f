//! How a command fails: `error:` lines, possibly a `hint:`, and an exit code.

use nix::errno::Errno;
use serde_json::{Value, json};
use std::error::Error;
use std::io;
use std::process::ExitCode;

/// The work failed although the input is valid.
pub const FAILED: u8 = 1;
/// The input or the arguments are invalid.
pub const BAD_INPUT: u8 = 2;
/// A signal stopped the program: the exit code that shells report for SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    code: u8,
    problems: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// The work failed although the input is valid: exit code 1, with a hint if the output's file system is the reason.
    pub fn failed(error: &(dyn Error + 'static)) -> Self {
        Self { code: FAILED, problems: vec![chain(error)], hint: storage_hint(error).map(str::to_owned) }
    }

    /// The work failed, with all its problems: exit code 1.
    pub fn problems(problems: Vec<String>) -> Self {
        Self { code: FAILED, problems, hint: None }
    }

    /// The input is invalid: exit code 2. If it could not be read because of a device, a network or the system, the
    /// user did nothing wrong, and the work has failed: exit code 1.
    pub fn bad_input(error: &(dyn Error + 'static)) -> Self {
        if is_system_error(error) { Self::failed(error) } else { Self::usage(chain(error)) }
    }

    /// The input is invalid, with all its problems: exit code 2.
    pub fn input_problems(problems: Vec<String>) -> Self {
        Self { code: BAD_INPUT, problems, hint: None }
    }

    /// The arguments are invalid in a way that the parser of arguments cannot detect: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::input_problems(vec![message.into()])
    }

    /// A signal stopped the program: exit code 130.
    pub fn interrupted() -> Self {
        Self { code: INTERRUPTED, problems: vec!["interrupted".to_owned()], hint: None }
    }

    /// Puts a context in front of every problem.
    #[must_use]
    pub fn with_context(mut self, context: &str) -> Self {
        for problem in &mut self.problems {
            *problem = format!("{context}: {problem}");
        }
        self
    }

    /// Combines the failures of several tasks, or returns `None` if there are none. The problems keep their order. A
    /// single failure is unchanged; several lose their hints and have the exit code 1.
    pub fn of_several(mut failures: Vec<Self>) -> Option<Self> {
        if failures.len() > 1 {
            return Some(Self::problems(failures.into_iter().flat_map(|failure| failure.problems).collect()));
        }
        failures.pop()
    }

    /// Changes the exit code.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Sets the hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Sets the hint if there is one, and keeps the present one otherwise.
    #[must_use]
    pub fn with_optional_hint(self, hint: Option<String>) -> Self {
        Self { hint: hint.or(self.hint), ..self }
    }

    /// Appends to the hint.
    #[must_use]
    pub fn with_further_hint(self, hint: &str) -> Self {
        let hint = self.hint.map_or_else(|| hint.to_owned(), |first| format!("{first}; {hint}"));
        Self { hint: Some(hint), ..self }
    }

    /// Returns the problems, without a hint.
    pub fn reasons(&self) -> &[String] {
        &self.problems
    }

    /// Whether a signal ended the command.
    pub fn is_interruption(&self) -> bool {
        self.code == INTERRUPTED
    }

    /// Returns the JSON document for this failure.
    pub fn document(&self) -> Value {
        json!({"version": 1, "error": {"exitCode": self.code, "problems": self.problems, "hint": self.hint}})
    }

    /// Returns the lines to print, one for each problem and one for the hint, and the exit code.
    pub fn report(&self) -> (Vec<String>, ExitCode) {
        let errors = self.problems.iter().map(|problem| format!("error: {problem}"));
        let hint = self.hint.iter().map(|hint| format!("hint: {hint}"));
        (errors.chain(hint).collect(), ExitCode::from(self.code))
    }
}

/// Whether an error, or one of its causes, is an I/O error that the user cannot avoid by other arguments or other input.
pub fn is_system_error(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return !is_about_the_name(error);
        }
        next = error.source();
    }
    false
}

/// Whether an error of the system says that a name is wrong: nothing has that name, or something of another kind, or
/// something that this user must not use. Errors without a number are those of a parser.
fn is_about_the_name(error: &io::Error) -> bool {
    use Errno::{EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENXIO, EPERM};
    let names = [EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENXIO, EPERM];
    error.raw_os_error().is_none_or(|number| names.contains(&Errno::from_raw(number)))
}

/// Returns a hint if the file system of the output is the reason.
fn storage_hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        let system = error.downcast_ref::<io::Error>();
        if system.is_some_and(|error| error.raw_os_error() == Some(Errno::EFBIG as i32)) {
            return Some(
                "raise the limit of this process (`ulimit -f`), or write to a file system that allows larger files",
            );
        }
        match system.map(io::Error::kind) {
            Some(io::ErrorKind::StorageFull) => return Some("free some space there, or write to another file system"),
            Some(io::ErrorKind::QuotaExceeded) => return Some("your disk quota there is used up: delete some files"),
            Some(io::ErrorKind::ReadOnlyFilesystem) => {
                return Some("that file system is mounted read-only: use another one");
            }
            _ => next = error.source(),
        }
    }
    None
}

/// Joins an error and its causes with colons. A cause that the text of its error contains already is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("/srv/disk: {source}")]
    struct Named {
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write the disk")]
    struct Outer(#[source] Named);

    #[test]
    fn an_error_is_printed_with_its_causes_once_and_with_a_hint_for_a_full_disk() {
        let source = io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let failure = Failure::failed(&Outer(Named { source }));
        let lines = [
            "error: cannot write the disk: /srv/disk: No space left on device (os error 28)",
            "hint: free some space there, or write to another file system",
        ];
        assert_eq!(failure.report(), (lines.map(str::to_owned).to_vec(), ExitCode::from(1)));
    }

    #[test]
    fn a_disk_that_fails_is_not_bad_input_and_a_wrong_name_is() {
        for (number, code) in
            [(nix::libc::EIO, 1), (nix::libc::ESTALE, 1), (nix::libc::ENOMEM, 1), (nix::libc::ENOENT, 2)]
        {
            let error = Outer(Named { source: io::Error::from_raw_os_error(number) });
            assert_eq!(Failure::bad_input(&error).report().1, ExitCode::from(code), "{error}");
        }
        let of_a_parser = Outer(Named { source: io::ErrorKind::InvalidData.into() });
        assert_eq!(Failure::bad_input(&of_a_parser).report().1, ExitCode::from(2));
    }

    #[test]
    fn every_problem_has_its_own_line_and_the_hint_is_last() {
        let failure = Failure::input_problems(vec!["one".to_owned(), "two".to_owned()]).with_hint("three");
        let lines = ["error: one", "error: two", "hint: three"].map(str::to_owned).to_vec();
        assert_eq!(failure.report(), (lines, ExitCode::from(2)));
    }
}
