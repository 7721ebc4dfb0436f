//! `microvm-image completions` and `microvm-image man`: made from the same clap types that read the arguments, so they
//! cannot lag behind.

use super::failure::Failure;
use super::{Cli, streams};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;

/// Print the completions of a shell
///
/// For bash, for instance: microvm-image completions bash > /etc/bash_completion.d/microvm-image
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete in
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print the manual page, or write those of all commands to a directory
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory for one page a command, microvm-image.1, microvm-image-build.1 and so on [default: the page of the
    /// whole program to stdout]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "microvm-image", &mut script);
    if args.shell == Shell::Bash {
        // clap_complete 4.6 takes the dash of the program's name for the one between two commands, in one of the two
        // places where it names them: then bash completes the first word only. `tests/cli_help.rs` asks bash.
        let text = String::from_utf8_lossy(&script).replace("microvm__subcmd__image", "microvm__image");
        script = text.into_bytes();
    }
    streams::print(&script)
}

pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let Some(directory) = &args.output else {
        let mut text = Vec::new();
        let rendered = clap_mangen::Man::new(Cli::command()).render(&mut text);
        rendered.map_err(|error| Failure::failed(&error).with_context("cannot write the manual page"))?;
        return streams::print(&text);
    };
    clap_mangen::generate_to(Cli::command(), directory).map_err(|error| {
        Failure::failed(&error).with_context(&format!("cannot write the manual pages to {}", directory.display()))
    })
}
