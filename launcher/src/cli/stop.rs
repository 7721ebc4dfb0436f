//! `microvm stop`: ends a machine, gracefully if it can be.

use super::failure::Failure;
use super::imperative::active_service;
use super::machine::{KnownMachine, failed, find};
use super::output::write_stderr;
use super::spec_file::Overrides;
use launcher::shutdown::{StopTarget, Stopped, stop};
use launcher::sockets::remove_stale;
use std::time::{Duration, Instant};

/// How long the supervisor may take to clear up behind its hypervisor.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(10);

/// Stop a machine: ask the guest, wait, then end its hypervisor
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine's name, or its spec
    machine: String,
    /// How long the guest may take to shut down before its hypervisor is ended
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

/// What the hypervisor leaves behind; a supervisor does it by itself.
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
