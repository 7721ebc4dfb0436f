//! What a machine of this host is doing, whether it was started by its service, by `microvm run NAME`, or by `microvm
//! run` with its spec. All commands that need to know whether a machine runs use this module.

use super::layout::Machine;
use super::service::{FailedUnit, Service, ServiceState};
use crate::state::{Activity, MachineState, RunFailure, RuntimeDirectory, StateError, is_same_directory};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::ErrorKind;

/// What a machine of this host is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineActivity {
    /// The record in the runtime directory of this user.
    pub recorded: Activity,
    /// The state of its service in systemd.
    pub service: ServiceState,
    /// Whether a launcher or hypervisor holds the lock on its state directory, whichever runtime directory records it.
    is_held: bool,
}

/// The phase of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// None of its processes runs.
    Stopped,
    /// It is being started.
    Starting,
    /// It is running.
    Running,
}

impl MachineActivity {
    /// Checks the runtime directory, the service and the state directory.
    ///
    /// # Errors
    /// Returns [`StateError`].
    pub fn of(machine: &Machine) -> Result<Self, StateError> {
        let recorded = match RuntimeDirectory::locate() {
            Ok(runtime) => state_of(machine, &runtime)?.activity()?,
            // A user without a runtime directory has not started a machine.
            Err(StateError::NoRuntimeDirectory) => Activity::Stopped,
            Err(error) => return Err(error),
        };
        Ok(Self { recorded, service: Service::of(&machine.name).state(), is_held: is_held(machine)? })
    }

    /// Returns the phase of the machine.
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

    /// Whether it starts or runs outside its service, so that systemd can neither stop nor restart it.
    pub fn is_outside_of_service(&self) -> bool {
        self.phase() != Phase::Stopped && self.service == ServiceState::Inactive
    }
}

/// Returns why a machine of this host failed to start, or why its last run failed: what its launcher recorded, and which
/// units systemd reports as failed. Empty if it has not failed.
///
/// # Errors
/// Returns [`StateError`].
pub fn last_failure(machine: &Machine) -> Result<Vec<String>, StateError> {
    let recorded = match RuntimeDirectory::locate() {
        Ok(runtime) => runtime.machine(machine.name.as_str())?.failure_in(&machine.directory)?,
        Err(StateError::NoRuntimeDirectory) => None,
        Err(error) => return Err(error),
    };
    let service = Service::of(&machine.name);
    Ok(reasons(recorded, &service, &service.failed_units()))
}

/// Returns all reasons that concern the most recent start.
fn reasons(recorded: Option<RunFailure>, service: &Service, failed: &[FailedUnit]) -> Vec<String> {
    let Some(recorded) = recorded else { return failed.iter().map(ToString::to_string).collect() };
    let own = failed.iter().find(|unit| service.is(unit));
    if own.is_some_and(|unit| unit.has_started_after(recorded.monotonic_microseconds)) {
        // That start failed before its launcher could record it, or remove the record of an earlier one.
        return failed.iter().map(ToString::to_string).collect();
    }
    // The launcher has recorded why the service failed. The units around it fail for other reasons.
    let others = failed.iter().filter(|unit| !service.is(unit)).map(ToString::to_string);
    recorded.problems.into_iter().chain(others).collect()
}

/// Returns the state of a machine of this host: the one under its own name, or under another name if the machine was
/// started in its state directory with that name.
///
/// # Errors
/// Returns [`StateError`].
pub fn state_of(machine: &Machine, runtime: &RuntimeDirectory) -> Result<MachineState, StateError> {
    let own = runtime.machine(machine.name.as_str())?;
    if own.activity()? != Activity::Stopped {
        return Ok(own);
    }
    for name in runtime.machine_names()? {
        let other = runtime.machine(&name)?;
        if runs_in(&other, machine) {
            return Ok(other);
        }
    }
    Ok(own)
}

/// Whether a machine with another name runs in this machine's directory. Another machine's damaged record does not count,
/// and neither does a record of the user of another machine, who could claim any directory.
fn runs_in(other: &MachineState, machine: &Machine) -> bool {
    let is_active = other.activity().is_ok_and(|activity| activity != Activity::Stopped);
    let is_in = || {
        let directory = other.working_directory().ok().flatten();
        directory.is_some_and(|directory| is_same_directory(&directory, &machine.directory))
    };
    is_active && is_in() && matches!(other.other_recorder(), Ok(None))
}

/// Whether a launcher or a hypervisor holds the lock on the state directory, whichever runtime directory records it. A
/// missing directory is not held.
///
/// # Errors
/// Returns [`StateError`].
pub fn is_held(machine: &Machine) -> Result<bool, StateError> {
    Ok(matches!(try_lock(machine)?, LockAttempt::HeldElsewhere))
}

/// The lock on a state directory.
#[derive(Debug)]
pub(super) enum LockAttempt {
    /// This process has it: no start of the machine begins until it is dropped.
    Locked(#[expect(dead_code, reason = "it is locked until it is dropped")] Flock<File>),
    /// A launcher or a hypervisor has it.
    HeldElsewhere,
    /// The directory is missing, or belongs to another user's machine, which only that user and root can start or delete.
    Impossible,
}

/// Tries to lock the state directory.
pub(super) fn try_lock(machine: &Machine) -> Result<LockAttempt, StateError> {
    // `run::lock_directory` takes the shared lock that this one excludes.
    let failed = |source| StateError::File { path: machine.directory.clone(), source };
    let directory = match File::open(&machine.directory) {
        Ok(directory) => directory,
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound) => {
            return Ok(LockAttempt::Impossible);
        }
        Err(error) => return Err(failed(error)),
    };
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(LockAttempt::Locked(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(LockAttempt::HeldElsewhere),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}
