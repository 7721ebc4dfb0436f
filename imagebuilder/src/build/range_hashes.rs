//! The hashes of the files that are being read.

use super::source::Member;
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
    pub(super) fn new(members: &[Member]) -> Self {
        let mut first = Vec::new();
        let mut ranges = 0;
        for member in members {
            let is_listed = member.listing().is_some();
            for size in member.tree().file_sizes() {
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
    pub(super) fn of_member(&self, member: &Member) -> &[ContentHash] {
        let files = member.tree().file_sizes().len();
        &self.hashes[self.first[member.first_file]..self.first[member.first_file + files]]
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
