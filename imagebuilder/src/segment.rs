//! Segments: the stored form of up to 4 MiB of content, the unit that is compressed, cached and written.
//!
//! A segment is either a run of blocks of one file or one fragment block of several small files. What it holds depends
//! on its content and the settings alone, never on the store path or the image it is used in.

use crate::encode::{EncodeError, Encoder};
use std::ops::Range;

/// BLAKE3-256 of some content.
pub type ContentHash = [u8; 32];

/// Files are read, hashed, compressed and cached in ranges of so many bytes: a multiple of every block size, small
/// enough that two threads find work in one large file.
pub const RANGE_BYTES: u64 = 4 << 20;

/// Number of ranges a file of so many bytes is cut into.
pub fn range_count(size_bytes: u64) -> usize {
    usize::try_from(size_bytes.div_ceil(RANGE_BYTES)).unwrap_or(usize::MAX)
}

/// Length in bytes of one range of a file.
pub fn range_length(size_bytes: u64, range: usize) -> usize {
    let start = range as u64 * RANGE_BYTES;
    usize::try_from(size_bytes.saturating_sub(start).min(RANGE_BYTES)).unwrap_or(0)
}

/// The stored form of a segment: its blocks lie in the buffer of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Size words of its blocks, in order; 0 for a hole.
    pub words: Vec<u32>,
    /// Length of its content in bytes.
    pub input_bytes: u32,
    /// Where its blocks lie in the buffer, as they go into the image.
    pub stored: Range<usize>,
    /// Checksum of the stored bytes, where somebody needs it.
    pub checksum: u128,
}

/// Segments that follow each other in an image, in one buffer: handing over many small ones at a time is cheap.
#[derive(Debug, Default)]
pub struct Batch {
    segments: Vec<Segment>,
    buffer: Vec<u8>,
    /// Up to here the buffer holds segments.
    used: usize,
}

impl Batch {
    /// No segments yet. What the buffer holds is of no account.
    pub fn new(buffer: Vec<u8>) -> Self {
        Self { segments: Vec::new(), buffer, used: 0 }
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The blocks of a segment of this batch.
    pub fn stored(&self, segment: &Segment) -> &[u8] {
        &self.buffer[segment.stored.clone()]
    }

    /// Adds a segment that has been put behind the others.
    pub fn push(&mut self, segment: Segment) {
        self.used = segment.stored.end;
        self.segments.push(segment);
    }

    /// The buffer, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// The buffer, and where the next segment begins at the earliest: what is behind that is of no account.
    pub(crate) fn room(&mut self) -> (&mut Vec<u8>, usize) {
        (&mut self.buffer, self.used)
    }
}

/// How the blocks of a segment are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    /// Blocks of one file; a block of zeros becomes a hole.
    File,
    /// One fragment block, never a hole: its size word could not say so.
    Fragment,
}

/// Hash of a file from the hashes of its ranges; a file of one range has that range's hash, plain BLAKE3.
pub fn file_content(ranges: &[ContentHash]) -> ContentHash {
    if let [only] = ranges {
        return *only;
    }
    let mut hasher = blake3::Hasher::new_derive_key("microvm-image 2026-11 file of 4 MiB ranges");
    for range in ranges {
        hasher.update(range);
    }
    *hasher.finalize().as_bytes()
}

/// Compresses a segment behind those of `batch`, without adding it.
///
/// # Errors
/// The codec failed.
pub fn encode_segment(
    encoder: &mut Encoder,
    kind: SegmentKind,
    content: &[u8],
    block_size_bytes: u32,
    batch: &mut Batch,
) -> Result<Segment, EncodeError> {
    let block_bytes = block_size_bytes as usize;
    let mut words = Vec::with_capacity(content.len().div_ceil(block_bytes));
    let (buffer, start) = batch.room();
    buffer.truncate(start);
    for block in content.chunks(block_bytes) {
        words.push(match kind {
            SegmentKind::File if is_zeros(block) => 0,
            SegmentKind::File | SegmentKind::Fragment => encoder.encode_block(block, buffer)?,
        });
    }
    // Ranges are at most 4 MiB and blocks at most 1 MiB.
    let input_bytes = u32::try_from(content.len()).unwrap_or(u32::MAX);
    Ok(Segment { words, input_bytes, stored: start..buffer.len(), checksum: 0 })
}

/// Most blocks differ from zero in their first bytes, so this costs nothing. Slices are compared because that is fast in
/// unoptimised builds, too, which read files of gigabytes of zeros in tests.
fn is_zeros(block: &[u8]) -> bool {
    const ZEROS: [u8; 512] = [0; 512];
    block.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}
