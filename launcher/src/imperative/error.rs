//! What goes wrong with a host's machines.

use crate::state::StateError;
use crate::visible::one_line;
use std::io;
use std::path::{Path, PathBuf};

/// Why a command on a host's machines failed.
#[derive(Debug, thiserror::Error)]
pub enum ImperativeError {
    /// A name that cannot be a directory and a unit's instance at once.
    #[error(
        "`{}` is not a valid machine name: use at most 64 letters, digits, `.`, `_` and `-`, \
         starting with a letter or digit",
        one_line(.0)
    )]
    BadName(String),
    /// A flake reference that the machine's name cannot be put behind.
    #[error("{0}: {1}")]
    BadFlake(String, &'static str),
    /// The machine is there already.
    #[error("{0} already exists; update it with: microvm update {1}")]
    Exists(PathBuf, String),
    /// The machine is not there.
    #[error("there is no machine {0}: {1} does not exist")]
    Missing(String, PathBuf),
    /// The machine is the host's own.
    #[error("{0} is part of the host's configuration; update it with nixos-rebuild")]
    Declared(String),
    /// The machine has nothing to build it from.
    #[error("{path} cannot be read, so {name} cannot be built: {source}")]
    NoFlake {
        /// The machine.
        name: String,
        /// The file that should name the flake.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine runs, or is being started.
    #[error("{0} is running; stop it first: microvm stop {0}")]
    Running(String),
    /// The machine runs, but not in its service.
    #[error("{0} is running outside of its service; stop it first: microvm stop {0}")]
    OutsideOfService(String),
    /// The state of a machine cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine's runner has no vsock.
    #[error("{0} has no vsock.cid, which ssh needs; it is set by microvm.vsock.cid and microvm.vsock.ssh.enable")]
    NoVsock(String),
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program that could not be started.
    #[error("{program} cannot be started: {source}")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A program that failed and has said why.
    #[error("{program} failed with {status}{}{output}", if output.is_empty() { "" } else { ": " })]
    Program {
        /// The program and its verb.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last of what it said; empty when it spoke to the user itself.
        output: String,
    },
}

impl ImperativeError {
    /// The error of a file operation.
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    /// Whether the user gave something wrong, rather than that something failed.
    pub fn is_bad_input(&self) -> bool {
        !matches!(
            self,
            Self::File { .. } | Self::NoProgram { .. } | Self::Program { .. } | Self::NoFlake { .. } | Self::State(_)
        )
    }
}
