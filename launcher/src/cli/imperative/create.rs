//! `microvm create`.

use super::{failure, name_of};
use crate::cli::machine::failed;
use launcher::imperative::{FlakeReference, Layout, MachineName, create};
use program::failure::Failure;
use program::output::{message, print};

/// Create a machine on this host from a flake's `nixosConfigurations.NAME`
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine's name
    #[arg(value_parser = name_of)]
    name: MachineName,
    /// The flake: a reference, or a directory [default: git+file:///etc/nixos]
    #[arg(short, long)]
    flake: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let directory = std::env::current_dir().map_err(failed)?;
    let flake = match &arguments.flake {
        Some(text) => FlakeReference::resolve(text, &directory).map_err(|error| failure(&error))?,
        None => FlakeReference::default(),
    };
    let layout = Layout::of_environment();
    let machine = create(&layout, &arguments.name, &flake).map_err(|error| failure(&error))?;
    message(&format!("{}: created from {flake}; start it with: microvm start {}", machine.name, machine.name));
    message(&format!(
        "to start it with the host, add \"{}\" to microvm.autostart in its NixOS configuration",
        machine.name
    ));
    print(format!("{}\n", machine.directory.display()))
}
