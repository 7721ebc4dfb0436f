//! The undo record of an image that grows: what resize2fs is about to overwrite. The next start, or the next `grow`, undoes
//! with it what a power cut has interrupted. e2fsck could repair that only by guessing.
//!
//! The record is in the image itself, behind its new end, so it needs no name that other files could have, no permission
//! to create files, and stays with an image that is moved, copied or used on another host. The image is cut to its new
//! length when the file system has grown, or to its old length when everything is restored: both are atomic.
//!
//! From the new end, rounded up to a block: the table of ranges (position and length), their content, and a block with the
//! superblock before the change, and a header in its last sector. All numbers have 64 bits and are little-endian. The
//! header has a SHA-256 hash of itself, the superblock and the table. It is written first in the phase `SAVING`, and again
//! in the phase `CHANGING` when everything else is on the disk. Only then does resize2fs start.
//!
//! Root of a guest can write a record to its volume. Undoing it changes nothing but that volume, which it can change anyway.
//! A record inside the file system can be part of any user's file, so it is ignored.

use crate::interruption::{Interrupted, Interruption};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const MAGIC: [u8; 16] = *b"microvm growth 1";
const SAVING: u64 = 1;
const CHANGING: u64 = 2;
const BLOCK_BYTES: u64 = 4096;
const SUPERBLOCK_BYTES: usize = 1024;
/// Where the superblock of an ext file system is in an image.
const SUPERBLOCK_AT: u64 = 1024;
/// Positions in the last block.
const SUPERBLOCK: Range<usize> = 2048..3072;
const HEADER: Range<usize> = 3584..4096;
/// The part of the header that is hashed, and the hash after it.
const FIELDS: Range<usize> = 0..56;
const HASH: Range<usize> = 56..88;
const ENTRY_BYTES: u64 = 16;
/// More than a file system of 64 TiB has.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// The parts of a superblock that every mount, repair and tune2fs changes at least one of, and resize2fs none: times of
/// mount and check, numbers of mounts, magic, behaviour, the fields up to the reserved users, UUID and names.
const UNCHANGED: [Range<usize>; 6] = [0x2c..0x30, 0x34..0x3a, 0x3c..0x54, 0x68..0xc8, 0x275..0x276, 0x277..0x278];

/// Why a record was not written or used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    File(#[from] io::Error),
}

/// Reads the superblock of an ext file system.
pub(super) fn superblock(image: &File) -> io::Result<[u8; SUPERBLOCK_BYTES]> {
    let mut superblock = [0; SUPERBLOCK_BYTES];
    image.read_exact_at(&mut superblock, SUPERBLOCK_AT)?;
    Ok(superblock)
}

/// The record of an image.
#[derive(Debug)]
pub(super) struct UndoRecord {
    /// The lengths of the image before and after it grows.
    length: Range<u64>,
    /// What resize2fs overwrites, in ascending order.
    ranges: Vec<Range<u64>>,
    phase: u64,
}

impl UndoRecord {
    pub(super) fn new(length: Range<u64>, ranges: Vec<Range<u64>>) -> io::Result<Self> {
        if ranges.len() as u64 * ENTRY_BYTES > MAX_TABLE_BYTES {
            return Err(io::Error::other("its file system is in too many pieces"));
        }
        Ok(Self { length, ranges, phase: SAVING })
    }

    pub(super) fn old_bytes(&self) -> u64 {
        self.length.start
    }

    /// Returns where the record is in the image.
    pub(super) fn place(&self) -> Range<u64> {
        let saved = self.ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        self.table_at()..(self.content_at() + saved).next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES
    }

    fn table_at(&self) -> u64 {
        self.length.end.next_multiple_of(BLOCK_BYTES)
    }

    fn content_at(&self) -> u64 {
        self.table_at() + (self.ranges.len() as u64 * ENTRY_BYTES).next_multiple_of(BLOCK_BYTES)
    }

    /// Writes the record. The ranges may be changed afterwards.
    pub(super) fn save(&mut self, image: &File, interruption: &Interruption) -> Result<(), RecordError> {
        // The first write makes the image longer, so it has its new length only together with the header.
        self.write_header(image)?;
        image.write_all_at(&self.table(), self.table_at())?;
        let mut saved_at = self.content_at();
        for range in &self.ranges {
            copy_range(image, range.clone(), saved_at, Some(interruption))?;
            saved_at += range.end - range.start;
        }
        image.sync_all()?;
        self.phase = CHANGING;
        Ok(self.write_header(image)?)
    }

    fn write_header(&self, image: &File) -> io::Result<()> {
        let superblock = superblock(image)?;
        let end = self.place().end;
        let mut block = [0; BLOCK_BYTES as usize];
        block[SUPERBLOCK].copy_from_slice(&superblock);
        block[HEADER].copy_from_slice(&self.header(end, &superblock));
        image.write_all_at(&block, end - BLOCK_BYTES)?;
        image.sync_all()
    }

    fn header(&self, end: u64, superblock: &[u8]) -> [u8; 512] {
        let mut header = [0; 512];
        header[..MAGIC.len()].copy_from_slice(&MAGIC);
        let table = if self.phase == CHANGING { self.table() } else { Vec::new() };
        let count = table.len() as u64 / ENTRY_BYTES;
        let fields = [self.phase, self.length.start, self.length.end, end, count];
        for (target, field) in header[MAGIC.len()..FIELDS.end].chunks_exact_mut(8).zip(fields) {
            target.copy_from_slice(&field.to_le_bytes());
        }
        let mut hash = Sha256::new();
        hash.update(&header[FIELDS]);
        hash.update(superblock);
        hash.update(table);
        header[HASH].copy_from_slice(&hash.finalize());
        header
    }

    fn table(&self) -> Vec<u8> {
        let entries = self.ranges.iter().flat_map(|range| [range.start, range.end - range.start]);
        entries.flat_map(u64::to_le_bytes).collect()
    }

    /// Finds the record of an image that only resize2fs has changed since. Something else may have mounted or repaired a
    /// half-grown file system: restoring old blocks would damage that one.
    pub(super) fn find(image: &File) -> io::Result<Option<Self>> {
        let image_bytes = image.metadata()?.len();
        let Some(block_at) = image_bytes.checked_sub(BLOCK_BYTES) else { return Ok(None) };
        let mut block = [0; BLOCK_BYTES as usize];
        image.read_exact_at(&mut block, block_at)?;
        let header = &block[HEADER];
        if header[..MAGIC.len()] != MAGIC {
            return Ok(None);
        }
        let [phase, old, new, end, count] = numbers(&header[MAGIC.len()..FIELDS.end]);
        let is_plausible = end == image_bytes && old <= new && new < end && count <= MAX_TABLE_BYTES / ENTRY_BYTES;
        if !is_plausible {
            return Ok(None);
        }
        let mut record = Self { length: old..new, ranges: Vec::new(), phase };
        let Some(ranges) = read_table(image, record.table_at(), count, old)? else { return Ok(None) };
        record.ranges = ranges;
        let superblock_then = &block[SUPERBLOCK];
        let is_valid = match phase {
            CHANGING => record.place().end == end,
            phase => phase == SAVING && count == 0,
        };
        if !is_valid || *header != record.header(end, superblock_then) {
            return Ok(None);
        }
        // A user of the guest who can write a file can write a block of the file system, but not what is behind it.
        let found = volume_maker::file_system(image)?.filter(|found| found.fs_type.starts_with("ext"));
        if found.and_then(|found| found.size_bytes).is_none_or(|bytes| bytes > new) {
            return Ok(None);
        }
        let superblock_now = superblock(image)?;
        let is_unchanged = UNCHANGED.into_iter().all(|part| superblock_then[part.clone()] == superblock_now[part]);
        Ok(is_unchanged.then_some(record))
    }

    /// Restores the image as it was before it grew, and removes the record. Can be repeated if that is interrupted.
    pub(super) fn undo(&self, image: &File, interruption: Option<&Interruption>) -> Result<(), RecordError> {
        if self.phase == CHANGING {
            let mut saved_at = self.content_at();
            for range in &self.ranges {
                let bytes = range.end - range.start;
                copy_range(image, saved_at..saved_at + bytes, range.start, interruption)?;
                saved_at += bytes;
            }
            image.sync_all()?;
        }
        image.set_len(self.length.start)?;
        Ok(image.sync_all()?)
    }

    /// Removes the record of an image that has grown.
    pub(super) fn remove(&self, image: &File) -> io::Result<()> {
        image.set_len(self.length.end)?;
        image.sync_all()
    }
}

/// Reads the table of ranges. `None` if they are not in ascending order before `limit`.
fn read_table(image: &File, at: u64, count: u64, limit: u64) -> io::Result<Option<Vec<Range<u64>>>> {
    let image_bytes = image.metadata()?.len();
    let table_bytes = count * ENTRY_BYTES;
    if at.checked_add(table_bytes).is_none_or(|end| end > image_bytes) {
        return Ok(None);
    }
    let mut table = vec![0; usize::try_from(table_bytes).map_err(io::Error::other)?];
    image.read_exact_at(&mut table, at)?;
    let (mut ranges, mut previous) = (Vec::new(), 0);
    for entry in table.chunks_exact(ENTRY_BYTES as usize) {
        let [start, length] = numbers(entry);
        let Some(end) = start.checked_add(length).filter(|end| previous <= start && start < *end && *end <= limit)
        else {
            return Ok(None);
        };
        ranges.push(start..end);
        previous = end;
    }
    Ok(Some(ranges))
}

fn numbers<const COUNT: usize>(bytes: &[u8]) -> [u64; COUNT] {
    let mut numbers = [0; COUNT];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    numbers
}

/// Copies a range of a file to another position.
fn copy_range(file: &File, range: Range<u64>, to: u64, interruption: Option<&Interruption>) -> Result<(), RecordError> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        interruption.map_or(Ok(()), Interruption::check)?;
        let length = usize::try_from(range.end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        file.read_exact_at(&mut buffer[..length], at)?;
        file.write_all_at(&buffer[..length], to + (at - range.start))?;
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD_BYTES: u64 = 64 << 10;
    const NEW_BYTES: u64 = (100 << 10) + 512;

    /// Returns an image with random bytes, and its record of these ranges: begin and end.
    fn saved(ranges: &[(u64, u64)]) -> (File, Vec<u8>, UndoRecord) {
        let image = tempfile::tempfile().unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let mut before: Vec<u8> = (0..OLD_BYTES).map(|_| random.u8(..)).collect();
        let superblock = &mut before[1024..2048];
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        // Blocks of 1 KiB, and no features.
        superblock[0x18..0x1c].fill(0);
        superblock[0x5c..0x68].fill(0);
        image.write_all_at(&before, 0).unwrap();
        set_blocks(&image, OLD_BYTES / 1024);
        let before = content(&image);
        let mut record =
            UndoRecord::new(OLD_BYTES..NEW_BYTES, ranges.iter().map(|(start, end)| *start..*end).collect()).unwrap();
        record.save(&image, &Interruption::watch().unwrap()).unwrap();
        (image, before, record)
    }

    /// Sets the size of the file system, in its superblock.
    fn set_blocks(image: &File, blocks: u64) {
        image.write_all_at(&u32::try_from(blocks).unwrap().to_le_bytes(), 1024 + 4).unwrap();
    }

    fn content(image: &File) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(image.metadata().unwrap().len()).unwrap()];
        image.read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    fn what_was_overwritten_is_restored_also_in_a_second_attempt() {
        let ranges = [(0, 4096), (8192, 8193), (40_000, OLD_BYTES)];
        let (image, before, record) = saved(&ranges);
        assert_eq!(image.metadata().unwrap().len(), record.place().end);
        for (start, end) in ranges {
            let changed = vec![1; usize::try_from(end - start).unwrap()];
            image.write_all_at(&changed, start).unwrap();
        }
        // Everything but the first range was restored when the power was cut.
        image.write_all_at(&before[8192..], 8192).unwrap();
        // resize2fs does not change this part of the superblock.
        image.write_all_at(&before[1024..2048], 1024).unwrap();
        UndoRecord::find(&image).unwrap().unwrap().undo(&image, None).unwrap();
        assert!(content(&image) == before);
        assert!(UndoRecord::find(&image).unwrap().is_none());
    }

    #[test]
    fn a_record_that_was_not_complete_is_removed_without_restoring_anything() {
        let (image, before, mut record) = saved(&[(0, 4096)]);
        record.phase = SAVING;
        record.write_header(&image).unwrap();
        // Of the table and the content, nothing has reached the disk.
        let place = record.place();
        image.write_all_at(&[0xff; 8192], place.start).unwrap();
        UndoRecord::find(&image).unwrap().unwrap().undo(&image, None).unwrap();
        assert!(content(&image) == before);
    }

    #[test]
    fn a_damaged_record_is_not_used() {
        let (image, _, record) = saved(&[(0, 4096), (8192, 12288)]);
        let complete = content(&image);
        let end = complete.len();
        let header = end - 512;
        let table = usize::try_from(record.table_at()).unwrap();
        for at in (header..header + HASH.end).chain(table..table + 32).chain(end - 2048..end - 2048 + 1024) {
            image.write_all_at(&[complete[at] ^ 1], at as u64).unwrap();
            assert!(UndoRecord::find(&image).unwrap().is_none(), "{at}");
            image.write_all_at(&complete[at..=at], at as u64).unwrap();
        }
        assert!(UndoRecord::find(&image).unwrap().is_some());
        image.set_len(end as u64 + 4096).unwrap();
        assert!(UndoRecord::find(&image).unwrap().is_none());
        for bytes in [0, 512, 4095, 4096] {
            image.set_len(bytes).unwrap();
            assert!(UndoRecord::find(&image).unwrap().is_none(), "{bytes}");
        }
    }

    #[test]
    fn a_record_in_a_file_of_a_guests_user_destroyed_the_volume() {
        let (image, ..) = saved(&[(0, 4096)]);
        // resize2fs has written the new size.
        set_blocks(&image, NEW_BYTES / 1024);
        assert!(UndoRecord::find(&image).unwrap().is_some());
        // The file system has a block behind the new end, and a file in it can be what looks like a record.
        set_blocks(&image, NEW_BYTES / 1024 + 1);
        assert!(UndoRecord::find(&image).unwrap().is_none());
        // Other file systems never have records. Where ext4 has its superblock, btrfs has zeros.
        image.write_all_at(&[0; 64 << 10], 0).unwrap();
        let length = 0..image.metadata().unwrap().len() - BLOCK_BYTES;
        let record = UndoRecord::new(length, Vec::new()).unwrap();
        record.write_header(&image).unwrap();
        assert_eq!(record.place().end, image.metadata().unwrap().len());
        assert!(UndoRecord::find(&image).unwrap().is_none());
    }

    /// Root of a guest can write a record with a correct hash.
    #[test]
    fn a_record_whose_ranges_are_not_in_the_old_image_is_not_used() {
        let lists: [&[(u64, u64)]; 5] = [
            &[(0, 4096), (4095, 8192)],
            &[(8192, 12288), (0, 4096)],
            &[(0, OLD_BYTES + 1)],
            &[(5, 5)],
            &[(OLD_BYTES, OLD_BYTES + 1)],
        ];
        for ranges in lists {
            let (image, ..) = saved(ranges);
            assert!(UndoRecord::find(&image).unwrap().is_none(), "{ranges:?}");
        }
        let (image, _, mut record) = saved(&[(0, 4096)]);
        for (start, end) in [(NEW_BYTES, OLD_BYTES), (OLD_BYTES, u64::MAX - 8191), (0, NEW_BYTES)] {
            record.length = start..end;
            let (image_bytes, superblock) = (image.metadata().unwrap().len(), superblock(&image).unwrap());
            image.write_all_at(&record.header(image_bytes, &superblock), image_bytes - 512).unwrap();
            assert!(UndoRecord::find(&image).unwrap().is_none(), "{start} {end}");
        }
    }
}
