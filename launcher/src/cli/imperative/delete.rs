//! `microvm delete`.

use super::{failure, name_of};
use launcher::imperative::{Layout, MachineName, delete, removal};
use program::failure::Failure;
use program::output::message;

/// Delete a machine of this host with its volumes
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine
    #[arg(value_parser = name_of)]
    name: MachineName,
    /// Delete the machine; without this option, only print what would be deleted
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let layout = Layout::of_environment();
    let removal = removal(&layout, &arguments.name).map_err(|error| failure(&error))?;
    if !arguments.yes {
        let files = removal.files.iter().map(|file| format!("\n  {}", file.display())).collect::<String>();
        let problem = format!("{} and everything in it would be deleted:{files}", removal.directory.display());
        return Err(Failure::usage(problem).with_hint(format!("to confirm: microvm delete --yes {}", arguments.name)));
    }
    delete(&layout, &arguments.name).map_err(|error| failure(&error))?;
    message(&format!("{}: deleted", arguments.name));
    Ok(())
}
