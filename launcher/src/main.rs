//! `microvm`: starts and tends microVMs.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
