//! `microvm start|restart|logs NAME`, and `run` and `stop` with the name of a host's machine.

use super::{failure, name_of};
use launcher::imperative::{
    ImperativeError, Layout, Machine, MachineActivity, MachineName, Phase, Service, ServiceState, runs_older_system,
};
use program::failure::Failure;
use program::output::message;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Start machines of this host
#[derive(clap::Args)]
pub(crate) struct StartArguments {
    /// The machines
    #[arg(required = true, value_parser = name_of)]
    names: Vec<MachineName>,
}

/// Restart machines of this host, with their newest runners
#[derive(clap::Args)]
pub(crate) struct RestartArguments {
    /// The machines
    #[arg(required_unless_present = "outdated", value_parser = name_of)]
    names: Vec<MachineName>,
    /// Restart all machines of this host that run an older system than their current one
    #[arg(short, long, conflicts_with = "names")]
    outdated: bool,
}

/// Show the journal of a machine of this host, with the output of its console and its services
#[derive(clap::Args)]
pub(crate) struct LogsArguments {
    /// The machine
    #[arg(value_parser = name_of)]
    name: MachineName,
    /// Options for journalctl, such as `--follow`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(crate) fn start(arguments: &StartArguments) -> Result<(), Failure> {
    for_each_machine(&arguments.names, "start")
}

pub(crate) fn restart(arguments: &RestartArguments) -> Result<(), Failure> {
    if !arguments.outdated {
        return for_each_machine(&arguments.names, "restart");
    }
    let (mut names, mut problems) = (Vec::new(), Vec::new());
    for machine in Layout::of_environment().all().map_err(|error| failure(&error))? {
        match runs_older_system(&machine) {
            Ok(true) => names.push(machine.name),
            Ok(false) => {}
            // One machine that cannot be examined does not keep the others from being restarted.
            Err(error) => problems.push(format!("{}: {error}", machine.name)),
        }
    }
    if names.is_empty() {
        message("no machine runs an older system");
    }
    for_each_machine(&names, "restart")?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems(problems)) }
}

fn for_each_machine(names: &[MachineName], verb: &str) -> Result<(), Failure> {
    let layout = Layout::of_environment();
    // Check all names before the first service is changed.
    for name in names {
        let machine = layout.existing(name).map_err(|error| failure(&error))?;
        require_service(&machine).map_err(|error| failure(&error))?;
    }
    let failed = |name: &MachineName| Service::of(name).command(verb).err().map(|error| format!("{name}: {error}"));
    let problems: Vec<_> = names.iter().filter_map(failed).collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems(problems)) }
}

/// Fails if the machine runs outside its service, because systemd would start a second one.
pub(super) fn require_service(machine: &Machine) -> Result<(), ImperativeError> {
    if MachineActivity::of(machine)?.is_outside_of_service() {
        return Err(ImperativeError::OutsideOfService(machine.name.to_string()));
    }
    Ok(())
}

pub(crate) fn logs(arguments: &LogsArguments) -> Result<(), Failure> {
    let layout = Layout::of_environment();
    layout.existing(&arguments.name).map_err(|error| failure(&error))?;
    Err(exec_program("journalctl", &mut Service::of(&arguments.name).journal(&arguments.options)))
}

/// Returns the machine of this host with that name, or `None` if the argument is a spec.
fn machine_by_name(text: &Path) -> Option<Machine> {
    let name = text.to_str().filter(|_| !text.exists()).and_then(|text| MachineName::new(text).ok())?;
    Layout::of_environment().existing(&name).ok()
}

/// Runs a host's machine in this process instead of in its service. Returns only on failure, or if the argument
/// is a spec.
pub(in crate::cli) fn run_by_name(text: &Path, options: &[&str]) -> Option<Failure> {
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
pub(in crate::cli) fn active_service(name: &str) -> Option<Service> {
    let name = MachineName::new(name).ok()?;
    Layout::of_environment().existing(&name).ok()?;
    Some(Service::of(&name)).filter(|service| service.state() != ServiceState::Inactive)
}

/// Executes a program in this process. Returns only on failure.
pub(super) fn exec_program(program: &'static str, command: &mut Command) -> Failure {
    failure(&ImperativeError::NoProgram { program, source: command.exec() })
}
