//! The errors of commands that manage a host's machines.

use crate::state::StateError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a command that manages machines failed.
#[derive(Debug, thiserror::Error)]
pub enum ImperativeError {
    /// A flake reference that is invalid, or to which the machine's name cannot be appended.
    #[error("{0}: {1}")]
    BadFlake(String, &'static str),
    /// No flake was named, and this directory does not contain the default one.
    #[error("no flake was named, and the default, {0}/flake.nix, does not exist; name one with --flake FLAKE")]
    NoDefaultFlake(String),
    /// The machine already exists.
    #[error("{0} already exists; update it with: microvm update {1}")]
    Exists(PathBuf, String),
    /// Roots of the garbage collection of the new machine and of another one would have the same name.
    #[error("{} and {} would have the same root of the garbage collection: choose another name", .0[0], .0[1])]
    SharedRoot([String; 2]),
    /// A new machine has its final name, but what follows failed.
    #[error("{directory} was created, but then an error occurred: {source}; check the disk")]
    Created {
        /// Its state directory.
        directory: PathBuf,
        /// What failed.
        source: Box<ImperativeError>,
    },
    /// The machine does not exist.
    #[error("there is no machine {name}: {directory} does not exist{}", suggestion(near.as_deref()))]
    Missing {
        /// The name.
        name: String,
        /// The directory that it would have.
        directory: PathBuf,
        /// The machine that was probably meant.
        near: Option<String>,
    },
    /// The machine is part of the host's configuration.
    #[error("{0} is part of the host's configuration; update it with nixos-rebuild")]
    Declared(String),
    /// The machine is a clone.
    #[error(
        "{name} is a clone of {original}, and has its system: update {original}, delete {name}, and clone it again"
    )]
    Clone {
        /// The machine.
        name: String,
        /// The machine of which it is a clone.
        original: String,
    },
    /// The machine has no file with a flake reference.
    #[error(
        "{0} has no flake on this host; if it was installed from another computer, update it there, with microvm.deploy.installOnHost"
    )]
    InstalledFromElsewhere(String),
    /// The file with the machine's flake reference cannot be read.
    #[error("{path} cannot be read, so {name} cannot be built: {source}")]
    NoFlake {
        /// The machine.
        name: String,
        /// The file that should name the flake.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The machine is running or being started.
    #[error("{0} is running; stop it first: microvm stop {0}")]
    Running(String),
    /// The machine is running, but not in its service.
    #[error("{0} is running outside of its service; stop it first: microvm stop {0}")]
    OutsideOfService(String),
    /// The state of a machine cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine's runner has no vsock.
    #[error("{0} has no vsock.cid, which ssh needs; set microvm.vsock.cid and microvm.vsock.ssh.enable")]
    NoVsock(String),
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("{program} cannot be started: {source}")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed with {status}{}{output}", if output.is_empty() { "" } else { ": " })]
    Program {
        /// The program and its subcommand.
        program: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of its output; empty if the program has printed its errors itself.
        output: String,
    },
}

fn suggestion(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

impl ImperativeError {
    /// Returns a function that wraps the error of a file operation.
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    /// Whether the machine has no flake here because something else updates it.
    pub fn is_updated_elsewhere(&self) -> bool {
        matches!(self, Self::Declared(_) | Self::Clone { .. } | Self::InstalledFromElsewhere(_))
    }

    /// Whether the user's input is wrong, as opposed to an operation that failed.
    pub fn is_bad_input(&self) -> bool {
        !matches!(
            self,
            Self::File { .. }
                | Self::Created { .. }
                | Self::NoProgram { .. }
                | Self::Program { .. }
                | Self::NoFlake { .. }
                | Self::State(_)
        )
    }
}
