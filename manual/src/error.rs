//! Errors of the checks.

use std::io;
use std::path::PathBuf;

/// An error that ends a check. Problems of the pages themselves are [`Problem`]s.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// The operation, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A program could not be run.
    #[error("cannot run `{command}`: {reason}")]
    Program {
        /// Its command line.
        command: String,
        /// The message of the program or the system.
        reason: String,
    },
    /// A page is invalid.
    #[error("{page}:{line}: {reason}")]
    Page {
        /// The page.
        page: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// Names the file in an error of the system.
pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}

/// A problem of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The page, from the root of the work tree.
    pub page: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The problem, and the remedy.
    pub text: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}:{}: {}", self.page.display(), self.line, self.text)
    }
}
