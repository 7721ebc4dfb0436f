//! What a machine of this host is doing, however it was started: by its service, by `microvm run NAME`, or by `microvm run`
//! with its spec. Every command that asks whether a machine runs asks here.

use super::layout::Machine;
use super::service::{Service, ServiceState};
use crate::state::{Activity, MachineState, RuntimeDirectory, StateError, is_same_directory};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;

/// What a machine of this host is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineActivity {
    /// What the runtime directory of this user says.
    pub recorded: Activity,
    /// What systemd says of its service.
    pub service: ServiceState,
    /// Whether a hypervisor runs in its state directory, recorded in whichever runtime directory.
    is_held: bool,
}

/// How far a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No process of it runs.
    Stopped,
    /// It is being started.
    Starting,
    /// It runs.
    Running,
}

impl MachineActivity {
    /// Looks at the runtime directory, the service and the state directory.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn of(machine: &Machine) -> Result<Self, StateError> {
        let recorded = match RuntimeDirectory::locate() {
            Ok(runtime) => state_of(machine, &runtime)?.activity()?,
            // A user without one has started nothing.
            Err(StateError::NoRuntimeDirectory) => Activity::Stopped,
            Err(error) => return Err(error),
        };
        Ok(Self { recorded, service: Service::of(&machine.name).state(), is_held: is_held(machine)? })
    }

    /// How far the machine is.
    pub fn phase(&self) -> Phase {
        match (&self.recorded, self.service) {
            (Activity::Running(_), _) => Phase::Running,
            (Activity::Starting(_), _) => Phase::Starting,
            _ if self.is_held => Phase::Running,
            (_, ServiceState::Active | ServiceState::Stopping) => Phase::Running,
            (_, ServiceState::Starting) => Phase::Starting,
            (_, ServiceState::Inactive) => Phase::Stopped,
        }
    }

    /// Whether it starts or runs without its service, so that systemd neither stops nor restarts it.
    pub fn is_outside_of_service(&self) -> bool {
        self.phase() != Phase::Stopped && self.service == ServiceState::Inactive
    }
}

/// The state of a machine of this host: under its own name, or under another one when it was started in its state directory
/// by that name.
///
/// # Errors
/// [`StateError`].
pub fn state_of(machine: &Machine, runtime: &RuntimeDirectory) -> Result<MachineState, StateError> {
    let own = runtime.machine(machine.name.as_str())?;
    if own.activity()? != Activity::Stopped {
        return Ok(own);
    }
    for name in runtime.machine_names()? {
        let other = runtime.machine(&name)?;
        if other.activity()? != Activity::Stopped
            && other.working_directory()?.is_some_and(|directory| is_same_directory(&directory, &machine.directory))
        {
            return Ok(other);
        }
    }
    Ok(own)
}

/// Whether a launcher or a hypervisor has marked the state directory: see `run`.
fn is_held(machine: &Machine) -> Result<bool, StateError> {
    let failed = |source| StateError::File { path: machine.directory.clone(), source };
    let directory = match File::open(&machine.directory) {
        Ok(directory) => directory,
        // Another user's machine: only that user and root can start or delete it.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}
