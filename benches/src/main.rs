//! Benchmarks against the peers: `cargo run --release -p benches -- SCENARIO`.

use std::path::PathBuf;
use std::process::ExitCode;

use benches::error::{Error, file};
use benches::{guest_read, read, say, talk};
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
        /// Read the files of every N-th store path only
        #[arg(long, default_value_t = 1, value_name = "N")]
        every: usize,
        /// Read them where they lie instead of from a copy in memory
        #[arg(long)]
        on_disk: bool,
        /// Write every single value as JSON here
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// The same inside a guest kernel (Debian's) that qemu emulates: only the ratios mean something
    GuestRead {
        /// squashfs or erofs images
        #[arg(required = true)]
        images: Vec<PathBuf>,
        /// How often each is read
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Read the files of every N-th store path only: all of a store of 0.6 GB takes about 2 minutes an image and round
        #[arg(long, default_value_t = 4, value_name = "N")]
        every: usize,
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
        Scenario::Read { images, rounds, every, on_disk, json } => {
            let backing = if on_disk { read::Backing::Disk } else { read::Backing::Memory };
            show_readings(&read::run(&images, read::Extent { rounds, every }, backing)?, json)
        }
        Scenario::GuestRead { images, rounds, every, json } => {
            show_readings(&guest_read::run(&images, read::Extent { rounds, every })?, json)
        }
    }
}

fn show_readings(results: &[read::ImageReadings], json: Option<PathBuf>) -> Result<(), Error> {
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(results).map_err(|error| Error::Unexpected(error.to_string()))?;
        std::fs::write(&path, text).map_err(file("write", path))?;
    }
    say(&read::tables(results));
    Ok(())
}
