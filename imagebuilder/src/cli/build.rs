//! `microvm-image build`.

use super::cache_location::CacheDirectoryArgs;
use super::failure::Failure;
use super::settings::SettingsArgs;
use super::source::{Replaced, SourceArgs};
use super::{interrupt, progress, thread_count};
use clap::Args;
use imagebuilder::build::{BuildOptions, CacheTrust, Digests, Durability, build};
use imagebuilder::cache_service::DEFAULT_SOCKET;
use imagebuilder::cache_service::client::CacheClient;
use imagebuilder::machine::{self, SkipReport};
use imagebuilder::open_files;
use imagebuilder::pack::PackSource;
use imagebuilder::report::{BuildReport, Outcome, PhaseSeconds, WorkSeconds};
use imagebuilder::threads::MAX_JOBS;
use imagebuilder::{missing_paths, output, size};
use program::plural::counted;
use std::env;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

const EXAMPLES: &str = "\
Examples:
  microvm-image build ./result -o store.squashfs
  microvm-image build --closure-info ./info -o store.squashfs
  nix-store -qR ./result |
    microvm-image build --paths-from - -o store.squashfs
  microvm-image build --plan plan.json -o store.squashfs --json";

/// Build the image of a closure
///
/// The image is written completely or not at all. Its path is the only output on stdout. Content that is in the cache
/// is neither read nor compressed again. The cache does not affect the image: its bytes are the same without it.
#[derive(Debug, Args)]
#[command(override_usage = "microvm-image build [OPTIONS] --output <IMAGE>\n           [STORE_PATH]...", after_long_help = EXAMPLES)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// File to write the image to; an existing image or symbolic link is replaced, but not the target of the link
    #[arg(short, long, value_name = "IMAGE", help_heading = "Output")]
    output: PathBuf,
    /// machine.json of a machine; no image is built if one of its shares has the source /nix/store
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    machine: Option<PathBuf>,
    /// Build even if the machine shares the host's store
    #[arg(long, requires = "machine", help_heading = "Output")]
    force: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    cache: BuildCacheArgs,
    /// Threads that read and compress, 1 to 256 [default: all processors]
    #[arg(short, long, value_name = "N", value_parser = thread_count::parse, help_heading = "Output")]
    jobs: Option<NonZero<usize>>,
    /// Write a JSON report to stdout instead of the image's path
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Compute the BLAKE3 and SHA-256 hashes of the image; --json always does
    #[arg(long, help_heading = "Output")]
    digest: bool,
    /// Do not sync a new image to disk; an image that replaces another one is always synced
    ///
    /// A power cut within about a minute can damage the image. The first build after the host has restarted, and the
    /// first build without this option, therefore build it again.
    #[arg(long, help_heading = "Output")]
    no_sync: bool,
    /// Print neither progress nor a summary
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Add the work of the threads and the ten slowest store paths to the summary; --json always includes both
    #[arg(long, conflicts_with = "quiet", help_heading = "Output")]
    timings: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Cache")]
struct BuildCacheArgs {
    #[command(flatten)]
    directory: CacheDirectoryArgs,
    /// Socket of the host's cache service, which the build tries first [default: $MICROVM_IMAGE_CACHE_SOCKET, else
    /// /run/microvm-image/cache.sock]
    ///
    /// If the service is missing or fails, the build takes longer, but the image is the same.
    #[arg(long, value_name = "PATH")]
    cache_socket: Option<PathBuf>,
    /// Do not read or write a cache directory; the cache service is used only if you give --cache-socket
    #[arg(long, conflicts_with = "directory")]
    no_cache: bool,
    /// Compare content from a cache with the store; use this if others can write to the cache
    #[arg(long)]
    cache_verify: bool,
}

/// The cache service of this build, and a warning if the one that the user named cannot be used.
type FoundService = (Option<Arc<dyn PackSource>>, Option<String>);

impl BuildCacheArgs {
    /// Refuses combinations of options that clap cannot check.
    fn check(&self) -> Result<(), Failure> {
        if self.no_cache && self.cache_verify && self.cache_socket.is_none() {
            return Err(Failure::usage("--cache-verify was given, but --no-cache leaves no cache to verify"));
        }
        Ok(())
    }

    /// Connects to the service. A missing service is reported only if the user named its socket.
    fn service(&self) -> FoundService {
        let named = env::var_os("MICROVM_IMAGE_CACHE_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from);
        let socket = match &self.cache_socket {
            Some(socket) => socket.clone(),
            None if self.no_cache => return (None, None),
            None => named.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET)),
        };
        match CacheClient::connect(&socket) {
            Ok(Some(client)) => (Some(Arc::new(client)), None),
            Ok(None) if self.cache_socket.is_none() => (None, None),
            Ok(None) => {
                (None, Some(format!("no cache service at {}; the build continues without it", socket.display())))
            }
            Err(error) => (None, Some(format!("{}; the build continues without it", program::failure::chain(&error)))),
        }
    }
}

pub(crate) fn run(args: &BuildArgs) -> Result<(), Failure> {
    if let Some(skipped) = args.skip()? {
        return report_skipped(args, &skipped);
    }
    args.cache.check()?;
    let mut options = args.options()?;
    output::check(&args.output)?;
    args.source.refuse_as_output(&args.output, Replaced::Image, args.machine.as_deref())?;
    let plan = args.source.plan(&args.settings)?;
    output::check_apart(&args.output, &plan, options.cache.as_deref())?;
    missing_paths::check(&plan, options.jobs)?;
    open_files::raise_limit();
    let mut progress = progress::on_stderr(args.verbosity());
    let (service, problem) = args.cache.service();
    options.packs = service;
    if let Some(problem) = problem {
        progress.warn(&problem);
    }
    let report = build(&plan, &options, progress.as_mut(), interrupt::cancel_flag());
    drop(progress);
    report_built(args, &report?)
}

impl BuildArgs {
    fn skip(&self) -> Result<Option<SkipReport>, Failure> {
        match &self.machine {
            Some(file) if !self.force => Ok(machine::skip(file)?),
            _ => Ok(None),
        }
    }

    fn options(&self) -> Result<BuildOptions, Failure> {
        let cache = if self.cache.no_cache { None } else { Some(self.cache.directory.directory()?) };
        let jobs = self.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get);
        Ok(BuildOptions {
            output: self.output.clone(),
            cache,
            packs: None,
            cache_trust: if self.cache.cache_verify { CacheTrust::VerifyAgainstStore } else { CacheTrust::Checksums },
            jobs: jobs.min(MAX_JOBS),
            durability: if self.no_sync { Durability::UnsyncedIfNew } else { Durability::Synced },
            digests: if self.json || self.digest { Digests::Compute } else { Digests::Skip },
        })
    }

    fn verbosity(&self) -> progress::Verbosity {
        if self.quiet { progress::Verbosity::Quiet } else { progress::Verbosity::Normal }
    }
}

fn report_skipped(args: &BuildArgs, report: &SkipReport) -> Result<(), Failure> {
    if !args.quiet {
        program::output::message(&format!("skipped {}: {}", args.output.display(), report.reason));
    }
    if args.json { Ok(program::output::print_json(report)?) } else { Ok(()) }
}

fn report_built(args: &BuildArgs, report: &BuildReport) -> Result<(), Failure> {
    if !args.quiet {
        let timings = if args.timings { timings(report) } else { Vec::new() };
        for line in summary(&args.output, report).into_iter().chain(timings) {
            program::output::message(&line);
        }
    }
    if args.json {
        return Ok(program::output::print_json(report)?);
    }
    Ok(program::output::print_path(&args.output)?)
}

/// Returns the summary for the user, a few lines long.
fn summary(image: &Path, report: &BuildReport) -> Vec<String> {
    let verb = match report.outcome {
        Outcome::Built => "built",
        Outcome::Unchanged => "unchanged",
    };
    let mut lines = vec![
        format!("{verb} {} in {:.2} s", image.display(), report.seconds.total),
        format!(
            "  closure  {} in {} of {}",
            size::human(report.input_bytes),
            counted(report.files, "file"),
            counted(report.paths, "path")
        ),
        format!(
            "  image    {}{} in {}",
            size::human(report.image_bytes),
            percent_of(report.image_bytes, report.input_bytes),
            counted(report.blocks, "block")
        ),
    ];
    if report.cache.enabled {
        let cache = &report.cache;
        let reused = percent_of(cache.hit_bytes, cache.hit_bytes + cache.missed_bytes);
        let mut line = format!("  cache    {}{reused} reused", size::human(cache.hit_bytes));
        if cache.rebuilt_paths > 0 {
            line.push_str(&format!(", {} rebuilt", counted(cache.rebuilt_paths, "damaged path")));
        }
        lines.push(line);
    }
    if report.duplicate_bytes > 0 {
        let (bytes, files) = (size::human(report.duplicate_bytes), counted(report.duplicate_files, "file"));
        lines.push(format!("  dedup    {bytes} in {files}"));
    }
    lines.push(format!("  memory   {} peak", size::human(report.peak_memory_bytes)));
    if report.outcome == Outcome::Built {
        lines.push(format!("  time     {}", phases(&report.seconds)));
    }
    lines.extend(report.verity.as_ref().map(|seal| format!("  verity   root hash {}", seal.root_hash)));
    for (name, digest) in [("blake3", &report.image_blake3), ("sha256", &report.image_sha256)] {
        lines.extend(digest.as_ref().map(|digest| format!("  {name}   {digest}")));
    }
    lines
}

/// `scan 0.1 s, blocks 2.0 s, tables 0.1 s, publish 0.3 s`
fn phases(seconds: &PhaseSeconds) -> String {
    let PhaseSeconds { scan, blocks, tables, verity, publish, .. } = *seconds;
    let phases =
        [("scan", scan), ("blocks", blocks), ("tables", tables), ("verity", verity), ("publish", publish)].into_iter();
    // Only a sealed image has this phase.
    let phases = phases.filter(|(name, seconds)| *name != "verity" || *seconds > 0.0);
    phases.map(|(name, seconds)| format!("{name} {seconds:.1} s")).collect::<Vec<_>>().join(", ")
}

/// Returns what the threads did, and the store paths that took most time.
fn timings(report: &BuildReport) -> Vec<String> {
    let WorkSeconds { read, compress, check, copy, write } = report.work_seconds;
    let mut lines = vec![format!(
        "  threads  read {read:.1} s, compress {compress:.1} s, check {check:.1} s, copy {copy:.1} s, write {write:.1} s"
    )];
    lines.extend(
        report
            .slowest_paths
            .iter()
            .map(|slow| format!("  {:7.2} s  {:>10}  {}", slow.seconds, size::human(slow.input_bytes), slow.path)),
    );
    lines
}

/// ` (33 %)`, or nothing if the whole is 0.
fn percent_of(part: u64, whole: u64) -> String {
    if whole == 0 { String::new() } else { format!(" ({:.0} %)", part as f64 * 100.0 / whole as f64) }
}
