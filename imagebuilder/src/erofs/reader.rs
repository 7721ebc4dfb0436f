//! Reads uncompressed EROFS images: ours, and those of mkfs.erofs without compression.
//!
//! # Why a reader of our own
//! `erofs-rs` 0.3 was considered. It checks each structure, but not whether the structures agree: a walk compares a
//! directory only with the directories above it. If two names lead to each directory, every level doubles the length of
//! the walk, so an image of 100 KiB keeps it busy forever (30 levels are 10^9 directories). It does not check `.` and
//! `..`, the order of names across blocks, or link counts. It needs the image in memory or mapped, and a mapping ends
//! the process when the file becomes shorter. The tests compare its results with those of this reader. This reader
//! supports two of the five data layouts and needs a few hundred lines.
//!
//! # Guarantees
//! They are those of the reader of squashfs images (`crate::image`): for any bytes, nothing here panics, loops
//! endlessly or allocates without bound, and a contradiction is an error that names the place. Every position is
//! checked against the length of the image before it is used. A walk reaches no directory twice, and the listings of
//! all directories together are not longer than the image, so the time is proportional to the length of the image.
//!
//! Compressed files, files in chunks, and further devices are not supported and are refused with an error.

mod content;
mod inode;
mod listing;
mod superblock;

pub use superblock::ErofsSuperblock;

use crate::image::walk::{Directories, Walk, WalkLimits, look_up};
use crate::image::{
    DirectoryInode, FileContent, FileInode, FilePart, FileSource, FileTree, ImageError, ImageSource, Inode, InodeKind,
    Nodes, Part,
};
use listing::{Listing, ListingEntry, number_of};
use std::fs::File;
use std::path::Path;

/// Maximum number of inodes. It limits the memory that is used for them while an image is checked.
const MAX_INODES: u64 = 1 << 23;

/// An open EROFS image. Several threads can use it at once.
#[derive(Debug)]
pub struct ErofsImage {
    source: Box<dyn ImageSource>,
    superblock: ErofsSuperblock,
}

impl ErofsImage {
    /// Opens an image file or a block device with an image on it.
    ///
    /// # Errors
    /// It cannot be read, is not an EROFS image, or needs a feature that is not supported.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let source = File::open(path).and_then(FileSource::new);
        let source = source.map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
        Self::from_source(Box::new(source))
    }

    /// Opens an image from any source.
    ///
    /// # Errors
    /// It cannot be read, is not an EROFS image, or needs a feature that is not supported.
    pub fn from_source(source: Box<dyn ImageSource>) -> Result<Self, ImageError> {
        let superblock = ErofsSuperblock::read(source.as_ref())?;
        if superblock.inodes > MAX_INODES {
            let reason = format!("{} inodes", superblock.inodes);
            return Err(ImageError::Limit { part: Part::Superblock, reason, limit: MAX_INODES });
        }
        Ok(Self { source, superblock })
    }

    /// The superblock.
    pub fn superblock(&self) -> &ErofsSuperblock {
        &self.superblock
    }

    /// Length of the file or device in bytes.
    pub fn length_bytes(&self) -> u64 {
        self.source.length_bytes()
    }

    /// Returns whether other data may follow the image, as on a device.
    pub(crate) fn may_exceed_image(&self) -> bool {
        self.source.may_exceed_image()
    }

    /// Reads bytes of the image without interpreting them.
    pub(crate) fn read_raw(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError> {
        let length_bytes = buffer.len();
        let read = self.source.read_exact_at(buffer, at);
        read.map_err(|source| ImageError::Read { length_bytes, offset: at, source })
    }
}

impl Directories for ErofsImage {
    type Entry = ListingEntry;
    type Listing<'a> = Listing<'a>;

    fn root_inode(&self) -> Result<Inode, ImageError> {
        let root = self.inode(u64::from(self.superblock.root_nid))?;
        match root.kind {
            InodeKind::Directory(_) => Ok(root),
            _ => Err(ImageError::damaged(Part::Superblock, "says the root is not a directory")),
        }
    }

    fn listing(&self, inode: &Inode, _directory: &DirectoryInode, parent: u32) -> Result<Listing<'_>, ImageError> {
        Listing::new(self, inode, parent)
    }

    fn name(entry: &ListingEntry) -> &[u8] {
        &entry.name
    }

    fn inode_of(&self, entry: &ListingEntry) -> Result<Inode, ImageError> {
        let inode = self.inode(entry.nid)?;
        if number_of(inode.inode_type()) != entry.file_type {
            let reason = format!(
                "it is a {}, but its directory entry has the type {}",
                inode.inode_type().name(),
                entry.file_type
            );
            return Err(ImageError::damaged(Part::InodeAt(inode.place), reason));
        }
        Ok(inode)
    }

    fn limits(&self) -> WalkLimits {
        WalkLimits { listing_bytes: self.superblock.bytes(), names: MAX_INODES }
    }

    fn directory_part(inode: &Inode) -> Part {
        Part::InodeAt(inode.place)
    }
}

impl FileTree for ErofsImage {
    fn inode_count(&self) -> u64 {
        self.superblock.inodes
    }

    fn length_bytes(&self) -> u64 {
        ErofsImage::length_bytes(self)
    }

    fn may_exceed_image(&self) -> bool {
        ErofsImage::may_exceed_image(self)
    }

    fn read_raw(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError> {
        ErofsImage::read_raw(self, buffer, at)
    }

    fn walk_from(&self, path: &[u8]) -> Result<Nodes<'_>, ImageError> {
        Ok(Box::new(Walk::new(self, path)?))
    }

    fn find(&self, path: &[u8]) -> Result<(Vec<u8>, Inode), ImageError> {
        look_up(self, path).map(|found| (found.path, found.inode))
    }

    fn content(&self, file: &FileInode) -> Box<dyn FileContent + '_> {
        Box::new(content::Content::new(self, file, 0..file.size_bytes))
    }

    fn parts(&self, file: &FileInode, part_bytes: u64) -> Box<dyn Iterator<Item = FilePart<'_>> + Send + '_> {
        let file = file.clone();
        let count = file.size_bytes.div_ceil(part_bytes);
        Box::new((0..count).map(move |number| {
            let offset = number * part_bytes;
            let end = file.size_bytes.min(offset + part_bytes);
            FilePart { offset, content: Box::new(content::Content::new(self, &file, offset..end)) }
        }))
    }
}
