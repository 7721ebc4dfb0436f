//! The commands that change a running cluster.

use super::failure;
use launcher::cluster::operations::{self, OperationError, Wait};
use program::failure::Failure;
use program::input::{MAX_SECONDS, up_to};
use program::output::{message, warn};
use std::path::PathBuf;
use std::time::Duration;

/// Copy a runner to all hosts
///
/// The closure is copied with `nix copy` over ssh as root, and protected from garbage collection. The machine keeps
/// running unchanged until `microvm cluster update`.
#[derive(clap::Args)]
pub(crate) struct PushArguments {
    /// The machine
    #[arg(value_name = "MACHINE")]
    clustered: String,
    /// The runner, a store path or a link to it
    runner: PathBuf,
}

/// Restart a machine with another runner
///
/// All hosts that are online must have the runner: see `microvm cluster push`. A host that takes over the machine later
/// uses it too. A change of the machine's memory, CPUs or volumes must be applied with `microvm cluster apply` instead.
#[derive(clap::Args)]
pub(crate) struct UpdateArguments {
    /// The machine
    #[arg(value_name = "MACHINE")]
    clustered: String,
    /// The runner, a store path or a link to it
    runner: PathBuf,
}

/// Move a machine to another host
#[derive(clap::Args)]
pub(crate) struct MoveArguments {
    /// The machine
    #[arg(value_name = "MACHINE")]
    clustered: String,
    /// The host
    node: String,
    /// How long to wait for the move, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = up_to::<MAX_SECONDS>)]
    wait: u64,
}

/// Move all machines away from a host, and start none on it
#[derive(clap::Args)]
pub(crate) struct DrainArguments {
    /// The host
    node: String,
    /// How long to wait, in seconds, until the machines have left; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = up_to::<MAX_SECONDS>)]
    wait: u64,
}

/// Let machines run on a drained host again
#[derive(clap::Args)]
pub(crate) struct UndrainArguments {
    /// The host
    node: String,
}

/// Let the cluster start, stop and move a machine again
#[derive(clap::Args)]
pub(crate) struct ManageArguments {
    /// The machine
    #[arg(value_name = "MACHINE")]
    clustered: String,
}

/// Stop the cluster from starting, stopping and moving a machine
#[derive(clap::Args)]
pub(crate) struct UnmanageArguments {
    /// The machine
    #[arg(value_name = "MACHINE")]
    clustered: String,
}

/// Confirm that a failed host is off, so that its machines start elsewhere
///
/// Use this only if the fence device has failed too, and you have switched the host off yourself. If the host still
/// runs, two hosts write to the same volumes, which destroys them.
#[derive(clap::Args)]
pub(crate) struct AckFenceArguments {
    /// The host
    node: String,
    /// Confirm that you have checked that the host is off
    #[arg(long, required = true)]
    is_off: bool,
}

fn done(result: Result<(), OperationError>, text: &str) -> Result<(), Failure> {
    result.map_err(|error| failure(&error))?;
    message(text);
    Ok(())
}

pub(crate) fn push(arguments: &PushArguments) -> Result<(), Failure> {
    let nodes = operations::push(&arguments.clustered, &arguments.runner).map_err(|error| failure(&error))?;
    message(&format!("{} have the runner of {}", nodes.join(", "), arguments.clustered));
    Ok(())
}

pub(crate) fn update(arguments: &UpdateArguments) -> Result<(), Failure> {
    let name = &arguments.clustered;
    let updated = operations::update(name, &arguments.runner);
    let hint = match &updated {
        Err(OperationError::OnHosts(_)) => {
            Some(format!("copy it to all hosts: microvm cluster push {name} {}", arguments.runner.display()))
        }
        _ => None,
    };
    warn(&updated.map_err(|error| failure(&error).with_optional_hint(hint))?);
    message(&format!("the cluster restarts {name} from the new runner"));
    Ok(())
}

pub(crate) fn move_machine(arguments: &MoveArguments) -> Result<(), Failure> {
    let (machine, node) = (&arguments.clustered, &arguments.node);
    let moved = operations::move_machine(machine, node, Duration::from_secs(arguments.wait));
    done(moved, &format!("{machine} runs on {node}"))
}

pub(crate) fn drain(arguments: &DrainArguments) -> Result<(), Failure> {
    let wait = if arguments.wait == 0 { Wait::No } else { Wait::For(Duration::from_secs(arguments.wait)) };
    done(operations::drain(&arguments.node, wait), &format!("{} is drained", arguments.node))
}

pub(crate) fn undrain(arguments: &UndrainArguments) -> Result<(), Failure> {
    done(operations::undrain(&arguments.node), &format!("{} runs machines again", arguments.node))
}

pub(crate) fn manage(arguments: &ManageArguments) -> Result<(), Failure> {
    done(operations::manage(&arguments.clustered), &format!("the cluster manages {}", arguments.clustered))
}

pub(crate) fn unmanage(arguments: &UnmanageArguments) -> Result<(), Failure> {
    done(operations::unmanage(&arguments.clustered), &format!("the cluster does not manage {}", arguments.clustered))
}

pub(crate) fn ack_fence(arguments: &AckFenceArguments) -> Result<(), Failure> {
    let node = &arguments.node;
    done(operations::acknowledge_fencing(node), &format!("{node} counts as off; its machines start elsewhere"))
}
