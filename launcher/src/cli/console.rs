//! `microvm console`: the console of a supervised machine.

use super::machine::{failed, find_as_recorder};
use super::spec_file::Overrides;
use launcher::console::{Detached, attach};
use program::failure::Failure;
use program::output::message;

/// Connect the terminal to a machine's console; Ctrl-] disconnects
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine: its name or its spec file
    machine: String,
    #[command(flatten)]
    overrides: Overrides,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let machine = find_as_recorder(&arguments.machine, &arguments.overrides)?;
    let name = machine.state.name();
    let Some(running) = machine.activity.running() else {
        return Err(machine.is_not_running());
    };
    let Some(socket) = &running.console_socket else {
        let hint = "start it with `microvm run --supervise`, or set `consoleSocket` in its spec".to_owned();
        let problem = format!("the console of {name} is on the terminal that started it");
        return Err(Failure::problems(vec![problem]).with_hint(hint));
    };
    match attach(socket).map_err(failed)? {
        Detached::ByUser => message(&format!("left the console of {name}")),
        Detached::MachineEnded => message(&format!("{name} has ended")),
    }
    Ok(())
}
