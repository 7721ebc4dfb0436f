//! `microvm update`.

use super::service::require_service;
use crate::cli::host_machine::{failure, name_of};
use clap::ArgGroup;
use launcher::imperative::{
    Booted, BuildOutput, ImperativeError, Layout, MachineName, Service, Updated, in_parallel, update,
};
use program::failure::{BAD_INPUT, Failure};
use program::output::{message, print};

/// Rebuild machines from their flakes, and show what changed
///
/// Several machines are built in parallel. If one fails, the others are still updated, and the exit code is not 0.
#[derive(clap::Args)]
#[command(group = ArgGroup::new("which").required(true).args(["names", "all"]))]
#[command(override_usage = "microvm update [OPTIONS] <NAMES...|--all>")]
pub(crate) struct Arguments {
    /// The machines
    #[arg(value_parser = name_of)]
    names: Vec<MachineName>,
    /// Update all machines of this host that have a flake
    #[arg(short, long)]
    all: bool,
    /// Restart machines that run an older system, and start machines that are not running
    #[arg(short = 'R', long)]
    restart: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let layout = Layout::of_environment();
    let names = if arguments.all { names_of_all(&layout)? } else { arguments.names.clone() };
    let output = if names.len() > 1 { BuildOutput::Captured } else { BuildOutput::Terminal };
    let built = in_parallel(&names, |name| {
        if output == BuildOutput::Captured {
            message(&format!("{name}: building"));
        }
        update(&layout, name, output)
    });
    let mut summary = Summary::default();
    for (name, updated) in names.iter().zip(built) {
        let after = After { name, restart: arguments.restart };
        match updated.and_then(|updated| after.finish(&layout, updated)) {
            Ok(updated) => {
                summary.count(&updated);
                print(updated.difference)?;
            }
            // Continue with the other machines.
            Err(error) => summary.fail(name, &error),
        }
    }
    if names.len() > 1 {
        message(&summary.text());
    }
    summary.outcome()
}

/// Returns the machines that have a flake. The others are updated with the host or from another computer, or are
/// clones.
fn names_of_all(layout: &Layout) -> Result<Vec<MachineName>, Failure> {
    let machines = layout.all().map_err(|error| failure(&error))?;
    let names: Vec<_> = machines
        .into_iter()
        .filter(|machine| !machine.flake().is_err_and(|error| error.is_updated_elsewhere()))
        .map(|machine| machine.name)
        .collect();
    if names.is_empty() {
        message(&format!("there are no machines with a flake in {}", layout.machines().display()));
    }
    Ok(names)
}

/// What happens to a machine after its update.
struct After<'a> {
    name: &'a MachineName,
    restart: bool,
}

impl After<'_> {
    fn finish(&self, layout: &Layout, updated: Updated) -> Result<Updated, ImperativeError> {
        let name = self.name;
        let state = if updated.is_changed { "updated" } else { "current" };
        let restarts = self.restart && updated.booted != Booted::Current;
        message(&match updated.booted {
            _ if restarts => format!("{name} is {state}; restarting it"),
            Booted::Another => format!("{name} is {state}, but runs an older system: microvm restart {name}"),
            Booted::Current | Booted::Nothing => format!("{name} is {state}"),
        });
        if restarts {
            require_service(&layout.existing(name)?)?;
            Service::of(name).command("restart")?;
        }
        Ok(updated)
    }
}

/// The results of all updates.
#[derive(Default)]
struct Summary {
    updated: usize,
    current: usize,
    failures: Vec<Failure>,
    /// Whether a problem is not bad input.
    has_failed: bool,
}

impl Summary {
    fn count(&mut self, updated: &Updated) {
        match updated.is_changed {
            true => self.updated += 1,
            false => self.current += 1,
        }
    }

    fn fail(&mut self, name: &MachineName, error: &ImperativeError) {
        self.has_failed |= !error.is_bad_input();
        // Some errors name the machine anyway.
        let is_missing = matches!(error, ImperativeError::Missing { .. });
        let is_named = is_missing || error.to_string().starts_with(&format!("{name} "));
        let failure = failure(error);
        self.failures.push(if is_named { failure } else { failure.with_context(name.as_str()) });
    }

    fn text(&self) -> String {
        format!("{} updated, {} current, {} failed", self.updated, self.current, self.failures.len())
    }

    fn outcome(self) -> Result<(), Failure> {
        match Failure::of_several(self.failures) {
            None => Ok(()),
            Some(failure) if self.has_failed => Err(failure),
            Some(failure) => Err(failure.with_code(BAD_INPUT)),
        }
    }
}
