//! The ranges of an image that have the same bytes as a pack, in the same places of blocks of 4096 bytes. For an EROFS
//! image, the whole blocks of a store path's files count as its pack, in the order of the files.

use crate::block_map::{BlockMap, FileId, Source};
use crate::pack::block_hashes::PackIdentity;
use crate::plan::PlannedPath;
use crate::store_listing::StoreListing;
use crate::tree::Entry;
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

/// Returns the blocks of an EROFS image that are whole blocks of files. A store path without a NAR hash has
/// none: its files could have changed since their blocks were hashed.
pub(super) fn of_files(map: &BlockMap, listing: &StoreListing, planned: &[PlannedPath]) -> Vec<PackInImage> {
    let mut packs: Vec<PackInImage> = Vec::with_capacity(planned.len());
    let mut starts = Vec::with_capacity(planned.len());
    for (number, planned) in (0..).zip(planned) {
        let (identity, of_path) = files_of(listing, number, planned);
        packs.push(PackInImage { planned: planned.clone(), identity, ranges: Vec::new() });
        starts.push(of_path);
    }
    for extent in map.extents() {
        let Source::File { file, offset } = extent.source else { continue };
        let bytes = extent.length - extent.length % BLOCK_BYTES;
        if bytes == 0 || extent.start % BLOCK_BYTES != 0 || offset % BLOCK_BYTES != 0 {
            continue;
        }
        let store_path = file.store_path as usize;
        let start = starts.get(store_path).and_then(|starts| starts.get(file.node as usize));
        if let Some((start, pack)) = start.zip(packs.get_mut(store_path)) {
            let (pack_at, image_at) = (start + offset, extent.start);
            pack.ranges.push(PackedRange { store_path, next_segment: 0, pack_at, image_at, bytes });
        }
    }
    packs.retain(|pack| pack.planned.nar_hash.is_some());
    packs
}

/// Returns the position of each node of a store path among the whole blocks of its files, and what distinguishes these
/// blocks from others: the NAR hash, and the number, length and version of each file. Nothing compares the files with the
/// NAR hash, so the versions must differ when Nix repairs a damaged store path, whose files all have the same times.
fn files_of(listing: &StoreListing, store_path: u32, planned: &PlannedPath) -> (PackIdentity, Vec<u64>) {
    let tree = &listing.files.store_paths()[store_path as usize].tree;
    let mut hasher = blake3::Hasher::new_derive_key("microvm-image 2026-11 files of a store path");
    hasher.update(&planned.nar_hash.unwrap_or_default());
    let mut starts = Vec::with_capacity(tree.len() as usize);
    let mut segments_bytes = 0;
    for node in 0..tree.len() {
        starts.push(segments_bytes);
        let Entry::File { size_bytes, .. } = tree.entry(node) else { continue };
        let version = listing.version(FileId { store_path, node }).unwrap_or_default();
        for number in [u64::from(node), size_bytes, version] {
            hasher.update(&number.to_le_bytes());
        }
        segments_bytes += size_bytes - size_bytes % BLOCK_BYTES;
    }
    (PackIdentity { index: *hasher.finalize().as_bytes(), segments_bytes }, starts)
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
