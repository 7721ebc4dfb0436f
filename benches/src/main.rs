//! Benchmarks against the peers: `cargo run --release -p benches -- SCENARIO`.

use std::path::PathBuf;
use std::process::ExitCode;

use benches::builds::{self, Readings};
use benches::error::{Error, file};
use benches::method::Method;
use benches::results::Results;
use benches::timings::Timings;
use benches::{boot, guest_read, read, say, scale, start_up, talk, workspace};
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
    /// Everything that is quoted: `build` with reading in a guest, `scale` in memory, `boot`, `start-up`; takes hours on two cores
    All {
        /// How often each contender of `build` runs
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// Build images of stores in turn with every tool; writes raw values, tables and plots
    Build {
        /// Stores by their package list in fixtures/closure/packages
        #[arg(default_values_t = ["server".to_owned(), "desktop".to_owned()])]
        stores: Vec<String>,
        /// How often each contender runs
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Only the contests whose title has this in it: `defaults`, `level 9`, `rebuild`
        #[arg(long, default_value = "", hide_default_value = true)]
        only: String,
        /// Also read the images: by loop mount, or in a guest too (slow)
        #[arg(long, value_enum, default_value_t = ReadImages::No)]
        read: ReadImages,
        /// Where to write [default: benches/results/DATE]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Build images of made-up stores of ever more small files, and of ever more bytes in large ones
    Scale {
        /// Counts of files
        #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000, 1_000_000])]
        files: Vec<usize>,
        /// Megabytes in files of 16 MB
        #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 4_000])]
        megabytes: Vec<usize>,
        /// How often each contender runs
        #[arg(long, default_value_t = 1)]
        rounds: usize,
        /// Where the stores are made [default: beside the fixtures]; in a tmpfs (`/dev/shm`) no disk and no eviction from
        /// the page cache is measured, for about 5 KiB of memory a file
        #[arg(long)]
        directory: Option<PathBuf>,
        /// Where to write [default: benches/results/DATE-scale]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Make the table and the plots of results anew from their raw values
    Draw {
        /// Directories with a `raw.json`
        #[arg(required = true)]
        results: Vec<PathBuf>,
    },
    /// Measure what `microvm run` takes before the hypervisor runs, for a machine with ten devices
    StartUp {
        /// How often it is started
        #[arg(long, default_value_t = 50)]
        rounds: usize,
        /// Where to write [default: benches/results/DATE-start-up]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Boot an emulated guest from the images that everybody's defaults make of one closure
    Boot {
        /// How often each boots
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Where to write [default: benches/results/DATE-boot]
        #[arg(long)]
        results: Option<PathBuf>,
    },
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ReadImages {
    No,
    Loop,
    Guest,
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
        Scenario::Build { stores, rounds, only, read, results } => {
            let readings = match read {
                ReadImages::No => Readings::None,
                ReadImages::Loop => Readings::LoopMount,
                ReadImages::Guest => Readings::LoopMountAndGuest,
            };
            let measured = builds::run(&stores, &builds::Extent { rounds, only, readings })?;
            keep(&measured, results, "")
        }
        Scenario::All { rounds } => all(rounds),
        Scenario::Scale { files, megabytes, rounds, directory, results } => {
            let directory = directory.unwrap_or_else(workspace::fixtures);
            keep(&scale::run(&scale::Extent { files, megabytes, rounds }, &directory)?, results, "-scale")
        }
        Scenario::Draw { results } => {
            results.iter().try_for_each(|directory| Results::read(directory)?.draw(directory))
        }
        Scenario::StartUp { rounds, results } => keep_timings(start_up::run(rounds)?, results, "-start-up"),
        Scenario::Boot { rounds, results } => keep_timings(boot::run(rounds)?, results, "-boot"),
        Scenario::Read { images, rounds, every, on_disk, json } => {
            let backing = if on_disk { read::Backing::Disk } else { read::Backing::Memory };
            show_readings(&read::run(&images, read::Extent { rounds, every }, backing)?, json)
        }
        Scenario::GuestRead { images, rounds, every, json } => {
            show_readings(&guest_read::run(&images, read::Extent { rounds, every })?, json)
        }
    }
}

/// Every scenario as it is by itself, with its defaults, into the directory that it would have.
fn all(rounds: usize) -> Result<(), Error> {
    let rounds = rounds.to_string();
    let scenarios: [&[&str]; 4] = [
        &["build", "--rounds", &rounds, "--read", "guest"],
        &["scale", "--directory", "/dev/shm"],
        &["boot"],
        &["start-up"],
    ];
    scenarios.iter().try_for_each(|words| run(Arguments::parse_from(["benches"].iter().chain(*words))))
}

fn keep_timings(timings: Timings, directory: Option<PathBuf>, suffix: &str) -> Result<(), Error> {
    let method = Method::now(&builds::programs()?)?;
    keep(&Results { method, stores: Vec::new(), timings: vec![timings] }, directory, suffix)
}

/// Writes the results into their directory and shows the tables.
fn keep(measured: &Results, directory: Option<PathBuf>, suffix: &str) -> Result<(), Error> {
    let usual = || workspace::root().join("benches/results").join(format!("{}{suffix}", measured.method.date));
    let directory = directory.unwrap_or_else(usual);
    measured.write(&directory)?;
    say(&measured.markdown());
    talk(&format!("benches: results are in {}", directory.display()));
    Ok(())
}

fn show_readings(results: &[read::ImageReadings], json: Option<PathBuf>) -> Result<(), Error> {
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(results).map_err(|error| Error::Unexpected(error.to_string()))?;
        std::fs::write(&path, text).map_err(file("write", path))?;
    }
    say(&read::tables(results));
    Ok(())
}
