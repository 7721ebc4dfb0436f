//! Builds an image from a plan, in four phases: scan, blocks, tables, publish.

mod back_pressure;
mod buffers;
mod check;
mod earlier;
mod erofs;
mod job;
mod job_queue;
mod make_pack;
mod new_pack;
mod output;
mod placement;
mod places;
mod range_hashes;
mod scan;
mod seal;
mod sequence;
mod source;
mod steps;
mod tally;
mod transfer;

pub use make_pack::{PackRequest, make_pack};
pub use output::OutputError;

use crate::cache::outputs::PlanKey;
use crate::cache::{Cache, CacheError};
use crate::encode::{EncodeError, Encoder, codec_number, codec_options};
use crate::erofs::ErofsError;
use crate::little_endian::PutLe;
use crate::open_files::OpenFiles;
use crate::pack::PackSource;
use crate::plan::ImagePlan;
use crate::progress::{Phase, Progress};
use crate::report::{BuildReport, CacheReport, CpuSeconds, Outcome};
use crate::scan::ScanError;
use crate::settings::{ImageFormat, ImageSettings};
use crate::squashfs::format::{IMAGE_ALIGNMENT_BYTES, METADATA_PLAIN, NO_TABLE, SUPERBLOCK_BYTES, Superblock, flags};
use crate::squashfs::tables::{Contents, Location, RootEntry as TableMember, Tables, TablesError, write_tables};
use crate::threads::MAX_JOBS;
use buffers::SpareBuffers;
use erofs::ErofsBuild;
use job::WorkerInputs;
use new_pack::{CacheKeeper, PackKeeper};
use nix::sys::resource::{UsageWho, getrusage};
use output::ImageFile;
use places::Places;
use program::atomic_file::WriteError;
use scan::Scanner;
use sequence::{SequenceInputs, Sequenced, Sequencer};
use source::InputPath;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use thiserror::Error;

/// Version of the report's format.
const REPORT_VERSION: u32 = 1;
/// Creation time of images, in seconds since 1970. It is the time that Nix gives to all files, so images do not depend
/// on the clock.
const MADE_AT: u32 = 1;

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
        /// The state.
        what: &'static str,
    },
}

fn list_problems(problems: &[ScanError]) -> String {
    let text = |problem: &ScanError| match std::error::Error::source(problem) {
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
        && let Some(report) = cache.finished_build(key, plan, &options.output)
        && (options.digests == Digests::Skip || report.image_sha256.is_some())
        && report.verity.as_ref().is_none_or(|seal| seal::has_sidecar(seal, &options.output))
    {
        return Ok(unchanged(report, started));
    }
    let make_room = |bytes| match (&cache, &options.cache) {
        (Some(cache), Some(directory)) => share_a_disk(directory, &options.output) && cache.make_room(bytes),
        _ => false,
    };
    let output = ImageFile::create(&options.output, &make_room)?;
    let threads = options.jobs.clamp(1, MAX_JOBS);
    let mut report = match plan.format {
        ImageFormat::Squashfs(settings) => {
            let build = Build { plan, settings: &settings, options, cache: cache.as_ref(), cancel, threads, started };
            build.write(&output, progress)?
        }
        ImageFormat::Erofs(profile) => {
            ErofsBuild { plan, profile, cancel, threads, started }.write(&output, progress)?
        }
    };
    progress.begin(Phase::Publish, 0);
    if plan.verity {
        let seal_started = Instant::now();
        let (seal, length) = seal::seal(&output, report.image_bytes, threads, cancel)?;
        (report.image_bytes, report.seconds.verity) = (length, seal_started.elapsed().as_secs_f64());
        report.verity = Some(seal);
    }
    let published = publish(output, options, cancel, &mut report)?;
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
) -> Result<File, BuildError> {
    let started = Instant::now();
    if options.digests == Digests::Compute {
        let (blake3, sha256) = output.digests()?;
        (report.image_blake3, report.image_sha256) = (Some(blake3), Some(sha256));
    }
    if cancel.load(Ordering::Relaxed) {
        return Err(BuildError::Interrupted);
    }
    // The seal is written first, so that an image in place always has one. If only the seal is new, the kernel refuses
    // to open the earlier image with it.
    if let Some(seal) = &report.verity {
        seal::write_sidecar(seal, &options.output)?;
    }
    let published = output.publish()?;
    report.seconds.publish = started.elapsed().as_secs_f64();
    Ok(published)
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
    let mut report = BuildReport { outcome: Outcome::Unchanged, cache, seconds: Default::default(), ..report };
    report.seconds.total = started.elapsed().as_secs_f64();
    report.peak_memory_bytes = peak_memory_bytes();
    report
}

fn cache_warning(error: &CacheError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}; the image is not affected, but the next build will be slower")
}

/// A build of a squashfs image.
struct Build<'a> {
    plan: &'a ImagePlan,
    settings: &'a ImageSettings,
    options: &'a BuildOptions,
    cache: Option<&'a Cache>,
    cancel: &'a AtomicBool,
    threads: usize,
    started: Instant,
}

impl Build<'_> {
    /// Writes everything but what belongs to every format, and returns the report so far.
    fn write(&self, output: &ImageFile<'_>, progress: &mut dyn Progress) -> Result<BuildReport, BuildError> {
        let mut report =
            BuildReport { version: REPORT_VERSION, paths: self.plan.paths.len() as u64, ..Default::default() };
        progress.begin(Phase::Scan, 0);
        let open_files = OpenFiles::of_process(self.threads);
        let scanner =
            Scanner::new((self.plan, self.settings), self.options, self.cache, (self.cancel, open_files.clone()));
        let mut scanned = scanner.scan(self.threads)?;
        scanner.warnings().iter().for_each(|warning| progress.warn(warning));
        report.files = scanned.store_paths.iter().map(|store_path| store_path.tree().file_sizes().len() as u64).sum();
        report.input_bytes = scanned.store_paths.iter().map(InputPath::input_bytes).sum();
        report.seconds.scan = self.started.elapsed().as_secs_f64();

        // Packs that are not trusted could change after they were checked: what was checked is what is written.
        let pack = scanned.store_paths.iter().find_map(|store_path| store_path.pack()?.file());
        if let Some(pack) = pack.filter(|_| self.options.cache_trust == CacheTrust::Checksums) {
            output.try_sharing(pack)?;
        }
        let blocks_started = Instant::now();
        let options = codec_options(self.settings);
        let done = loop {
            progress.begin(Phase::Blocks, report.input_bytes);
            let start = self.begin(options.as_deref(), output)?;
            let done = self.write_blocks(&scanned.store_paths, (output, start), &open_files, progress)?;
            if done.damaged.is_empty() {
                break done;
            }
            // The content copied from these packs is wrong, and the positions behind it may be wrong too. The packs are
            // made again, and all blocks are written again.
            scanner.scan_again(&mut scanned, &done.damaged)?;
            output.restart()?;
        };
        report.seconds.blocks = blocks_started.elapsed().as_secs_f64();

        progress.begin(Phase::Tables, 0);
        let tables_started = Instant::now();
        let tables = self.write_tables(&scanned.store_paths, &done.places, done.end, output)?;
        report.image_bytes = self.finish(&done, &tables, options.is_some(), output)?;
        report.seconds.tables = tables_started.elapsed().as_secs_f64();

        report.blocks = done.places.blocks;
        (report.duplicate_files, report.duplicate_bytes) = (done.tally.duplicate_files, done.tally.duplicate_bytes);
        let rebuilt = |store_path: &usize| scanned.store_paths[*store_path].input_bytes();
        let rebuilt_bytes = scanned.rebuilt.iter().map(rebuilt).sum();
        report.cache = CacheReport {
            enabled: self.cache.is_some() || self.options.packs.is_some(),
            ..done.tally.report(self.plan.paths.len(), scanned.rebuilt.len(), rebuilt_bytes)
        };
        report.cpu_seconds = CpuSeconds { total: 0.0, sequencer: done.cpu_seconds };
        Ok(report)
    }

    /// Writes everything before the data, and returns the position of the data.
    fn begin(&self, codec_options: Option<&[u8]>, output: &ImageFile<'_>) -> Result<u64, BuildError> {
        let mut beginning = vec![0; SUPERBLOCK_BYTES];
        if let Some(options) = codec_options {
            beginning.put_u16(u16::try_from(options.len()).unwrap_or(0) | METADATA_PLAIN);
            beginning.extend_from_slice(options);
        }
        output.write_at(&mut [IoSlice::new(&beginning)], 0)?;
        Ok(beginning.len() as u64)
    }

    fn write_blocks(
        &self,
        store_paths: &[InputPath],
        image: (&ImageFile<'_>, u64),
        open_files: &OpenFiles,
        progress: &mut dyn Progress,
    ) -> Result<Sequenced, BuildError> {
        let settings = self.settings;
        let keeper = self.cache.map(|cache| CacheKeeper { cache, settings, open_files: open_files.clone() });
        let target = Target {
            store_paths,
            settings,
            image: Some(image),
            keeper: keeper.as_ref().map(|keeper| keeper as &dyn PackKeeper),
        };
        let first_trouble = Mutex::new(None);
        let note_trouble = |error: CacheError| {
            first_trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        };
        let done = write_blocks(&target, self.threads, self.cancel, &note_trouble, progress)?;
        if let Some(error) = first_trouble.into_inner().unwrap_or_else(PoisonError::into_inner) {
            progress.warn(&cache_warning(&error));
        }
        Ok(done)
    }

    fn write_tables(
        &self,
        store_paths: &[InputPath],
        places: &Places,
        start: u64,
        output: &ImageFile<'_>,
    ) -> Result<Tables, BuildError> {
        let mut order: Vec<usize> = (0..store_paths.len()).collect();
        order.sort_by_key(|store_path| store_paths[*store_path].planned.path.base_name());
        let by_name: Vec<_> = order
            .iter()
            .map(|store_path| TableMember {
                name: store_paths[*store_path].planned.path.base_name().as_bytes(),
                tree: store_paths[*store_path].tree(),
            })
            .collect();
        let contents = ByName { places, order: &order };
        let mut encoders = three_encoders(|| Encoder::for_metadata(self.settings))?;
        let encoders = encoders.each_mut().map(Some);
        let tables = write_tables(&by_name, &contents, places.fragments(), start, encoders)?;
        output.write_at(&mut [IoSlice::new(&tables.bytes)], start)?;
        Ok(tables)
    }

    /// Pads the image, writes its superblock, and returns its length.
    fn finish(
        &self,
        done: &Sequenced,
        tables: &Tables,
        has_options: bool,
        output: &ImageFile<'_>,
    ) -> Result<u64, BuildError> {
        let bytes_used = done.end + tables.bytes.len() as u64;
        let length = bytes_used.next_multiple_of(IMAGE_ALIGNMENT_BYTES);
        let fragments = done.places.fragments().len();
        let mut bits = flags::EXPORTABLE | flags::NO_XATTRS | flags::DUPLICATES;
        for (bit, set) in [
            (flags::CODEC_OPTIONS, has_options),
            (flags::NO_FRAGMENTS, tables.fragment_table == NO_TABLE),
            (flags::PLAIN_DATA | flags::PLAIN_FRAGMENTS, done.places.all_plain()),
        ] {
            bits |= if set { bit } else { 0 };
        }
        let superblock = Superblock {
            inodes: tables.inodes,
            made_at: MADE_AT,
            block_size_bytes: self.settings.block_size_bytes(),
            fragments: u32::try_from(fragments)
                .map_err(|_| TablesError::TooLarge { what: "over 4294967295 fragment blocks" })?,
            codec: codec_number(self.settings.compression()),
            flags: bits,
            ids: tables.ids,
            root: tables.root,
            bytes_used,
            id_table: tables.id_table,
            inode_table: tables.inode_table,
            directory_table: tables.directory_table,
            fragment_table: tables.fragment_table,
            export_table: tables.export_table,
        };
        output.finish(&superblock.encode(), length)?;
        Ok(length)
    }
}

/// The outputs that are made from store paths: an image, packs, or both.
struct Target<'a> {
    store_paths: &'a [InputPath],
    settings: &'a crate::settings::ImageSettings,
    /// The image, and the position of its data.
    image: Option<(&'a ImageFile<'a>, u64)>,
    keeper: Option<&'a dyn PackKeeper>,
}

/// Reads, compresses, copies and writes all content.
fn write_blocks(
    target: &Target<'_>,
    threads: usize,
    cancel: &AtomicBool,
    cache_troubles: &(dyn Fn(CacheError) + Sync),
    progress: &mut dyn Progress,
) -> Result<Sequenced, BuildError> {
    let buffers = SpareBuffers::default();
    let Target { store_paths, settings, image, keeper } = *target;
    let (image, start) = image.map_or((None, 0), |(image, start)| (Some(image), start));
    let inputs = WorkerInputs { store_paths, settings, image, keeper, buffers: &buffers, cache_troubles };
    job_queue::with_workers(&inputs, threads, |queue, results, started| {
        if started < threads {
            progress.warn(&format!("only {started} of {threads} threads could be started: the build takes longer"));
        }
        let (threads, buffers) = (started, &buffers);
        let inputs =
            SequenceInputs { store_paths, settings, threads, cancel, buffers, image, start, keeper, cache_troubles };
        let before = cpu_seconds(UsageWho::RUSAGE_THREAD);
        let mut done = Sequencer::new(&inputs, progress, queue).run(results)?;
        done.cpu_seconds = cpu_seconds(UsageWho::RUSAGE_THREAD) - before;
        Ok(done)
    })
}

/// Creates the encoders of the inode table, the directory table and the other tables. A codec that cannot be set up
/// ends the build, because tables written without it would have other bytes.
fn three_encoders(new: impl Fn() -> Result<Encoder, EncodeError>) -> Result<[Encoder; 3], EncodeError> {
    Ok([new()?, new()?, new()?])
}

/// The locations of files, with store paths numbered in the order of the root directory.
struct ByName<'a> {
    places: &'a Places,
    order: &'a [usize],
}

impl Contents for ByName<'_> {
    fn locate(&self, store_path: usize, file: u32) -> Location<'_> {
        self.places.locate(self.order[store_path], file)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_that_cannot_be_set_up_ends_the_build_instead_of_writing_plain_tables() {
        let settings = crate::settings::ImageSettings::default();
        let calls = std::cell::Cell::new(0);
        let fails_at_the_third = || {
            calls.set(calls.get() + 1);
            if calls.get() < 3 { Encoder::for_metadata(&settings) } else { Err(EncodeError::for_test()) }
        };
        assert!(three_encoders(fails_at_the_third).is_err());
        assert!(three_encoders(|| Encoder::for_metadata(&settings)).is_ok());
    }
}
