//! Benchmarks against the peers: `cargo run --release -p benches -- SCENARIO`.

use std::path::PathBuf;
use std::process::ExitCode;

use benches::builds::{self, Readings};
use benches::error::{Error, file};
use benches::method::Method;
use benches::results::Results;
use benches::store_ways::Way;
use benches::timings::Timings;
use benches::tool::Programs;
use benches::{boot, cache_costs, guest_read, message, print, read, report, scale, start_up, store_ways, workspace};
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
    /// Run all published benchmarks: `build` with reads in a guest, `scale` in memory, `boot` and `start-up`. This
    /// takes hours on two cores
    All {
        /// How often each candidate of `build` runs
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Measure first builds, images from the cache and changed paths in about ten minutes. Needs root for loop mounts
    Quick {
        /// How often each candidate runs; one more round is dropped
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Directory for the results [default: benches/results/DATE-quick]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Measure every value that the goals of the image builder name: `quick`, more levels, large files, peak memory and
    /// sandboxed builds. Takes about half an hour; needs root, and 6 GiB of memory
    Table {
        /// How often each candidate runs; one more round is dropped
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Where to create large synthetic stores
        #[arg(long, default_value = "/dev/shm")]
        directory: PathBuf,
        /// Directory for the results [default: benches/results/DATE-table]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Build images of stores with every tool, taking turns; write raw values, tables and plots
    Build {
        /// Stores, named after package lists in fixtures/closure/packages
        #[arg(default_values_t = ["server".to_owned(), "desktop".to_owned()])]
        stores: Vec<String>,
        /// How often each candidate runs; one more round is dropped
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Run only comparisons whose title contains one of these texts: `defaults`, `level 9`, `rebuild`
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Also read the images: through loop mounts, or in a guest too (slow)
        #[arg(long, value_enum, default_value_t = ReadImages::No)]
        read: ReadImages,
        /// Directory for the results [default: benches/results/DATE]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Build images of synthetic stores with more and more small files, and with more and more bytes in large files
    Scale {
        /// Numbers of small files
        #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000, 1_000_000])]
        files: Vec<usize>,
        /// Megabytes in files of 16 MB
        #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 4_000])]
        megabytes: Vec<usize>,
        /// How often each candidate runs
        #[arg(long, default_value_t = 1)]
        rounds: usize,
        /// Where to create the stores [default: next to the fixtures]. In a tmpfs (`/dev/shm`) neither the disk nor
        /// eviction from the page cache is measured; it takes about 5 KiB of memory per file
        #[arg(long)]
        directory: Option<PathBuf>,
        /// Directory for the results [default: benches/results/DATE-scale]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Regenerate the table and the plots of results from their raw values
    Draw {
        /// Directories with a `raw.json`
        #[arg(required = true)]
        results: Vec<PathBuf>,
    },
    /// Measure the time of `microvm run` until it executes the hypervisor, for a machine with ten devices
    StartUp {
        /// How often to start it; one more round is dropped
        #[arg(long, default_value_t = 50)]
        rounds: usize,
        /// Directory for the results [default: benches/results/DATE-start-up]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Open, read and close the files in a list
    #[command(hide = true)]
    ReadFiles {
        /// One path a line
        list: PathBuf,
    },
    /// Boot an emulated guest from images of one closure that each tool built with its defaults
    Boot {
        /// How often to boot from each image; one more round is dropped
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Directory for the results [default: benches/results/DATE-boot]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Measure the time from a plan to the running hypervisor: a squashfs that is built first, and a disk without an
    /// image
    Live {
        /// The closure: `small`, `system`, `server` or `desktop`
        #[arg(default_value = "system")]
        closure: String,
        /// How often to start; one more round is dropped
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Directory for the results [default: benches/results/DATE-live]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Boot the same emulated guest from a squashfs, a disk without an image, an erofs and persistent memory, until it
    /// is up
    BootWays {
        /// The closure: `small` or `system`
        #[arg(default_value = "system")]
        closure: String,
        /// How often to boot in each way; one more round is dropped
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Directory for the results [default: benches/results/DATE-boot-ways]
        #[arg(long)]
        results: Option<PathBuf>,
    },
    /// Measure the host's memory after emulated guests have read the beginning of their store: squashfs, live, persistent
    /// memory. Prints each line when it is known. Needs root; drops the page cache
    Memory {
        /// The closure: `small` or `system`
        #[arg(default_value = "system")]
        closure: String,
        /// Numbers of guests
        #[arg(long, value_delimiter = ',', default_values_t = [2, 4])]
        guests: Vec<usize>,
        /// How much each guest reads, in MB; the whole store if that is less
        #[arg(long, default_value_t = 200)]
        megabytes: u64,
        /// Ways in which the store reaches the guests
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Way::Squashfs, Way::Live, Way::Pmem])]
        ways: Vec<Way>,
    },
    /// Read images of one store through loop mounts with cold caches; ratios are relative to the first image
    Read {
        /// squashfs or erofs images
        #[arg(required = true)]
        images: Vec<PathBuf>,
        /// How often to read each image
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Read only the files of every N-th store path
        #[arg(long, default_value_t = 1, value_name = "N")]
        every: usize,
        /// Read the images from disk instead of from a copy in memory
        #[arg(long)]
        on_disk: bool,
        /// Write every single value as JSON here
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Read images in an emulated guest with Debian's kernel; only the ratios are meaningful
    GuestRead {
        /// squashfs or erofs images
        #[arg(required = true)]
        images: Vec<PathBuf>,
        /// Also read the disk without an image that `microvm-image serve` makes of this plan
        #[arg(long)]
        plan: Option<PathBuf>,
        /// How often to read each image
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Read only the files of every N-th store path; a whole store of 0.6 GB takes about 2 minutes per image and
        /// round
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
            message(&format!("error: {error}"));
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
        Scenario::Quick { rounds, results } => keep(&builds::quick(rounds)?, results, "-quick"),
        Scenario::Table { rounds, directory, results } => keep(&builds::table(rounds, &directory)?, results, "-table"),
        Scenario::ReadFiles { list } => cache_costs::read_files(&list),
        Scenario::Scale { files, megabytes, rounds, directory, results } => {
            let directory = directory.unwrap_or_else(workspace::fixtures);
            keep(
                &scale::run(&scale::Extent { files, megabytes, rounds, only: Vec::new() }, &directory)?,
                results,
                "-scale",
            )
        }
        Scenario::Draw { results } => {
            results.iter().try_for_each(|directory| report::write(&Results::read(directory)?, directory))
        }
        Scenario::StartUp { rounds, results } => keep_timings(start_up::run(rounds)?, results, "-start-up"),
        Scenario::Boot { rounds, results } => keep_timings(boot::run(rounds)?, results, "-boot"),
        Scenario::Live { closure, rounds, results } => {
            keep_timings(store_ways::start(&closure, rounds)?, results, "-live")
        }
        Scenario::BootWays { closure, rounds, results } => {
            keep_timings(store_ways::boot(&closure, rounds)?, results, "-boot-ways")
        }
        Scenario::Memory { closure, guests, megabytes, ways } => {
            store_ways::memory(&closure, &ways, &guests, megabytes, print)
        }
        Scenario::Read { images, rounds, every, on_disk, json } => {
            let backing = if on_disk { read::Backing::Disk } else { read::Backing::Memory };
            show_readings(&read::run(&images, read::Extent { rounds, every }, backing)?, json)
        }
        Scenario::GuestRead { images, plan, rounds, every, json } => {
            show_readings(&guest_read::run(&images, plan.as_deref(), read::Extent { rounds, every })?, json)
        }
    }
}

/// Runs every scenario with its defaults and its default directory.
fn all(rounds: usize) -> Result<(), Error> {
    let rounds = rounds.to_string();
    let scenarios: [&[&str]; 5] = [
        &["quick", "--rounds", &rounds],
        &["build", "--rounds", &rounds, "--read", "guest"],
        &["scale", "--directory", "/dev/shm"],
        &["boot"],
        &["start-up"],
    ];
    scenarios.iter().try_for_each(|words| run(Arguments::parse_from(["benches"].iter().chain(*words))))
}

fn keep_timings(timings: Timings, directory: Option<PathBuf>, suffix: &str) -> Result<(), Error> {
    let method = Method::now(&Programs::prepare()?)?;
    keep(&Results { method, stores: Vec::new(), timings: vec![timings] }, directory, suffix)
}

/// Writes the results into their directory and shows the tables.
fn keep(measured: &Results, directory: Option<PathBuf>, suffix: &str) -> Result<(), Error> {
    let usual = || workspace::root().join("benches/results").join(format!("{}{suffix}", measured.method.date));
    let directory = directory.unwrap_or_else(usual);
    measured.write(&directory)?;
    report::write(measured, &directory)?;
    print(&report::tables(measured));
    message(&format!("benches: results are in {}", directory.display()));
    Ok(())
}

fn show_readings(results: &[read::ImageReadings], json: Option<PathBuf>) -> Result<(), Error> {
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(results).map_err(|error| Error::Unexpected(error.to_string()))?;
        std::fs::write(&path, text).map_err(file("write", path))?;
    }
    print(&read::tables(results));
    Ok(())
}
