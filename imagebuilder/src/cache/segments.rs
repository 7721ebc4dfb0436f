//! Cached segments: compressed blocks by content.
//!
//! An entry is: checksum (16 bytes) | content length (u32) | number of blocks (u32) | size words (u32 each) | blocks,
//! integers little-endian. The checksum, XXH3-128, covers the entry's key and all that follows it. It finds damage, as
//! BLAKE3 would at four times the cost, which was a fifth of a rebuild; neither stops who can write to the cache.

use super::{Cache, CacheError, Lookup, read_entry};
use crate::encode::ENCODER_VERSION;
use crate::segment::{Batch, Origin, Segment, SegmentKey, SegmentKind};
use crate::settings::ImageSettings;
use crate::squashfs::format::{BLOCK_PLAIN, PutLe};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use twox_hash::xxhash3_128;

const CHECKSUM_BYTES: usize = 16;
const HEAD_BYTES: usize = CHECKSUM_BYTES + 8;
/// Longest entry: 4 MiB of content in the smallest blocks, all of them plain.
const ENTRY_BYTES_MAX: u64 = (4 << 20) + 4 * 1024 + HEAD_BYTES as u64;

/// Directory of the segments that `settings` give: all that decides their bytes, besides the content.
pub(super) fn settings_directory(settings: &ImageSettings) -> String {
    let codec = settings.compression().name();
    let level = settings.level().map(|level| level.to_string()).unwrap_or_default();
    let zstd = zstd::zstd_safe::version_number();
    format!("{codec}{level}-e{ENCODER_VERSION}.{zstd}-b{}", settings.block_size_bytes())
}

impl Cache {
    /// Looks a segment up and checks it. It is read behind those of `batch`, without being added.
    ///
    /// # Errors
    /// The entry is there and cannot be read.
    pub fn load_segment(&self, key: &SegmentKey, batch: &mut Batch) -> Result<Lookup<Segment>, CacheError> {
        let path = self.segment_path(key);
        let (buffer, start) = batch.room();
        match read_entry(&path, ENTRY_BYTES_MAX, buffer, start) {
            Ok(length) => Ok(decode(key, buffer, start..start + length).map_or(Lookup::Damaged, Lookup::Hit)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lookup::Miss),
            Err(source) => Err(CacheError { action: "read an entry", path, source }),
        }
    }

    /// Keeps a segment, the blocks of which are `stored`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn store_segment(&self, key: &SegmentKey, segment: &Segment, stored: &[u8]) -> Result<(), CacheError> {
        let mut head = Vec::with_capacity(HEAD_BYTES + 4 * segment.words.len());
        head.put_u32(segment.input_bytes);
        head.put_u32(u32::try_from(segment.words.len()).unwrap_or(u32::MAX));
        for word in &segment.words {
            head.put_u32(*word);
        }
        let sum = checksum(key, &[&head, stored]);
        self.publish(&self.segment_path(key), &[&sum, &head, stored])
    }

    fn segment_path(&self, key: &SegmentKey) -> PathBuf {
        let hex = blake3::Hash::from_bytes(key.content).to_hex();
        let kind = match key.kind {
            SegmentKind::File => "",
            SegmentKind::Fragment => "f",
        };
        self.segments.join(&hex[..2]).join(format!("{}{kind}", &hex[2..]))
    }
}

/// Checksum of an entry: over its key and what it holds, given in parts.
pub fn checksum(key: &SegmentKey, content: &[&[u8]]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = xxhash3_128::Hasher::new();
    hasher.write(match key.kind {
        SegmentKind::File => &[0],
        SegmentKind::Fragment => &[1],
    });
    hasher.write(&key.content);
    for part in content {
        hasher.write(part);
    }
    hasher.finish_128().to_le_bytes()
}

/// The segment, when the entry at `place` in the buffer is sound and called what it should be.
fn decode(key: &SegmentKey, buffer: &[u8], place: Range<usize>) -> Option<Segment> {
    let end = place.end;
    let (sum, content) = buffer[place].split_at_checked(CHECKSUM_BYTES)?;
    if checksum(key, &[content]) != *sum {
        return None;
    }
    let (input_bytes, rest) = content.split_first_chunk::<4>()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (words, stored) = rest.split_at_checked(count.checked_mul(4)?)?;
    let words: Vec<u32> = words.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let stored_bytes: u64 = words.iter().map(|word| u64::from(word & !BLOCK_PLAIN)).sum();
    if stored_bytes != stored.len() as u64 {
        return None;
    }
    let input_bytes = u32::from_le_bytes(*input_bytes);
    let stored = end - stored.len()..end;
    Some(Segment { words, input_bytes, stored, origin: Origin::Cached })
}

/// Checks an entry by its file: for fsck. The key is read off the file's place.
pub(super) fn check_entry(path: &Path) -> io::Result<bool> {
    let Some(key) = key_of(path) else { return Ok(false) };
    if fs::symlink_metadata(path)?.len() > ENTRY_BYTES_MAX {
        return Ok(false);
    }
    let mut buffer = Vec::new();
    let length = read_entry(path, ENTRY_BYTES_MAX, &mut buffer, 0)?;
    Ok(decode(&key, &buffer, 0..length).is_some())
}

fn key_of(path: &Path) -> Option<SegmentKey> {
    let file = path.file_name()?.to_str()?;
    let directory = path.parent()?.file_name()?.to_str()?;
    let (hex, kind) = match file.strip_suffix('f').filter(|_| file.len() == 63) {
        Some(hex) => (hex, SegmentKind::Fragment),
        None => (file, SegmentKind::File),
    };
    let hash = blake3::Hash::from_hex(format!("{directory}{hex}")).ok()?;
    Some(SegmentKey { kind, content: *hash.as_bytes() })
}
