//! Starting a machine: everything that must be there is made, then this process becomes the hypervisor, or watches over
//! it.

mod hand_over;
mod prepare;
mod supervise;

use crate::child::NoSuchUser;
use crate::console::ConsoleError;
use crate::host::HostProblem;
use crate::initrd::InitrdError;
use crate::interruption::{Interrupted, Interruption};
use crate::launch::Launch;
use crate::network::NetworkError;
use crate::path::HostPath;
use crate::programs::NotInstalled;
use crate::readiness::ReadinessError;
use crate::side_processes::SideProcessError;
use crate::sockets::SocketError;
use crate::state::{RuntimeDirectory, StateError};
use crate::store_disk::StoreDiskError;
use crate::volumes::VolumeError;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

pub use prepare::Prepared;

/// Why a machine does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The hypervisor is not there.
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
    #[error("{hypervisor} ended with {status} after {seconds:.1} s; what it says is above")]
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
    /// Somebody asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

fn list(problems: &[HostProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Who this process is once the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervision {
    /// The hypervisor.
    Become,
    /// Its supervisor, who gives the guest this long to shut down when it is asked to end.
    Supervise {
        /// The guest's time.
        stop_timeout: Duration,
    },
}

/// Starts the machine. As the hypervisor it does not return; as the supervisor it returns when the machine has ended.
///
/// # Errors
/// [`RunError`]; what was made for the start is then removed again.
pub fn run(
    launch: &Launch,
    runtime: &RuntimeDirectory,
    supervision: Supervision,
    interruption: &Interruption,
    talk: &mut dyn FnMut(&str),
) -> Result<(), RunError> {
    let state = runtime.machine(&launch.name)?;
    let lock = state.lock_for_start()?;
    for warning in &launch.warnings {
        talk(&format!("warning: {warning}"));
    }
    let prepared = Prepared::make(launch, runtime, interruption, talk)?;
    state.write_launch(launch)?;
    match supervision {
        Supervision::Become => Err(hand_over::become_hypervisor(launch, prepared, &state, interruption)),
        Supervision::Supervise { stop_timeout } => {
            let supervisor = supervise::Supervisor { launch, state: &state, stop_timeout, interruption, talk };
            let ended = supervisor.run(prepared);
            state.clear_running();
            drop(lock);
            ended
        }
    }
}
