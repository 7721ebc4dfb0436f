//! The content of files: data blocks, holes, and tails in fragment blocks.

use super::Image;
use super::error::{ImageError, Part};
use super::inode::{FileInode, FragmentRef};
use super::metadata::Cursor;
use super::superblock::read_at;
use crate::squashfs::format::BLOCK_PLAIN;
use std::sync::{Arc, PoisonError};

/// The size word of a block: the number of stored bytes, and whether they are uncompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataSize(pub u32);

impl DataSize {
    /// Returns whether the block consists of zeros that are not stored.
    pub fn is_hole(self) -> bool {
        self.0 == 0
    }

    /// Returns whether the block is stored uncompressed.
    pub fn is_plain(self) -> bool {
        self.0 & BLOCK_PLAIN != 0
    }

    /// Returns the number of stored bytes.
    pub fn stored_bytes(self) -> u32 {
        self.0 & !BLOCK_PLAIN
    }
}

/// A block of a file, or a fragment block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Where it begins in the image.
    pub start: u64,
    /// Stored length, and whether the block is compressed.
    pub word: DataSize,
    /// Decompressed length in bytes; for fragment blocks the maximum.
    pub length: u32,
}

impl Block {
    /// Returns the position after its last byte in the image.
    pub fn end(self) -> u64 {
        self.start.saturating_add(u64::from(self.word.stored_bytes()))
    }
}

/// An iterator over the blocks of a file.
#[derive(Clone, Debug)]
pub struct FileBlocks<'a> {
    image: &'a Image,
    cursor: Cursor<'a>,
    next_start: u64,
    blocks_left: u64,
    bytes_left: u64,
}

impl<'a> FileBlocks<'a> {
    pub(crate) fn new(image: &'a Image, file: &FileInode) -> Self {
        Self {
            image,
            cursor: image.inodes.cursor(file.place),
            next_start: file.start,
            blocks_left: file.blocks,
            bytes_left: file.size_bytes,
        }
    }

    /// Returns the number of remaining blocks.
    pub fn blocks_left(&self) -> u64 {
        self.blocks_left
    }

    fn step(&mut self) -> Result<Block, ImageError> {
        let word = DataSize(self.cursor.u32()?);
        let block_size = self.image.superblock.block_size_bytes;
        let length = u32::try_from(self.bytes_left).unwrap_or(u32::MAX).min(block_size);
        let block = Block { start: self.next_start, word, length };
        if !word.is_hole() {
            self.image.check_block(Part::DataBlock(block.start), block)?;
            self.next_start = block.end();
        }
        self.bytes_left -= u64::from(length);
        Ok(block)
    }
}

impl Iterator for FileBlocks<'_> {
    type Item = Result<Block, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.blocks_left = self.blocks_left.checked_sub(1)?;
        let step = self.step();
        if step.is_err() {
            self.blocks_left = 0;
        }
        Some(step)
    }
}

/// A part of a file's content, in order.
#[derive(Debug)]
pub enum Piece<'a> {
    /// Decompressed bytes of the file.
    Data(&'a [u8]),
    /// A number of zero bytes that are not stored.
    Hole(u64),
}

/// Reads a file, or some of its blocks, in pieces. It keeps one block in memory.
#[derive(Debug)]
pub struct ContentReader<'a> {
    image: &'a Image,
    blocks: FileBlocks<'a>,
    blocks_wanted: u64,
    fragment: Option<FragmentRef>,
    block: Vec<u8>,
    tail: Option<Arc<Vec<u8>>>,
}

impl<'a> ContentReader<'a> {
    /// Reads the whole file.
    pub fn new(image: &'a Image, file: &FileInode) -> Self {
        let blocks = FileBlocks::new(image, file);
        let blocks_wanted = blocks.blocks_left();
        let fragment = file.fragment.filter(|fragment| fragment.length > 0);
        Self { image, blocks, blocks_wanted, fragment, block: Vec::new(), tail: None }
    }

    /// Reads the next `count` blocks, without the tail.
    pub(crate) fn of_blocks(blocks: FileBlocks<'a>, count: u64) -> Self {
        Self { image: blocks.image, blocks, blocks_wanted: count, fragment: None, block: Vec::new(), tail: None }
    }

    /// Reads only the piece in a fragment of the file to which `blocks` belongs.
    pub(crate) fn of_fragment(blocks: FileBlocks<'a>, fragment: FragmentRef) -> Self {
        Self { image: blocks.image, blocks, blocks_wanted: 0, fragment: Some(fragment), block: Vec::new(), tail: None }
    }

    /// Returns the next piece; `None` at the end.
    ///
    /// # Errors
    /// A block is damaged.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>, ImageError> {
        if let Some(left) = self.blocks_wanted.checked_sub(1) {
            self.blocks_wanted = left;
            if let Some(block) = self.blocks.next().transpose()? {
                if block.word.is_hole() {
                    return Ok(Some(Piece::Hole(u64::from(block.length))));
                }
                self.image.read_data_block(block, &mut self.block)?;
                return Ok(Some(Piece::Data(&self.block)));
            }
        }
        let Some(fragment) = self.fragment.take() else {
            return Ok(None);
        };
        let tail = self.tail.insert(self.image.fragment_block(fragment.index)?);
        Ok(Some(Piece::Data(fragment_piece(tail, fragment)?)))
    }
}

/// Returns the bytes of a fragment block that belong to a file.
fn fragment_piece(block: &[u8], fragment: FragmentRef) -> Result<&[u8], ImageError> {
    let start = usize::try_from(fragment.offset).unwrap_or(usize::MAX);
    let length = usize::try_from(fragment.length).unwrap_or(usize::MAX);
    let piece = start.checked_add(length).and_then(|end| block.get(start..end));
    piece.ok_or_else(|| {
        let reason = format!("has {} bytes, but a file's tail begins at {start} and has {length}", block.len());
        ImageError::damaged(Part::FragmentBlock(fragment.index), reason)
    })
}

impl Image {
    /// Returns the blocks of a file.
    pub fn file_blocks(&self, file: &FileInode) -> FileBlocks<'_> {
        FileBlocks::new(self, file)
    }

    /// Returns a reader of the content of a file.
    pub fn content(&self, file: &FileInode) -> ContentReader<'_> {
        ContentReader::new(self, file)
    }

    /// Checks that a block is between the codec options and the inode table, and not longer than the block size.
    fn check_block(&self, part: Part, block: Block) -> Result<(), ImageError> {
        let stored = block.word.stored_bytes();
        let end = block.start.checked_add(u64::from(stored));
        if block.word.0 & !(BLOCK_PLAIN | (BLOCK_PLAIN - 1)) != 0 || stored == 0 {
            return Err(ImageError::damaged(part, format!("its size word is {:#x}", block.word.0)));
        }
        if stored > self.superblock.block_size_bytes {
            return Err(ImageError::damaged(part, format!("it is stored in {stored} bytes, more than a block has")));
        }
        if block.start < self.data_start || end.is_none_or(|end| end > self.superblock.inode_table) {
            let reason = format!("it is at byte {} and has {stored} bytes, which is outside of the data", block.start);
            return Err(ImageError::damaged(part, reason));
        }
        Ok(())
    }

    /// Reads and decompresses a data block, and checks that it has the length that the file expects.
    pub(crate) fn read_data_block(&self, block: Block, output: &mut Vec<u8>) -> Result<(), ImageError> {
        let part = Part::DataBlock(block.start);
        self.read_block(part, block, output)?;
        let wanted = usize::try_from(block.length).unwrap_or(usize::MAX);
        if output.len() == wanted {
            return Ok(());
        }
        Err(ImageError::damaged(part, format!("it has {} bytes, but {wanted} are needed", output.len())))
    }

    /// Reads and decompresses a block of at most `block.length` bytes.
    fn read_block(&self, part: Part, block: Block, output: &mut Vec<u8>) -> Result<(), ImageError> {
        let limit = usize::try_from(block.length).unwrap_or(usize::MAX);
        let stored_bytes = usize::try_from(block.word.stored_bytes()).unwrap_or(usize::MAX);
        if block.word.is_plain() {
            if stored_bytes > limit {
                let reason = format!("it has {stored_bytes} bytes, but at most {limit} are needed");
                return Err(ImageError::damaged(part, reason));
            }
            output.resize(stored_bytes, 0);
            return read_at(self.storage.source.as_ref(), output, block.start);
        }
        let mut stored = vec![0; stored_bytes];
        read_at(self.storage.source.as_ref(), &mut stored, block.start)?;
        output.resize(limit, 0);
        let length = self.storage.decoder.decode(part, &stored, output)?;
        output.truncate(length);
        Ok(())
    }

    /// Returns the location of a fragment block.
    ///
    /// # Errors
    /// No fragment block has this number, or its entry is damaged.
    pub fn fragment(&self, index: u32) -> Result<Block, ImageError> {
        let part = Part::FragmentBlock(index);
        let table = self.fragments.as_ref().filter(|_| index < self.superblock.fragments);
        let table = table.ok_or_else(|| ImageError::damaged(part, "there is no such fragment block"))?;
        let mut cursor = table.cursor(u64::from(index) * super::FRAGMENT_ENTRY_BYTES);
        let start = cursor.u64()?;
        let word = DataSize(cursor.u32()?);
        let block = Block { start, word, length: self.superblock.block_size_bytes };
        self.check_block(part, block)?;
        Ok(block)
    }

    /// Returns a decompressed fragment block. The most recently used ones are cached.
    pub(crate) fn fragment_block(&self, index: u32) -> Result<Arc<Vec<u8>>, ImageError> {
        if let Some(block) = self.fragment_cache.lock().unwrap_or_else(PoisonError::into_inner).get(index) {
            return Ok(block);
        }
        let mut output = Vec::new();
        self.read_fragment_block(index, &mut output)?;
        let block = Arc::new(output);
        self.fragment_cache.lock().unwrap_or_else(PoisonError::into_inner).put(index, &block);
        Ok(block)
    }

    /// Reads and decompresses a fragment block.
    pub(crate) fn read_fragment_block(&self, index: u32, output: &mut Vec<u8>) -> Result<(), ImageError> {
        self.read_block(Part::FragmentBlock(index), self.fragment(index)?, output)
    }
}
