//! Builds a squashfs image: scans the store paths, writes their blocks, and then the tables.

use super::new_pack::{CacheKeeper, PackKeeper};
use super::output::{ImageFile, OutputError, is_full};
use super::packed_ranges::{PackInImage, PackedRange};
use super::places::Places;
use super::scan::Scanner;
use super::sequence::Sequenced;
use super::source::{InputPath, PathData};
use super::{
    BuildError, BuildOptions, CacheTrust, NewImage, REPORT_VERSION, Target, cache_warning, share_a_disk, write_blocks,
};
use crate::cache::{Cache, CacheError};
use crate::open_files::OpenFiles;
use crate::pack::Pack;
use crate::plan::ImagePlan;
use crate::progress::{Phase, Progress};
use crate::report::{BuildReport, CacheReport, CpuSeconds};
use crate::settings::ImageSettings;
use crate::squashfs::image::{DataBlocks, begin, finish};
use crate::squashfs::tables::{Contents, Location, RootEntry};
use crate::store_path::StorePath;
use std::io::IoSlice;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A build of a squashfs image.
pub(super) struct SquashfsBuild<'a> {
    pub(super) plan: &'a ImagePlan,
    pub(super) settings: &'a ImageSettings,
    pub(super) options: &'a BuildOptions,
    pub(super) cache: Option<&'a Cache>,
    pub(super) cancel: &'a AtomicBool,
    pub(super) threads: usize,
    pub(super) started: Instant,
}

impl SquashfsBuild<'_> {
    /// Writes everything except the parts that all formats have in common. Returns the report so far, and the packs
    /// whose bytes are in the image.
    pub(super) fn write(
        &self,
        output: &ImageFile<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(BuildReport, Vec<PackInImage>), BuildError> {
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

        // Untrusted packs could change after the check, so the checked bytes are written.
        let pack = scanned.store_paths.iter().find_map(|store_path| store_path.pack()?.file());
        if let Some(pack) = pack.filter(|_| self.options.cache_trust == CacheTrust::Checksums) {
            output.try_sharing(pack)?;
        }
        let blocks_started = Instant::now();
        let beginning = begin(self.settings);
        let done = loop {
            progress.begin(Phase::Blocks, report.input_bytes);
            let image = (output, beginning.len() as u64);
            let written = output
                .write_at(&mut [IoSlice::new(&beginning)], 0)
                .map_err(BuildError::from)
                .and_then(|()| self.write_blocks(&scanned.store_paths, image, &open_files, progress));
            let done = match written {
                Err(error) if self.is_out_of_space(&error) && scanned.has_open_packs() => {
                    progress.warn("the disk is full: packs are removed from the cache, and the build takes longer");
                    scanner.give_packs_up(&mut scanned)?;
                    output.restart()?;
                    continue;
                }
                written => written?,
            };
            if done.damaged.is_empty() {
                break done;
            }
            // The content copied from these packs is wrong, and the positions after it may be wrong too. The packs are
            // made again, and all blocks are written again.
            scanner.scan_again(&mut scanned, &done.damaged)?;
            output.restart()?;
        };
        report.seconds.blocks = blocks_started.elapsed().as_secs_f64() - done.tables_seconds;
        report.seconds.tables = done.tables_seconds;
        report.image_bytes = done.image_bytes.ok_or(BuildError::Defect { what: "the image has no tables" })?;

        report.blocks = done.places.blocks;
        (report.duplicate_files, report.duplicate_bytes) =
            (done.content_counts.duplicate_files, done.content_counts.duplicate_bytes);
        let rebuilt = |store_path: &usize| scanned.store_paths[*store_path].input_bytes();
        let rebuilt_bytes = scanned.rebuilt.iter().map(rebuilt).sum();
        report.cache = CacheReport {
            enabled: self.cache.is_some() || self.options.packs.is_some(),
            ..done.content_counts.report(self.plan.paths.len(), scanned.rebuilt.len(), rebuilt_bytes)
        };
        report.cpu_seconds = CpuSeconds { total: 0.0, sequencer: done.cpu_seconds };
        let packs = packs_in_image(&scanned.store_paths, &done);
        free_in_background(scanned.store_paths);
        (report.work_seconds, report.slowest_paths) = (done.work_seconds, done.slowest_paths);
        Ok((report, packs))
    }

    /// Returns whether the disk is full, and removing packs from the cache frees space on it: that of packs that this build
    /// reads is free only after it has closed them.
    fn is_out_of_space(&self, error: &BuildError) -> bool {
        let is_full = matches!(error, BuildError::Output(OutputError::Io { source, .. }) if is_full(source));
        let directory = self.options.cache.as_ref().filter(|_| is_full && self.cache.is_some());
        directory.is_some_and(|directory| share_a_disk(directory, &self.options.output))
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
        let (file, start) = image;
        let write_tables = |places: &Places, end| self.finish(store_paths, (places, end), file);
        let target = Target {
            store_paths,
            settings,
            image: Some(NewImage { file, start, write_tables: &write_tables }),
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

    /// Writes everything after the data, and the superblock. Returns the length of the image in bytes.
    fn finish(
        &self,
        store_paths: &[InputPath],
        (places, end): (&Places, u64),
        output: &ImageFile<'_>,
    ) -> Result<u64, BuildError> {
        let order =
            StorePath::order(store_paths.iter().map(|store_path| &store_path.planned.path), StorePath::base_name);
        let by_name: Vec<_> = order
            .iter()
            .map(|store_path| RootEntry {
                name: store_paths[*store_path].planned.path.base_name().as_bytes(),
                tree: store_paths[*store_path].tree(),
            })
            .collect();
        let contents = ByName { places, order: &order };
        let data = DataBlocks { end, fragments: places.fragments(), all_plain: places.all_plain() };
        let ending = finish(self.settings, &by_name, &contents, data)?;
        output.write_at(&mut [IoSlice::new(&ending.tables)], end)?;
        output.finish(&ending.superblock, ending.length)?;
        Ok(ending.length)
    }
}

/// Frees the store paths while the image is being synced and published, because those of a large closure consist of
/// hundreds of thousands of allocations. Their packs are closed at once: a full disk may need the space.
fn free_in_background(mut store_paths: Vec<InputPath>) {
    for store_path in &mut store_paths {
        if let PathData::Packed(pack) = &mut store_path.data {
            pack.close();
        }
        store_path.earlier = None;
    }
    // Without a thread, they are freed here.
    let _ = std::thread::Builder::new().name("microvm-image free".to_owned()).spawn(move || drop(store_paths));
}

/// Returns the packs whose bytes are in the image: those that were used, and those that were made.
fn packs_in_image(store_paths: &[InputPath], done: &Sequenced) -> Vec<PackInImage> {
    let of_path = |ranges: &[PackedRange]| {
        let number = ranges.first()?.store_path;
        let identity = store_paths[number].pack().map(Pack::identity).or_else(|| done.new_packs.get(&number))?;
        Some(PackInImage { planned: store_paths[number].planned.clone(), identity: *identity, ranges: ranges.to_vec() })
    };
    done.packed_ranges.chunk_by(|one, next| one.store_path == next.store_path).filter_map(of_path).collect()
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
