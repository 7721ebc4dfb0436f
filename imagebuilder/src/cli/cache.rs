//! `microvm-image cache`.

use super::cache_location::CacheDirectoryArgs;
use super::failure::Failure;
use super::streams;
use clap::{Args, Subcommand};
use std::os::unix::ffi::OsStrExt;

/// Look at the cache and keep it in order
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Print the cache's directory
    Path {
        #[command(flatten)]
        directory: CacheDirectoryArgs,
        /// Write JSON to stdout
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(args: CacheArgs) -> Result<(), Failure> {
    match args.command {
        CacheCommand::Path { directory, json } => {
            let directory = directory.directory()?;
            if json {
                return streams::print_json(&serde_json::json!({"version": 1, "path": directory}));
            }
            let mut line = directory.as_os_str().as_bytes().to_vec();
            line.push(b'\n');
            streams::print(&line)
        }
    }
}
