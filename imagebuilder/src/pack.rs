//! Packs: everything that an image needs of one store path, in one file.
//!
//! A pack contains the description of the store path (names, types, sizes, hashes of contents) and its compressed
//! blocks, in the same order as in an image of only this path. It depends only on the store path and the settings, and
//! never refers to another pack. Content that an earlier store path of an image already has is skipped when the image
//! is written.
//!
//! ```text
//! blocks     the stored segments one after the other; large ones begin at a multiple of 4096 bytes
//! index      base name | NAR hash | settings | contents | segments
//! footer     magic (16 bytes) | length of the index (u64) | BLAKE3 of the index (32 bytes)
//! ```
//! Integers are little-endian. The index:
//! - base name of the store path: length (u16), bytes;
//! - NAR hash: 1 and 32 bytes, or 0 for a path whose hash was not given;
//! - everything that determines the bytes besides the content, [`settings_name`]: length (u16), bytes;
//! - contents: length (u64), and the nodes in the format of [`contents`];
//! - for each segment: the size words of its blocks (u32 each), XXH3-128 of its stored bytes (16 bytes).
//!
//! The contents and the settings determine the number of segments, their content and their positions: see [`layout`]. A
//! pack is written to a file without a name, the footer last, and gets its name when it is complete. So neither a
//! killed program nor a power cut leaves a partial file that looks like a pack. The checksums detect damage; they are
//! not signatures, and anyone who can write to the cache can forge a pack.

pub mod block_hashes;
pub mod contents;
pub mod layout;
mod reader;
mod writer;

pub use reader::{OpenError, Pack, PackFile, PackOpener, StoredSegment, open_named};
pub use writer::{NewSegment, PackHead, write_index};

use crate::encode::codec_version;
use crate::plan::PlannedPath;
use crate::settings::{Compression, ImageSettings};
use std::fmt::Debug;
use std::fs::File;
use thiserror::Error;
use twox_hash::xxhash3_128;

/// The magic number at the beginning of the footer. It changes with the format.
const MAGIC: [u8; 16] = *b"microvm-pack\0\0\0\x01";
/// Length of the footer in bytes.
const FOOTER_BYTES: usize = 16 + 8 + 32;
/// Maximum length of an index in bytes. That of ten million files is shorter.
const MAX_INDEX_BYTES: u64 = 1 << 30;

/// Large segments begin at a multiple of this length in packs and images, so that file systems that share blocks
/// between files can share them between both. It is the block size of these file systems.
pub const SHARED_BLOCK_BYTES: u64 = 4096;

/// Returns a name for everything that determines the bytes of a pack besides the store path.
pub fn settings_name(settings: &ImageSettings) -> String {
    let codec = settings.compression().name();
    let level = settings.level().map(|level| level.to_string()).unwrap_or_default();
    let (block, fragment) = (settings.block_size_bytes(), settings.fragment_block_size_bytes());
    format!("{codec}{level}-{}-b{block}-f{fragment}", codec_version(settings.compression()))
}

/// Returns the settings in a [`settings_name`], even if another version of a codec made it.
fn settings_of_name(name: &str) -> Option<ImageSettings> {
    let mut parts = name.split('-');
    let codec = parts.next()?;
    let (compression, level) = Compression::ALL
        .into_iter()
        .find_map(|compression| Some((compression, codec.strip_prefix(compression.name())?)))?;
    let level = if level.is_empty() { None } else { Some(level.parse().ok()?) };
    parts.next()?;
    let block = parts.next()?.strip_prefix('b')?.parse().ok()?;
    let fragment = parts.next()?.strip_prefix('f')?.parse().ok()?;
    let settings = ImageSettings::new(compression, level, Some(block), Some(fragment)).ok()?;
    parts.next().is_none().then_some(settings)
}

/// Returns the file name of the pack of a store path: 97 characters, or 39 for a path without a NAR hash.
pub fn file_name(planned: &PlannedPath) -> String {
    let hash_part = planned.path.hash_part();
    match &planned.nar_hash {
        // Cheaper than `format!`, which counts for closures of thousands of store paths.
        Some(hash) => [hash_part, "-", &blake3::Hash::from_bytes(*hash).to_hex()].concat(),
        None => format!("{hash_part}-listed"),
    }
}

/// A source of packs for a build, for example a service that makes them for all users of the host.
pub trait PackSource: Debug + Send + Sync {
    /// Returns the pack of a store path, open for reading; `None` if there is none. Several threads call it at once.
    /// The build checks the pack.
    ///
    /// # Errors
    /// The source does not work. The build does not use it again.
    fn find_pack(&self, path: &PlannedPath, settings: &ImageSettings) -> Result<Option<File>, PackSourceError>;

    /// Returns the file with the hashes of dm-verity of a pack's blocks; `None` if there is none, as in a source that has
    /// only packs. The build checks it.
    ///
    /// # Errors
    /// The source does not work. The build does not use it again.
    fn find_block_hashes(&self, _: &PlannedPath, _: &ImageSettings) -> Result<Option<File>, PackSourceError> {
        Ok(None)
    }
}

/// A source of packs does not work.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct PackSourceError(pub String);

/// Computes the checksum of the stored bytes of a segment. It detects damage as well as BLAKE3, which takes four times
/// as long.
pub fn segment_checksum(stored: &[u8]) -> u128 {
    xxhash3_128::Hasher::oneshot(stored)
}
