//! The ranges of an image that have the same bytes as a pack, in the same places of blocks of 4096 bytes.

use crate::pack::block_hashes::PackIdentity;
use crate::plan::PlannedPath;
use crate::verity::BLOCK_BYTES;
use std::ops::Range;

/// A pack, and the ranges of the image that have its bytes.
#[derive(Debug)]
pub(super) struct PackInImage {
    /// Its store path.
    pub(super) planned: PlannedPath,
    /// What distinguishes it from other packs.
    pub(super) identity: PackIdentity,
    /// The ranges, which belong to the same store path.
    pub(super) ranges: Vec<PackedRange>,
}

/// A range of the image with the bytes of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackedRange {
    /// Number of the store path.
    pub(super) store_path: usize,
    /// Number of the pack's segment that follows the range.
    next_segment: usize,
    pack_at: u64,
    image_at: u64,
    bytes: u64,
}

impl PackedRange {
    /// Returns the whole blocks of the range, as their numbers in the image and in the pack.
    pub(super) fn blocks(&self) -> (Range<usize>, Range<usize>) {
        let number = |at: u64| usize::try_from(at / BLOCK_BYTES).unwrap_or(usize::MAX);
        let of = |at: u64| {
            let first = number(at.next_multiple_of(BLOCK_BYTES));
            first..number(at + self.bytes).max(first)
        };
        (of(self.image_at), of(self.pack_at))
    }
}

/// Adds a segment to the ranges, unless it begins in different places of a block in the pack and in the image. Segments
/// come in the order of the image. `number` and `pack_at` are the segment's number and position in the pack.
pub(super) fn add(
    ranges: &mut Vec<PackedRange>,
    (store_path, number): (usize, usize),
    (pack_at, image_at): (u64, u64),
    bytes: u64,
) {
    if pack_at % BLOCK_BYTES != image_at % BLOCK_BYTES {
        return;
    }
    let next_segment = number + 1;
    // Between two segments that follow each other in the pack, pack and image have only zeros.
    if let Some(last) = ranges.last_mut()
        && (last.store_path, last.next_segment) == (store_path, number)
        && image_at.checked_sub(last.image_at) == pack_at.checked_sub(last.pack_at)
        && image_at >= last.image_at
    {
        (last.next_segment, last.bytes) = (next_segment, image_at + bytes - last.image_at);
    } else {
        ranges.push(PackedRange { store_path, next_segment, pack_at, image_at, bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_follow_each_other_in_pack_and_image_are_one_range() {
        let mut ranges = Vec::new();
        add(&mut ranges, (0, 0), (0, 4096), 5000);
        add(&mut ranges, (0, 1), (8192, 12_288), 4000);
        // Segment 2 is left out.
        add(&mut ranges, (0, 3), (16_384, 16_384), 5000);
        add(&mut ranges, (0, 4), (21_384, 21_384), 100);
        add(&mut ranges, (0, 5), (21_484, 21_485), 100_000);
        add(&mut ranges, (1, 0), (0, 200_704), 100);
        let blocks: Vec<_> = ranges.iter().map(|range| (range.store_path, range.blocks())).collect();
        assert_eq!(blocks, [(0, (1..3, 0..2)), (0, (4..5, 4..5)), (1, (49..49, 0..0))]);
    }
}
