//! `microvm-image diff`.

use super::failure::Failure;
use super::thread_count;
use clap::Args;
use imagebuilder::diff::{DiffError, DiffOptions, diff};
use imagebuilder::open_image::OpenImage;
use program::plural::counted;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

/// Show the differences between two images
///
/// It prints one line per difference: `- PATH` is only in the first image, `+ PATH` only in the second, `~ PATH: WHAT`
/// in both. It ignores codecs, block sizes and the position of data.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// First image
    first: PathBuf,
    /// Second image
    second: PathBuf,
    /// Exit with code 1 if there are differences
    #[arg(long)]
    exit_code: bool,
    /// Number of threads [default: one per CPU]
    #[arg(short, long, value_name = "N", value_parser = thread_count::parse)]
    jobs: Option<NonZeroUsize>,
    /// Number of differences to print; all are counted
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = program::input::whole_number::<usize>)]
    max_differences: usize,
    /// Write JSON to stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DiffArgs) -> Result<(), Failure> {
    let open = |path: &PathBuf| OpenImage::open(path).map_err(|error| Failure::unreadable_image(path, &error));
    let (first, second) = (open(&args.first)?, open(&args.second)?);
    let options = DiffOptions {
        jobs: args.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get),
        max_differences: args.max_differences,
    };
    let report = diff(first.tree(), second.tree(), options).map_err(|error| match &error {
        DiffError::First(cause) => Failure::unreadable_image(&args.first, cause),
        DiffError::Second(cause) => Failure::unreadable_image(&args.second, cause),
        DiffError::Threads { .. } => Failure::failed(&error),
    })?;
    if args.json {
        program::output::print_json(&report)?;
    } else {
        let mut text = String::new();
        for difference in &report.differences {
            // Writing to a string does not fail.
            _ = writeln!(text, "{difference}");
        }
        program::output::print(text)?;
        let omitted = report.difference_count - report.differences.len() as u64;
        if omitted > 0 {
            program::output::message(&format!("and {omitted} more"));
        }
    }
    match (args.exit_code, report.difference_count) {
        (false, _) | (_, 0) => Ok(()),
        (true, count) => Err(Failure::check_failed(counted(count, "difference"))),
    }
}
