//! `microvm ssh`.

use crate::cli::host_machine::{exec_program, failure, name_of};
use crate::cli::machine::failed;
use launcher::imperative::{Layout, MachineName, connect_vsock, ssh_command};
use program::failure::Failure;

/// Log in to a machine of this host over vsock; requires microvm.vsock.ssh.enable in the guest
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine
    #[arg(value_parser = name_of)]
    name: MachineName,
    /// Options for ssh, then a command for the guest
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Connect standard input and output to a port of a guest
#[derive(clap::Args)]
pub(crate) struct ConnectArguments {
    /// The guest's vsock address, or the hypervisor's socket
    place: String,
    /// The port
    #[arg(value_parser = program::input::whole_number::<u32>)]
    port: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(failed)?;
    let command = ssh_command(&Layout::of_environment(), &arguments.name, &program, &arguments.arguments);
    Err(exec_program("ssh", &mut command.map_err(|error| failure(&error))?))
}

pub(crate) fn connect(arguments: &ConnectArguments) -> Result<(), Failure> {
    connect_vsock(&arguments.place, arguments.port)
        .map_err(|error| Failure::problems(vec![format!("vsock {} port {}: {error}", arguments.place, arguments.port)]))
}
