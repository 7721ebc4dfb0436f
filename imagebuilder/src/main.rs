//! `microvm-image`: builds and reads the store disk of a NixOS microVM.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
