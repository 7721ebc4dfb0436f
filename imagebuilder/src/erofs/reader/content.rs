//! The content of files, directories and symbolic links.

use super::ErofsImage;
use crate::image::{FileContent, FileInode, ImageError, Piece};
use std::ops::Range;

/// Number of bytes that are read at once.
const PIECE_BYTES: u64 = 256 << 10;

impl ErofsImage {
    /// Fills `buffer` with the content that begins at `offset`. The caller has checked that there are enough bytes.
    pub(super) fn read_content(&self, file: &FileInode, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        let in_blocks = (file.blocks << self.superblock().block_bits).min(file.size_bytes);
        let from_blocks = in_blocks.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (blocks, tail) = buffer.split_at_mut(from_blocks);
        if !blocks.is_empty() {
            self.read_raw(blocks, file.start + offset)?;
        }
        if !tail.is_empty() {
            self.read_raw(tail, file.place + offset.saturating_sub(in_blocks))?;
        }
        Ok(())
    }
}

/// A range of a file, read in pieces.
#[derive(Debug)]
pub(super) struct Content<'a> {
    image: &'a ErofsImage,
    file: FileInode,
    left: Range<u64>,
    buffer: Vec<u8>,
}

impl<'a> Content<'a> {
    pub(super) fn new(image: &'a ErofsImage, file: &FileInode, range: Range<u64>) -> Self {
        Self { image, file: file.clone(), left: range, buffer: Vec::new() }
    }
}

impl FileContent for Content<'_> {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, ImageError> {
        let length = (self.left.end - self.left.start).min(PIECE_BYTES);
        if length == 0 {
            return Ok(None);
        }
        self.buffer.resize(length as usize, 0);
        self.image.read_content(&self.file, self.left.start, &mut self.buffer)?;
        self.left.start += length;
        // The format has no holes, but extracted files should not take space for zeros.
        if length == PIECE_BYTES && self.buffer.iter().all(|byte| *byte == 0) {
            return Ok(Some(Piece::Hole(length)));
        }
        Ok(Some(Piece::Data(&self.buffer)))
    }
}
