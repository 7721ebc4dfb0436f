//! Reads squashfs 4.0 images: opens them, walks their trees, and reads the content of their files.
//!
//! # Why not an existing crate
//! We tried the reader of backhand 0.25.5 first. With a few thousand mutated images it neither panicked nor used too
//! much memory, but it cannot verify an image: it refuses symlink targets of 256 bytes or more, which Nix stores
//! contain (measured); it ends a directory's listing at the first entry that it cannot parse, and so loses files
//! silently (`v4/squashfs.rs`, `dir_from_index`); it keeps all inodes and listings in memory; it reads under a single
//! lock; and it ignores the export table, directory indexes, link counts and extended attributes. The tests use
//! backhand as a second reader to compare with.
//!
//! # Guarantees
//! No input makes this module panic, loop, or allocate without bound. Every position and length is checked against the
//! image and the format before it is used, blocks are decompressed into buffers of their largest allowed size, tables
//! are read in pieces (`metadata`), and walks cannot contain cycles (`walk`). An image is never trusted: a
//! contradiction is an [`ImageError`] that names the place.
//!
//! The reader accepts all images of the stock tools except those with the codecs LZO and LZMA. It refuses images that
//! only some readers accept: with listings out of order, metadata blocks that are not full, or indexes that do not
//! match.

pub(crate) mod codec;
mod content;
mod error;
mod file_tree;
mod flag;
mod image_path;
mod inode;
mod listing;
mod lru_cache;
mod metadata;
mod parts;
mod scan;
mod source;
mod superblock;
mod unique;
pub(crate) mod walk;
mod xattr;

pub use content::{Block, ContentReader, DataSize, FileBlocks, Piece};
pub use error::{ImageError, Part};
pub use file_tree::{FileContent, FilePart, FileTree, Nodes};
pub use image_path::ImagePath;
pub use inode::{DirectoryInode, FileInode, FragmentRef, Inode, InodeForm, InodeKind, InodeType};
pub use listing::ListingEntry;
pub use program::escape::Escaped;
pub use scan::InodeScan;
pub use source::{FileSource, ImageSource};
pub use superblock::{CodecOptions, Superblock};
pub use walk::Node;
pub use xattr::Xattr;

pub(crate) use listing::Listing;
pub(crate) use superblock::TakeLe;
pub(crate) use unique::each_distinct;
pub(crate) use walk::InodeSet;

use crate::settings::Compression;
use inode::{InodeContext, read_inode};
use lru_cache::LruCache;
use metadata::{MetadataTable, Storage};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use walk::{Directories, WalkLimits};
use xattr::XattrTables;

/// Bytes of a fragment table entry.
const FRAGMENT_ENTRY_BYTES: u64 = 16;
/// Bytes of an export table entry: an inode reference.
const EXPORT_ENTRY_BYTES: u64 = 8;
/// Bytes of an id table entry.
const ID_ENTRY_BYTES: u64 = 4;
/// Length of the shortest inode: the fields that all inodes have, and a link count.
const MIN_INODE_BYTES: u64 = 20;
/// Maximum number of inodes. It bounds the memory that is used per inode while an image is checked.
const MAX_INODES: u32 = 1 << 23;
/// Maximum number of fragment blocks. It bounds the memory that is used per block while an image is checked.
const MAX_FRAGMENTS: u32 = 1 << 24;
/// Number of decompressed fragment blocks in the cache, each of at most 1 MiB.
const FRAGMENT_BLOCKS_KEPT: usize = 32;

/// A range of the image that belongs to one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// What is stored there.
    pub(crate) part: Part,
    /// Position of its first byte in the image.
    pub(crate) start: u64,
    /// Position after its last byte.
    pub(crate) end: u64,
}

/// An open image. Several threads can use it at once.
#[derive(Debug)]
pub struct Image {
    superblock: Superblock,
    codec_options: Option<CodecOptions>,
    storage: Arc<Storage>,
    data_start: u64,
    inodes: MetadataTable,
    directories: MetadataTable,
    fragments: Option<MetadataTable>,
    export: Option<MetadataTable>,
    id_table: MetadataTable,
    ids: Vec<u32>,
    xattrs: Option<XattrTables>,
    /// The indexes of the tables that have one, including their heads.
    indexes: Vec<Region>,
    fragment_cache: Mutex<LruCache>,
}

impl Image {
    /// Opens an image file or a block device with an image on it.
    ///
    /// # Errors
    /// The image cannot be read, is not a squashfs, or its tables are damaged.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let source = File::open(path).and_then(FileSource::new);
        let source = source.map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
        Self::from_source(Box::new(source))
    }

    /// Opens an image from any source of bytes.
    ///
    /// # Errors
    /// The image cannot be read, is not a squashfs, or its tables are damaged.
    pub fn from_source(source: Box<dyn ImageSource>) -> Result<Self, ImageError> {
        let superblock = Superblock::read(source.as_ref())?;
        let decoder = codec::Decoder::new(superblock.codec)?;
        let (codec_options, data_start) = CodecOptions::read(source.as_ref(), &superblock, decoder.compression())?;
        let storage = Arc::new(Storage { source, decoder });
        let mut indexes = Vec::new();
        let mut indexed = |part, index_at, length| {
            let (table, index_end) = MetadataTable::indexed(&storage, part, index_at, index_at, length)?;
            indexes.push(Region { part, start: index_at, end: index_end });
            Ok::<_, ImageError>(table)
        };
        if superblock.fragments > MAX_FRAGMENTS {
            let reason = format!("{} fragment blocks", superblock.fragments);
            return Err(ImageError::Limit { part: Part::FragmentTable, reason, limit: u64::from(MAX_FRAGMENTS) });
        }
        let inode_count = u64::from(superblock.inodes);
        let fragment_bytes = u64::from(superblock.fragments) * FRAGMENT_ENTRY_BYTES;
        let fragments = superblock.fragment_table;
        let fragments = fragments.map(|at| indexed(Part::FragmentTable, at, fragment_bytes)).transpose()?;
        let export = superblock.export_table;
        let export_bytes = inode_count * EXPORT_ENTRY_BYTES;
        let export = export.map(|at| indexed(Part::ExportTable, at, export_bytes)).transpose()?;
        let id_bytes = u64::from(superblock.ids) * ID_ENTRY_BYTES;
        let id_table = indexed(Part::IdTable, superblock.id_table, id_bytes)?;
        let xattrs = superblock.xattr_id_table.map(|at| XattrTables::open(&storage, at)).transpose()?;
        if let (Some(xattrs), Some(head_at)) = (&xattrs, superblock.xattr_id_table) {
            indexes.push(Region { part: Part::XattrIdTable, start: head_at, end: xattrs.end });
        }

        let firsts = [
            fragments.as_ref().map(MetadataTable::start),
            export.as_ref().map(MetadataTable::start),
            Some(id_table.start()),
            xattrs.as_ref().map(|xattrs| xattrs.values.start()),
        ];
        let directory_end = firsts.into_iter().flatten().min().unwrap_or(superblock.bytes_used);
        let (inode_start, directory_start) = (superblock.inode_table, superblock.directory_table);
        let inodes = MetadataTable::scan(&storage, Part::InodeTable, inode_start, directory_start)?;
        let directories = MetadataTable::scan(&storage, Part::DirectoryTable, directory_start, directory_end)?;
        check_inode_count(superblock.inodes, inodes.length())?;
        let ids = read_ids(&id_table, superblock.ids)?;
        Ok(Self {
            superblock,
            codec_options,
            storage,
            data_start,
            inodes,
            directories,
            fragments,
            export,
            id_table,
            ids,
            xattrs,
            indexes,
            fragment_cache: Mutex::new(LruCache::new(FRAGMENT_BLOCKS_KEPT)),
        })
    }

    /// Returns the superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Returns the codec options that the image contains.
    pub fn codec_options(&self) -> Option<CodecOptions> {
        self.codec_options
    }

    /// Returns the codec. Images without compression name gzip.
    pub fn compression(&self) -> Compression {
        self.storage.decoder.compression()
    }

    /// Returns the user and group ids, in the order of their table.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Returns the length of the file or device in bytes, including padding.
    pub fn length_bytes(&self) -> u64 {
        self.storage.source.length_bytes()
    }

    fn inode_at(&self, place: u64) -> Result<Inode, ImageError> {
        let context = InodeContext {
            ids: &self.ids,
            inodes: self.superblock.inodes,
            block_size_bytes: self.superblock.block_size_bytes,
            fragments: self.superblock.fragments,
            xattrs: self.xattrs.as_ref().map_or(0, |xattrs| xattrs.count),
        };
        read_inode(self.inodes.cursor(place), context)
    }

    /// Returns the inode of the root directory.
    ///
    /// # Errors
    /// It is damaged, or not a directory.
    pub fn root(&self) -> Result<Inode, ImageError> {
        let reference = self.superblock.root;
        let piece = u32::try_from(reference >> 16).map_err(|_| {
            ImageError::damaged(Part::Superblock, format!("says the root's inode is at {reference:#x}"))
        })?;
        let root = self.inode_at(self.inodes.place(piece, (reference & 0xffff) as u16)?)?;
        match root.kind {
            InodeKind::Directory(_) => Ok(root),
            _ => Err(ImageError::damaged(Part::Superblock, "says the root is not a directory")),
        }
    }

    /// Reads the extended attributes of an inode.
    ///
    /// # Errors
    /// Their tables are damaged.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ImageError> {
        match (inode.xattr, &self.xattrs) {
            (Some(index), Some(tables)) => tables.read(index),
            _ => Ok(Vec::new()),
        }
    }
}

impl Directories for Image {
    type Entry = ListingEntry;
    type Listing<'a> = Listing<'a>;

    fn root_inode(&self) -> Result<Inode, ImageError> {
        self.root()
    }

    fn listing(&self, inode: &Inode, directory: &DirectoryInode, _parent: u32) -> Result<Listing<'_>, ImageError> {
        Listing::new(&self.directories, inode.number, directory)
    }

    fn name(entry: &ListingEntry) -> &[u8] {
        &entry.name
    }

    fn inode_of(&self, entry: &ListingEntry) -> Result<Inode, ImageError> {
        let (piece, offset) = entry.inode;
        let inode = self.inode_at(self.inodes.place(piece, offset)?)?;
        if inode.number != entry.number || inode.inode_type() != entry.inode_type {
            let reason = format!(
                "it is {} {}, but its directory entry says {} {}",
                inode.inode_type().name(),
                inode.number,
                entry.inode_type.name(),
                entry.number
            );
            return Err(ImageError::damaged(Part::Inode(inode.place), reason));
        }
        Ok(inode)
    }

    fn limits(&self) -> WalkLimits {
        // Hard links can make the names more than the inodes; the listings limit them.
        WalkLimits { listing_bytes: self.directories.length(), names: u64::MAX }
    }

    fn directory_part(_inode: &Inode) -> Part {
        Part::DirectoryTable
    }
}

/// Checks that there are at most as many inodes as this reader supports and as fit into the table.
fn check_inode_count(inodes: u32, table_bytes: u64) -> Result<(), ImageError> {
    if u64::from(inodes) > table_bytes / MIN_INODE_BYTES {
        let reason = format!("says there are {inodes} inodes, but the inode table has only {table_bytes} bytes");
        return Err(ImageError::damaged(Part::Superblock, reason));
    }
    if inodes > MAX_INODES {
        let reason = format!("{inodes} inodes");
        return Err(ImageError::Limit { part: Part::InodeTable, reason, limit: u64::from(MAX_INODES) });
    }
    Ok(())
}

fn read_ids(table: &MetadataTable, count: u16) -> Result<Vec<u32>, ImageError> {
    let mut cursor = table.cursor(0);
    (0..count).map(|_| cursor.u32()).collect()
}
