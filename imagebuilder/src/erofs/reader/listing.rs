//! The entries of a directory, block by block.

use super::ErofsImage;
use crate::erofs::format::DIRECTORY_ENTRY_BYTES;
use crate::image::{FileInode, ImageError, Inode, InodeKind, InodeType, Part, TakeLe};

/// Maximum length of a name, as in Linux.
const MAX_NAME_BYTES: usize = 255;

/// An entry of a directory.
#[derive(Debug)]
pub(crate) struct ListingEntry {
    pub(super) name: Vec<u8>,
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// Reads the listing of a directory. It checks that names are in ascending order, and that `.` and `..` exist and are
/// correct; it does not return these two. It ends after an error.
#[derive(Debug)]
pub(crate) struct Listing<'a> {
    image: &'a ErofsImage,
    number: u32,
    parent: u32,
    content: FileInode,
    /// Number of bytes of the content that were read.
    done: u64,
    block: Vec<u8>,
    /// Number of entries of the block, and how many of them were returned.
    entries: usize,
    next: usize,
    last_name: Vec<u8>,
    dots: u8,
    failed: bool,
}

impl<'a> Listing<'a> {
    pub(super) fn new(image: &'a ErofsImage, inode: &Inode, parent: u32) -> Result<Self, ImageError> {
        let InodeKind::Directory(directory) = &inode.kind else {
            return Err(ImageError::damaged(Part::InodeAt(inode.place), "it is not a directory"));
        };
        let content = directory.content.clone();
        let content = content.ok_or_else(|| ImageError::damaged(Part::InodeAt(inode.place), "it has no content"))?;
        Ok(Self {
            image,
            number: inode.number,
            parent,
            content,
            done: 0,
            block: Vec::new(),
            entries: 0,
            next: 0,
            last_name: Vec::new(),
            dots: 0,
            failed: false,
        })
    }

    fn damaged(&self, reason: impl Into<String>) -> ImageError {
        ImageError::damaged(Part::Listing(self.number), reason)
    }

    /// Reads the next block. Returns false at the end.
    fn fill(&mut self) -> Result<bool, ImageError> {
        let length = (self.content.size_bytes - self.done).min(self.image.superblock().block_bytes());
        if length == 0 {
            return if self.dots == 2 { Ok(false) } else { Err(self.damaged("it has no `.` or no `..`")) };
        }
        self.block.resize(length as usize, 0);
        self.image.read_content(&self.content, self.done, &mut self.block)?;
        self.done += length;
        let names_at = self.record(0).map_or(0, |(_, offset, _)| usize::from(offset));
        if names_at == 0 || !names_at.is_multiple_of(DIRECTORY_ENTRY_BYTES as usize) || names_at >= self.block.len() {
            return Err(self.damaged(format!("the names of a block begin at byte {names_at}")));
        }
        (self.entries, self.next) = (names_at / DIRECTORY_ENTRY_BYTES as usize, 0);
        Ok(true)
    }

    /// Returns the inode number, the offset of the name, and the type of an entry of the block.
    fn record(&self, index: usize) -> Option<(u64, u16, u8)> {
        let mut bytes = self.block.get(index.checked_mul(DIRECTORY_ENTRY_BYTES as usize)?..)?;
        let (nid, offset) = (bytes.take_u64()?, bytes.take_u16()?);
        let [file_type, _reserved] = bytes.take()?;
        Some((nid, offset, file_type))
    }

    fn name(&self, index: usize, offset: u16) -> Result<&[u8], ImageError> {
        let start = usize::from(offset);
        let is_last = index + 1 == self.entries;
        let end =
            if is_last { self.block.len() } else { self.record(index + 1).map_or(0, |(_, next, _)| usize::from(next)) };
        let name = self.block.get(start..end).filter(|_| start >= self.entries * DIRECTORY_ENTRY_BYTES as usize);
        let name = name.ok_or_else(|| self.damaged(format!("a name reaches from byte {start} to byte {end}")))?;
        // Zeros may follow the last name.
        let name = if is_last { name.split(|byte| *byte == 0).next().unwrap_or_default() } else { name };
        let is_file_name =
            !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if is_file_name { Ok(name) } else { Err(self.damaged(format!("the name at byte {start} is not a file name"))) }
    }

    fn step(&mut self) -> Result<Option<ListingEntry>, ImageError> {
        loop {
            if self.next == self.entries && !self.fill()? {
                return Ok(None);
            }
            let index = self.next;
            self.next += 1;
            let Some((nid, offset, file_type)) = self.record(index) else {
                return Err(self.damaged("an entry is truncated"));
            };
            let name = self.name(index, offset)?.to_vec();
            if self.last_name >= name {
                return Err(self.damaged("its names are not in ascending order"));
            }
            let wanted = match name.as_slice() {
                b"." => Some(self.number),
                b".." => Some(self.parent),
                _ => None,
            };
            self.last_name.clone_from(&name);
            match wanted {
                None => return Ok(Some(ListingEntry { name, nid, file_type })),
                Some(wanted) if u64::from(wanted) == nid => self.dots += 1,
                Some(_) => return Err(self.damaged("its entry `.` or `..` names another directory")),
            }
        }
    }
}

impl Iterator for Listing<'_> {
    type Item = Result<ListingEntry, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}

/// Returns the number of a type in a directory entry (`EROFS_FT_*`).
pub(super) fn number_of(inode_type: InodeType) -> u8 {
    match inode_type {
        InodeType::File => 1,
        InodeType::Directory => 2,
        InodeType::CharacterDevice => 3,
        InodeType::BlockDevice => 4,
        InodeType::Fifo => 5,
        InodeType::Socket => 6,
        InodeType::Symlink => 7,
    }
}
