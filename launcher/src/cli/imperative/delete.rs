//! `microvm delete`.

use super::{failure, name_of};
use crate::cli::failure::Failure;
use crate::cli::output::write_stderr;
use launcher::imperative::{Layout, MachineName, delete, removal};

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
        return Err(Failure::bad_input(vec![problem])
            .with_hint(Some(format!("to confirm: microvm delete --yes {}", arguments.name))));
    }
    delete(&layout, &arguments.name).map_err(|error| failure(&error))?;
    write_stderr(&format!("{}: deleted", arguments.name));
    Ok(())
}
