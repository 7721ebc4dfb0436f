//! `microvm clean-up-after`: removes what `run` has created for a machine after `run` has become the hypervisor. `run`
//! starts it.

use super::machine::{failed, watch};
use launcher::run::clean_up_after;
use launcher::state::{ProcessIdentity, RuntimeDirectory};
use program::child::{OnParentDeath, prepare};
use program::failure::Failure;
use std::process::Command;

/// Wait until a machine has ended, then remove the network interfaces that were created for it
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine's name
    machine: String,
    /// The hypervisor's process
    pid: i32,
    /// When that process started, in clock ticks since boot
    start_ticks: u64,
    /// Continue in a separate process
    #[arg(long)]
    detach: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.detach {
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["clean-up-after", &arguments.machine]);
        command.args([arguments.pid.to_string(), arguments.start_ticks.to_string()]);
        prepare(&mut command, OnParentDeath::LiveOn, None);
        return command.spawn().map(|_| ()).map_err(failed);
    }
    let held_back = watch()?;
    // In a new session, so that the terminal on which the machine was started does not wait for this process.
    nix::unistd::setsid().map_err(failed)?;
    let process = ProcessIdentity { pid: arguments.pid, start_ticks: arguments.start_ticks };
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    clean_up_after(&runtime, &arguments.machine, process, &held_back).map_err(failed)
}
