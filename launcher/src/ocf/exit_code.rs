//! The exit codes of a resource agent, and the errors behind them.

use super::parameters::BadParameter;
use crate::control::ControlError;
use crate::imperative::ImperativeError;
use crate::isolation::IsolationError;
use crate::shutdown::StopError;
use crate::state::StateError;
use crate::suspend::SuspendError;
use crate::volumes::VolumeError;
use std::io;
use std::path::PathBuf;

/// An exit code of the resource agent API 1.1. The codes 8 and 9 are for resources that are promoted, which machines
/// are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// `OCF_SUCCESS`: done, or the machine runs.
    Success = 0,
    /// `OCF_ERR_GENERIC`: the machine failed, or the action did.
    Generic = 1,
    /// `OCF_ERR_ARGS`: the parameters do not fit this node.
    Arguments = 2,
    /// `OCF_ERR_UNIMPLEMENTED`: there is no such action.
    Unimplemented = 3,
    /// `OCF_ERR_PERM`: this user is not permitted to do it.
    Permission = 4,
    /// `OCF_ERR_INSTALLED`: this node does not have what the machine needs.
    Installed = 5,
    /// `OCF_ERR_CONFIGURED`: the parameters are wrong on every node.
    Configured = 6,
    /// `OCF_NOT_RUNNING`: the machine does not run, and did not fail.
    NotRunning = 7,
}

/// Why an action of the resource agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Bad parameters.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Parameters(Vec<BadParameter>),
    /// An action that does not exist, or that this machine's parameters exclude.
    #[error("{0}")]
    Unimplemented(String),
    /// The runner is missing, and there is no cache.
    #[error(
        "the runner {0} is not on this node; copy it to all nodes with `microvm cluster push`, or set the parameter cache"
    )]
    NoRunner(PathBuf),
    /// The runner is missing and cannot be copied.
    #[error("the runner {runner} is not on this node, and cannot be copied from {cache}: {source}")]
    NotCopied {
        /// The runner.
        runner: PathBuf,
        /// The store.
        cache: String,
        /// The error of the command.
        source: ImperativeError,
    },
    /// The parameter `runner` names something else.
    #[error("{0} is not the runner of a machine: it has no bin/microvm-run")]
    NotARunner(PathBuf),
    /// The shared directory is missing.
    #[error("migrate_dir {path} cannot be used on this node: {source}; mount the shared file system")]
    NoMigrateDirectory {
        /// The directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Another user could replace a saved machine, which root then resumes.
    #[error("migrate_dir {0} belongs to another user, or others may write to it; give it to root, with mode 0700")]
    MigrateDirectoryIsOpen(PathBuf),
    /// The machine does not run, although this action needs it to.
    #[error("{0} is not running on this node")]
    NotRunning(String),
    /// The machine ended before it ran.
    #[error("{machine} has not started: {reason}")]
    NotStarted {
        /// The machine.
        machine: String,
        /// The message of its launcher or of systemd.
        reason: String,
    },
    /// The hypervisor reports that its guest cannot continue.
    #[error("{machine} has failed: its hypervisor reports the state {state}")]
    Failed {
        /// The machine.
        machine: String,
        /// The hypervisor's name for the state.
        state: String,
    },
    /// The hypervisor does not answer.
    #[error("{machine} cannot be monitored: {reason}")]
    Unresponsive {
        /// The machine.
        machine: String,
        /// Why it failed, as it follows a colon.
        reason: String,
    },
    /// The guest has not booted.
    #[error("{machine} runs, but its guest has not reported that it has booted, {seconds} s after the start")]
    NotReady {
        /// The machine.
        machine: String,
        /// How long ago it was started.
        seconds: u64,
    },
    /// The machine was stopped, but something still uses its files.
    #[error("{machine} may still be running: {reason}")]
    StillInUse {
        /// The machine.
        machine: String,
        /// What uses them.
        reason: String,
    },
    /// The machine has not arrived.
    #[error("no machine {0} has migrated to this node")]
    NotArrived(String),
    /// The other node has not sent the whole machine.
    #[error("{machine} has not arrived within {seconds} s")]
    ArrivesTooLate {
        /// The machine.
        machine: String,
        /// How long the transfer may take.
        seconds: u64,
    },
    /// The target of a migration has not received the machine.
    #[error("{node} cannot receive {machine}: {reason}")]
    Target {
        /// The machine.
        machine: String,
        /// The target.
        node: String,
        /// Its message.
        reason: String,
    },
    /// The hypervisor has not sent the machine.
    #[error("{machine} could not be sent: {reason}")]
    NotSent {
        /// The machine.
        machine: String,
        /// Why it failed, as it follows a colon.
        reason: String,
    },
    /// The data that the other node sends before the machine cannot be parsed.
    #[error("cannot parse the request of the other node: {0}")]
    BadRequest(String),
    /// The machine that another node offers is not the cluster's, or cannot come now.
    #[error("cannot receive the machine: {0}")]
    Refused(String),
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// What the agent was doing.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// The state of the machine cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Nix, systemd or a file operation failed.
    #[error(transparent)]
    Host(#[from] ImperativeError),
    /// The machine's user could not be set up.
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    /// The machine could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The machine could not be suspended or resumed.
    #[error(transparent)]
    Suspend(#[from] SuspendError),
    /// The hypervisor refused a request.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A volume cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl AgentError {
    /// Returns the exit code, from which Pacemaker decides what to do.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Parameters(_) => ExitCode::Configured,
            Self::Unimplemented(_) => ExitCode::Unimplemented,
            Self::NoRunner(_)
            | Self::NotCopied { .. }
            | Self::NotARunner(_)
            | Self::Host(ImperativeError::SharedRoot(_))
            | Self::NoMigrateDirectory { .. }
            | Self::MigrateDirectoryIsOpen(_) => ExitCode::Installed,
            Self::NotRunning(_) => ExitCode::NotRunning,
            error if error.is_about_permission() => ExitCode::Permission,
            _ => ExitCode::Generic,
        }
    }

    fn is_about_permission(&self) -> bool {
        let source = match self {
            Self::State(StateError::File { source, .. })
            | Self::Host(ImperativeError::File { source, .. })
            | Self::System { source, .. } => source,
            Self::State(StateError::NoRuntimeDirectory) => return true,
            _ => return false,
        };
        source.kind() == io::ErrorKind::PermissionDenied
    }
}
