//! The command line. One file a command: its arguments as clap types, and `run`, which carries it out. Nothing but this
//! module knows clap, and nothing but [`progress`] knows indicatif.

mod build;
mod cache;
mod cache_location;
mod diff;
mod extract;
mod failure;
mod inspect;
mod interrupt;
mod manual;
mod plan;
mod progress;
mod settings;
mod size;
mod source;
mod streams;
#[cfg(test)]
mod tests;
mod thread_count;
mod verify;
mod volume;

use clap::{Parser, Subcommand};
use failure::Failure;
use std::process::ExitCode;

/// Builds and reads the store disk of a NixOS microVM.
///
/// The disk is a squashfs of a closure: the store paths a system needs, as `/nix/store` holds them. It is built on all
/// cores, from a cache of what did not change, and is the same byte for byte whenever the store paths and settings are
/// the same.
///
/// Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 bad input or usage, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "microvm-image", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(Box<build::BuildArgs>),
    Plan(Box<plan::PlanArgs>),
    Verify(Box<verify::VerifyArgs>),
    Inspect(inspect::InspectArgs),
    Extract(extract::ExtractArgs),
    Diff(diff::DiffArgs),
    Size(size::SizeArgs),
    Cache(cache::CacheArgs),
    Volume(volume::VolumeArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

/// Reads the arguments of this process, does what they ask, and says on stderr what went wrong, once.
pub(crate) fn main() -> ExitCode {
    let cli = arguments();
    let result = interrupt::install().and_then(|()| run(cli.command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The arguments, or the end of the program with what clap says of them.
fn arguments() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        // It quotes what was given, which may steer the terminal: so it is made to quote that as it may be shown.
        let shown = std::env::args_os().map(|argument| match argument.to_str() {
            Some(text) => streams::visible_line(text).into_owned().into(),
            None => argument,
        });
        Cli::try_parse_from(shown).err().unwrap_or(error).exit()
    })
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Build(args) => build::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Size(args) => size::run(&args),
        Command::Cache(args) => cache::run(args),
        Command::Volume(args) => volume::run(args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}
