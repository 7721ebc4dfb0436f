//! The commands for a host's machines, which are selected by name.

mod host_side;
mod letters;
mod list;
mod machines;
mod service;
mod ssh;
mod unit;
mod update;

pub(super) use letters::expand_letters;

use clap::Subcommand;
use program::failure::Failure;

#[derive(Subcommand)]
pub(super) enum HostCommand {
    Create(machines::CreateArguments),
    Update(update::Arguments),
    List(list::Arguments),
    Start(service::StartArguments),
    Restart(service::RestartArguments),
    Logs(service::LogsArguments),
    Ssh(ssh::Arguments),
    #[command(hide = true)]
    VsockConnect(ssh::ConnectArguments),
    Delete(machines::DeleteArguments),
    Prune(machines::PruneArguments),
    PciSetup(host_side::PciArguments),
    Register(host_side::RegisterArguments),
    Unregister(host_side::UnregisterArguments),
    #[command(hide = true)]
    Unit(unit::Arguments),
}

pub(super) fn run_command(command: &HostCommand) -> Result<(), Failure> {
    match command {
        HostCommand::Create(arguments) => machines::create_machine(arguments),
        HostCommand::Update(arguments) => update::run(arguments),
        HostCommand::List(arguments) => list::run(arguments),
        HostCommand::Start(arguments) => service::start(arguments),
        HostCommand::Restart(arguments) => service::restart(arguments),
        HostCommand::Logs(arguments) => service::logs(arguments),
        HostCommand::Ssh(arguments) => ssh::run(arguments),
        HostCommand::VsockConnect(arguments) => ssh::connect(arguments),
        HostCommand::Delete(arguments) => machines::delete_machine(arguments),
        HostCommand::Prune(arguments) => machines::prune(arguments),
        HostCommand::PciSetup(arguments) => host_side::pci_setup(arguments),
        HostCommand::Register(arguments) => host_side::register_machine(arguments),
        HostCommand::Unregister(arguments) => host_side::unregister_machine(arguments),
        HostCommand::Unit(arguments) => unit::run(arguments),
    }
}
