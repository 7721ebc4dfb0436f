//! Registering machines with systemd-machined, for `machinectl`: org.freedesktop.machine1(5).

use super::ImperativeError;
use std::process::Command;

const MANAGER: [&str; 4] =
    ["call", "org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager"];

/// Registers the machine and its process.
///
/// # Errors
/// Fails if busctl cannot be started or fails.
pub fn register(name: &str, machine_id: Option<&str>, leader: u32) -> Result<(), ImperativeError> {
    let digits: String = machine_id.unwrap_or_default().chars().filter(char::is_ascii_hexdigit).collect();
    let id: Vec<String> = (0..digits.len() / 2)
        .filter_map(|at| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok())
        .map(|byte| byte.to_string())
        .collect();
    let mut command = Command::new("busctl");
    command.args(MANAGER).args(["RegisterMachine", "sayssus", name]).arg(id.len().to_string()).args(id);
    command.args(["microvm", "vm", &leader.to_string(), ""]);
    run(command, "busctl RegisterMachine")
}

/// Removes the registration of the machine.
///
/// # Errors
/// Fails if busctl cannot be started or fails.
pub fn unregister(name: &str) -> Result<(), ImperativeError> {
    let mut command = Command::new("busctl");
    command.args(MANAGER).args(["UnregisterMachine", "s", name]);
    run(command, "busctl UnregisterMachine")
}

fn run(mut command: Command, program: &str) -> Result<(), ImperativeError> {
    let status = command.status().map_err(|source| ImperativeError::NoProgram { program: "busctl", source })?;
    if status.success() {
        return Ok(());
    }
    Err(ImperativeError::Program { program: program.to_owned(), status, output: String::new() })
}
