//! Starting a machine: everything that it needs is made, then this process becomes the hypervisor or its supervisor.

mod clean_up;
mod hand_over;
mod output;
mod prepare;
mod supervise;

use crate::child::NoSuchUser;
use crate::console::ConsoleError;
use crate::host::HostProblem;
use crate::initrd::InitrdError;
use crate::interruption::{Interrupted, Interruption};
use crate::launch::Launch;
use crate::network::{NetworkError, remove_made};
use crate::path::HostPath;
use crate::programs::NotInstalled;
use crate::readiness::ReadinessError;
use crate::side_processes::SideProcessError;
use crate::sockets::SocketError;
use crate::state::{MachineState, RuntimeDirectory, StartLock, StateError};
use crate::store_disk::StoreDiskError;
use crate::volumes::VolumeError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

pub use clean_up::clean_up_after;
pub use prepare::Prepared;

/// Why a machine could not be started, or has failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The hypervisor is not installed.
    #[error(transparent)]
    NotInstalled(#[from] NotInstalled),
    /// Things are missing on this host.
    #[error("{}", list(.0))]
    Missing(Vec<HostProblem>),
    /// The state of the machine.
    #[error(transparent)]
    State(#[from] StateError),
    /// A command of `preStart` failed.
    #[error("preStart: {command}: {reason}")]
    PreStart {
        /// The command.
        command: String,
        /// Why.
        reason: String,
    },
    /// A file could not be written, or a directory not be made.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: HostPath,
        /// Why.
        source: io::Error,
    },
    /// The store disk.
    #[error(transparent)]
    StoreDisk(#[from] StoreDiskError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A network interface.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A process beside the hypervisor.
    #[error(transparent)]
    SideProcess(#[from] SideProcessError),
    /// The initrd with the credentials.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The guest's notification.
    #[error(transparent)]
    Readiness(#[from] ReadinessError),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The user.
    #[error(transparent)]
    NoSuchUser(#[from] NoSuchUser),
    /// The program for further arguments.
    #[error("extraArgsScript {script}: {reason}")]
    ExtraArguments {
        /// The program.
        script: HostPath,
        /// Why.
        reason: String,
    },
    /// The hypervisor could not be started.
    #[error("{program} could not be started: {source}")]
    Start {
        /// Its program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The hypervisor has failed.
    #[error("{hypervisor} ended with {status} after {seconds:.1} s; its own messages are above")]
    Failed {
        /// The hypervisor.
        hypervisor: String,
        /// How it ended.
        status: ExitStatus,
        /// How long it ran.
        seconds: f64,
    },
    /// The kernel refused something that this process needs for itself.
    #[error("{action}: {source}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl RunError {
    /// Whether a signal has ended the start.
    pub fn is_interruption(&self) -> bool {
        matches!(
            self,
            Self::Interrupted(_)
                | Self::StoreDisk(StoreDiskError::Interrupted(_))
                | Self::Volume(VolumeError::Interrupted(_))
                | Self::SideProcess(SideProcessError::Interrupted(_))
        )
    }
}

fn list(problems: &[HostProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What this process is once the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervision {
    /// The hypervisor.
    Become,
    /// Its supervisor, which gives the guest this long to shut down when it is asked to end.
    Supervise {
        /// The time for the guest.
        stop_timeout: Duration,
    },
}

/// A start that no other launcher can interfere with, and that `stop` and `status` see.
#[derive(Debug)]
pub struct Start {
    state: MachineState,
    lock: StartLock,
}

impl Start {
    /// Begins to start the machine of that name in that directory, before anything else is found out or made. Removes what
    /// an earlier run has left behind.
    ///
    /// # Errors
    /// When the machine runs or is being started already.
    pub fn begin(runtime: &RuntimeDirectory, name: &str, working_directory: &Path) -> Result<Self, RunError> {
        let state = runtime.machine(name)?;
        let lock = state.lock_for_start(working_directory)?;
        remove_made(lock.left_over_interfaces());
        Ok(Self { state, lock })
    }
}

/// Starts the machine. As the hypervisor it does not return; as the supervisor it returns when the machine has ended.
///
/// # Errors
/// [`RunError`]; what was made for the start is then removed again.
pub fn run(
    launch: &Launch,
    start: Start,
    supervision: Supervision,
    interruption: &Interruption,
    message: &mut dyn FnMut(&str),
) -> Result<(), RunError> {
    let Start { state, mut lock } = start;
    for warning in &launch.warnings {
        message(&format!("warning: {warning}"));
    }
    let prepared = Prepared::make(launch, &mut lock, interruption, message)?;
    state.write_launch(launch)?;
    let held = hold_directory(&launch.working_directory)?;
    match supervision {
        Supervision::Become => {
            Err(hand_over::become_hypervisor(launch, prepared, &state, hand_over::Until { interruption, held }))
        }
        Supervision::Supervise { stop_timeout } => {
            let supervisor = supervise::Supervisor { launch, state: &state, stop_timeout, interruption };
            let ended = supervisor.run(prepared);
            state.clear_running();
            drop((held, lock));
            ended
        }
    }
}

/// Marks a state directory as one in which a machine runs, for those who do not know in which runtime directory that is
/// recorded. The mark goes with the process.
fn hold_directory(directory: &HostPath) -> Result<Flock<File>, RunError> {
    let failed = |source| RunError::File { path: directory.clone(), source };
    let opened = File::open(directory.as_path()).map_err(failed)?;
    Flock::lock(opened, FlockArg::LockShared).map_err(|(_, errno)| failed(errno.into()))
}
