//! Divides the content of one store path into segments, and determines their order.
//!
//! A file that is at least as long as a fragment block is divided into ranges of 4 MiB, each of which is a segment.
//! Smaller files share fragment blocks, as many as fit, in the order of the files. A file with the content of an
//! earlier file of the path is skipped. This depends only on the store path, so a change in another one never moves a
//! file to another block.

use super::SHARED_BLOCK_BYTES;
use crate::segment::{ContentHash, file_content, range_count, range_length};
use crate::settings::ImageSettings;
use crate::tree::{Entry, NodeId, Tree};
use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;

/// Files of at least this size begin at a multiple of [`SHARED_BLOCK_BYTES`].
const ALIGNED_FILE_BYTES: u64 = 1 << 20;
/// Store paths with at least this much content also begin at such a position.
const ALIGNED_PATH_BYTES: u64 = 256 << 10;

/// The content of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A range of a file.
    Range {
        /// The file's node.
        node: NodeId,
        /// Its number among the files of the path.
        file: u32,
        /// Number of the range.
        range: usize,
        /// Length of the range in bytes.
        length: u32,
    },
    /// Small files, one after the other.
    Fragment(Vec<SmallFile>),
}

/// A file in a fragment block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmallFile {
    /// The file's node.
    pub node: NodeId,
    /// Its number among the files of the path.
    pub file: u32,
    /// Where it begins in the block, in bytes.
    pub offset: u32,
    /// Its length in bytes.
    pub size_bytes: u32,
}

impl Piece {
    /// Returns the length of the content in bytes.
    pub fn input_bytes(&self) -> u32 {
        match self {
            Self::Range { length, .. } => *length,
            Self::Fragment(files) => files.last().map_or(0, |last| last.offset + last.size_bytes),
        }
    }
}

/// The segments of a store path, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The segments, in the order of the pack.
    pub pieces: Vec<Piece>,
    /// Files with the content of an earlier file of the path: the numbers of the file and of the earlier file.
    pub same_as: Vec<(u32, u32)>,
    /// Length of the content of the whole path in bytes. Equal files count each time.
    pub input_bytes: u64,
}

impl Layout {
    /// Computes the layout of a store path; `range_hashes` are the hashes of all ranges of its files, one file after
    /// the other.
    pub fn new(tree: &Tree, range_hashes: &[ContentHash], settings: &ImageSettings) -> Self {
        let mut layout = Self { input_bytes: tree.file_sizes().iter().sum(), ..Self::default() };
        let mut first_with = HashMap::with_capacity(tree.file_sizes().len());
        let mut rest = range_hashes;
        let (mut fragment, mut fragment_bytes) = (Vec::new(), 0_u32);
        let small_limit_bytes = settings.fragment_block_size_bytes();
        for node in 0..tree.len() {
            let Entry::File { file, size_bytes, .. } = tree.entry(node) else { continue };
            if size_bytes == 0 {
                continue;
            }
            let hashes;
            (hashes, rest) = rest.split_at_checked(range_count(size_bytes)).unwrap_or((rest, &[]));
            match first_with.entry((size_bytes, file_content(hashes))) {
                MapEntry::Occupied(first) => {
                    layout.same_as.push((file, *first.get()));
                    continue;
                }
                MapEntry::Vacant(vacant) => vacant.insert(file),
            };
            match u32::try_from(size_bytes).ok().filter(|size_bytes| *size_bytes < small_limit_bytes) {
                Some(size_bytes) => {
                    if fragment_bytes + size_bytes > small_limit_bytes {
                        layout.pieces.push(Piece::Fragment(std::mem::take(&mut fragment)));
                        fragment_bytes = 0;
                    }
                    fragment.push(SmallFile { node, file, offset: fragment_bytes, size_bytes });
                    fragment_bytes += size_bytes;
                }
                None => layout.pieces.extend((0..range_count(size_bytes)).map(|range| {
                    let length = u32::try_from(range_length(size_bytes, range)).unwrap_or(u32::MAX);
                    Piece::Range { node, file, range, length }
                })),
            }
        }
        if !fragment.is_empty() {
            layout.pieces.push(Piece::Fragment(fragment));
        }
        layout
    }
}

/// Computes the hash of a fragment block's content from the hashes of its files.
pub fn fragment_content(files: impl Iterator<Item = ContentHash>) -> ContentHash {
    let mut hasher = fragment_hasher();
    for content in files {
        hasher.update(&content);
    }
    *hasher.finalize().as_bytes()
}

/// Takes the contents of the files of a fragment block, one after the other.
pub fn fragment_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key("microvm-image 2026-11 fragment block")
}

/// Returns the position of a segment that follows the bytes up to `end`, in a pack and in an image.
///
/// `number` counts the segments of the store path, and `path_bytes` is the content of the path; `file_bytes` is the
/// length of the file that begins with the segment, 0 for others.
pub fn begin_of(end: u64, number: usize, path_bytes: u64, file_bytes: u64) -> u64 {
    let is_aligned = file_bytes >= ALIGNED_FILE_BYTES || (number == 0 && path_bytes >= ALIGNED_PATH_BYTES);
    if is_aligned { end.next_multiple_of(SHARED_BLOCK_BYTES) } else { end }
}
