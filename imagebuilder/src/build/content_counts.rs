//! Counts the origins of the bytes in an image.

use crate::report::CacheReport;
use std::collections::HashSet;

/// Counts by store path and by bytes.
#[derive(Debug, Default)]
pub(super) struct ContentCounts {
    compressed: HashSet<usize>,
    bytes: CacheReport,
    /// Files whose content was already in the image.
    pub(super) duplicate_files: u64,
    /// Bytes of those files.
    pub(super) duplicate_bytes: u64,
}

impl ContentCounts {
    /// Counts content that was copied from packs.
    pub(super) fn copied(&mut self, input_bytes: u64) {
        self.bytes.hit_bytes += input_bytes;
    }

    /// Counts content of a store path that was compressed.
    pub(super) fn compressed(&mut self, store_path: usize, input_bytes: u64) {
        self.compressed.insert(store_path);
        self.bytes.missed_bytes += input_bytes;
    }

    /// Counts a file whose content was already in the image.
    pub(super) fn duplicate(&mut self, bytes: u64) {
        self.duplicate_files += 1;
        self.duplicate_bytes += bytes;
    }

    /// Returns the counts for the report, given the number of store paths, and the number and size of those with
    /// damaged packs.
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
