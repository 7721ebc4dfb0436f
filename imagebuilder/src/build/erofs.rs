//! Builds an erofs image: lists the store paths, compares files of equal size, computes the layout, and copies the
//! content.
//!
//! Nothing is compressed, so the cache has only the hashes of sealed images. The image is a copy of the store. If the file system can share
//! blocks between files, most blocks of the image are those of the store.

mod content;
mod copy;

use super::output::ImageFile;
use super::packed_ranges::{self, PackInImage};
use super::{BuildError, REPORT_VERSION};
use crate::erofs::{Profile, block_map};
use crate::plan::ImagePlan;
use crate::progress::{Phase, Progress};
use crate::report::BuildReport;
use crate::store_listing::StoreListing;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A build of an erofs image.
pub(super) struct ErofsBuild<'a> {
    pub(super) plan: &'a ImagePlan,
    pub(super) profile: Profile,
    pub(super) cancel: &'a AtomicBool,
    pub(super) threads: usize,
    pub(super) started: Instant,
}

impl ErofsBuild<'_> {
    /// Writes everything except the parts that all formats have in common, and returns the report so far, and the blocks
    /// whose hashes can be known.
    pub(super) fn write(
        &self,
        output: &ImageFile<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(BuildReport, Vec<PackInImage>), BuildError> {
        let mut report =
            BuildReport { version: REPORT_VERSION, paths: self.plan.paths.len() as u64, ..Default::default() };
        progress.begin(Phase::Scan, 0);
        let listing = StoreListing::of(self.plan, self.threads).map_err(BuildError::Scan)?;
        self.check_cancel()?;
        (report.files, report.input_bytes) =
            listing.regular_files().fold((0, 0), |(files, bytes), (_, size_bytes)| (files + 1, bytes + size_bytes));
        let same = content::compare(&listing, self.threads, self.cancel)?;
        (report.duplicate_files, report.duplicate_bytes) = (same.duplicate_files, same.duplicate_bytes);
        report.seconds.scan = self.started.elapsed().as_secs_f64();

        // The layout is computed first. It takes milliseconds, and determines the position of the content.
        let tables_started = Instant::now();
        progress.begin(Phase::Tables, 0);
        let map = block_map(listing.files.clone(), self.profile, &same.content)?;
        report.seconds.tables = tables_started.elapsed().as_secs_f64();

        let blocks_started = Instant::now();
        let copied_bytes = report.input_bytes - report.duplicate_bytes;
        progress.begin(Phase::Blocks, copied_bytes);
        output.finish(&[], map.size_bytes())?;
        copy::copy(&copy::Copy { map: &map, listing: &listing, output, cancel: self.cancel }, self.threads, progress)?;
        report.seconds.blocks = blocks_started.elapsed().as_secs_f64();
        report.image_bytes = map.size_bytes();
        report.blocks = map.size_bytes() / crate::erofs::format::BLOCK_BYTES;
        let packs =
            if self.plan.verity { packed_ranges::of_files(&map, &listing, &self.plan.paths) } else { Vec::new() };
        Ok((report, packs))
    }

    fn check_cancel(&self) -> Result<(), BuildError> {
        if self.cancel.load(Ordering::Relaxed) { Err(BuildError::Interrupted) } else { Ok(()) }
    }
}
