//! Builds an image from a plan: scan, blocks, tables, publish.

mod buffers;
mod job;
mod output;
mod places;
mod sequence;
mod source;
mod steps;
mod tally;
mod workers;

pub use output::OutputError;

use crate::cache::outputs::PlanKey;
use crate::cache::{Cache, CacheError, Lookup};
use crate::encode::{EncodeError, Encoder, codec_number, codec_options};
use crate::plan::{ImagePlan, PlannedPath};
use crate::progress::{Phase, Progress};
use crate::report::{BuildReport, CacheReport, Outcome};
use crate::scan::{self, ScanError};
use crate::squashfs::format::{
    IMAGE_ALIGNMENT_BYTES, METADATA_PLAIN, NO_TABLE, PutLe, SUPERBLOCK_BYTES, Superblock, flags,
};
use crate::squashfs::tables::{Contents, Location, Member as TableMember, Tables, TablesError, write_tables};
use crate::threads::{JOBS_MAX, map_in_parallel};
use buffers::SpareBuffers;
use job::Workshop;
use nix::sys::resource::{UsageWho, getrusage};
use output::ImageFile;
use places::Places;
use sequence::{Sequenced, Sequencer, Surroundings};
use source::{Knowledge, Member};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use thiserror::Error;

/// Version of the report's form.
const REPORT_VERSION: u32 = 1;
/// Images are made at the time Nix gives to all files, so that the clock does not show in them.
const MADE_AT: u32 = 1;

/// How much the cache is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheTrust {
    /// Checksums are checked: damage is found, a forger with write access is not.
    Checksums,
    /// Every store path is read, and every cached block is decompressed and compared with it.
    VerifyAgainstStore,
}

/// Whether digests of the whole image are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digests {
    /// None: the quickest.
    Skip,
    /// BLAKE3-256 and SHA-256.
    Compute,
}

/// Everything about a build that does not change a byte of the image.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Where the image goes.
    pub output: PathBuf,
    /// The cache directory; `None` builds without.
    pub cache: Option<PathBuf>,
    /// How much the cache is trusted.
    pub cache_trust: CacheTrust,
    /// Threads that read and compress, 1 to [`JOBS_MAX`].
    pub jobs: usize,
    /// Digests of the whole image.
    pub digests: Digests,
}

/// Why there is no image.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Stopped by the caller.
    #[error("interrupted")]
    Interrupted,
    /// Store paths that cannot be listed, or hold what no Nix store holds.
    #[error("{}", list_problems(.0))]
    Scan(Vec<ScanError>),
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what it was when the build began, or when the cache met it.
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
    /// The format cannot hold the closure.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread ended early: a defect of this program.
    #[error("a worker thread failed; this is a defect of microvm-image")]
    WorkerPanicked,
    /// What cannot be: a defect of this program.
    #[error("{what}; this is a defect of microvm-image")]
    Defect {
        /// What was found.
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

/// Builds the image of `plan` at `options.output`: whole or not at all.
///
/// `cancel` is looked at often; once it is true the build ends with [`BuildError::Interrupted`].
///
/// # Errors
/// Anything that keeps the image from being right; then nothing stands at the output that did not stand there before.
pub fn build(
    plan: &ImagePlan,
    options: &BuildOptions,
    progress: &mut dyn Progress,
    cancel: &AtomicBool,
) -> Result<BuildReport, BuildError> {
    let started = Instant::now();
    let cache = options.cache.as_ref().map(|path| Cache::open_unless(path, &plan.settings, cancel)).transpose();
    let cache = cache.map_err(|error| match error.source.kind() {
        io::ErrorKind::Interrupted => BuildError::Interrupted,
        _ => BuildError::Cache(error),
    })?;
    let key = cache.as_ref().and_then(|cache| Some((cache, PlanKey::of(plan)?)));
    if let Some((cache, key)) = &key
        && options.cache_trust == CacheTrust::Checksums
        && let Some(report) = cache.finished_build(key, &options.output)
        && (options.digests == Digests::Skip || report.image_sha256.is_some())
    {
        return Ok(unchanged(report, started));
    }
    let make_room = |bytes| match (&cache, &options.cache) {
        (Some(cache), Some(directory)) => share_a_disk(directory, &options.output) && cache.make_room(bytes),
        _ => false,
    };
    let output = ImageFile::create(&options.output, &make_room)?;
    let threads = options.jobs.clamp(1, JOBS_MAX);
    let build = Build { plan, options, cache: cache.as_ref(), cancel, threads, started };
    let (report, published) = build.run(output, progress)?;
    if let Some((cache, key)) = &key
        && let Err(error) = cache.remember_build(key, &options.output, &published, &report)
    {
        progress.warn(&cache_warning(&error));
    }
    Ok(report)
}

/// Whether what is removed from the cache frees space for the output.
fn share_a_disk(cache: &Path, output: &Path) -> bool {
    let directory = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(cache).is_some_and(|cache| device(directory) == Some(cache))
}

/// The report of a build that found its image in place.
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

struct Build<'a> {
    plan: &'a ImagePlan,
    options: &'a BuildOptions,
    cache: Option<&'a Cache>,
    cancel: &'a AtomicBool,
    threads: usize,
    started: Instant,
}

impl Build<'_> {
    fn run(&self, mut output: ImageFile<'_>, progress: &mut dyn Progress) -> Result<(BuildReport, File), BuildError> {
        let mut report =
            BuildReport { version: REPORT_VERSION, paths: self.plan.paths.len() as u64, ..Default::default() };
        progress.begin(Phase::Scan, 0);
        let (members, damaged) = self.scan()?;
        report.files = members.iter().map(|member| member.tree().file_sizes().len() as u64).sum();
        report.input_bytes = members.iter().flat_map(|member| member.tree().file_sizes()).sum();
        report.seconds.scan = self.started.elapsed().as_secs_f64();

        progress.begin(Phase::Blocks, report.input_bytes);
        let blocks_started = Instant::now();
        let options = codec_options(&self.plan.settings);
        output.append(&[0; SUPERBLOCK_BYTES])?;
        if let Some(options) = &options {
            let mut block = Vec::new();
            block.put_u16(u16::try_from(options.len()).unwrap_or(0) | METADATA_PLAIN);
            block.extend_from_slice(options);
            output.append(&block)?;
        }
        let mut done = self.write_blocks(&members, &mut output, progress)?;
        for member in damaged {
            done.tally.damaged_manifest(member);
        }
        report.seconds.blocks = blocks_started.elapsed().as_secs_f64();

        progress.begin(Phase::Tables, 0);
        let tables_started = Instant::now();
        let tables = self.write_tables(&members, &done.places, &mut output)?;
        report.image_bytes = self.finish(&done, &tables, options.is_some(), &mut output)?;
        report.seconds.tables = tables_started.elapsed().as_secs_f64();

        progress.begin(Phase::Publish, 0);
        let publish_started = Instant::now();
        if self.options.digests == Digests::Compute {
            let (blake3, sha256) = output.digests()?;
            (report.image_blake3, report.image_sha256) = (Some(blake3), Some(sha256));
        }
        if self.cancel.load(Ordering::Relaxed) {
            return Err(BuildError::Interrupted);
        }
        self.publish_manifests(&members, &done, progress);
        let published = output.publish()?;
        report.seconds.publish = publish_started.elapsed().as_secs_f64();

        report.blocks = done.places.blocks;
        (report.duplicate_files, report.duplicate_bytes) = (done.tally.duplicate_files, done.tally.duplicate_bytes);
        report.cache = CacheReport { enabled: self.cache.is_some(), ..done.tally.report() };
        report.seconds.total = self.started.elapsed().as_secs_f64();
        report.peak_memory_bytes = peak_memory_bytes();
        Ok((report, published))
    }

    /// What every store path holds, in the order of the data, and which of them had a damaged manifest.
    ///
    /// The order is that of the names, not of the hashes: an update changes hashes, and what a path shares with its
    /// neighbours should not change with them.
    fn scan(&self) -> Result<(Vec<Member>, Vec<usize>), BuildError> {
        let mut ordered: Vec<&PlannedPath> = self.plan.paths.iter().collect();
        ordered.sort_by_key(|planned| (planned.path.name(), planned.path.base_name()));
        let scanned = map_in_parallel(self.threads, &ordered, |planned| self.scan_path(planned));
        let mut members = Vec::with_capacity(scanned.len());
        let (mut damaged, mut problems) = (Vec::new(), Vec::new());
        let mut first_file = 0;
        for (number, result) in scanned.into_iter().enumerate() {
            match result {
                Ok((mut member, health)) => {
                    member.first_file = first_file;
                    first_file += member.tree().file_sizes().len();
                    members.push(member);
                    if health == ManifestHealth::Damaged {
                        damaged.push(number);
                    }
                }
                Err(BuildError::Scan(mut more)) => problems.append(&mut more),
                Err(other) => return Err(other),
            }
        }
        if problems.is_empty() { Ok((members, damaged)) } else { Err(BuildError::Scan(problems)) }
    }

    fn scan_path(&self, planned: &PlannedPath) -> Result<(Member, ManifestHealth), BuildError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(BuildError::Interrupted);
        }
        let location = self.plan.store_dir.join(planned.path.base_name());
        let found = match self.cache {
            Some(cache) if self.options.cache_trust == CacheTrust::Checksums => cache.load_manifest(planned)?,
            _ => Lookup::Miss,
        };
        let (knowledge, health) = match found {
            Lookup::Hit(manifest) => {
                let (tree, range_hashes) = (manifest.tree, manifest.range_hashes);
                (Knowledge::Cached { tree, range_hashes }, ManifestHealth::Sound)
            }
            Lookup::Miss => (self.list(planned, &location)?, ManifestHealth::Sound),
            Lookup::Damaged => (self.list(planned, &location)?, ManifestHealth::Damaged),
        };
        Ok((Member { planned: planned.clone(), location, knowledge, first_file: 0 }, health))
    }

    fn list(&self, planned: &PlannedPath, location: &std::path::Path) -> Result<Knowledge, BuildError> {
        let listing = scan::list(location).map_err(|problem| BuildError::Scan(vec![problem]))?;
        let actual_bytes = listing.tree.nar_size_bytes();
        match planned.nar_size_bytes.filter(|expected| *expected != actual_bytes) {
            Some(expected_bytes) => {
                let path = location.to_owned();
                Err(BuildError::Scan(vec![ScanError::NarSize { path, expected_bytes, actual_bytes }]))
            }
            None => Ok(Knowledge::Listed(listing)),
        }
    }

    fn write_blocks(
        &self,
        members: &[Member],
        output: &mut ImageFile<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Sequenced, BuildError> {
        let first_trouble = Mutex::new(None);
        let note_trouble = |error: CacheError| {
            first_trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        };
        let buffers = SpareBuffers::default();
        let workshop = Workshop {
            members,
            settings: &self.plan.settings,
            cache: self.cache,
            trust: self.options.cache_trust,
            buffers: &buffers,
            cache_troubles: &note_trouble,
        };
        let done = workers::with_workers(&workshop, self.threads, |counter, deliveries, threads| {
            if threads < self.threads {
                let wanted = self.threads;
                progress.warn(&format!("only {threads} of {wanted} threads could be started: the build takes longer"));
            }
            let settings = &self.plan.settings;
            let around = Surroundings { members, settings, threads, cancel: self.cancel, buffers: &buffers };
            Sequencer::new(&around, output, progress, counter).run(deliveries)
        })?;
        if let Some(error) = first_trouble.into_inner().unwrap_or_else(PoisonError::into_inner) {
            progress.warn(&cache_warning(&error));
        }
        Ok(done)
    }

    fn write_tables(
        &self,
        members: &[Member],
        places: &Places,
        output: &mut ImageFile<'_>,
    ) -> Result<Tables, BuildError> {
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|member| members[*member].planned.path.base_name());
        let by_name: Vec<_> = order
            .iter()
            .map(|member| TableMember {
                name: members[*member].planned.path.base_name().as_bytes(),
                tree: members[*member].tree(),
            })
            .collect();
        let contents = ByName { places, order: &order };
        let mut encoders = three_encoders(|| Encoder::for_metadata(&self.plan.settings))?;
        let encoders = encoders.each_mut().map(Some);
        let tables = write_tables(&by_name, &contents, places.fragments(), output.position(), encoders)?;
        output.append(&tables.bytes)?;
        Ok(tables)
    }

    /// Pads the image, writes its superblock, and returns its length.
    fn finish(
        &self,
        done: &Sequenced,
        tables: &Tables,
        has_options: bool,
        output: &mut ImageFile<'_>,
    ) -> Result<u64, BuildError> {
        let bytes_used = output.position();
        let padding = bytes_used.next_multiple_of(IMAGE_ALIGNMENT_BYTES) - bytes_used;
        output.append(&vec![0; usize::try_from(padding).unwrap_or(0)])?;
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
            block_size_bytes: self.plan.settings.block_size_bytes(),
            fragments: u32::try_from(fragments)
                .map_err(|_| TablesError::TooLarge { what: "over 4294967295 fragment blocks" })?,
            codec: codec_number(self.plan.settings.compression()),
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
        output.finish(&superblock.encode())?;
        Ok(output.position())
    }

    /// Keeps what was found out about store paths that the cache did not know.
    fn publish_manifests(&self, members: &[Member], done: &Sequenced, progress: &mut dyn Progress) {
        let Some(cache) = self.cache else { return };
        let store = |member: &Member| match &member.knowledge {
            Knowledge::Listed(listing) => {
                cache.store_manifest(&member.planned, &listing.tree, done.range_hashes.of_member(member)).err()
            }
            Knowledge::Cached { .. } => None,
        };
        if let Some(error) = map_in_parallel(self.threads, members, store).into_iter().flatten().next() {
            progress.warn(&cache_warning(&error));
        }
    }
}

/// The encoders of the inode table, the directory table and the others. A codec that cannot be set up ends the build: tables
/// written without it would be other bytes.
fn three_encoders(new: impl Fn() -> Result<Encoder, EncodeError>) -> Result<[Encoder; 3], EncodeError> {
    Ok([new()?, new()?, new()?])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ManifestHealth {
    Sound,
    Damaged,
}

/// The places of files when members are counted in the order of the root directory.
struct ByName<'a> {
    places: &'a Places,
    order: &'a [usize],
}

impl Contents for ByName<'_> {
    fn locate(&self, member: usize, file: u32) -> Location<'_> {
        self.places.locate(self.order[member], file)
    }
}

/// Highest resident size of this process; 0 when the kernel does not say.
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
