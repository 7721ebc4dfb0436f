//! `microvm clean-up-after`: removes what `run` has created for a machine after `run` has become the hypervisor. `run`
//! starts it.

use super::machine::{failed, watch_signals};
use launcher::path::HostPath;
use launcher::run::{LeftOvers, clean_up_after};
use launcher::state::{ProcessIdentity, RuntimeDirectory};
use program::child::{OnParentDeath, prepare};
use program::failure::Failure;
use std::process::Command;

/// Wait until a machine has ended, then end its side processes and remove its sockets and the network interfaces that were
/// created for it
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine's name
    machine: String,
    /// The hypervisor's process and its side processes: for each, the process id and the start time in clock ticks since
    /// boot
    #[arg(required = true, value_name = "PID START_TICKS")]
    processes: Vec<u64>,
    /// Continue in a separate process
    #[arg(long)]
    detach: bool,
    /// The machine's state directory
    #[arg(long, value_name = "DIR")]
    state_dir: String,
    /// A socket of the hypervisor
    #[arg(long = "socket")]
    sockets: Vec<String>,
    /// A socket of a side process
    #[arg(long, value_name = "SOCKET")]
    served: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.detach {
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(std::env::args_os().skip(1).filter(|argument| argument != "--detach"));
        prepare(&mut command, OnParentDeath::Continue, None);
        return command.spawn().map(|_| ()).map_err(failed);
    }
    let held_back = watch_signals()?;
    // In a new session, so that the terminal on which the machine was started does not wait for this process.
    nix::unistd::setsid().map_err(failed)?;
    let pairs = arguments.processes.chunks_exact(2).filter_map(|pair| {
        let pid = i32::try_from(*pair.first()?).ok()?;
        Some(ProcessIdentity { pid, start_ticks: *pair.get(1)? })
    });
    let processes: Vec<_> = pairs.collect();
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let paths = |paths: &[String]| paths.iter().map(HostPath::new).collect();
    let left = LeftOvers {
        directory: HostPath::new(&arguments.state_dir),
        sockets: paths(&arguments.sockets),
        served: paths(&arguments.served),
    };
    clean_up_after(&runtime, &arguments.machine, &processes, &left, &held_back).map_err(failed)
}
