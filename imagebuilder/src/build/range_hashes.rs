//! The hashes of the files that are being read.

use super::source::InputPath;
use crate::segment::{ContentHash, range_count};

/// The hashes of the ranges of every file in the store paths that were listed. Hashes that are not needed are zero.
#[derive(Debug)]
pub(super) struct RangeHashes {
    hashes: Vec<ContentHash>,
    /// For each file of the image the index of its first range, and an additional entry for the end. Files from packs
    /// have no ranges.
    first: Vec<usize>,
}

impl RangeHashes {
    /// Creates hashes that are all zero.
    pub(super) fn new(store_paths: &[InputPath]) -> Self {
        let mut first = Vec::new();
        let mut ranges = 0;
        for store_path in store_paths {
            let is_listed = store_path.listing().is_some();
            for size in store_path.tree().file_sizes() {
                first.push(ranges);
                ranges += if is_listed { range_count(*size) } else { 0 };
            }
        }
        first.push(ranges);
        Self { hashes: vec![[0; 32]; ranges], first }
    }

    /// Returns the hashes of a file, one per range.
    pub(super) fn of(&self, file: usize) -> &[ContentHash] {
        &self.hashes[self.first[file]..self.first[file + 1]]
    }

    /// Returns the hashes of all files of a store path, one file after the other.
    pub(super) fn of_path(&self, store_path: &InputPath) -> &[ContentHash] {
        let files = store_path.tree().file_sizes().len();
        &self.hashes[self.first[store_path.first_file]..self.first[store_path.first_file + files]]
    }

    /// Sets the hash of a range.
    pub(super) fn set(&mut self, file: usize, range: usize, hash: ContentHash) {
        let index = self.first[file] + range;
        self.hashes[index] = hash;
    }

    /// Copies the hashes of a file to a hard link of it.
    pub(super) fn copy(&mut self, from: usize, to: usize) {
        let (start, end, target) = (self.first[from], self.first[from + 1], self.first[to]);
        self.hashes.copy_within(start..end, target);
    }
}
