//! `microvm-image verify`.

use super::failure::Failure;
use super::source::SourceArgs;
use super::thread_count;
use clap::Args;
use imagebuilder::closure::Closure;
use imagebuilder::image::ImageError;
use imagebuilder::open_image::OpenImage;
use imagebuilder::plan::PlannedPath;
use imagebuilder::verify::{NarCheck, VerifyOptions, VerifyReport, verify, verify_erofs};
use program::plural::counted;
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;

/// Check an image, and optionally whether it contains exactly the given closure
///
/// Without a closure, it checks the superblock, the tables, the directory tree, and that every block decompresses to
/// its expected length. With a closure, it also compares every path, type, mode, size, symlink target and byte with the
/// store. It reports all problems, each with its path, and then exits with code 1.
#[derive(Debug, Args)]
#[command(override_usage = "microvm-image verify [OPTIONS] <IMAGE>\n           [STORE_PATH]...")]
pub(crate) struct VerifyArgs {
    /// Image file, or a block device with an image on it
    image: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
    /// Also hash the NAR of each path in the image, and compare it with the hash in the closure
    #[arg(long)]
    nar: bool,
    /// Number of threads [default: one per CPU]
    #[arg(short, long, value_name = "N", value_parser = thread_count::parse)]
    jobs: Option<NonZeroUsize>,
    /// Number of problems to print; all are counted
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = program::input::whole_number::<usize>)]
    max_problems: usize,
    /// Write a JSON report to stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    let closure = args.source.closure()?;
    if args.nar && closure.is_none() {
        return Err(Failure::usage("--nar was given without a closure to compare with")
            .with_hint("--closure-info, --graph and --plan have the hashes of NARs"));
    }
    if let Some(closure) = &closure {
        require_store(closure)?;
    }
    let image = match OpenImage::open(&args.image) {
        Ok(image) => image,
        Err(error) => {
            let failure = Failure::unreadable_image(&args.image, &error);
            if args.json && !matches!(error, ImageError::Open { .. }) {
                program::output::print_json(&VerifyReport::of_unreadable(error))?;
            }
            return Err(failure);
        }
    };
    let options = VerifyOptions {
        closure: closure.as_ref(),
        nar: if args.nar { NarCheck::Compute } else { NarCheck::Skip },
        jobs: args.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get),
        problems_max: args.max_problems,
    };
    let report = match &image {
        OpenImage::Squashfs(image) => verify(image, options),
        OpenImage::Erofs(image) => verify_erofs(image, options),
    };
    let report = report.map_err(|error| Failure::unreadable_image(&args.image, &error))?;
    for problem in &report.problems {
        program::output::message(&problem.to_string());
    }
    let omitted = report.problem_count.saturating_sub(report.problems.len() as u64);
    if omitted > 0 {
        program::output::message(&format!("and {omitted} more"));
    }
    if args.json {
        program::output::print_json(&report)?;
    } else if report.ok {
        program::output::message(&summary(&report));
    }
    if report.ok {
        return Ok(());
    }
    let problems = counted(report.problem_count, "problem");
    Err(Failure::check_failed(format!("{}: {problems} found", args.image.display())))
}

/// Refuses a store that contains none of the paths: it is another store, and each path would be reported as a problem
/// of the image.
fn require_store(closure: &Closure) -> Result<(), Failure> {
    let is_missing = |planned: &PlannedPath| {
        let path = closure.store_dir.join(planned.path.base_name());
        fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
    };
    if closure.paths.is_empty() || !closure.paths.iter().all(is_missing) {
        return Ok(());
    }
    let (count, store) = (closure.paths.len(), closure.store_dir.display());
    let problem = match count {
        1 => format!("the store path of the closure is not in {store}"),
        count => format!("none of the {count} store paths of the closure is in {store}"),
    };
    Err(Failure::usage(problem).with_hint("use --store-dir DIR if the store paths are in another directory"))
}

fn summary(report: &VerifyReport) -> String {
    let mut text = format!("ok: {} inodes", report.inodes);
    if report.paths_compared > 0 {
        text.push_str(&format!(", {} store paths match the store", report.paths_compared));
    }
    if report.nars_hashed > 0 {
        text.push_str(&format!(", {} NAR hashes match", report.nars_hashed));
    }
    text
}
