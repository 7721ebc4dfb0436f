//! `microvm stop`: stops a machine, gracefully if possible.

use super::failure::Failure;
use super::imperative::active_service;
use super::machine::{KnownMachine, failed, find};
use super::output::write_stderr;
use super::spec_file::Overrides;
use launcher::shutdown::{StopTarget, Stopped, stop};
use launcher::sockets::remove_stale;
use std::time::{Duration, Instant};

/// How long the supervisor may take to clean up after its hypervisor.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(10);

/// Stop a machine: ask the guest to shut down, wait, then terminate the hypervisor
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine: its name, or the file of its spec
    machine: String,
    /// Time for the guest to shut down before its hypervisor is terminated
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    #[command(flatten)]
    overrides: Overrides,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(service) = active_service(&arguments.machine) {
        return service.command("stop").map_err(failed);
    }
    let machine = find(&arguments.machine, &arguments.overrides)?;
    let process = machine.running.as_ref().map(|running| running.hypervisor);
    let console_socket = machine.running.as_ref().and_then(|running| running.console_socket.clone());
    let target = StopTarget { launch: &machine.launch, process, console_socket };
    let stopped = stop(&target, Duration::from_secs(arguments.timeout), &mut write_stderr).map_err(failed)?;
    clear_up(&machine);
    let name = machine.state.name();
    write_stderr(&match stopped {
        Stopped::WasNotRunning => format!("{name} is not running"),
        Stopped::Gracefully => format!("{name} has shut down"),
        Stopped::Forced => format!("{name} was ended"),
        Stopped::Killed => format!("{name} was killed"),
    });
    Ok(())
}

/// Removes what the hypervisor leaves behind; a supervisor does this itself.
fn clear_up(machine: &KnownMachine) {
    let supervisor = machine.running.as_ref().and_then(|running| running.supervisor);
    let end = Instant::now() + SUPERVISOR_PATIENCE;
    while supervisor.is_some_and(|supervisor| supervisor.is_alive()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    for socket in machine.launch.needs.sockets_to_clear() {
        // The next start removes them too, and then says what is in the way.
        let _ = remove_stale(socket.below(&machine.launch.working_directory).as_path());
    }
    machine.state.clear_running();
}
