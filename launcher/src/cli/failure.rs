//! How a command fails: the problems first, the hint last, and the exit code.

use launcher::visible::lines;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

/// The command did not succeed.
pub(crate) const FAILED: u8 = 1;
/// What the user gave is wrong.
pub(crate) const BAD_INPUT: u8 = 2;
/// A signal ended the command.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command failed.
pub(crate) struct Failure {
    code: u8,
    problems: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// What the user gave is wrong: every problem of it.
    pub(crate) fn bad_input(problems: Vec<String>) -> Self {
        Self { code: BAD_INPUT, problems, hint: None }
    }

    /// The command did not succeed: everything that went wrong.
    pub(crate) fn many(problems: Vec<String>) -> Self {
        Self { code: FAILED, problems, hint: None }
    }

    /// The command did not succeed.
    pub(crate) fn failed(error: &dyn Error) -> Self {
        Self { code: FAILED, problems: vec![chain(error)], hint: None }
    }

    /// Ends with another exit code.
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Adds what the user can do.
    pub(crate) fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    /// Prints it on stderr.
    pub(crate) fn report(&self) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        for problem in &self.problems {
            // Nobody listens when stderr is closed; the exit code still tells.
            let _ = writeln!(stderr, "error: {}", lines(problem));
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "hint: {}", lines(hint));
        }
        ExitCode::from(self.code)
    }
}

/// The error and its causes on one line, outermost first.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
