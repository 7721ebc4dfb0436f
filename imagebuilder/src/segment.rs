//! Segments: the stored form of up to 4 MiB of content, which is the unit of compressing, caching and writing.
//!
//! A segment is either a sequence of blocks of one file, or one fragment block of several small files. Its bytes depend
//! only on its content and the settings, never on the store path or the image that contains it.

use crate::encode::{EncodeError, Encoder};
use std::ops::Range;

/// BLAKE3-256 of some content.
pub type ContentHash = [u8; 32];

/// Length in bytes of the ranges in which files are read, hashed, compressed and cached. It is a multiple of every
/// block size, and small enough that several threads can work on one large file.
pub const RANGE_BYTES: u64 = 4 << 20;

/// Returns the number of ranges of a file with `size_bytes` bytes.
pub fn range_count(size_bytes: u64) -> usize {
    usize::try_from(size_bytes.div_ceil(RANGE_BYTES)).unwrap_or(usize::MAX)
}

/// Returns the length in bytes of one range of a file.
pub fn range_length(size_bytes: u64, range: usize) -> usize {
    let start = range as u64 * RANGE_BYTES;
    usize::try_from(size_bytes.saturating_sub(start).min(RANGE_BYTES)).unwrap_or(0)
}

/// The stored form of a segment. Its blocks are in the buffer of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Size words of its blocks, in order; 0 for a hole.
    pub words: Vec<u32>,
    /// Length of its content in bytes.
    pub input_bytes: u32,
    /// The range of the buffer that contains its blocks, in the form in which they are written to the image.
    pub stored: Range<usize>,
    /// Checksum of the stored bytes, if it is needed.
    pub checksum: u128,
}

/// Segments that follow each other in an image, in one buffer, so that many small ones can be passed on cheaply.
#[derive(Debug, Default)]
pub struct Batch {
    segments: Vec<Segment>,
    buffer: Vec<u8>,
    /// Number of bytes of the buffer that segments use.
    used: usize,
    is_known: bool,
}

impl Batch {
    /// Creates a batch without segments. The content of `buffer` is ignored.
    pub fn new(buffer: Vec<u8>) -> Self {
        Self { segments: Vec::new(), buffer, used: 0, is_known: false }
    }

    /// Creates a batch for segments that are taken from a pack instead of being compressed.
    pub fn known(buffer: Vec<u8>) -> Self {
        Self { is_known: true, ..Self::new(buffer) }
    }

    /// Whether the segments were taken from a pack.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Returns the segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the blocks of a segment of this batch.
    pub fn stored(&self, segment: &Segment) -> &[u8] {
        &self.buffer[segment.stored.clone()]
    }

    /// Adds a segment whose blocks were written to the buffer after the others.
    pub fn push(&mut self, segment: Segment) {
        self.used = segment.stored.end;
        self.segments.push(segment);
    }

    /// Returns the buffer for reuse.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Returns the buffer and the position after the last segment. The bytes from there on can be overwritten.
    pub(crate) fn room(&mut self) -> (&mut Vec<u8>, usize) {
        (&mut self.buffer, self.used)
    }
}

/// The kind of a segment, which determines its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    /// Blocks of one file; a block of zeros becomes a hole.
    File,
    /// One fragment block. It is never a hole, because its size word cannot express that.
    Fragment,
}

/// Computes the hash of a file from the hashes of its ranges. The hash of a file with one range is that range's plain
/// BLAKE3.
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

/// Compresses a segment to the end of `batch`'s buffer, without adding it to the batch.
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

/// Returns whether a block contains only zeros. Most blocks have other bytes at their beginning, so this costs almost
/// nothing. Comparing slices is fast in unoptimised builds too; tests read files with gigabytes of zeros.
fn is_zeros(block: &[u8]) -> bool {
    const ZEROS: [u8; 512] = [0; 512];
    block.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}
