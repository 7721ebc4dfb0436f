//! Finds files with equal content. Only files of equal size are read, and large ones completely only if they are equal
//! in a few places.

use super::super::BuildError;
use super::super::source::SourceFile;
use crate::block_map::FileId;
use crate::erofs::SameContent;
use crate::store_listing::StoreListing;
use crate::threads::map_in_parallel;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

/// Number of bytes to compare first at the beginning, in the middle and at the end of a large file.
const SAMPLE_BYTES: u64 = 4096;
/// Files up to this length are read completely at once.
const SMALL_BYTES: u64 = 3 * SAMPLE_BYTES;
/// Number of bytes to read at once.
const BUFFER_BYTES: u64 = 1 << 20;

/// The files with equal content, and the number of bytes saved by storing it once.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) content: SameContent,
    pub(super) duplicate_files: u64,
    pub(super) duplicate_bytes: u64,
}

/// Files that may be equal, by length and hash.
type Groups = BTreeMap<(u64, [u8; 32]), Vec<FileId>>;

/// Compares the files of a closure.
pub(super) fn compare(listing: &StoreListing, threads: usize, cancel: &AtomicBool) -> Result<Compared, BuildError> {
    let mut files: Vec<(u64, FileId)> =
        listing.regular_files().filter(|(_, size)| *size > 0).map(|(file, size)| (size, file)).collect();
    files.sort_unstable();
    let of_equal_size: Vec<(u64, FileId)> =
        files.chunk_by(|(left, _), (right, _)| left == right).filter(|run| run.len() > 1).flatten().copied().collect();
    let comparison = Comparison { listing, threads, cancel };
    let alike = comparison.group(&of_equal_size, sample)?;
    let (small, large): (Groups, Groups) = alike.into_iter().partition(|((size, _), _)| *size <= SMALL_BYTES);
    let large: Vec<(u64, FileId)> =
        large.into_iter().flat_map(|((size, _), files)| files.into_iter().map(move |file| (size, file))).collect();
    let equal = comparison.group(&large, whole)?;
    let mut compared = Compared::default();
    for ((size_bytes, _), files) in small.iter().chain(&equal) {
        compared.content.add(files);
        compared.duplicate_files += files.len() as u64 - 1;
        compared.duplicate_bytes += size_bytes * (files.len() as u64 - 1);
    }
    Ok(compared)
}

struct Comparison<'a> {
    listing: &'a StoreListing,
    threads: usize,
    cancel: &'a AtomicBool,
}

impl Comparison<'_> {
    /// Hashes files and returns those that have the same size and hash as another.
    fn group(
        &self,
        files: &[(u64, FileId)],
        hash: impl Fn(&SourceFile, u64) -> Result<[u8; 32], BuildError> + Sync,
    ) -> Result<Groups, BuildError> {
        // A file with several names is hashed once.
        let mut first_names = HashMap::new();
        let mut other_names = Vec::new();
        let mut to_hash = Vec::with_capacity(files.len());
        for (size, file) in files {
            match self.listing.linked(*file).map(|inode| *first_names.entry(inode).or_insert(*file)) {
                Some(first) if first != *file => other_names.push((*size, *file, first)),
                _ => to_hash.push((*size, *file)),
            }
        }
        let hashes = map_in_parallel(self.threads, &to_hash, |(size, file)| {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(BuildError::Interrupted);
            }
            let source = open(self.listing, *file, *size)?;
            let hash = hash(&source, *size)?;
            source.finish().map(|()| hash)
        });
        let mut groups = Groups::new();
        let mut hash_of_first = HashMap::new();
        for ((size, file), hash) in to_hash.into_iter().zip(hashes) {
            let hash = hash?;
            if self.listing.linked(file).is_some() {
                hash_of_first.insert(file, hash);
            }
            groups.entry((size, hash)).or_default().push(file);
        }
        for (size, file, first) in other_names {
            if let Some(hash) = hash_of_first.get(&first) {
                groups.entry((size, *hash)).or_default().push(file);
            }
        }
        groups.retain(|_, files| files.len() > 1);
        Ok(groups)
    }
}

/// Opens a file of a listing.
pub(super) fn open(listing: &StoreListing, file: FileId, size_bytes: u64) -> Result<SourceFile, BuildError> {
    SourceFile::open_path(listing.path(file), size_bytes, listing.modified(file))
}

/// Hashes three places of a large file, or a whole small one.
fn sample(file: &SourceFile, size_bytes: u64) -> Result<[u8; 32], BuildError> {
    if size_bytes <= SMALL_BYTES {
        return whole(file, size_bytes);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = [0; SAMPLE_BYTES as usize];
    for offset in [0, size_bytes / 2, size_bytes - SAMPLE_BYTES] {
        file.read_at(offset, &mut buffer)?;
        hasher.update(&buffer);
    }
    Ok(*hasher.finalize().as_bytes())
}

fn whole(file: &SourceFile, size_bytes: u64) -> Result<[u8; 32], BuildError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; size_bytes.min(BUFFER_BYTES) as usize];
    let mut offset = 0;
    while offset < size_bytes {
        let length = (size_bytes - offset).min(BUFFER_BYTES);
        let buffer = &mut buffer[..length as usize];
        file.read_at(offset, buffer)?;
        hasher.update(buffer);
        offset += length;
    }
    Ok(*hasher.finalize().as_bytes())
}
