//! Makes the tables of an image from the trees of its store paths and the locations of their contents.
//!
//! This project made two choices that all readers of the format accept:
//! - The inodes of a directory's entries are adjacent, those of files and directories alike. So commands that read all
//!   entries of a directory (`ls -l`, `find -size`) read its metadata blocks once.
//! - Directories with more than 32 entries have an index that is finer than one entry per metadata block. The kernel
//!   reads a listing one entry at a time, starting at the nearest index entry, so the time of a lookup grows with the
//!   square root of the number of entries.

use crate::attributes::{MODE_DIRECTORY, MODE_EXECUTABLE, MODE_REGULAR, MODE_SYMLINK, MODIFIED_AT};
use crate::encode::{EncodeError, Encoder};
use crate::little_endian::PutLe;
use crate::squashfs::format::{
    DirectoryEntry, DirectoryHeader, DirectoryIndexEntry, DirectoryInode, FileInode, FragmentEntry, InodeHead,
    InodeRef, MAX_DIRECTORY_HEADER_ENTRIES, MetadataPosition, NO_TABLE, SymlinkInode, inode_type,
};
use crate::squashfs::metadata::MetadataWriter;
use crate::store_root;
use crate::tree::{Entry, NodeId, Tree};
use thiserror::Error;

/// The id table. Root is the user and group of everything except the root directory, which has another group.
const IDS: [u32; 2] = [0, store_root::GROUP];
const ROOT_GROUP: u16 = 0;
const BUILD_USERS_GROUP: u16 = 1;
/// A lookup among fewer entries is fastest without an index.
const MIN_INDEX_STRIDE: usize = 32;

/// The tables cannot be written.
#[derive(Debug, Error)]
pub enum TablesError {
    /// The codec failed.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A table or a count does not fit into its 32-bit field.
    #[error("the image needs {what}, which squashfs does not support")]
    TooLarge {
        /// What is too large.
        what: &'static str,
    },
}

/// An entry of the image's root directory.
#[derive(Clone, Copy, Debug)]
pub struct RootEntry<'a> {
    /// The base name of a store path.
    pub name: &'a [u8],
    /// The files below it.
    pub tree: &'a Tree,
}

/// The location of a file's content.
#[derive(Clone, Copy, Debug)]
pub enum Location<'a> {
    /// The file is empty.
    Empty,
    /// The whole file is in a fragment block.
    Fragment {
        /// The fragment block's number.
        index: u32,
        /// Offset in the decompressed block.
        offset: u32,
    },
    /// The file has its own blocks.
    Blocks {
        /// Position of the first one in the image.
        start: u64,
        /// Their size words.
        words: &'a [u32],
        /// Bytes of the blocks that are holes.
        hole_bytes: u64,
    },
}

/// The locations of the content of all files in the image.
pub trait Contents {
    /// The location of the content of a file. `store_path` is the index of its store path in the `store_paths` of
    /// [`write_tables`], `file` its number among the regular files of that store path's tree, in the order of its
    /// nodes. Files with equal content have the same location.
    fn locate(&self, store_path: usize, file: u32) -> Location<'_>;
}

/// Whether metadata blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataBlocks {
    /// Compressed, which makes the image smaller.
    Compressed,
    /// Uncompressed, which is faster to read and write.
    Plain,
}

/// Everything that follows the data and fragment blocks, and the fields of the superblock that refer to it.
#[derive(Debug)]
pub struct Tables {
    /// The tables in the order of the image.
    pub bytes: Vec<u8>,
    /// Number of inodes.
    pub inodes: u32,
    /// Reference to the root directory's inode.
    pub root: InodeRef,
    /// Position of the inode table in the image.
    pub inode_table: u64,
    /// Position of the directory table.
    pub directory_table: u64,
    /// Position of the fragment table's index, or [`NO_TABLE`].
    pub fragment_table: u64,
    /// Position of the export table's index.
    pub export_table: u64,
    /// Position of the id table's index.
    pub id_table: u64,
    /// Number of entries of the id table.
    pub ids: u16,
}

/// Makes the tables of an image. They follow the data: `start` is the position in bytes at which the blocks end, and
/// all positions in the result count from the beginning of the image. `store_paths` must be sorted by name; `contents`
/// counts them in that order. `fragments` are the entries of the fragment table, in the order of their indexes. The
/// three encoders are for the inode table, the directory table and all other tables; `None` writes uncompressed
/// metadata blocks.
///
/// The result is inode table, directory table, fragment table, export table and id table. The root directory contains
/// the store paths and the entries that [`store_root`] describes.
///
/// # Errors
/// The codec failed, or the closure has more files than the format supports.
pub fn write_tables(
    store_paths: &[RootEntry<'_>],
    contents: &dyn Contents,
    fragments: &[FragmentEntry],
    start: u64,
    encoders: [Option<&mut Encoder>; 3],
) -> Result<Tables, TablesError> {
    let [inode_encoder, directory_encoder, mut table_encoder] = encoders;
    let numbers = Numbers::assign(store_paths)?;
    let mut emitter = Emitter {
        contents,
        export: vec![0; numbers.total as usize],
        numbers: &numbers,
        inodes: MetadataWriter::new(inode_encoder),
        directories: MetadataWriter::new(directory_encoder),
        record: Vec::new(),
    };
    let root = emitter.emit_root(store_paths)?;
    let export = emitter.export;
    let (mut bytes, _) = emitter.inodes.finish()?;
    let (directory_bytes, _) = emitter.directories.finish()?;
    if bytes.len().max(directory_bytes.len()) > u32::MAX as usize {
        return Err(TablesError::TooLarge { what: "over 4 GiB of inodes or directories" });
    }
    let directory_table = start + bytes.len() as u64;
    bytes.extend_from_slice(&directory_bytes);

    let mut records = Vec::new();
    for fragment in fragments {
        fragment.encode(&mut records);
    }
    let fragment_table = if fragments.is_empty() {
        NO_TABLE
    } else {
        append_lookup_table(&mut bytes, start, &records, table_encoder.as_deref_mut())?
    };
    records.clear();
    for inode in &export {
        records.put_u64(*inode);
    }
    let export_table = append_lookup_table(&mut bytes, start, &records, table_encoder.as_deref_mut())?;
    let ids = IDS.map(u32::to_le_bytes).concat();
    let id_table = append_lookup_table(&mut bytes, start, &ids, table_encoder)?;
    Ok(Tables {
        bytes,
        inodes: numbers.total,
        root,
        inode_table: start,
        directory_table,
        fragment_table,
        export_table,
        id_table,
        ids: IDS.len() as u16,
    })
}

/// Appends the metadata blocks of `records` and then the index of their positions; returns the index's position.
fn append_lookup_table(
    bytes: &mut Vec<u8>,
    start: u64,
    records: &[u8],
    encoder: Option<&mut Encoder>,
) -> Result<u64, EncodeError> {
    let mut writer = MetadataWriter::new(encoder);
    writer.write(records)?;
    let (stored, block_starts) = writer.finish()?;
    let base = start + bytes.len() as u64;
    bytes.extend_from_slice(&stored);
    let index = start + bytes.len() as u64;
    for block_start in block_starts {
        bytes.put_u64(base + block_start);
    }
    Ok(index)
}

/// Inode numbers. They are assigned before any inode is written, because a directory's inode contains the number of its
/// parent, which is written later.
struct Numbers {
    /// Indexed by store path and node.
    by_path: Vec<Vec<u32>>,
    root: u32,
    links: u32,
    total: u32,
}

impl Numbers {
    /// Assigns consecutive numbers to the entries of a directory.
    fn assign(store_paths: &[RootEntry<'_>]) -> Result<Self, TablesError> {
        let total = store_paths
            .iter()
            .try_fold(2u32, |total, store_path| total.checked_add(store_path.tree.len()))
            .filter(|total| *total < u32::MAX)
            .ok_or(TablesError::TooLarge { what: "over 4294967294 inodes" })?;
        let (root, links) = (1, 2);
        let mut next = 3;
        let mut by_path: Vec<Vec<u32>> = Vec::with_capacity(store_paths.len());
        for store_path in store_paths {
            let mut numbers = vec![0; store_path.tree.len() as usize];
            numbers[0] = next;
            next += 1;
            by_path.push(numbers);
        }
        for (store_path, numbers) in store_paths.iter().zip(&mut by_path) {
            // In depth-first order, a directory's node comes before all nodes below it.
            for node in 0..store_path.tree.len() {
                for child in store_path.tree.children(node) {
                    numbers[child as usize] = next;
                    next += 1;
                }
            }
        }
        Ok(Self { by_path, root, links, total })
    }
}

/// A directory whose listing is already written, but not its inode.
struct Listed {
    position: MetadataPosition,
    bytes: u32,
    directories: u32,
    index: Vec<DirectoryIndexEntry>,
}

/// A directory entry whose inode is already written.
struct Written<'a> {
    name: &'a [u8],
    inode: InodeRef,
    number: u32,
    inode_type: u16,
}

struct Emitter<'a, 'b> {
    contents: &'a dyn Contents,
    numbers: &'a Numbers,
    export: Vec<u64>,
    inodes: MetadataWriter<'b>,
    directories: MetadataWriter<'b>,
    record: Vec<u8>,
}

impl Emitter<'_, '_> {
    fn emit_root(&mut self, store_paths: &[RootEntry<'_>]) -> Result<InodeRef, TablesError> {
        let mut below = Vec::with_capacity(store_paths.len());
        for (number, store_path) in store_paths.iter().enumerate() {
            below.push(self.emit_below(number, store_path.tree, 0)?);
        }
        // Its name sorts before those of all store paths.
        let mut written = Vec::with_capacity(store_paths.len() + 1);
        written.push(self.emit_links_directory()?);
        for ((number, store_path), listed) in store_paths.iter().enumerate().zip(below) {
            written.push(self.emit_inode(number, store_path.tree, 0, (store_path.name, self.numbers.root), listed)?);
        }
        let listed = self.emit_listing(&written)?;
        // As in the squashfs tools, the root's parent is a number that no inode has.
        let head = InodeHead {
            mode: store_root::MODE,
            modified_at: MODIFIED_AT,
            number: self.numbers.root,
            group_entry: BUILD_USERS_GROUP,
        };
        self.emit_directory(head, self.numbers.total + 1, &listed)
    }

    /// Writes the inode of the empty directory that Nix expects next to the store paths.
    fn emit_links_directory(&mut self) -> Result<Written<'static>, TablesError> {
        let number = self.numbers.links;
        let listed = self.emit_listing(&[])?;
        let head = head(store_root::LINKS_MODE, number);
        let inode = self.emit_directory(head, self.numbers.root, &listed)?;
        Ok(Written { name: store_root::LINKS, inode, number, inode_type: inode_type::BASIC_DIRECTORY })
    }

    /// Writes everything below a directory, and its listing. For other nodes it writes nothing and returns `None`.
    fn emit_below(&mut self, store_path: usize, tree: &Tree, node: NodeId) -> Result<Option<Listed>, TablesError> {
        if !matches!(tree.entry(node), Entry::Directory { .. }) {
            return Ok(None);
        }
        let mut below = Vec::new();
        for child in tree.children(node) {
            below.push(self.emit_below(store_path, tree, child)?);
        }
        let parent = self.numbers.by_path[store_path][node as usize];
        let mut written = Vec::with_capacity(below.len());
        for (child, listed) in tree.children(node).zip(below) {
            written.push(self.emit_inode(store_path, tree, child, (tree.name(child), parent), listed)?);
        }
        self.emit_listing(&written).map(Some)
    }

    /// Writes the inode of a node. Everything below it must already be written.
    fn emit_inode<'t>(
        &mut self,
        store_path: usize,
        tree: &Tree,
        node: NodeId,
        (name, parent): (&'t [u8], u32),
        listed: Option<Listed>,
    ) -> Result<Written<'t>, TablesError> {
        let number = self.numbers.by_path[store_path][node as usize];
        let (inode, inode_type) = match (tree.entry(node), listed) {
            (Entry::Directory { .. }, Some(listed)) => {
                (self.emit_directory(head(MODE_DIRECTORY, number), parent, &listed)?, inode_type::BASIC_DIRECTORY)
            }
            (Entry::Directory { .. }, None) => {
                return Err(TablesError::TooLarge { what: "a directory without a listing" });
            }
            (Entry::Symlink { target }, _) => {
                self.record.clear();
                SymlinkInode { head: head(MODE_SYMLINK, number), target }.encode(&mut self.record);
                (self.write_record(number)?, inode_type::BASIC_SYMLINK)
            }
            (Entry::File { executable, file, size_bytes }, _) => {
                let mode = if executable { MODE_EXECUTABLE } else { MODE_REGULAR };
                let mut inode = FileInode {
                    head: head(mode, number),
                    size_bytes,
                    start: 0,
                    block_words: &[],
                    hole_bytes: 0,
                    fragment: None,
                };
                match self.contents.locate(store_path, file) {
                    Location::Empty => {}
                    Location::Fragment { index, offset } => inode.fragment = Some((index, offset)),
                    Location::Blocks { start, words, hole_bytes } => {
                        (inode.start, inode.block_words, inode.hole_bytes) = (start, words, hole_bytes);
                    }
                }
                self.record.clear();
                inode.encode(&mut self.record);
                (self.write_record(number)?, inode_type::BASIC_FILE)
            }
        };
        Ok(Written { name, inode, number, inode_type })
    }

    fn emit_directory(
        &mut self,
        head: InodeHead,
        parent_number: u32,
        listed: &Listed,
    ) -> Result<InodeRef, TablesError> {
        self.record.clear();
        DirectoryInode {
            head,
            links: 2 + listed.directories,
            parent_number,
            listing_bytes: listed.bytes,
            listing: listed.position,
            index: &listed.index,
        }
        .encode(&mut self.record);
        Ok(self.write_record(head.number)?)
    }

    fn write_record(&mut self, number: u32) -> Result<InodeRef, EncodeError> {
        let inode = InodeRef::new(self.inodes.position());
        self.inodes.write(&self.record)?;
        self.export[number as usize - 1] = inode.0;
        Ok(inode)
    }

    fn emit_listing(&mut self, entries: &[Written<'_>]) -> Result<Listed, TablesError> {
        let stride = index_stride(entries.len());
        let position = self.directories.position();
        let directories = entries.iter().filter(|entry| entry.inode_type == inode_type::BASIC_DIRECTORY).count();
        let mut listed = Listed {
            position,
            bytes: 0,
            directories: u32::try_from(directories).unwrap_or(u32::MAX),
            index: Vec::new(),
        };
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let run = header_run(rest, stride);
            if rest.len() < entries.len() {
                listed.index.push(DirectoryIndexEntry {
                    listing_offset: listed.bytes,
                    block: self.directories.position().block,
                    name: first.name.to_vec(),
                });
            }
            self.record.clear();
            DirectoryHeader {
                entries: u32::try_from(run).unwrap_or(u32::MAX),
                inode_block: first.inode.block(),
                base_number: first.number,
            }
            .encode(&mut self.record);
            for entry in &rest[..run] {
                DirectoryEntry {
                    inode_offset: entry.inode.offset(),
                    // `header_run` keeps the difference below 256.
                    number_difference: i16::try_from(entry.number.abs_diff(first.number)).unwrap_or(i16::MAX),
                    inode_type: entry.inode_type,
                    name: entry.name,
                }
                .encode(&mut self.record);
            }
            listed.bytes = u32::try_from(self.record.len())
                .ok()
                .and_then(|bytes| listed.bytes.checked_add(bytes))
                .ok_or(TablesError::TooLarge { what: "a directory listing over 4 GiB" })?;
            self.directories.write(&self.record)?;
            rest = &rest[run..];
        }
        if entries.len() <= MIN_INDEX_STRIDE {
            listed.index.clear();
        }
        Ok(listed)
    }
}

/// Returns the fields that all inodes have; not used for the root.
fn head(mode: u16, number: u32) -> InodeHead {
    InodeHead { mode, modified_at: MODIFIED_AT, number, group_entry: ROOT_GROUP }
}

/// Returns the number of entries between two index entries. It is about the square root of all entries, so that a
/// lookup reads about as many index entries as listing entries.
fn index_stride(entries: usize) -> usize {
    entries.isqrt().next_power_of_two().clamp(MIN_INDEX_STRIDE, MAX_DIRECTORY_HEADER_ENTRIES)
}

/// Returns how many of the first entries share one header, which requires that their inodes are in the same metadata
/// block.
fn header_run(entries: &[Written<'_>], stride: usize) -> usize {
    let block = entries.first().map(|entry| entry.inode.block());
    entries.iter().take(stride).take_while(|entry| Some(entry.inode.block()) == block).count()
}
