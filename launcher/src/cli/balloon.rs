//! `microvm balloon`: how much of a machine's memory is returned to the host.

use super::failure::Failure;
use super::machine::{KnownMachine, failed, find};
use super::output::write_stdout;
use super::spec_file::Overrides;
use launcher::balloon::{change, only_by_steps, resize, size_mib};

/// Show or set the size of a machine's balloon: the memory it returns to the host
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine: its name, or the file of its spec
    machine: String,
    /// New size in MiB, or a change +N or -N; kvmtool supports only changes, because it does not report the size
    #[arg(value_name = "MIB", allow_hyphen_values = true)]
    size: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let machine = find(&arguments.machine, &arguments.overrides)?;
    if machine.running.is_none() {
        return Err(Failure::many(vec![format!("{} is not running", machine.state.name())]));
    }
    match &arguments.size {
        None => {
            let size_mib = size_mib(&machine.launch).map_err(failed)?;
            write_stdout(&format!("{size_mib}\n"))
        }
        Some(size) => set(&machine, size),
    }
}

fn set(machine: &KnownMachine, size: &str) -> Result<(), Failure> {
    let bad = |wanted: &str| Failure::bad_input(vec![format!("`{size}` is not {wanted}")]);
    let is_step = size.starts_with(['+', '-']);
    if only_by_steps(&machine.launch) {
        let step = size.parse().ok().filter(|_| is_step);
        return change(&machine.launch, step.ok_or_else(|| bad("a change in MiB, as in +64 or -64"))?).map_err(failed);
    }
    let wanted = "a size in MiB, or a change as in +64 or -64";
    let size_mib = if is_step {
        let step: i64 = size.parse().map_err(|_| bad(wanted))?;
        size_mib(&machine.launch).map_err(failed)?.saturating_add_signed(step)
    } else {
        size.parse().map_err(|_| bad(wanted))?
    };
    resize(&machine.launch, size_mib).map_err(failed)
}
