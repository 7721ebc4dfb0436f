//! `microvm prune`: stops machines that are no longer in the host's configuration, and lists their state directories.

use super::failure;
use crate::cli::machine::failed;
use crate::cli::stop::{STOP_TIMEOUT, stop_by_name};
use launcher::imperative::{Layout, Machine, MachineActivity, Phase, is_declared};
use program::failure::Failure;
use program::output::{message, print};

/// Stop machines that are no longer in the host's configuration, and list their state directories
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only list the directories
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
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
