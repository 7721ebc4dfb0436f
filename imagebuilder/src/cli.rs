//! The command line. Each command has one file with its arguments as clap types and `run`, which carries it out. Only
//! this module uses clap, and only [`progress`] uses indicatif.

mod build;
mod cache;
mod cache_location;
mod cache_serve;
mod diff;
mod extract;
mod failure;
mod inspect;
mod interrupt;
mod manual;
mod plan;
mod progress;
mod serve;
mod settings;
mod size;
mod source;
#[cfg(test)]
mod tests;
mod thread_count;
mod verify;
mod volume;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use failure::Failure;
use std::process::ExitCode;

/// Build and read the store disk of a NixOS microVM.
///
/// The disk is an image of a closure: all store paths that a system needs. It is a compressed squashfs, built on all
/// cores with a cache of unchanged content, or an uncompressed erofs. Equal store paths and settings produce the same
/// image, byte for byte.
///
/// Data goes to stdout, messages to stderr. Exit codes: 0 success, 1 failure, 2 bad input or usage, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "microvm-image", version = program::version::version(), max_term_width = 100, disable_help_subcommand = true)]
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
    Serve(Box<serve::ServeArgs>),
    Cache(cache::CacheArgs),
    Volume(volume::VolumeArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

/// Runs the command that the arguments of this process select, and reports its failure on stderr.
pub(crate) fn main() -> ExitCode {
    let cli = arguments();
    let result = interrupt::install().and_then(|()| run(cli.command));
    warn_of_missing_threads();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Tells the user that threads could not be started, once.
fn warn_of_missing_threads() {
    let warnings: Vec<_> = imagebuilder::threads::take_shortage().iter().map(ToString::to_string).collect();
    program::output::warn(&warnings);
}

/// The arguments. If they are invalid, the program ends with clap's message.
fn arguments() -> Cli {
    let parsed = with_negative_numbers(Cli::command()).try_get_matches().and_then(|matches| {
        if wants_json(&matches) {
            program::output::report_as_json();
        }
        Cli::from_arg_matches(&matches)
    });
    parsed.unwrap_or_else(|error| {
        // clap quotes the arguments, which may contain control characters: parse escaped arguments again for the
        // message.
        let shown = program::output::escaped_arguments(std::env::args_os());
        let again = with_negative_numbers(Cli::command()).try_get_matches_from(&shown);
        let error = again.and_then(|matches| Cli::from_arg_matches(&matches)).err().unwrap_or(error);
        if error.use_stderr() {
            program::output::report_usage_as_json(&shown, &error.render().to_string());
        }
        error.exit()
    })
}

/// Accepts `-1` as the value of the option before it. The option then says what would be valid, whereas clap would call it
/// an unknown option.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let args =
        command.mut_args(|arg| if arg.get_action().takes_values() { arg.allow_negative_numbers(true) } else { arg });
    args.mut_subcommands(with_negative_numbers)
}

/// Whether the selected command has the option `--json`, and it was given.
fn wants_json(matches: &ArgMatches) -> bool {
    let inner = matches.subcommand().is_some_and(|(_, matches)| wants_json(matches));
    inner || matches!(matches.try_get_one("json"), Ok(Some(true)))
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
        Command::Serve(args) => serve::run(&args),
        Command::Cache(args) => cache::run(args),
        Command::Volume(args) => volume::run(args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}
