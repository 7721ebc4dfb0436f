//! Appends the hash tree of dm-verity to a complete image. Blocks whose hashes the cache has are not hashed again.

use super::output::ImageFile;
use super::packed_ranges::{PackInImage, PackedRange};
use super::{BuildError, CacheTrust};
use crate::cache::block_hashes::BlocksOf;
use crate::cache::{Cache, CacheError};
use crate::pack::block_hashes::{BlockHashes, is_known};
use crate::pack::{PackSource, PackSourceError};
use crate::threads::map_in_parallel;
use crate::verity::{self, BLOCK_BYTES, HASH_BYTES, Seal};
use nix::fcntl::OFlag;
use program::atomic_file::WriteError;
use program::unnamed_file::UnnamedFile;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSlice, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Number of blocks that a thread hashes at once, 1 MiB. They were written a moment ago, so they are in the page cache.
const CHUNK_BLOCKS: usize = 256;
/// Number of blocks that it reads at once, 64 KiB, which stay in the processor's cache until they are hashed.
const READ_BLOCKS: usize = 16;
/// Minimum number of blocks for which hashes are kept. Hashing fewer takes no longer than opening the file.
const MIN_KEPT_BLOCKS: usize = 16;
/// Maximum length of the document beside a sealed image, several times that of the longest one.
const MAX_SIDECAR_BYTES: u64 = 4096;

/// An image to seal.
pub(super) struct Sealing<'a> {
    pub(super) output: &'a ImageFile<'a>,
    /// Length of the image without its tree, a multiple of 4096.
    pub(super) data_bytes: u64,
    /// The packs that it contains parts of, or the store paths whose files it contains.
    pub(super) packs: Vec<PackInImage>,
    /// The blocks that their hashes belong to.
    pub(super) blocks: BlocksOf<'a>,
    /// The cache with the hashes of their blocks.
    pub(super) cache: Option<&'a Cache>,
    /// A source of the hashes that the cache does not have.
    pub(super) source: Option<&'a dyn PackSource>,
    pub(super) trust: CacheTrust,
    pub(super) threads: usize,
    pub(super) cancel: &'a AtomicBool,
}

/// The result of sealing.
pub(super) struct Sealed {
    /// The values to open the image with.
    pub(super) seal: Seal,
    /// Length of the image with its tree.
    pub(super) image_bytes: u64,
    /// Number of bytes of the image that were hashed.
    pub(super) hashed_bytes: u64,
    /// Why the hashes could not be kept for the next image.
    pub(super) cache_error: Option<CacheError>,
    /// Why the source provided no hashes.
    pub(super) source_error: Option<PackSourceError>,
}

impl Sealing<'_> {
    /// Writes superblock and tree after the image.
    pub(super) fn seal(mut self) -> Result<Sealed, BuildError> {
        let blocks = usize::try_from(self.data_bytes / BLOCK_BYTES).unwrap_or(usize::MAX);
        self.packs
            .retain(|pack| pack.ranges.iter().map(|range| range.blocks().0.len()).sum::<usize>() >= MIN_KEPT_BLOCKS);
        let (known, source_error) = self.known_hashes();
        let mut hashes = vec![0; blocks * HASH_BYTES];
        for (pack, known) in self.packs.iter().zip(&known) {
            for (in_image, in_pack) in pack.ranges.iter().map(PackedRange::blocks) {
                let found = known.as_ref().and_then(|known| known.of(in_pack));
                let place = hashes.get_mut(in_image.start * HASH_BYTES..in_image.end * HASH_BYTES);
                if let Some((place, found)) = place.zip(found) {
                    place.copy_from_slice(found);
                }
            }
        }
        let hashed_bytes = self.hash_unknown(&mut hashes)?;
        let tree = verity::tree_of(hashes.clone());
        self.output.write_at(&mut [IoSlice::new(&tree.bytes)], self.data_bytes)?;
        // On a full disk, the image comes first.
        let cache_error = self.keep_hashes(known, &hashes).err();
        let seal = Seal::new(&tree.root_hash, self.data_bytes);
        Ok(Sealed {
            seal,
            image_bytes: self.data_bytes + tree.bytes.len() as u64,
            hashed_bytes,
            cache_error,
            source_error,
        })
    }

    /// Returns the hashes that the cache or the source has of each pack, and the error of the source. A user who does not
    /// trust them gets none.
    fn known_hashes(&self) -> (Vec<Option<BlockHashes>>, Option<PackSourceError>) {
        let found = map_in_parallel(self.threads, &self.packs, |pack| {
            if self.trust != CacheTrust::Checksums || self.cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let kept = self.cache.and_then(|cache| cache.find_block_hashes(&pack.planned, self.blocks, &pack.identity));
            kept.map_or_else(|| self.query_source(pack), |kept| Ok(Some(kept)))
        });
        let mut source_error = None;
        let known = found.into_iter().map(|found| {
            found.unwrap_or_else(|error| {
                source_error.get_or_insert(error);
                None
            })
        });
        (known.collect(), source_error)
    }

    /// Requests hashes from the source, and checks them.
    fn query_source(&self, pack: &PackInImage) -> Result<Option<BlockHashes>, PackSourceError> {
        let (BlocksOf::Pack(settings), Some(source)) = (self.blocks, self.source) else { return Ok(None) };
        let Some(file) = source.find_block_hashes(&pack.planned, settings)? else { return Ok(None) };
        let mut content = Vec::new();
        let read = file.take(pack.identity.hashes_file_bytes() as u64 + 1).read_to_end(&mut content);
        Ok(read.ok().and_then(|_| BlockHashes::decode(&pack.identity, content)))
    }

    /// Hashes the blocks whose hashes are unknown, and returns their number of bytes.
    fn hash_unknown(&self, hashes: &mut [u8]) -> Result<u64, BuildError> {
        let mut unknown: Vec<Range<usize>> = Vec::new();
        for (number, hash) in hashes.chunks_exact(HASH_BYTES).enumerate() {
            if is_known(hash) {
                continue;
            }
            match unknown.last_mut().filter(|last| last.end == number && last.len() < CHUNK_BLOCKS) {
                Some(last) => last.end += 1,
                None => unknown.push(number..number + 1),
            }
        }
        let made = map_in_parallel(self.threads, &unknown, |blocks| {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(BuildError::Interrupted);
            }
            let mut data = [0; READ_BLOCKS * BLOCK_BYTES as usize];
            let mut made = Vec::with_capacity(blocks.len() * HASH_BYTES);
            for first in blocks.clone().step_by(READ_BLOCKS) {
                let count = READ_BLOCKS.min(blocks.end - first);
                let data = &mut data[..count * BLOCK_BYTES as usize];
                self.output.read_at(data, first as u64 * BLOCK_BYTES)?;
                made.extend_from_slice(&verity::hash_blocks(data));
            }
            Ok(made)
        });
        for (blocks, made) in unknown.iter().zip(made) {
            hashes[blocks.start * HASH_BYTES..blocks.end * HASH_BYTES].copy_from_slice(&made?);
        }
        Ok(unknown.iter().map(|blocks| blocks.len() as u64 * BLOCK_BYTES).sum())
    }

    /// Keeps the hashes of packs that the cache did not have.
    fn keep_hashes(&self, known: Vec<Option<BlockHashes>>, hashes: &[u8]) -> Result<(), CacheError> {
        let Some(cache) = self.cache else { return Ok(()) };
        for (pack, known) in self.packs.iter().zip(known) {
            let mut kept = known.unwrap_or_else(|| BlockHashes::unknown(&pack.identity));
            let mut is_new = false;
            for (in_image, in_pack) in pack.ranges.iter().map(PackedRange::blocks) {
                is_new |= kept.add(in_pack, &hashes[in_image.start * HASH_BYTES..in_image.end * HASH_BYTES]);
            }
            if is_new {
                cache.keep_block_hashes(&pack.planned, self.blocks, (&pack.identity, &kept))?;
            }
        }
        Ok(())
    }
}

/// Returns the path `IMAGE.verity.json`, in the directory of the image.
pub fn sidecar_path(image: &Path) -> PathBuf {
    let mut name = OsString::from(image.as_os_str());
    name.push(".verity.json");
    name.into()
}

/// Returns the document, with a newline at its end. Writing text fields as JSON cannot fail.
fn text(seal: &Seal) -> String {
    serde_json::to_string_pretty(seal).unwrap_or_default() + "\n"
}

/// The document in the directory of the image, before it has its name.
pub(super) struct Sidecar {
    file: UnnamedFile,
    path: PathBuf,
}

impl Sidecar {
    /// Writes the document to a file without a name, beside the image.
    ///
    /// # Errors
    /// The directory is not writable, or the disk is full.
    pub(super) fn create(seal: &Seal, image: &ImageFile<'_>) -> Result<Self, WriteError> {
        let path = sidecar_path(image.target());
        let file = image.with_room(|| {
            let file = UnnamedFile::create_sibling(&path)?;
            file.file().write_all_at(text(seal).as_bytes(), 0)?;
            Ok(file)
        });
        match file {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(WriteError { path, source }),
        }
    }

    /// Waits until the document is on disk.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn sync(&self) -> Result<(), WriteError> {
        self.file.file().sync_all().map_err(|source| self.error(source))
    }

    /// Gives the document its name, replacing that of an earlier image.
    ///
    /// # Errors
    /// It cannot be linked or renamed.
    pub(super) fn publish(&self, image: &ImageFile<'_>) -> Result<(), WriteError> {
        image.with_room(|| self.file.publish(&self.path)).map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> WriteError {
        WriteError { path: self.path.clone(), source }
    }
}

/// Returns the content of a document beside an image; `None` if there is none, or a file of another kind.
fn read_sidecar(path: &Path) -> Option<Vec<u8>> {
    let mut options = OpenOptions::new();
    // A named pipe must not block.
    options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    let file = options.open(path).ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
    let mut text = Vec::new();
    file.take(MAX_SIDECAR_BYTES + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= MAX_SIDECAR_BYTES).then_some(text)
}

/// Removes the document of an earlier image that had this name. A file of another kind is left alone.
///
/// # Errors
/// It cannot be removed.
pub(super) fn remove_sidecar(image: &Path) -> Result<(), WriteError> {
    let path = sidecar_path(image);
    let is_seal = read_sidecar(&path).is_some_and(|text| serde_json::from_slice::<Seal>(&text).is_ok());
    match is_seal.then(|| fs::remove_file(&path)) {
        Some(Err(source)) if source.kind() != io::ErrorKind::NotFound => Err(WriteError { path, source }),
        _ => Ok(()),
    }
}

/// Returns whether the directory of the image has this document.
pub(super) fn has_sidecar(seal: &Seal, image: &Path) -> bool {
    read_sidecar(&sidecar_path(image)).is_some_and(|found| found == text(seal).as_bytes())
}
