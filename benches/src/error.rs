//! Errors of the benchmarks.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// An error of a benchmark.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, written or created.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// The operation, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}\nhint: run scripts/setup.sh and benches/peers.sh")]
    Start {
        /// The command line.
        program: String,
        /// The error of the system.
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
    /// A result is not as expected.
    #[error("{0}")]
    Unexpected(String),
}

/// Turns an I/O error into [`Error::File`]: `.map_err(file("read", path))`.
pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}
