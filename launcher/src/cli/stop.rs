//! `microvm stop`: stops a machine, gracefully if possible, or ends its start.

use super::host_machine::active_service;
use super::machine::{KnownMachine, failed, find};
use super::spec_file::Overrides;
use launcher::imperative::{Layout, Service};
use launcher::network::remove_made;
use launcher::run::{STOP_TIMEOUT, clean_up_stopped};
use launcher::shutdown::{StopTarget, Stopped, end_start, stop};
use launcher::state::{Activity, RunningMachine};
use launcher::suspend::is_suspended;
use program::failure::Failure;
use program::input::{MAX_SECONDS, up_to};
use program::output::message;
use std::time::Duration;

/// Stop a machine, or cancel its start: ask the guest to shut down, wait, then terminate the hypervisor
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine: its name or its spec file
    machine: String,
    /// Time for the guest to shut down before its hypervisor is terminated
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = STOP_TIMEOUT.as_secs(),
        value_parser = up_to::<MAX_SECONDS>,
    )]
    timeout: u64,
    #[command(flatten)]
    overrides: Overrides,
}

/// The option of the commands that start a machine.
#[derive(clap::Args)]
pub(crate) struct StopTimeout {
    /// Time for the guest to shut down before its hypervisor is terminated
    #[arg(
        long = "stop-timeout",
        value_name = "SECONDS",
        default_value_t = STOP_TIMEOUT.as_secs(),
        value_parser = up_to::<MAX_SECONDS>,
    )]
    pub(crate) seconds: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let timeout = Duration::from_secs(arguments.timeout);
    if let Some(service) = active_service(&arguments.machine) {
        return service.command("stop").map_err(failed);
    }
    let machine = find(&arguments.machine, &arguments.overrides)?;
    if machine.elsewhere.is_none() {
        forget_failed_units(&machine);
    }
    machine.become_recorder()?;
    let name = machine.state.name();
    if let Some(elsewhere) = &machine.elsewhere {
        let (own, other) = (arguments.overrides.state_directory()?, elsewhere.display());
        message(&format!("{name} is not running in {own}"));
        message(&format!("a machine of that name runs in {other}: `microvm stop {name}` stops that one"));
        return Ok(());
    }
    stop_found(machine, timeout)
}

/// Lets the units of a stopped machine of this host count as inactive, before this process becomes the machine's user.
fn forget_failed_units(machine: &KnownMachine) {
    let layout = Layout::of_environment();
    let of_host = machine.directory.as_ref().and_then(|directory| layout.machine_in(directory));
    if let (Activity::Stopped, Some(of_host)) = (&machine.activity, of_host) {
        Service::of(&of_host.name).forget_failures();
    }
}

/// Forgets why a stopped machine has failed.
fn forget_failure(machine: &KnownMachine) {
    match &machine.directory {
        Some(directory) => machine.state.clear_failure_in(directory),
        None => machine.state.clear_failures(),
    }
}

fn stop_found(machine: KnownMachine, timeout: Duration) -> Result<(), Failure> {
    let machine = match machine.activity {
        Activity::Starting(_) => {
            let Some(machine) = stop_start(machine, timeout)? else { return Ok(()) };
            machine
        }
        _ => machine,
    };
    stop_machine(&machine, timeout)
}

/// Ends a start. If it is too late for that, returns the machine, which is now running and which the caller must stop.
fn stop_start(machine: KnownMachine, timeout: Duration) -> Result<Option<KnownMachine>, Failure> {
    let name = machine.state.name();
    let stopped = end_start(&machine.state, timeout, &mut message).map_err(failed)?;
    let activity = machine.state.activity().map_err(failed)?;
    if let Activity::Running(_) = activity {
        let launch = machine.state.last_launch().map_err(failed)?;
        return Ok(Some(KnownMachine { activity, launch, ..machine }));
    }
    remove_made(&machine.state.left_over_interfaces().map_err(failed)?);
    machine.state.clear_running();
    message(&match stopped {
        Stopped::Killed => format!("{name} was starting; its launcher was killed"),
        _ => format!("{name} was starting; its start was cancelled"),
    });
    Ok(None)
}

fn stop_machine(machine: &KnownMachine, timeout: Duration) -> Result<(), Failure> {
    let name = machine.state.name();
    let Some(launch) = &machine.launch else {
        forget_failure(machine);
        message(&format!("{name} is not running"));
        return Ok(());
    };
    let running = machine.activity.running();
    if running.is_none() {
        forget_failure(machine);
    }
    // Kept until the supervisor has ended, which `clean_up` waits for.
    let _request = running.map(|running| machine.state.request_stop(running.hypervisor));
    let process = running.map(|running| running.hypervisor);
    let console_socket = running.and_then(|running| running.console_socket.clone());
    let target = StopTarget { launch, process, console_socket, is_saved: is_suspended(launch) };
    let stopped = stop(&target, timeout, &mut message).map_err(failed)?;
    clean_up(machine, running)?;
    message(&match stopped {
        Stopped::WasNotRunning => format!("{name} is not running"),
        Stopped::Gracefully if is_suspended(launch) => format!("{name} was suspended by another command"),
        Stopped::Gracefully => format!("{name} has shut down"),
        Stopped::Forced => format!("{name} was ended"),
        Stopped::Killed => format!("{name} was killed"),
    });
    Ok(())
}

/// Removes what the hypervisor leaves behind.
pub(super) fn clean_up(machine: &KnownMachine, running: Option<&RunningMachine>) -> Result<(), Failure> {
    let supervisor = running.and_then(|running| running.supervisor);
    clean_up_stopped(&machine.state, machine.launch.as_ref(), supervisor).map_err(failed)
}
