//! `microvm clone`: another machine that continues where a suspended one is.

use super::machine::{checked, failed, launch_of, watch_signals};
use super::spec_file::{Overrides, read_with_origin};
use launcher::imperative::{CloneError, CloneRequest, Layout, MachineActivity, MachineName, Phase, clone};
use launcher::isolation::STORE_DISKS;
use launcher::state::RuntimeDirectory;
use launcher::suspend::SuspendError;
use program::failure::{Failure, INTERRUPTED};
use program::output::{message, print};
use std::path::Path;

/// Clone a suspended machine of this host; the clone continues where the original was
///
/// The clone has the same runner, copies of the volumes and of what was saved, and its own name, tap interfaces, vsock
/// address, and machine ID. The copies take no space until they are written to if the file system can share blocks
/// (btrfs, XFS). Start the clone with `microvm resume NEW`. The original stays suspended.
///
/// Until the clone's guest reboots, it keeps everything that is in its memory: host name, machine ID, SSH host keys,
/// MAC and IP addresses, open connections, keys and tokens of its programs. So it is not started while another machine
/// with these MAC addresses may be on the same network. firecracker, and qemu except for the machine model microvm,
/// notify the guest's kernel, which then reseeds its random number generator; otherwise both guests may produce the
/// same numbers.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The suspended machine
    #[arg(value_parser = name_of)]
    name: MachineName,
    /// The name of the clone
    #[arg(value_parser = name_of)]
    new: MachineName,
    /// Let the clone run at the same time as machines with the same MAC addresses; you must keep their networks apart
    #[arg(long)]
    allow_same_mac: bool,
}

fn name_of(text: &str) -> Result<MachineName, String> {
    MachineName::new(text).map_err(|error| error.to_string())
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interruption = watch_signals()?;
    let layout = Layout::of_environment();
    let (name, new) = (&arguments.name, &arguments.new);
    let original = layout.existing(name).map_err(|error| Failure::usage(error.to_string()))?;
    if MachineActivity::of(&original).map_err(failed)?.phase() != Phase::Stopped {
        let hint = format!("suspend it first: microvm suspend {name}");
        return Err(Failure::problems(vec![format!("{name} is running")]).with_hint(hint));
    }
    let overrides = Overrides {
        hypervisor: None,
        accel: None,
        state_dir: Some(original.directory.clone()),
        name: Some(name.to_string()),
    };
    let runner = original.runner().map_err(failed)?;
    let (spec, origin) = read_with_origin(&runner.join("share/microvm/machine.json"), &overrides)?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let launch = launch_of(&spec, &overrides, &runtime, &interruption)?;
    let request = CloneRequest {
        layout: &layout,
        runtime: &runtime,
        original: &original,
        spec: &spec,
        checked: &checked(&spec)?,
        launch: &launch,
        described: origin.as_ref().map_or(name.as_str(), |origin| &origin.record.clone_of),
        same_mac_is_allowed: arguments.allow_same_mac,
        store_disks: Path::new(STORE_DISKS),
    };
    let made = clone(request, new, &interruption).map_err(|error| clone_failure(error, name))?;
    let space = match made.copied_bytes.div_ceil(1 << 20) {
        0 => "it shares all blocks with the original".to_owned(),
        mib => format!("{mib} MiB were copied, because this file system cannot share blocks"),
    };
    message(&format!("{new} is a clone of {name}: {space}; start it with: microvm resume {new}"));
    print(format!("{}\n", made.machine.directory.display()))
}

fn clone_failure(error: CloneError, name: &MachineName) -> Failure {
    let hint = match &error {
        CloneError::Suspend(SuspendError::NotSuspended(_)) => Some(format!("suspend it first: microvm suspend {name}")),
        CloneError::Suspend(SuspendError::Changed { .. }) => {
            Some(format!("undo the change; or let {name} boot, and suspend it again"))
        }
        _ => None,
    };
    let failure = match &error {
        _ if error.is_bad_input() => Failure::input_problems(error.problems()),
        CloneError::Suspend(SuspendError::Interrupted) => failed(error).with_code(INTERRUPTED),
        CloneError::Suspend(SuspendError::Changed { .. }) => Failure::problems(error.problems()),
        _ => failed(error),
    };
    failure.with_optional_hint(hint)
}
