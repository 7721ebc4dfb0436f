//! `microvm create|delete|prune`: the state directories of a host's machines.

use crate::cli::host_machine::{failure, name_of};
use crate::cli::machine::failed;
use launcher::imperative::{
    FlakeReference, Layout, Machine, MachineActivity, MachineName, Phase, create, delete, is_declared, removal,
};
use launcher::state::StateError;
use program::failure::Failure;
use program::output::{message, print};
use std::io;
use std::process::Command;

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
        None => FlakeReference::of_host().map_err(|error| failure(&error))?,
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
        let colon = if files.is_empty() { "" } else { ":" };
        let problem = format!("{} and everything in it would be deleted{colon}{files}", removal.directory.display());
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
    let mut problems = Vec::new();
    for machine in machines.iter().filter(|machine| left(machine)) {
        // One machine that cannot be examined or stopped does not keep the others from being stopped.
        if !arguments.dry_run
            && let Err(error) = stop_left(machine)
        {
            problems.push(format!("{}: {error}", machine.name));
            continue;
        }
        message(&format!("{} is no longer declared; delete it with: microvm delete {}", machine.name, machine.name));
        print(format!("{}\n", machine.directory.display()))?;
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems(problems)) }
}

/// Stops a machine that is no longer declared.
fn stop_left(machine: &Machine) -> Result<(), PruneError> {
    if MachineActivity::of(machine)?.phase() == Phase::Stopped {
        return Ok(());
    }
    // In another process, because `stop` becomes the user who has recorded the machine.
    let status = Command::new(std::env::current_exe()?).args(["stop", machine.name.as_str()]).status()?;
    if status.success() { Ok(()) } else { Err(PruneError::NotStopped) }
}

/// Why a machine was not stopped.
#[derive(Debug, thiserror::Error)]
enum PruneError {
    /// Its state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// This program cannot be started.
    #[error("cannot start `microvm stop`: {0}")]
    Start(#[from] io::Error),
    /// `microvm stop` has printed the reason.
    #[error("it could not be stopped")]
    NotStopped,
}
