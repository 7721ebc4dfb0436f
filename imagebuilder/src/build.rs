//! Builds an image from a plan, in four phases: scan, blocks, tables, publish.

mod back_pressure;
mod buffers;
mod check;
mod content_counts;
mod earlier;
mod erofs;
mod job;
mod job_queue;
mod make_pack;
mod nar_check;
mod new_pack;
mod output;
mod packed_ranges;
mod placement;
mod places;
mod publish_lock;
mod range_hashes;
mod read_ahead;
mod scan;
mod seal;
mod sequence;
mod source;
mod squashfs;
mod steps;
mod transfer;
mod whole_path;
mod work_times;

pub use crate::cache::outputs::Durability;
pub use make_pack::{PackRequest, make_pack};
pub use nar_check::NarHashMismatch;
pub use output::OutputError;

use crate::cache::block_hashes::BlocksOf;
use crate::cache::outputs::PlanKey;
use crate::cache::{Cache, CacheError};
use crate::encode::EncodeError;
use crate::erofs::ErofsError;
use crate::pack::PackSource;
use crate::plan::ImagePlan;
use crate::progress::{Phase, Progress};
use crate::report::{BuildReport, CacheReport, Outcome};
use crate::scan::ScanError;
use crate::settings::{ImageFormat, ImageSettings};
use crate::squashfs::tables::TablesError;
use crate::threads::MAX_JOBS;
use buffers::BufferPool;
use erofs::ErofsBuild;
use job::WorkerInputs;
use new_pack::PackKeeper;
use nix::sys::resource::{UsageWho, getrusage};
use output::{ImageFile, InPlace};
use program::atomic_file::WriteError;
use publish_lock::PublishLock;
pub use seal::sidecar_path;
use seal::{Sealing, Sidecar, remove_sidecar};
use sequence::{SequenceInputs, Sequenced, Sequencer, WriteTables};
use source::InputPath;
use squashfs::SquashfsBuild;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use thiserror::Error;
use work_times::WorkTimes;

/// Version of the report's format.
const REPORT_VERSION: u32 = 1;

/// How content from the cache is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheTrust {
    /// Checksums are checked. This detects damage, but not content forged by a user with write access.
    Checksums,
    /// Every store path is read, and every cached block is decompressed and compared with it.
    VerifyAgainstStore,
}

/// Whether to compute digests of the whole image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digests {
    /// No digests, which is fastest.
    Skip,
    /// BLAKE3-256 and SHA-256.
    Compute,
}

/// The options of a build that do not affect the bytes of the image.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The file to write the image to.
    pub output: PathBuf,
    /// The cache directory; `None` builds without a cache.
    pub cache: Option<PathBuf>,
    /// A source of packs that is queried before the cache.
    pub packs: Option<Arc<dyn PackSource>>,
    /// How packs are checked.
    pub cache_trust: CacheTrust,
    /// Number of threads that read and compress, from 1 to [`MAX_JOBS`].
    pub jobs: usize,
    /// Whether to compute digests of the whole image.
    pub digests: Digests,
    /// Whether the image is on disk when the build ends.
    pub durability: Durability,
}

/// The image could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The caller cancelled the build.
    #[error("interrupted")]
    Interrupted,
    /// Some store paths cannot be listed, or contain files that cannot occur in a Nix store.
    #[error("{}", list_problems(.0))]
    Scan(Vec<ScanError>),
    /// Some store paths do not have the NAR hashes in the closure's source.
    #[error("{}", list_problems(.0))]
    NarHashMismatch(Vec<NarHashMismatch>),
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// A file has changed since the build began, or since its pack was made.
    #[error("{} changed or vanished while it was read", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A codec failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The image cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The format does not support the closure.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// The erofs format cannot hold the closure.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// The root hash cannot be written next to the image.
    #[error(transparent)]
    Seal(#[from] WriteError),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread panicked, which is a defect of this program.
    #[error("a worker thread failed; this is a defect of microvm-image")]
    WorkerPanicked,
    /// An impossible state, which is a defect of this program.
    #[error("{what}; this is a defect of microvm-image")]
    Defect {
        /// The state that was reached, as a clause without a period.
        what: &'static str,
    },
}

fn list_problems<Problem: std::error::Error>(problems: &[Problem]) -> String {
    let text = |problem: &Problem| match std::error::Error::source(problem) {
        Some(cause) => format!("{problem}: {cause}"),
        None => problem.to_string(),
    };
    problems.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// Builds the image of `plan` at `options.output`, completely or not at all.
///
/// `cancel` is checked often; when it becomes true, the build ends with [`BuildError::Interrupted`].
///
/// # Errors
/// A problem prevents a correct image. An existing file at the output is then unchanged.
pub fn build(
    plan: &ImagePlan,
    options: &BuildOptions,
    progress: &mut dyn Progress,
    cancel: &AtomicBool,
) -> Result<BuildReport, BuildError> {
    let started = Instant::now();
    let cache = match options.cache.as_ref().map(|directory| Cache::open(directory)).transpose() {
        Ok(cache) => cache,
        Err(error) => {
            progress.warn(&cache_warning(&error));
            None
        }
    };
    let key = cache.as_ref().and_then(|cache| Some((cache, PlanKey::of(plan)?)));
    if let Some((cache, key)) = &key
        && options.cache_trust == CacheTrust::Checksums
        && let Some(report) = cache.finished_build((key, plan), &options.output, options.durability)
        && (options.digests == Digests::Skip || report.image_sha256.is_some())
        && report.verity.as_ref().is_none_or(|seal| seal::has_sidecar(seal, &options.output))
    {
        if report.verity.is_none() && fs::symlink_metadata(sidecar_path(&options.output)).is_ok() {
            let _lock = PublishLock::take(&options.output);
            // Another build may be replacing the image, with its seal first.
            if cache.finished_build((key, plan), &options.output, options.durability).is_some() {
                warn_of_stale_seal(remove_sidecar(&options.output).err(), progress);
            }
        }
        return Ok(unchanged(report, started));
    }
    let make_room = |bytes| match (&cache, &options.cache) {
        (Some(cache), Some(directory)) => share_a_disk(directory, &options.output) && cache.make_room(bytes),
        _ => false,
    };
    let output = ImageFile::create(&options.output, options.durability, &make_room)?;
    let threads = options.jobs.clamp(1, MAX_JOBS);
    let (mut report, packs) = match plan.format {
        ImageFormat::Squashfs(settings) => {
            let (settings, cache) = (&settings, cache.as_ref());
            SquashfsBuild { plan, settings, options, cache, cancel, threads, started }.write(&output, progress)?
        }
        ImageFormat::Erofs(profile) => {
            ErofsBuild { plan, profile, cancel, threads, started }.write(&output, progress)?
        }
    };
    progress.begin(Phase::Publish, 0);
    if plan.verity {
        // The disk is busy while the image is hashed.
        output.write_out();
        let seal_started = Instant::now();
        let blocks = match &plan.format {
            ImageFormat::Squashfs(settings) => BlocksOf::Pack(settings),
            ImageFormat::Erofs(_) => BlocksOf::Files,
        };
        let sealing = Sealing {
            output: &output,
            data_bytes: report.image_bytes,
            packs,
            blocks,
            cache: cache.as_ref(),
            source: options.packs.as_deref(),
            trust: options.cache_trust,
            threads,
            cancel,
        };
        let sealed = sealing.seal()?;
        if let Some(error) = &sealed.cache_error {
            progress.warn(&cache_warning(error));
        }
        if let Some(error) = &sealed.source_error {
            progress.warn(&format!("{error}; the image is built without it and is the same"));
        }
        (report.image_bytes, report.seconds.verity) = (sealed.image_bytes, seal_started.elapsed().as_secs_f64());
        (report.verity, report.hashed_bytes) = (Some(sealed.seal), Some(sealed.hashed_bytes));
    }
    let InPlace { published, stale_seal } = publish(output, options, cancel, &mut report)?;
    warn_of_stale_seal(stale_seal, progress);
    report.seconds.total = started.elapsed().as_secs_f64();
    report.cpu_seconds.total = cpu_seconds(UsageWho::RUSAGE_SELF);
    report.peak_memory_bytes = peak_memory_bytes();
    if let Some((cache, key)) = &key
        && let Err(error) = cache.remember_build(key, &options.output, &published, &report)
    {
        progress.warn(&cache_warning(&error));
    }
    Ok(report)
}

/// Hashes a complete image where that was asked for, and puts it in its place.
fn publish(
    output: ImageFile<'_>,
    options: &BuildOptions,
    cancel: &AtomicBool,
    report: &mut BuildReport,
) -> Result<InPlace, BuildError> {
    let started = Instant::now();
    if options.digests == Digests::Compute {
        let (blake3, sha256) = output.digests()?;
        (report.image_blake3, report.image_sha256) = (Some(blake3), Some(sha256));
    }
    if cancel.load(Ordering::Relaxed) {
        return Err(BuildError::Interrupted);
    }
    let sidecar = report.verity.as_ref().map(|seal| Sidecar::create(seal, &output)).transpose()?;
    let in_place = output.publish(sidecar.as_ref())?;
    report.seconds.publish = started.elapsed().as_secs_f64();
    Ok(in_place)
}

/// Reports that the seal of an earlier image could not be removed. The new image is complete without that.
fn warn_of_stale_seal(error: Option<WriteError>, progress: &mut dyn Progress) {
    if let Some(error) = error {
        progress.warn(&format!("{}; remove it, because it describes another image", program::failure::chain(&error)));
    }
}

/// Returns whether removing packs from the cache frees space for the output.
fn share_a_disk(cache: &Path, output: &Path) -> bool {
    let directory = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(cache).is_some_and(|cache| device(directory) == Some(cache))
}

/// Returns the report of a build whose output already existed.
fn unchanged(report: BuildReport, started: Instant) -> BuildReport {
    let cache =
        CacheReport { enabled: true, hit_paths: report.paths, hit_bytes: report.input_bytes, ..CacheReport::default() };
    let mut report = BuildReport {
        outcome: Outcome::Unchanged,
        cache,
        seconds: Default::default(),
        work_seconds: Default::default(),
        slowest_paths: Vec::new(),
        ..report
    };
    report.seconds.total = started.elapsed().as_secs_f64();
    report.peak_memory_bytes = peak_memory_bytes();
    report
}

fn cache_warning(error: &CacheError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}; the image is not affected, but the next build will be slower")
}

/// The outputs that are made from store paths: an image, packs, or both.
struct Target<'a> {
    store_paths: &'a [InputPath],
    settings: &'a ImageSettings,
    image: Option<NewImage<'a>>,
    keeper: Option<&'a dyn PackKeeper>,
}

/// An image that is being written.
#[derive(Clone, Copy)]
struct NewImage<'a> {
    file: &'a ImageFile<'a>,
    /// Position of the data.
    start: u64,
    write_tables: &'a WriteTables<'a>,
}

/// Reads, compresses, copies and writes all content, and checks the NAR hashes of the store paths that get packs.
fn write_blocks(
    target: &Target<'_>,
    threads: usize,
    cancel: &AtomicBool,
    report_cache_error: &(dyn Fn(CacheError) + Sync),
    progress: &mut dyn Progress,
) -> Result<Sequenced, BuildError> {
    let buffers = BufferPool::default();
    let Target { store_paths, settings, image, keeper } = *target;
    let (start, write_tables) = (image.map_or(0, |image| image.start), image.map(|image| image.write_tables));
    let image = image.map(|image| image.file);
    let times = WorkTimes::new(store_paths);
    let inputs = WorkerInputs {
        store_paths,
        settings,
        image,
        keeper,
        buffers: &buffers,
        report_cache_error,
        cancel,
        times: &times,
    };
    job_queue::with_workers(&inputs, threads, |queue, results, started| {
        let (threads, buffers) = (started, &buffers);
        let inputs = SequenceInputs {
            store_paths,
            settings,
            threads,
            cancel,
            buffers,
            image,
            start,
            write_tables,
            keeper,
            report_cache_error,
        };
        let mut done = Sequencer::new(&inputs, progress, queue).run(results)?;
        (done.work_seconds, done.slowest_paths) = (times.seconds(), times.slowest(store_paths));
        if !done.other_content.is_empty() {
            done.other_content.sort_by(|a, b| a.path.cmp(&b.path));
            return Err(BuildError::NarHashMismatch(done.other_content));
        }
        Ok(done)
    })
}

/// Returns the processor time of this process or thread in seconds; 0 if the kernel does not provide it.
fn cpu_seconds(who: UsageWho) -> f64 {
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    getrusage(who).map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Returns the highest resident size of this process in bytes; 0 if the kernel does not provide it.
fn peak_memory_bytes() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).ok().and_then(|usage| u64::try_from(usage.max_rss()).ok()).unwrap_or(0) * 1024
}
