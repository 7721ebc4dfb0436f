//! `microvm update`.

use super::name_of;
use super::service::require_service;
use launcher::imperative::{Booted, Layout, MachineName, Service, Updated, update};
use program::failure::Failure;
use program::output::{message, print};

/// Rebuild machines from their flakes, and show what changed
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machines
    #[arg(required = true, value_parser = name_of)]
    names: Vec<MachineName>,
    /// Restart machines that run an older system, and start machines that are not running
    #[arg(short = 'R', long)]
    restart: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let layout = Layout::of_environment();
    let mut problems = Vec::new();
    let mut is_bad_input = true;
    for name in &arguments.names {
        let done = update(&layout, name).and_then(|updated| {
            let restarts = arguments.restart && updated.booted != Booted::Current;
            let next = if restarts { Next::Restart } else { Next::Nothing };
            report(name, &updated, next);
            if next == Next::Restart {
                require_service(&layout.existing(name)?)?;
                Service::of(name).command("restart")?;
            }
            Ok(updated)
        });
        match done {
            Ok(updated) => print(updated.difference)?,
            // Continue with the other machines.
            Err(error) => {
                is_bad_input &= error.is_bad_input();
                problems.push(format!("{name}: {error}"));
            }
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false if is_bad_input => Err(Failure::input_problems(problems)),
        false => Err(Failure::problems(problems)),
    }
}

/// What happens to a machine after its update.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Nothing,
    Restart,
}

fn report(name: &MachineName, updated: &Updated, next: Next) {
    let state = if updated.is_changed { "updated" } else { "current" };
    message(&match next {
        Next::Restart => format!("{name} is {state}; restarting it"),
        Next::Nothing if updated.booted == Booted::Another => {
            format!("{name} is {state}, but runs an older system: microvm restart {name}")
        }
        Next::Nothing => format!("{name} is {state}"),
    });
}
