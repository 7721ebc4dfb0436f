//! Directory listings. A listing consists of headers, each with up to 256 entries whose inodes are in the same piece of
//! the inode table.

use super::error::{ImageError, Part};
use super::inode::{DirectoryInode, InodeType};
use super::metadata::{Cursor, MetadataTable};
use crate::squashfs::format::{DirectoryEntry, DirectoryHeader, MAX_DIRECTORY_HEADER_ENTRIES};
use program::escape::Escaped;

/// Longest name in bytes. The format allows one byte more, but Linux does not.
const MAX_NAME_BYTES: usize = 255;

/// One entry of a listing.
#[derive(Clone, Debug)]
pub struct ListingEntry {
    /// Its name: not empty, not `.` or `..`, without `/` and zero bytes.
    pub name: Vec<u8>,
    /// The type of its inode, according to the entry.
    pub inode_type: InodeType,
    /// The number of its inode, according to the entry.
    pub number: u32,
    /// Position of its inode: the stored piece of the inode table, and the offset in it after decompression.
    pub(crate) inode: (u32, u16),
    /// Where its header begins in the listing, if it is the header's first entry.
    pub(crate) header_at: Option<u32>,
}

/// Reads a listing entry by entry and checks that the names ascend. It ends after an error.
#[derive(Clone, Debug)]
pub(crate) struct Listing<'a> {
    cursor: Cursor<'a>,
    number: u32,
    start: u64,
    end: u64,
    header: Option<Header>,
    last_name: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    entries_left: u32,
    inode_piece: u32,
    base_number: u32,
    fresh_at: Option<u32>,
}

impl<'a> Listing<'a> {
    /// Opens the listing of the directory with this inode number.
    pub(crate) fn new(table: &'a MetadataTable, number: u32, directory: &DirectoryInode) -> Result<Self, ImageError> {
        // The position in an empty directory may not exist.
        let start = match directory.listing_bytes {
            0 => 0,
            _ => table.place(directory.listing.0, directory.listing.1)?,
        };
        let end = start + u64::from(directory.listing_bytes);
        if end > table.length() {
            let reason = format!("it ends at byte {end} of the directory table, which has {} bytes", table.length());
            return Err(ImageError::damaged(Part::Listing(number), reason));
        }
        Ok(Self { cursor: table.cursor(start), number, start, end, header: None, last_name: Vec::new() })
    }

    /// Returns where the listing begins in the decompressed directory table.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    fn damaged(&self, reason: impl Into<String>) -> ImageError {
        ImageError::damaged(Part::Listing(self.number), reason)
    }

    /// Returns the number of bytes that have not been read yet.
    fn left(&self) -> u64 {
        self.end.saturating_sub(self.cursor.place())
    }

    fn read_header(&mut self) -> Result<Header, ImageError> {
        let at = u32::try_from(self.cursor.place() - self.start).unwrap_or(u32::MAX);
        if self.left() < DirectoryHeader::BYTES as u64 {
            return Err(self.damaged(format!("it ends in the header at its byte {at}")));
        }
        let last_entry = self.cursor.u32()?;
        let inode_piece = self.cursor.u32()?;
        let base_number = self.cursor.u32()?;
        if last_entry >= MAX_DIRECTORY_HEADER_ENTRIES as u32 {
            return Err(self.damaged(format!("the header at its byte {at} counts more than 256 entries")));
        }
        Ok(Header { entries_left: last_entry + 1, inode_piece, base_number, fresh_at: Some(at) })
    }

    fn read_entry(&mut self, header: &mut Header) -> Result<ListingEntry, ImageError> {
        if self.left() < DirectoryEntry::HEAD_BYTES as u64 {
            return Err(self.damaged("it ends before its last header's entries"));
        }
        let inode_offset = self.cursor.u16()?;
        let difference = i16::from_le_bytes(self.cursor.u16()?.to_le_bytes());
        let type_number = self.cursor.u16()?;
        let name_bytes = usize::from(self.cursor.u16()?) + 1;
        if name_bytes > MAX_NAME_BYTES || name_bytes as u64 > self.left() {
            return Err(self.damaged(format!("it has a name of {name_bytes} bytes")));
        }
        let mut name = vec![0; name_bytes];
        self.cursor.read(&mut name)?;
        if name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(self.damaged(format!("{:?} cannot be a name", Escaped(&name).to_string())));
        }
        if name <= self.last_name {
            let (this, last) = (Escaped(&name), Escaped(&self.last_name));
            return Err(self.damaged(format!("its names are not in ascending order: {this} follows {last}")));
        }
        self.last_name.clone_from(&name);
        let inode_type = InodeType::from_basic(type_number)
            .ok_or_else(|| self.damaged(format!("{} has the type {type_number}", Escaped(&name))))?;
        let number = header.base_number.wrapping_add_signed(i32::from(difference));
        header.entries_left -= 1;
        let inode = (header.inode_piece, inode_offset);
        Ok(ListingEntry { name, inode_type, number, inode, header_at: header.fresh_at.take() })
    }

    fn step(&mut self) -> Result<Option<ListingEntry>, ImageError> {
        let mut header = match self.header.take() {
            Some(header) => header,
            None if self.left() == 0 => return Ok(None),
            None => self.read_header()?,
        };
        let entry = self.read_entry(&mut header)?;
        self.header = (header.entries_left > 0).then_some(header);
        Ok(Some(entry))
    }
}

impl Iterator for Listing<'_> {
    type Item = Result<ListingEntry, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if matches!(step, Some(Err(_))) {
            self.end = 0;
            self.header = None;
        }
        step
    }
}

/// One entry of a directory's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    /// Where a header begins in the listing.
    pub(crate) listing_offset: u32,
    /// The stored piece of the directory table in which it begins.
    pub(crate) piece: u32,
    /// The first name after the header.
    pub(crate) name: Vec<u8>,
}

/// Reads the index of a directory.
#[derive(Debug)]
pub(crate) struct IndexEntries<'a> {
    cursor: Cursor<'a>,
    number: u32,
    left: u16,
}

impl<'a> IndexEntries<'a> {
    /// Opens the index of the directory with this inode number.
    pub(crate) fn new(inode_table: &'a MetadataTable, number: u32, directory: &DirectoryInode) -> Self {
        Self { cursor: inode_table.cursor(directory.index_place), number, left: directory.index_entries }
    }

    fn step(&mut self) -> Result<IndexEntry, ImageError> {
        let listing_offset = self.cursor.u32()?;
        let piece = self.cursor.u32()?;
        let name_bytes = usize::try_from(self.cursor.u32()?).unwrap_or(usize::MAX).saturating_add(1);
        if name_bytes > MAX_NAME_BYTES {
            let reason = format!("its index has a name of {name_bytes} bytes");
            return Err(ImageError::damaged(Part::Listing(self.number), reason));
        }
        let mut name = vec![0; name_bytes];
        self.cursor.read(&mut name)?;
        Ok(IndexEntry { listing_offset, piece, name })
    }
}

impl Iterator for IndexEntries<'_> {
    type Item = Result<IndexEntry, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let step = self.step();
        if step.is_err() {
            self.left = 0;
        }
        Some(step)
    }
}
