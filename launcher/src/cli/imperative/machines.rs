//! `microvm create|delete|prune`: the state directories of a host's machines.

use super::{failure, name_of};
use crate::cli::machine::failed;
use crate::cli::stop::{STOP_TIMEOUT, stop_by_name};
use launcher::imperative::{
    FlakeReference, Layout, Machine, MachineActivity, MachineName, Phase, create, delete, is_declared, removal,
};
use program::failure::Failure;
use program::output::{message, print};

/// Create a machine on this host from a flake's `nixosConfigurations.NAME`
#[derive(clap::Args)]
pub(crate) struct CreateArguments {
    /// The machine's name
    #[arg(value_parser = name_of)]
    name: MachineName,
    /// The flake: a reference, or a directory [default: git+file:///etc/nixos]
    #[arg(short, long)]
    flake: Option<String>,
}

pub(crate) fn create_machine(arguments: &CreateArguments) -> Result<(), Failure> {
    let directory = std::env::current_dir().map_err(failed)?;
    let flake = match &arguments.flake {
        Some(text) => FlakeReference::resolve(text, &directory).map_err(|error| failure(&error))?,
        None => FlakeReference::default(),
    };
    let layout = Layout::of_environment();
    let machine = create(&layout, &arguments.name, &flake).map_err(|error| failure(&error))?;
    message(&format!("{}: created from {flake}; start it with: microvm start {}", machine.name, machine.name));
    message(&format!(
        "to start it with the host, add \"{}\" to microvm.autostart in its NixOS configuration",
        machine.name
    ));
    print(format!("{}\n", machine.directory.display()))
}

/// Delete a machine of this host with its volumes
#[derive(clap::Args)]
pub(crate) struct DeleteArguments {
    /// The machine
    #[arg(value_parser = name_of)]
    name: MachineName,
    /// Delete the machine; without this option, only print what would be deleted
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn delete_machine(arguments: &DeleteArguments) -> Result<(), Failure> {
    let layout = Layout::of_environment();
    let removal = removal(&layout, &arguments.name).map_err(|error| failure(&error))?;
    if !arguments.yes {
        let files = removal.files.iter().map(|file| format!("\n  {}", file.display())).collect::<String>();
        let problem = format!("{} and everything in it would be deleted:{files}", removal.directory.display());
        return Err(Failure::usage(problem).with_hint(format!("to confirm: microvm delete --yes {}", arguments.name)));
    }
    delete(&layout, &arguments.name).map_err(|error| failure(&error))?;
    message(&format!("{}: deleted", arguments.name));
    Ok(())
}

/// Stop machines that are no longer in the host's configuration, and list their state directories
#[derive(clap::Args)]
pub(crate) struct PruneArguments {
    /// Only list the directories
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn prune(arguments: &PruneArguments) -> Result<(), Failure> {
    let left = |machine: &Machine| machine.is_declared() && !is_declared(&machine.name);
    let machines = Layout::of_environment().all().map_err(|error| failure(&error))?;
    for machine in machines.iter().filter(|machine| left(machine)) {
        let activity = MachineActivity::of(machine).map_err(failed)?;
        if !arguments.dry_run && activity.phase() != Phase::Stopped {
            stop_by_name(machine.name.as_str(), STOP_TIMEOUT)?;
        }
        message(&format!("{} is no longer declared; delete it with: microvm delete {}", machine.name, machine.name));
        print(format!("{}\n", machine.directory.display()))?;
    }
    Ok(())
}
