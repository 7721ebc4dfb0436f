//! Packs: all that an image needs of one store path, in one file.
//!
//! A pack holds what the store path consists of (names, kinds, sizes, hashes of contents) and its compressed blocks, in the
//! order in which an image of this path alone has them. It depends on the store path and the settings only, and never
//! points into another pack: which contents an image leaves out, because an earlier store path has them already, is
//! decided when the image is made.
//!
//! ```text
//! blocks     the stored segments one after the other; large ones begin at a multiple of 4096 bytes
//! index      base name | NAR hash | settings | contents | segments
//! footer     magic (16 bytes) | length of the index (u64) | BLAKE3 of the index (32 bytes)
//! ```
//! Integers are little-endian. The index:
//! - base name of the store path: length (u16), bytes;
//! - NAR hash: 1 and 32 bytes, or 0 for a path whose hash was not given;
//! - what decides the bytes besides the content, [`settings_name`]: length (u16), bytes;
//! - contents: length (u64), and the nodes as [`contents`] has them;
//! - for each segment: the size words of its blocks (u32 each), XXH3-128 of its stored bytes (16 bytes).
//!
//! How many segments there are, what is in them and where they begin follows from the contents and the settings: see
//! [`layout`]. A pack is written to a file without a name and gets its name when it is whole, with the footer last: so
//! neither a killed program nor a power cut leaves something that is taken for a pack. The checksums find damage; they
//! are no signature, and anyone who can write to a pack can forge one.

pub mod contents;
pub mod layout;
mod reader;
mod writer;

pub use reader::{OpenError, Pack, StoredSegment, check_file};
pub use writer::{NewSegment, PackHead, write_index};

use crate::encode::codec_version;
use crate::plan::PlannedPath;
use crate::settings::{Compression, ImageSettings};
use std::fmt::Debug;
use std::fs::File;
use thiserror::Error;
use twox_hash::xxhash3_128;

/// The end of every pack. Another form of packs has another magic.
const MAGIC: [u8; 16] = *b"microvm-pack\0\0\0\x01";
/// Length of the footer in bytes.
const FOOTER_BYTES: usize = 16 + 8 + 32;
/// An index of ten million files is under this.
const INDEX_BYTES_MAX: u64 = 1 << 30;

/// Large segments begin at a multiple of this in packs and images, so that file systems that share blocks between files
/// can share them between both. It is the block size of these file systems.
pub const SHARED_BLOCK_BYTES: u64 = 4096;

/// Names all that decides the bytes of a pack besides the store path.
pub fn settings_name(settings: &ImageSettings) -> String {
    let codec = settings.compression().name();
    let level = settings.level().map(|level| level.to_string()).unwrap_or_default();
    let (block, fragment) = (settings.block_size_bytes(), settings.fragment_block_size_bytes());
    format!("{codec}{level}-{}-b{block}-f{fragment}", codec_version(settings.compression()))
}

/// The settings of a [`settings_name`], also of one that another version of a codec made.
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

/// Name of the file that holds the pack of a store path: 97 characters, or 39 for a path whose NAR hash is not given.
pub fn file_name(planned: &PlannedPath) -> String {
    let hash_part = planned.path.hash_part();
    match &planned.nar_hash {
        Some(hash) => format!("{hash_part}-{}", blake3::Hash::from_bytes(*hash).to_hex()),
        None => format!("{hash_part}-listed"),
    }
}

/// Gives packs to a build: a service that makes them for everybody on the host, say.
pub trait PackSource: Debug + Send + Sync {
    /// The pack of a store path, to be read; `None` when there is none. Called by several threads at once. Whatever is given
    /// is checked.
    ///
    /// # Errors
    /// The source does not work: it is not asked again by this build.
    fn find_pack(&self, path: &PlannedPath, settings: &ImageSettings) -> Result<Option<File>, PackSourceError>;
}

/// Why a source of packs does not work.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct PackSourceError(pub String);

/// Checksum of the stored bytes of a segment. It finds damage, as BLAKE3 would at four times the cost.
pub fn segment_checksum(stored: &[u8]) -> u128 {
    xxhash3_128::Hasher::oneshot(stored)
}
