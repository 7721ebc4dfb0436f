//! `microvm run`: starts a machine.

use super::host_machine::run_by_name;
use super::machine::{checked, facts_for, failed, watch_signals};
use super::spec_file::{Overrides, SpecArguments, lowered, read_with_origin};
use super::stop::StopTimeout;
use super::suspend_failure::{resume_failure, same_mac_failure};
use launcher::interruption::Interruption;
use launcher::run::{Lowered, RunError, STOP_TIMEOUT, Start, Supervision, run as start};
use launcher::state::RuntimeDirectory;
use program::failure::Failure;
use std::path::Path;
use std::time::Duration;

/// Start a machine
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    spec: SpecArguments,
    /// Supervise the hypervisor instead of executing it in place: serve the console, notify the service manager, and
    /// shut the guest down gracefully on SIGTERM, SIGINT and SIGHUP. A machine with a console socket is always
    /// supervised, and so is every machine if MICROVM_SUPERVISE=1 is set in the environment, as in the service
    /// microvm@.
    #[arg(long)]
    supervise: bool,
    #[command(flatten)]
    stop_timeout: StopTimeout,
}

/// Starts a suspended machine.
pub(super) fn run_suspended(spec: &Path, overrides: &Overrides) -> Result<(), Failure> {
    let spec = SpecArguments { spec: spec.to_owned(), overrides: overrides.clone() };
    run(&Arguments { spec, supervise: true, stop_timeout: StopTimeout { seconds: STOP_TIMEOUT.as_secs() } })
}

/// Records that a start was refused because of its spec, so that `status` does not show the reason of an earlier start. If
/// that is impossible, because the name is invalid or the machine runs, only the caller reports the reason.
fn record_refused(name: &str, overrides: &Overrides, failure: &Failure, interruption: &Interruption) {
    let Ok(directory) = overrides.state_directory() else { return };
    let runtime = RuntimeDirectory::locate().map_err(RunError::from);
    if let Ok(begun) = runtime.and_then(|runtime| Start::begin(&runtime, name, &directory, interruption)) {
        begun.record_failure(failure.reasons().to_vec());
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let options = if arguments.supervise { &["--supervise"][..] } else { &[] };
    if let Some(failure) = run_by_name(&arguments.spec.spec, options) {
        return Err(failure);
    }
    let overrides = &arguments.spec.overrides;
    let found = read_with_origin(&arguments.spec.spec, overrides);
    // Not before, because a signal must end the wait for a spec from stdin.
    let interruption = watch_signals()?;
    let (spec, origin) = found.inspect_err(|failure| {
        if let Ok(Some(name)) = overrides.name_on_host() {
            record_refused(&name, overrides, failure, &interruption);
        }
    })?;
    let checked =
        checked(&spec).inspect_err(|failure| record_refused(&spec.name, overrides, failure, &interruption))?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let directory = overrides.state_directory()?;
    let begun = Start::begin(&runtime, &spec.name, &directory, &interruption).map_err(failed)?;
    let facts = facts_for(&spec, overrides, &runtime, &interruption);
    let planned = facts.and_then(|facts| Ok((lowered(&checked, &facts)?, facts))).inspect_err(|failure| {
        if !failure.is_interruption() {
            begun.record_failure(failure.reasons().to_vec());
        }
    });
    let (launch, facts) = planned?;
    let is_requested =
        arguments.supervise || std::env::var_os("MICROVM_SUPERVISE").is_some_and(|value| !value.is_empty());
    let supervision = if is_requested || launch.console.socket.is_some() {
        Supervision::Supervise { stop_timeout: Duration::from_secs(arguments.stop_timeout.seconds) }
    } else {
        Supervision::Become
    };
    let lowered = Lowered { spec: &checked, document: &spec, origin: origin.as_ref(), facts: &facts, launch: &launch };
    start(&lowered, begun, supervision, &interruption).map_err(|error| match error {
        RunError::Missing(problems) => Failure::problems(problems.iter().map(ToString::to_string).collect())
            .with_hint(format!("{} needs these before it can start", launch.name)),
        error @ RunError::ArgumentsRefused { .. } => {
            Failure::problems(error.to_string().lines().map(str::to_owned).collect())
        }
        RunError::SameMac(error) => same_mac_failure(error),
        RunError::Suspended(error) => resume_failure(error, &spec.name),
        error => failed(error),
    })
}
