//! `microvm volumes`: creates a machine's missing volumes.

use super::machine::{failed, launch_of, watch_signals};
use super::spec_file::{SpecArguments, read};
use launcher::own_files::require_no_own_file;
use launcher::path::HostPath;
use launcher::state::RuntimeDirectory;
use launcher::volumes::{VolumeError, VolumeState, content, make_ready};
use program::failure::Failure;
use program::output::print;
use program::user::Identity;
use serde_json::json;

/// Create a machine's missing volumes and check the others
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    spec: SpecArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let overrides = &arguments.spec.overrides;
    let spec = read(&arguments.spec.spec, overrides)?;
    let interruption = watch_signals()?;
    overrides.require_state_directory()?;
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let launch = launch_of(&spec, overrides, &runtime, &interruption)?;
    require_no_own_file(&launch, &runtime).map_err(failed)?;
    let identity = launch.user.as_deref().map(Identity::of).transpose().map_err(failed)?;
    let identity = identity.filter(|_| nix::unistd::geteuid().is_root());
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    for need in &launch.needs.volumes {
        let mut need = need.clone();
        need.image = need.image.below(&launch.working_directory);
        match make_ready(&need, identity.as_ref(), &interruption) {
            Ok(state) => match content(&need) {
                Ok(found) => done.push((need.image, found, state)),
                Err(error) => problems.push(error.to_string()),
            },
            Err(error @ VolumeError::Interrupted(_)) => return Err(failed(error)),
            Err(error) => problems.push(error.to_string()),
        }
    }
    let state_name = |state| if state == VolumeState::Created { "created" } else { "present" };
    let text = if arguments.json {
        let rows = done
            .iter()
            .map(|(image, found, state)| json!({"image": image, "fsType": found, "state": state_name(*state)}));
        format!("{:#}\n", serde_json::Value::Array(rows.collect()))
    } else {
        let row = |(image, found, state): &(HostPath, Option<&str>, VolumeState)| {
            format!("{image}  {}  {}\n", found.unwrap_or("no known file system"), state_name(*state))
        };
        done.iter().map(row).collect()
    };
    print(text)?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems(problems)) }
}
