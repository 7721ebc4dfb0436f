//! Becoming the hypervisor: same process, same number, nothing of the launcher left.

use super::{Prepared, RunError};
use crate::interruption::Interruption;
use crate::launch::Launch;
use crate::state::{MachineState, ProcessIdentity, RunningMachine, StateError};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// The command that is the hypervisor, without stdin, stdout and user.
pub(super) fn command(launch: &Launch, prepared: &Prepared) -> Command {
    let mut command = Command::new(&prepared.program);
    command.arg0(&launch.process_name).args(&prepared.arguments).current_dir(launch.working_directory.as_path());
    // Whoever has it could tell the service manager lies.
    command.env_remove("NOTIFY_SOCKET").envs(&launch.environment);
    prepared.hand_on_descriptors(&mut command);
    command
}

/// Returns only when it fails.
pub(super) fn become_hypervisor(
    launch: &Launch,
    prepared: Prepared,
    state: &MachineState,
    interruption: &Interruption,
) -> RunError {
    let written = own_process(state).and_then(|hypervisor| {
        let machine = RunningMachine {
            hypervisor,
            supervisor: None,
            started_unix_seconds: unix_seconds(),
            console_socket: None,
            guest_ready: None,
        };
        state.write_running(&machine)
    });
    if let Err(error) = written {
        return error.into();
    }
    let error = exec(launch, prepared, interruption);
    state.clear_running();
    error
}

fn exec(launch: &Launch, prepared: Prepared, interruption: &Interruption) -> RunError {
    let program = prepared.program.display().to_string();
    let failed = |source| RunError::Start { program: program.clone(), source };
    if let Some(identity) = &prepared.identity
        && let Err(source) = identity.assume()
    {
        return failed(source);
    }
    if let Err(interrupted) = interruption.check() {
        return interrupted.into();
    }
    let mut command = command(launch, &prepared);
    if let Err(source) = interruption.let_through() {
        return failed(source);
    }
    // The destructors of what was prepared run only when it comes back.
    failed(command.exec())
}

fn own_process(state: &MachineState) -> Result<ProcessIdentity, StateError> {
    ProcessIdentity::own().map_err(|source| StateError::File { path: state.directory().to_owned(), source })
}

pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
