//! Whether qemu supports the CPU that the spec names. Only qemu knows its models and their properties.

use super::Lowered;
use crate::host::{HostProblem, first_output};
use crate::programs::find_program_of_machine;
use crate::spec::Hypervisor;
use program::child::become_user;
use program::user::Identity;
use std::process::Command;

/// Lets qemu create the CPU, in a machine that then ends because it has no disk with a snapshot.
pub(super) fn unsupported(lowered: &Lowered<'_>, identity: Option<&Identity>) -> Option<HostProblem> {
    let launch = lowered.launch;
    if launch.hypervisor != Hypervisor::Qemu || lowered.spec.cpu.is_none() {
        return None;
    }
    let value = |option: &str| {
        let position = launch.arguments.iter().position(|argument| argument == option)?;
        launch.arguments.get(position + 1).map(String::as_str)
    };
    let (machine, cpu) = (value("-machine")?, value("-cpu")?);
    let model = machine.split(',').next().unwrap_or_default();
    let accelerator = machine.split(',').find(|word| word.starts_with("accel=")).unwrap_or("accel=tcg");
    // A missing program is reported with the others.
    let program = find_program_of_machine(&launch.program, &launch.working_directory).ok()?;
    let mut command = Command::new(&program);
    command.args(["-machine", &format!("{model},{accelerator}"), "-cpu", cpu]);
    command.args(["-m", "8", "-display", "none", "-nodefaults", "-loadvm", "none"]).env_remove("NOTIFY_SOCKET");
    if let Some(identity) = identity {
        become_user(&mut command, identity);
    }
    let output = first_output(command).ok()?;
    let output = String::from_utf8_lossy(&output);
    // It warns about features that the host does not have, and leaves them out.
    let is_refusal = |line: &&str| line.contains("CPU model") || line.contains("-cpu.");
    let line = output.lines().filter(|line| !line.contains("warning: ")).find(is_refusal)?;
    let reason = line.split_once(": ").map_or(line, |(_, reason)| reason);
    let message = format!("{reason}; `{} -cpu help` lists the models and flags", launch.program);
    Some(HostProblem { option: "cpu".to_owned(), message })
}
