//! The command line: one file a command. Results go to stdout, talk to stderr.

mod failure;
mod output;
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
    Status(status::Arguments),
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
        Command::Status(arguments) => status::run(&arguments),
    }
}
