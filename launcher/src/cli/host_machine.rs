//! The machines of this host that commands refer to by name, and their services.

use launcher::imperative::{
    ImperativeError, Layout, Machine, MachineActivity, MachineName, Phase, Service, ServiceState,
};
use program::failure::Failure;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Parses a machine's name on the command line.
pub(crate) fn name_of(text: &str) -> Result<MachineName, String> {
    MachineName::new(text).map_err(|error| error.to_string())
}

/// Returns the failure of a command for a machine of this host.
pub(crate) fn failure(error: &ImperativeError) -> Failure {
    if error.is_bad_input() { Failure::usage(error.to_string()) } else { Failure::failed(error) }
}

/// Returns the machine of this host with that name, or `None` if the argument is a spec.
fn machine_by_name(text: &Path) -> Option<Machine> {
    let name = text.to_str().filter(|_| !text.exists()).and_then(|text| MachineName::new(text).ok())?;
    Layout::of_environment().existing(&name).ok()
}

/// Runs a host's machine in this process instead of in its service. Returns only on failure, or if the argument
/// is a spec.
pub(crate) fn run_by_name(text: &Path, options: &[&str]) -> Option<Failure> {
    let Some(machine) = machine_by_name(text) else {
        // Otherwise the argument is a file, and opening it reports that it is missing.
        let name = text.to_str().filter(|name| !text.exists() && *name != "-" && !name.ends_with(".json"))?;
        let name = MachineName::new(name).ok()?;
        return Layout::of_environment().existing(&name).err().map(|error| failure(&error));
    };
    match MachineActivity::of(&machine) {
        Err(error) => return Some(failure(&error.into())),
        Ok(activity) if activity.phase() != Phase::Stopped => {
            return Some(failure(&ImperativeError::Running(machine.name.to_string())));
        }
        Ok(_) => {}
    }
    let runner = match machine.runner() {
        Ok(runner) => runner,
        Err(error) => return Some(failure(&error)),
    };
    let mut command = Command::new(runner.join("bin/microvm-run"));
    command.args(options).current_dir(&machine.directory).env("MICROVM_NAME", machine.name.as_str());
    Some(exec_program("microvm-run", &mut command))
}

/// Returns the service that runs or starts the machine with that name. If the machine were stopped in another way,
/// systemd would restart it.
pub(crate) fn active_service(name: &str) -> Option<Service> {
    let name = MachineName::new(name).ok()?;
    Layout::of_environment().existing(&name).ok()?;
    Some(Service::of(&name)).filter(|service| service.state() != ServiceState::Inactive)
}

/// Executes a program in this process. Returns only on failure.
pub(crate) fn exec_program(program: &'static str, command: &mut Command) -> Failure {
    failure(&ImperativeError::NoProgram { program, source: command.exec() })
}
