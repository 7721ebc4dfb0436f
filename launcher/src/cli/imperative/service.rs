//! `microvm start|restart|logs NAME`.

use crate::cli::host_machine::{exec_program, failure, name_of};
use clap::ArgGroup;
use launcher::imperative::{
    ImperativeError, Layout, Machine, MachineActivity, MachineName, Service, runs_older_system,
};
use program::failure::Failure;
use program::output::message;

/// Start machines of this host
#[derive(clap::Args)]
pub(crate) struct StartArguments {
    /// The machines
    #[arg(required = true, value_parser = name_of)]
    names: Vec<MachineName>,
}

/// Restart machines of this host, with their newest runners
#[derive(clap::Args)]
#[command(group = ArgGroup::new("which").required(true).args(["names", "outdated"]))]
#[command(override_usage = "microvm restart <NAMES...|--outdated>")]
pub(crate) struct RestartArguments {
    /// The machines
    #[arg(value_parser = name_of)]
    names: Vec<MachineName>,
    /// Restart all machines of this host that run an older system than their current one
    #[arg(short, long)]
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
