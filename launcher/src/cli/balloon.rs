//! `microvm balloon`: how much of a machine's memory is returned to the host.

use super::machine::{failed, find_as_recorder};
use super::spec_file::Overrides;
use launcher::balloon::{change, resize, resizes_in_steps, size_mib};
use program::failure::Failure;
use program::output::print;

/// Show or set the size of a machine's balloon: the memory it returns to the host
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine: its name or its spec file
    machine: String,
    /// New size in MiB, or a change +N or -N; kvmtool supports only changes, because it does not report the size
    #[arg(value_name = "MIB", allow_hyphen_values = true, value_parser = size_of)]
    size: Option<Size>,
    #[command(flatten)]
    overrides: Overrides,
}

/// A size, or a change of it, in MiB.
#[derive(Clone, Copy)]
enum Size {
    To(u64),
    By(i32),
}

fn size_of(text: &str) -> Result<Size, String> {
    let parsed = if text.starts_with(['+', '-']) { text.parse().map(Size::By) } else { text.parse().map(Size::To) };
    parsed.map_err(|_| "it must be a size in MiB, or a change as in +64 or -64".to_owned())
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let machine = find_as_recorder(&arguments.machine, &arguments.overrides)?;
    let (Some(_), Some(launch)) = (machine.activity.running(), &machine.launch) else {
        return Err(machine.is_not_running());
    };
    match (arguments.size, resizes_in_steps(launch)) {
        (None, _) => {
            let size_mib = size_mib(launch).map_err(failed)?;
            print(format!("{size_mib}\n"))
        }
        (Some(Size::By(step)), true) => change(launch, step).map_err(failed),
        (Some(Size::To(size)), true) => {
            Err(Failure::usage(format!("`{size}` is not a change in MiB, as in +64 or -64")))
        }
        (Some(Size::By(step)), false) => {
            let size_mib = size_mib(launch).map_err(failed)?.saturating_add_signed(step.into());
            resize(launch, size_mib).map_err(failed)
        }
        (Some(Size::To(size)), false) => resize(launch, size).map_err(failed),
    }
}
