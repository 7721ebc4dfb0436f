//! `microvm`: runs and manages microVMs.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
