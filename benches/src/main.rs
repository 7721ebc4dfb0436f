//! Benchmarks against the peers: `cargo run --release -p benches -- SCENARIO`.

use std::path::PathBuf;
use std::process::ExitCode;

use benches::error::{Error, file};
use benches::read;
use benches::{say, talk};
use clap::{Parser, Subcommand};

/// Measures microvm-image and microvm against their peers, in turn, in one run.
#[derive(Debug, Parser)]
#[command(name = "benches", version)]
struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Read images of one store through loop mounts with cold caches; the first is what the others are compared with
    Read {
        /// squashfs or erofs images
        #[arg(required = true)]
        images: Vec<PathBuf>,
        /// How often each is read
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Read them where they lie instead of from a copy in memory
        #[arg(long)]
        on_disk: bool,
        /// Write every single value as JSON here
        #[arg(long)]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            talk(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Error> {
    match arguments.scenario {
        Scenario::Read { images, rounds, on_disk, json } => {
            let backing = if on_disk { read::Backing::Disk } else { read::Backing::Memory };
            let results = read::run(&images, rounds, backing)?;
            if let Some(path) = json {
                let text =
                    serde_json::to_string_pretty(&results).map_err(|error| Error::Unexpected(error.to_string()))?;
                std::fs::write(&path, text).map_err(file("write", path))?;
            }
            say(&read::tables(&results));
        }
    }
    Ok(())
}
