//! Writes the content of a block map to the image.
//!
//! On file systems that can share blocks between files (btrfs, xfs, bcachefs), `copy_file_range` shares the whole
//! blocks of files with the store, and only metadata and the ends of files are written. On others, everything is read
//! and written in large contiguous ranges of the image, because one large write is faster than many small ones.

use super::super::BuildError;
use super::super::output::ImageFile;
use super::super::read_ahead::read_ahead;
use super::super::source::SourceFile;
use super::content;
use crate::block_map::{BlockMap, Extent, FileId, Source};
use crate::erofs::format::BLOCK_BYTES;
use crate::progress::Progress;
use crate::store_listing::StoreListing;
use crate::threads::{map_for_disk, map_in_parallel};
use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Number of bytes of the image that a thread copies at once.
const CHUNK_BYTES: u64 = 2 << 20;
/// Number of ranges per thread between two reports of progress.
const CHUNKS_PER_ROUND: usize = 16;

/// The inputs of a copy.
pub(super) struct Copy<'a> {
    pub(super) map: &'a BlockMap,
    pub(super) listing: &'a StoreListing,
    pub(super) output: &'a ImageFile<'a>,
    pub(super) cancel: &'a AtomicBool,
}

/// Copies everything. The image must have its final length and contain only zeros.
pub(super) fn copy(copy: &Copy<'_>, threads: usize, progress: &mut dyn Progress) -> Result<(), BuildError> {
    let size_bytes = copy.map.size_bytes();
    let shares = AtomicBool::new(copy.output.may_share_blocks());
    let chunks: Vec<Range<u64>> = (0..size_bytes.div_ceil(CHUNK_BYTES))
        .map(|number| number * CHUNK_BYTES..size_bytes.min((number + 1) * CHUNK_BYTES))
        .collect();
    for round in chunks.chunks(CHUNKS_PER_ROUND * threads) {
        map_for_disk(threads, round, |chunk| copy.read_ahead(chunk.clone()));
        for copied in map_in_parallel(threads, round, |chunk| copy.chunk(chunk.clone(), &shares)) {
            let bytes = copied?;
            progress.advance(bytes, 0, bytes);
        }
    }
    Ok(())
}

/// Content that will be written by one call.
struct Gathered {
    start: u64,
    bytes: Vec<u8>,
}

impl Copy<'_> {
    /// Asks the kernel to read the files in a range of the image.
    fn read_ahead(&self, chunk: Range<u64>) {
        let files = self.map.extents_in(chunk).filter_map(|extent| match extent.source {
            Source::File { file, offset } => Some((file, offset..offset + extent.length)),
            Source::Metadata { .. } | Source::Zeros => None,
        });
        read_ahead(files, |file| self.open(file).ok());
    }

    fn open(&self, file: FileId) -> Result<SourceFile, BuildError> {
        content::open(self.listing, file, self.map.files().file_size_bytes(file).unwrap_or_default())
    }

    /// Copies a range of the image, and returns the number of bytes of files in it.
    fn chunk(&self, chunk: Range<u64>, shares: &AtomicBool) -> Result<u64, BuildError> {
        let mut gathered = Gathered { start: chunk.start, bytes: Vec::new() };
        let mut file_bytes = 0;
        for extent in self.map.extents_in(chunk.clone()) {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(BuildError::Interrupted);
            }
            match extent.source {
                Source::Metadata { offset } => {
                    let from = offset as usize;
                    gathered.bytes.extend_from_slice(&self.map.metadata()[from..from + extent.length as usize]);
                }
                // Bytes that are never written are zeros.
                Source::Zeros if extent.length >= BLOCK_BYTES => {
                    self.flush(&mut gathered, extent.start + extent.length)?
                }
                Source::Zeros => gathered.bytes.resize(gathered.bytes.len() + extent.length as usize, 0),
                Source::File { file, offset } => {
                    self.file(&extent, (file, offset), &mut gathered, shares)?;
                    file_bytes += extent.length;
                }
            }
        }
        self.flush(&mut gathered, chunk.end)?;
        Ok(file_bytes)
    }

    /// Writes the gathered content. The next content is at `next`.
    fn flush(&self, gathered: &mut Gathered, next: u64) -> Result<(), BuildError> {
        if !gathered.bytes.is_empty() {
            self.output.write_at(&mut [IoSlice::new(&gathered.bytes)], gathered.start)?;
        }
        gathered.bytes.clear();
        gathered.start = next;
        Ok(())
    }

    fn file(
        &self,
        extent: &Extent,
        (file, mut offset): (FileId, u64),
        gathered: &mut Gathered,
        shares: &AtomicBool,
    ) -> Result<(), BuildError> {
        let Extent { mut start, mut length, .. } = *extent;
        let source = self.open(file)?;
        if length >= BLOCK_BYTES && source.is_hole(offset, length) {
            self.flush(gathered, start + length)?;
            return source.finish();
        }
        if shares.load(Ordering::Relaxed) && start % BLOCK_BYTES == 0 && offset % BLOCK_BYTES == 0 {
            let whole = length - length % BLOCK_BYTES;
            if whole > 0 {
                self.flush(gathered, start)?;
                let shared = source.share(offset, (self.output.file(), start), whole)?;
                if shared < whole {
                    shares.store(false, Ordering::Relaxed);
                }
                (start, offset, length) = (start + shared, offset + shared, length - shared);
                gathered.start = start;
            }
        }
        let filled = gathered.bytes.len();
        gathered.bytes.resize(filled + length as usize, 0);
        source.read_at(offset, &mut gathered.bytes[filled..])?;
        source.finish()
    }
}
