//! The interface of images of both formats for operations on whole images.

use super::Image;
use super::content::{ContentReader, FileBlocks, Piece};
use super::error::ImageError;
use super::inode::{FileInode, Inode};
use super::walk::{Node, Walk, look_up};
use std::fmt;

/// The nodes of a tree. Every directory comes before its content, and names are in ascending order of their bytes.
/// After an error the iterator continues with the next name, or with the parent if a listing is damaged.
pub type Nodes<'a> = Box<dyn Iterator<Item = Result<Node, ImageError>> + Send + 'a>;

/// The content of a file, piece by piece.
pub trait FileContent: Send + fmt::Debug {
    /// Returns the next piece, or `None` at the end.
    ///
    /// # Errors
    /// The image is damaged there, or cannot be read.
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, ImageError>;
}

/// A part of a file that can be read alone, so that several threads can read a large file.
#[derive(Debug)]
pub struct FilePart<'a> {
    /// The position in the file at which it begins.
    pub offset: u64,
    /// The content of the part.
    pub content: Box<dyn FileContent + 'a>,
}

/// The files of an image. Several threads can use it at once.
pub trait FileTree: Sync + fmt::Debug {
    /// Returns the number of inodes that the superblock states.
    fn inode_count(&self) -> u64;

    /// Returns the length of the file or device in bytes.
    fn length_bytes(&self) -> u64;

    /// Returns whether other data may follow the image, as on a device.
    fn may_exceed_image(&self) -> bool;

    /// Fills `buffer` with the bytes of the image that begin at `at`.
    ///
    /// # Errors
    /// The image is too short or cannot be read.
    fn read_raw(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError>;

    /// Returns the nodes at and below a path.
    ///
    /// # Errors
    /// There is nothing at the path, or a directory on the way is damaged.
    fn walk_from(&self, path: &[u8]) -> Result<Nodes<'_>, ImageError>;

    /// Looks up a path without following symbolic links. Leading, doubled and trailing slashes and `.` are ignored.
    ///
    /// # Errors
    /// There is nothing at the path, or a directory on the way is damaged.
    fn find(&self, path: &[u8]) -> Result<(Vec<u8>, Inode), ImageError>;

    /// Returns the content of a file.
    fn content(&self, file: &FileInode) -> Box<dyn FileContent + '_>;

    /// Returns the content of a file in parts of about `part_bytes` bytes.
    fn parts(&self, file: &FileInode, part_bytes: u64) -> Box<dyn Iterator<Item = FilePart<'_>> + Send + '_>;

    /// Returns the whole tree.
    ///
    /// # Errors
    /// The root is damaged.
    fn walk(&self) -> Result<Nodes<'_>, ImageError> {
        self.walk_from(b"")
    }
}

impl FileContent for ContentReader<'_> {
    fn next_piece(&mut self) -> Result<Option<Piece<'_>>, ImageError> {
        ContentReader::next_piece(self)
    }
}

impl FileTree for Image {
    fn inode_count(&self) -> u64 {
        u64::from(self.superblock().inodes)
    }

    fn length_bytes(&self) -> u64 {
        Image::length_bytes(self)
    }

    fn may_exceed_image(&self) -> bool {
        Image::may_exceed_image(self)
    }

    fn read_raw(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError> {
        Image::read_raw(self, buffer, at)
    }

    fn walk_from(&self, path: &[u8]) -> Result<Nodes<'_>, ImageError> {
        Ok(Box::new(Walk::new(self, path)?))
    }

    fn find(&self, path: &[u8]) -> Result<(Vec<u8>, Inode), ImageError> {
        look_up(self, path).map(|found| (found.path, found.inode))
    }

    fn content(&self, file: &FileInode) -> Box<dyn FileContent + '_> {
        Box::new(Image::content(self, file))
    }

    fn parts(&self, file: &FileInode, part_bytes: u64) -> Box<dyn Iterator<Item = FilePart<'_>> + Send + '_> {
        let block_size_bytes = u64::from(self.superblock().block_size_bytes);
        let blocks = self.file_blocks(file);
        let file = file.clone();
        Box::new(Parts { file: Some(file), blocks, offset: 0, block_size_bytes, part_bytes })
    }
}

/// The parts of a file: blocks, and last the piece in a fragment. They are made one at a time, because a file may have
/// millions of blocks.
struct Parts<'a> {
    file: Option<FileInode>,
    blocks: FileBlocks<'a>,
    offset: u64,
    block_size_bytes: u64,
    part_bytes: u64,
}

impl<'a> Iterator for Parts<'a> {
    type Item = FilePart<'a>;

    fn next(&mut self) -> Option<FilePart<'a>> {
        let file = self.file.as_ref()?;
        let offset = self.offset;
        let count = self.blocks.blocks_left().min((self.part_bytes / self.block_size_bytes).max(1));
        if count == 0 {
            let fragment = file.fragment.filter(|fragment| fragment.length > 0);
            self.file = None;
            let tail = fragment.map(|fragment| ContentReader::of_fragment(self.blocks.clone(), fragment));
            return tail.map(|tail| FilePart { offset, content: Box::new(tail) });
        }
        let content = Box::new(ContentReader::of_blocks(self.blocks.clone(), count));
        self.offset += count * self.block_size_bytes;
        // Damaged size words are reported when the part is read.
        let whole = self.blocks.by_ref().take(usize::try_from(count).unwrap_or(usize::MAX)).all(|block| block.is_ok());
        if !whole {
            self.file = None;
        }
        Some(FilePart { offset, content })
    }
}
