//! `microvm share-path`, and the hidden command that serves a closure-only share.

use super::machine::{failed, find_as_recorder};
use super::spec_file::Overrides;
use launcher::launch::ClosureView;
use launcher::path::HostPath;
use launcher::share_view::{ControlSocket, View, ViewError, forbid_file_handles, read_list, request};
use program::child::{OnParentDeath, prepare};
use program::failure::Failure;
use std::ffi::OsString;
use std::process::Command;

/// Make more store paths visible to a running machine with a closure-only share of /nix/store
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The machine: its name or its spec file
    machine: String,
    /// Store paths
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    #[command(flatten)]
    overrides: Overrides,
}

pub(crate) fn add(arguments: &Arguments) -> Result<(), Failure> {
    let machine = find_as_recorder(&arguments.machine, &arguments.overrides)?;
    let (Some(_), Some(launch)) = (machine.activity.running(), &machine.launch) else {
        return Err(machine.is_not_running());
    };
    let views: Vec<&ClosureView> = launch.needs.processes.iter().filter_map(|process| process.view.as_ref()).collect();
    if views.is_empty() {
        let reason = format!("{}: no share has closureOnly, so there is nothing to add paths to", launch.name);
        return Err(Failure::usage(reason));
    }
    for view in views {
        request(view, &launch.working_directory, &arguments.paths).map_err(|error| match error {
            ViewError::NotStorePath(_) => Failure::usage(error.to_string())
                .with_hint("`realpath` prints the store path of a link; a path in a store path is visible with it"),
            error => failed(error),
        })?;
    }
    Ok(())
}

/// Serve a closure-only share: show only some store paths to a program
#[derive(clap::Args)]
pub(crate) struct ServeArguments {
    /// The directory with all store paths
    #[arg(long)]
    source: HostPath,
    /// The list of store paths to show, one per line
    #[arg(long)]
    closure: HostPath,
    /// The socket that accepts further store paths
    #[arg(long)]
    control: HostPath,
    /// The program that serves the view, with its arguments; without one, this process only keeps the view
    #[arg(last = true)]
    command: Vec<OsString>,
}

pub(crate) fn serve(arguments: &ServeArguments) -> Result<(), Failure> {
    let names = read_list(&arguments.closure).map_err(failed)?;
    let control = ControlSocket::make(&arguments.control).map_err(failed)?;
    let view = View::make(&arguments.source, &names).map_err(failed)?;
    let listener = control.listen().map_err(failed)?;
    let Some((program, words)) = arguments.command.split_first() else {
        view.serve_requests(&listener);
        return Ok(());
    };
    let mut command = Command::new(program);
    command.args(words);
    prepare(&mut command, OnParentDeath::Terminate, None);
    forbid_file_handles().map_err(failed)?;
    let program = program.to_string_lossy().into_owned();
    let start = |source| failed(ViewError::Start { program: program.clone(), source });
    let mut child = command.spawn().map_err(start)?;
    std::thread::spawn(move || view.serve_requests(&listener));
    let status = child.wait().map_err(start)?;
    if status.success() { Ok(()) } else { Err(failed(ViewError::Ended { program, status })) }
}
