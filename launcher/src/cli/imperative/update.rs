//! `microvm update`.

use super::name_of;
use crate::cli::failure::Failure;
use crate::cli::output::{write_stderr, write_stdout};
use launcher::imperative::{ImperativeError, Layout, MachineName, Service, Updated, update};

/// Build machines anew from their flakes, and show what changed
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machines
    #[arg(required = true, value_parser = name_of)]
    names: Vec<MachineName>,
    /// Restart those that run an older system than they now have
    #[arg(short = 'R', long)]
    restart: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let layout = Layout::of_environment();
    let mut problems = Vec::new();
    let mut is_bad_input = true;
    for name in &arguments.names {
        let done = update(&layout, name).and_then(|updated| {
            tell(name, &updated);
            restart(name, &updated, arguments)?;
            Ok(updated)
        });
        match done {
            Ok(updated) => write_stdout(&updated.difference)?,
            // The others are updated all the same.
            Err(error) => {
                is_bad_input &= error.is_bad_input();
                problems.push(format!("{name}: {error}"));
            }
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false if is_bad_input => Err(Failure::bad_input(problems)),
        false => Err(Failure::many(problems)),
    }
}

fn tell(name: &MachineName, updated: &Updated) {
    write_stderr(&match (updated.is_changed, updated.needs_restart) {
        (false, false) => format!("{name} is current"),
        (false, true) => format!("{name} is current, but runs an older system: microvm restart {name}"),
        (true, false) => format!("{name} is updated"),
        (true, true) => format!("{name} is updated, but runs an older system: microvm restart {name}"),
    });
}

fn restart(name: &MachineName, updated: &Updated, arguments: &Arguments) -> Result<(), ImperativeError> {
    let service = Service::of(name);
    if arguments.restart && updated.needs_restart && service.is_active() {
        service.command("restart")?;
    }
    Ok(())
}
