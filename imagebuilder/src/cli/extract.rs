//! `microvm-image extract`.

use super::failure::Failure;
use super::interrupt;
use super::thread_count;
use clap::Args;
use imagebuilder::extract::{ExtractError, ExtractOptions, SpecialFiles, extract};
use imagebuilder::open_image::OpenImage;
use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::thread;

/// Extract the files of an image into a new directory
///
/// Modes, modification times and holes are preserved; owners, setuid bits and extended attributes are not. Nothing is
/// ever written outside the directory, even if the image is malicious.
#[derive(Debug, Args)]
#[command(override_usage = "microvm-image extract [OPTIONS] --output <DIR>\n           <IMAGE> [PATH]")]
pub(crate) struct ExtractArgs {
    /// Image file, or a block device with an image on it
    image: PathBuf,
    /// Path in the image to extract, with everything below it [default: the whole image]
    path: Option<OsString>,
    /// Directory to extract into; it must be empty or must not exist. PATH becomes an entry in it, named after its last
    /// component
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Skip devices, pipes and sockets instead of refusing the image
    #[arg(long)]
    skip_special: bool,
    /// Number of threads [default: one per CPU]
    #[arg(short, long, value_name = "N", value_parser = thread_count::parse)]
    jobs: Option<NonZeroUsize>,
    /// Write the report as JSON to stdout instead of the directory's name
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ExtractArgs) -> Result<(), Failure> {
    let image = OpenImage::open(&args.image).map_err(|error| Failure::unreadable_image(&args.image, &error))?;
    let options = ExtractOptions {
        path: args.path.as_deref().unwrap_or_default().as_bytes(),
        output: &args.output,
        special_files: if args.skip_special { SpecialFiles::Skip } else { SpecialFiles::Refuse },
        jobs: args.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get),
    };
    let report = extract(image.tree(), options, interrupt::cancel_flag()).map_err(|error| failure(args, &error))?;
    if args.json {
        return Ok(program::output::print_json(&report)?);
    }
    let mut line = args.output.as_os_str().as_bytes().to_vec();
    line.push(b'\n');
    Ok(program::output::print(&line)?)
}

fn failure(args: &ExtractArgs, error: &ExtractError) -> Failure {
    let failure = without_rest(args, error);
    let may_leave = !matches!(error, ExtractError::NotEmpty { .. } | ExtractError::SpecialFile { .. });
    let leaves = || fs::read_dir(&args.output).is_ok_and(|mut entries| entries.next().is_some());
    if may_leave && leaves() {
        let rest = format!("{} contains the files extracted so far: remove it first", args.output.display());
        return failure.with_further_hint(&rest);
    }
    failure
}

fn without_rest(args: &ExtractArgs, error: &ExtractError) -> Failure {
    match error {
        ExtractError::Interrupted => Failure::interrupted(),
        ExtractError::Image(error) => Failure::unreadable_image(&args.image, error),
        ExtractError::NotEmpty { .. } => {
            Failure::bad_input(error).with_hint("choose a directory that does not exist yet")
        }
        ExtractError::SpecialFile { .. } => Failure::failed(error).with_hint("--skip-special leaves them out"),
        _ => Failure::failed(error),
    }
}
