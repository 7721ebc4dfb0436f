//! What can go wrong in a benchmark.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// An error of a benchmark; names the thing and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, written or made.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}\nhint: run scripts/setup.sh and benches/peers.sh")]
    Start {
        /// The program as called.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed ({status}): {stderr}")]
    Program {
        /// The program and its arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote on stderr.
        stderr: String,
    },
    /// What came back is not what was expected.
    #[error("{0}")]
    Unexpected(String),
}

/// Turns an I/O error into [`Error::File`]: `.map_err(file("read", path))`.
pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}
