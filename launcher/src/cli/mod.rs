//! The command line: one file a command. Results go to stdout, talk to stderr.

mod check;
mod explain;
mod failure;
mod output;
mod reference;
mod spec_file;
mod status;

use clap::{Parser, Subcommand};
use failure::Failure;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "microvm", version, about = "Starts and tends microVMs", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Arguments),
    Explain(explain::Arguments),
    Status(status::Arguments),
    Schema(reference::SchemaArguments),
    Capabilities(reference::CapabilitiesArguments),
    Completions(reference::CompletionsArguments),
    Man(reference::ManArguments),
}

pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { failure::BAD_INPUT } else { 0 };
            // Nothing is left to be told to when even that cannot be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match carry_out(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn carry_out(command: Command) -> Result<(), Failure> {
    match command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Schema(arguments) => reference::schema(&arguments),
        Command::Capabilities(arguments) => reference::capabilities(&arguments),
        Command::Completions(arguments) => reference::completions(&arguments),
        Command::Man(arguments) => reference::man(&arguments),
    }
}
