//! Counts where the bytes of an image came from.

use crate::report::CacheReport;
use std::collections::HashSet;

/// Counts by store path and by bytes.
#[derive(Debug, Default)]
pub(super) struct Tally {
    compressed: HashSet<usize>,
    bytes: CacheReport,
    /// Files whose content is in the image already.
    pub(super) duplicate_files: u64,
    /// Bytes of those files.
    pub(super) duplicate_bytes: u64,
}

impl Tally {
    /// Content was copied from packs.
    pub(super) fn copied(&mut self, input_bytes: u64) {
        self.bytes.hit_bytes += input_bytes;
    }

    /// Content of a store path was compressed.
    pub(super) fn compressed(&mut self, member: usize, input_bytes: u64) {
        self.compressed.insert(member);
        self.bytes.missed_bytes += input_bytes;
    }

    /// A file was in the image already.
    pub(super) fn duplicate(&mut self, bytes: u64) {
        self.duplicate_files += 1;
        self.duplicate_bytes += bytes;
    }

    /// The counts as the report has them, of so many store paths, of which `rebuilt_paths` with `rebuilt_bytes` had damaged
    /// packs.
    pub(super) fn report(&self, paths: usize, rebuilt_paths: usize, rebuilt_bytes: u64) -> CacheReport {
        let missed = self.compressed.len() as u64;
        CacheReport {
            enabled: true,
            hit_paths: paths as u64 - missed,
            missed_paths: missed,
            rebuilt_paths: rebuilt_paths as u64,
            rebuilt_bytes,
            ..self.bytes.clone()
        }
    }
}
