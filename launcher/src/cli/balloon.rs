//! `microvm balloon`: how much of a machine's memory is returned to the host.

use super::machine::{failed, find_as_recorder};
use super::spec_file::Overrides;
use launcher::balloon::{change, resize, resizes_in_steps, size_mib};
use launcher::launch::Launch;
use program::failure::Failure;
use program::output::print;

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
    let machine = find_as_recorder(&arguments.machine, &arguments.overrides)?;
    let (Some(_), Some(launch)) = (machine.activity.running(), &machine.launch) else {
        return Err(machine.is_not_running());
    };
    match &arguments.size {
        None => {
            let size_mib = size_mib(launch).map_err(failed)?;
            print(format!("{size_mib}\n"))
        }
        Some(size) => set(launch, size),
    }
}

fn set(launch: &Launch, size: &str) -> Result<(), Failure> {
    let bad = |wanted: &str| Failure::usage(format!("`{size}` is not {wanted}"));
    let is_step = size.starts_with(['+', '-']);
    if resizes_in_steps(launch) {
        let step = size.parse().ok().filter(|_| is_step);
        return change(launch, step.ok_or_else(|| bad("a change in MiB, as in +64 or -64"))?).map_err(failed);
    }
    let wanted = "a size in MiB, or a change as in +64 or -64";
    let size_mib = if is_step {
        let step: i64 = size.parse().map_err(|_| bad(wanted))?;
        size_mib(launch).map_err(failed)?.saturating_add_signed(step)
    } else {
        size.parse().map_err(|_| bad(wanted))?
    };
    resize(launch, size_mib).map_err(failed)
}
