//! `microvm-image completions` and `microvm-image man`, generated from the clap types that parse the arguments.

use super::Cli;
use super::failure::Failure;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use program::manual::Sections;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// The sections of the program's manual page that clap does not generate.
const SECTIONS: Sections<'_> = Sections {
    failure: "The work failed although the input is valid, or an image is damaged or differs.",
    environment: &[
        (
            "MICROVM_IMAGE_CACHE",
            "The directory of the cache. Otherwise it is $XDG_CACHE_HOME/microvm-image, ~/.cache/microvm-image, or for \
             root without a home directory /var/cache/microvm-image.",
        ),
        (
            "MICROVM_IMAGE_CACHE_SOCKET",
            "The socket of the host's cache service; /run/microvm-image/cache.sock by default.",
        ),
        ("NIX_STORE_DIR", "The directory before the base names of store paths, as in Nix; /nix/store by default."),
    ],
    files: &[
        ("~/.cache/microvm-image/v2/packs", "One file for each store path in the cache."),
        ("/run/microvm-image/cache.sock", "The socket of the host's cache service."),
    ],
    examples: &[
        (
            "microvm-image build ./result -o store.squashfs",
            "Builds the image of the closure of a link to a store path.",
        ),
        ("microvm-image verify store.squashfs ./result", "Checks an image, and compares it with the store."),
        ("microvm-image cache gc --max-size 20G", "Removes the least recently used entries of the cache."),
    ],
};

/// Print completions for a shell
///
/// Example for bash: microvm-image completions bash > /etc/bash_completion.d/microvm-image
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print the manual page, or write the pages of all commands to a directory
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory to write one page per command to: microvm-image.1, microvm-image-build.1 and so on [default: print the
    /// page of the whole program]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "microvm-image", &mut script);
    if args.shell == Shell::Bash {
        // In one of two places, clap_complete 4.6 confuses the dash in the program's name with the dash between two
        // commands. bash then completes only the first word. `tests/cli_help.rs` checks this with bash.
        let text = String::from_utf8_lossy(&script).replace("microvm__subcmd__image", "microvm__image");
        script = text.into_bytes();
    }
    Ok(program::output::print(&script)?)
}

pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let Some(directory) = &args.output else {
        let mut text = Vec::new();
        let rendered = clap_mangen::Man::new(Cli::command()).render(&mut text);
        rendered.map_err(|error| Failure::failed(&error).with_context("cannot write the manual page"))?;
        text.extend_from_slice(SECTIONS.to_roff().as_bytes());
        return Ok(program::output::print(&text)?);
    };
    let page = directory.join("microvm-image.1");
    clap_mangen::generate_to(Cli::command(), directory)
        .and_then(|()| File::options().append(true).open(page)?.write_all(SECTIONS.to_roff().as_bytes()))
        .map_err(|error| {
            Failure::bad_input(&error)
                .with_context(&format!("cannot write the manual pages to {}", directory.display()))
        })
}
