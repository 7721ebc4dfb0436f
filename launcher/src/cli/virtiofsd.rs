//! `microvm virtiofsd`: serves a machine's shares until it is stopped, in a service separate from the machine's.

use super::machine::{failed, launch_of, watch_signals};
use super::spec_file::{SpecArguments, read};
use launcher::launch::SideProcessKind;
use launcher::readiness::ServiceManager;
use launcher::side_processes::SideProcesses;
use launcher::state::RuntimeDirectory;
use program::failure::Failure;
use program::output::message;
use program::plural::counted;
use program::user::Identity;
use std::time::{Duration, Instant};

/// The longest time between two checks of the daemons.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// Serve a machine's virtiofs shares, with all daemons under one supervisor
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    spec: SpecArguments,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let overrides = &arguments.spec.overrides;
    let spec = read(&arguments.spec.spec, overrides)?;
    let interruption = watch_signals()?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let launch = launch_of(&spec, overrides, &runtime, &interruption)?;
    let mut processes = launch.needs.processes;
    processes.retain(|process| process.kind == SideProcessKind::Virtiofsd);
    let mut manager = ServiceManager::of_environment().unwrap_or_else(|error| {
        message(&format!("cannot notify the service manager: {error}"));
        ServiceManager::default()
    });
    let client = launch.user.as_deref().map(Identity::of).transpose().map_err(failed)?;
    let client = client.filter(|_| nix::unistd::geteuid().is_root());
    let mut daemons =
        SideProcesses::start(&processes, &launch.working_directory, client.as_ref(), &interruption).map_err(failed)?;
    let served = processes.len();
    message(&format!("{}: {} served", launch.name, counted(served, "virtiofs share")));
    notify(&mut manager, "READY=1\nSTATUS=all shares are served");
    while !daemons.is_empty() {
        let (events, next) = daemons.supervise();
        events.iter().for_each(|event| message(event));
        let longest = next.map_or(POLL_INTERVAL, |time| time.saturating_duration_since(Instant::now()));
        if interruption.pause(longest).is_err() {
            break;
        }
    }
    notify(&mut manager, "STOPPING=1");
    Ok(())
}

fn notify(manager: &mut ServiceManager, lines: &str) {
    if let Err(error) = manager.notify(lines) {
        message(&format!("cannot notify the service manager: {error}"));
    }
}
