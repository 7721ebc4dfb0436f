//! Determines the inodes of an image, their order and form; contains the pass that assigns all positions.

use super::directory::{self, Entry, InodeKey};
use super::format::{BLOCK_BYTES, DataLayout, FileType, Inode, SLOT_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET};
use crate::attributes::{MODE_DIRECTORY, MODE_EXECUTABLE, MODE_REGULAR, MODE_SYMLINK};
use crate::block_map::{BlockMapError, FileId, StoreFiles};
use crate::store_root;
use crate::tree::{self, NodeId};
use std::collections::HashMap;
use thiserror::Error;

/// The purpose of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// A block device: the tails of files are after their inodes, which saves most of a block for each file.
    Disk,
    /// Persistent memory that is mapped into processes (DAX): files have whole blocks only, and the image is padded to
    /// a multiple of 2 MiB.
    Dax,
}

/// Length in bytes of the huge pages in which hypervisors map persistent memory.
pub(super) const DAX_ALIGNMENT_BYTES: u64 = 2 << 20;

/// The files with equal content, which is stored once.
///
/// It does not contain the content itself. Without entries the image is correct, but larger.
#[derive(Clone, Debug, Default)]
pub struct SameContent {
    groups: HashMap<FileId, u32>,
    copies: Vec<u32>,
}

impl SameContent {
    /// Records that these files have the same size and content.
    pub fn add(&mut self, files: &[FileId]) {
        let group = self.copies.len() as u32;
        self.copies.push(files.len() as u32);
        self.groups.extend(files.iter().map(|file| (*file, group)));
    }

    pub(super) fn group_of(&self, file: FileId) -> Option<u32> {
        self.groups.get(&file).copied()
    }

    pub(super) fn groups(&self) -> usize {
        self.copies.len()
    }

    /// Returns the number of files with the same content as this one, including itself.
    fn copies_of(&self, file: FileId) -> u64 {
        self.group_of(file).and_then(|group| self.copies.get(group as usize)).map_or(1, |copies| u64::from(*copies))
    }
}

/// The image cannot be laid out.
#[derive(Debug, Error)]
pub enum ErofsError {
    /// A number does not fit into its field.
    #[error("the image needs {what}, which erofs does not support")]
    TooLarge {
        /// What is too large.
        what: &'static str,
    },
    /// A defect of this module.
    #[error("the layout of the image is wrong; this is a defect of microvm-image")]
    Layout(#[from] BlockMapError),
}

/// The content of an inode.
pub(super) enum Content<'a> {
    /// A directory: sorted entries.
    Directory(&'a [Entry<'a>]),
    /// The target of a symbolic link.
    Symlink(&'a [u8]),
    /// A file of the store.
    File(FileId),
}

/// The form in which an inode is stored, without its position.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodeLayout {
    pub(super) file_type: FileType,
    pub(super) mode: u16,
    pub(super) group_id: u32,
    pub(super) links: u32,
    pub(super) size_bytes: u64,
    /// Number of bytes of the content that are after the inode.
    pub(super) tail_bytes: u64,
    /// Number of blocks with the rest of the content.
    pub(super) blocks: u64,
}

impl InodeLayout {
    pub(super) fn record_bytes(&self) -> u64 {
        Inode::record_bytes(self.links, self.size_bytes)
    }

    pub(super) fn layout(&self) -> DataLayout {
        if self.tail_bytes > 0 { DataLayout::BlocksAndTail } else { DataLayout::Blocks }
    }

    /// Moves the tail from the blocks to the inode if the inode's block has room for it.
    fn with_tail(mut self) -> Self {
        let tail_bytes = self.size_bytes % BLOCK_BYTES;
        if tail_bytes > 0 && self.record_bytes() + tail_bytes <= BLOCK_BYTES {
            self.tail_bytes = tail_bytes;
            self.blocks = self.size_bytes / BLOCK_BYTES;
        }
        self
    }
}

/// Receives the inodes of an image, in the order of their numbers. Both passes receive the same inodes.
pub(super) trait Output {
    fn inode(&mut self, key: InodeKey, shape: &InodeLayout, content: &Content<'_>) -> Result<(), ErofsError>;
}

/// The inodes of an image.
pub(super) struct Inodes<'a> {
    files: &'a StoreFiles,
    profile: Profile,
    same: &'a SameContent,
    /// Store paths in the order of the root directory.
    by_base_name: Vec<u32>,
    /// Store paths in the order of their content. It is the order of their names, because hashes change with every
    /// update.
    by_name: Vec<u32>,
}

impl<'a> Inodes<'a> {
    pub(super) fn new(files: &'a StoreFiles, profile: Profile, same: &'a SameContent) -> Result<Self, ErofsError> {
        let count = u32::try_from(files.store_paths().len());
        let count = count.map_err(|_| ErofsError::TooLarge { what: "over 4294967295 store paths" })?;
        let path = |store_path: &u32| &files.store_paths()[*store_path as usize].path;
        let mut by_base_name: Vec<u32> = (0..count).collect();
        by_base_name.sort_unstable_by_key(|store_path| path(store_path).base_name());
        let mut by_name = by_base_name.clone();
        by_name.sort_unstable_by_key(|store_path| (path(store_path).name(), path(store_path).base_name()));
        Ok(Self { files, profile, same, by_base_name, by_name })
    }

    /// Passes all inodes to `output`. Those of a directory's entries are adjacent.
    pub(super) fn walk(&self, output: &mut impl Output) -> Result<(), ErofsError> {
        self.directory(InodeKey::Root, output)?;
        self.directory(InodeKey::Links, output)?;
        for store_path in &self.by_base_name {
            self.node(*store_path, 0, output)?;
        }
        for store_path in &self.by_name {
            let tree = &self.files.store_paths()[*store_path as usize].tree;
            for node in 0..tree.len() {
                for child in tree.children(node) {
                    self.node(*store_path, child, output)?;
                }
            }
        }
        Ok(())
    }

    fn node(&self, store_path: u32, node: NodeId, output: &mut impl Output) -> Result<(), ErofsError> {
        let key = InodeKey::Node { store_path, node };
        let shape = |file_type, mode, size_bytes: u64| InodeLayout {
            file_type,
            mode,
            group_id: 0,
            links: 1,
            size_bytes,
            tail_bytes: 0,
            blocks: size_bytes.div_ceil(BLOCK_BYTES),
        };
        match self.files.store_paths()[store_path as usize].tree.entry(node) {
            tree::Entry::Directory { .. } => self.directory(key, output),
            tree::Entry::Symlink { target } => {
                let shape = shape(FileType::Symlink, MODE_SYMLINK, target.len() as u64).with_tail();
                output.inode(key, &shape, &Content::Symlink(target))
            }
            tree::Entry::File { executable, size_bytes, .. } => {
                let mode = if executable { MODE_EXECUTABLE } else { MODE_REGULAR };
                let file = FileId { store_path, node };
                let mut shape = shape(FileType::Regular, mode, size_bytes);
                if self.profile == Profile::Disk {
                    // Blocks can be shared, but tails cannot. If many files are equal, a shared block takes less space.
                    let tails = (size_bytes % BLOCK_BYTES).saturating_mul(self.same.copies_of(file));
                    if tails <= BLOCK_BYTES {
                        shape = shape.with_tail();
                    }
                }
                output.inode(key, &shape, &Content::File(file))
            }
        }
    }

    fn directory(&self, key: InodeKey, output: &mut impl Output) -> Result<(), ErofsError> {
        let (mut entries, parent, mode, group_id) = match key {
            InodeKey::Root => {
                let store_paths = self.by_base_name.iter().map(|store_path| {
                    let name = self.files.store_paths()[*store_path as usize].path.base_name().as_bytes();
                    self.entry(name, *store_path, 0)
                });
                let links = Entry { name: store_root::LINKS, file_type: FileType::Directory, inode: InodeKey::Links };
                (store_paths.chain([links]).collect(), InodeKey::Root, store_root::MODE, store_root::GROUP)
            }
            InodeKey::Links => (Vec::new(), InodeKey::Root, store_root::LINKS_MODE, 0),
            InodeKey::Node { store_path, node } => {
                let tree = &self.files.store_paths()[store_path as usize].tree;
                let entries =
                    tree.children(node).map(|child| self.entry(tree.name(child), store_path, child)).collect();
                let parent = tree.parent(node).map_or(InodeKey::Root, |node| InodeKey::Node { store_path, node });
                (entries, parent, MODE_DIRECTORY, 0)
            }
        };
        let directories = entries.iter().filter(|entry| entry.file_type == FileType::Directory).count();
        let links = u32::try_from(directories + 2)
            .map_err(|_| ErofsError::TooLarge { what: "over 4294967293 directories in one" })?;
        entries.push(Entry { name: b".", file_type: FileType::Directory, inode: key });
        entries.push(Entry { name: b"..", file_type: FileType::Directory, inode: parent });
        directory::sort(&mut entries);
        let size_bytes = directory::size_bytes(&entries);
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let file_type = FileType::Directory;
        let shape = InodeLayout { file_type, mode, group_id, links, size_bytes, tail_bytes: 0, blocks }.with_tail();
        output.inode(key, &shape, &Content::Directory(&entries))
    }

    fn entry<'n>(&self, name: &'n [u8], store_path: u32, node: NodeId) -> Entry<'n> {
        let file_type = match self.files.store_paths()[store_path as usize].tree.entry(node) {
            tree::Entry::Directory { .. } => FileType::Directory,
            tree::Entry::File { .. } => FileType::Regular,
            tree::Entry::Symlink { .. } => FileType::Symlink,
        };
        Entry { name, file_type, inode: InodeKey::Node { store_path, node } }
    }
}

/// The position of an inode and its blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Number of the inode.
    pub(super) nid: u32,
    /// First block, counted from the beginning of its area.
    pub(super) start: u32,
}

/// The first pass, which assigns positions to all inodes and blocks.
pub(super) struct Places<'a> {
    same: &'a SameContent,
    root: Place,
    links: Place,
    /// Indexed by store path and node.
    store_paths: Vec<Vec<Place>>,
    /// First block of the content of equal files.
    groups: Vec<Option<u32>>,
    inode_area: InodeArea,
    directory_blocks: u32,
    data_blocks: u32,
    inodes: u32,
}

impl<'a> Places<'a> {
    pub(super) fn of(inodes: &Inodes<'a>) -> Result<Self, ErofsError> {
        let store_paths =
            inodes.files.store_paths().iter().map(|store_path| vec![Place::default(); store_path.tree.len() as usize]);
        let mut places = Self {
            same: inodes.same,
            root: Place::default(),
            links: Place::default(),
            store_paths: store_paths.collect(),
            groups: vec![None; inodes.same.groups()],
            inode_area: InodeArea::new(),
            directory_blocks: 0,
            data_blocks: 0,
            inodes: 0,
        };
        inodes.walk(&mut places)?;
        let blocks = u64::from(places.data_start()) + u64::from(places.data_blocks);
        u32::try_from(blocks).map_err(|_| TOO_MANY_BLOCKS)?;
        Ok(places)
    }

    pub(super) fn at(&self, key: InodeKey) -> Place {
        match key {
            InodeKey::Root => self.root,
            InodeKey::Links => self.links,
            InodeKey::Node { store_path, node } => self.store_paths[store_path as usize][node as usize],
        }
    }

    /// Returns the number of inodes.
    pub(super) fn inodes(&self) -> u32 {
        self.inodes
    }

    /// Returns the first block of the directory area.
    pub(super) fn directory_start(&self) -> u32 {
        self.inode_area.blocks
    }

    /// Returns the first block of the data area.
    pub(super) fn data_start(&self) -> u32 {
        self.inode_area.blocks.saturating_add(self.directory_blocks)
    }

    /// Returns the number of blocks of the image.
    pub(super) fn blocks(&self) -> u32 {
        self.data_start().saturating_add(self.data_blocks)
    }
}

const TOO_MANY_BLOCKS: ErofsError = ErofsError::TooLarge { what: "over 4294967295 blocks of 4096 bytes" };

/// Adds `blocks` blocks to the end of an area, and returns the first.
fn take(area: &mut u32, blocks: u64) -> Result<u32, ErofsError> {
    let start = *area;
    let end = u64::from(start).saturating_add(blocks);
    *area = u32::try_from(end).map_err(|_| TOO_MANY_BLOCKS)?;
    Ok(start)
}

impl Output for Places<'_> {
    fn inode(&mut self, key: InodeKey, shape: &InodeLayout, content: &Content<'_>) -> Result<(), ErofsError> {
        self.inodes = self.inodes.checked_add(1).ok_or(ErofsError::TooLarge { what: "over 4294967295 inodes" })?;
        let bytes = shape.record_bytes() + shape.tail_bytes;
        let has_file_tail = matches!(content, Content::File(_)) && shape.tail_bytes > 0;
        let nid = self.inode_area.place(bytes, has_file_tail)?;
        let start = match content {
            Content::File(file) => match self.same.group_of(*file) {
                Some(group) => match self.groups[group as usize] {
                    Some(start) => start,
                    None => *self.groups[group as usize].insert(take(&mut self.data_blocks, shape.blocks)?),
                },
                None => take(&mut self.data_blocks, shape.blocks)?,
            },
            Content::Directory(_) | Content::Symlink(_) => take(&mut self.directory_blocks, shape.blocks)?,
        };
        let place = Place { nid, start };
        match key {
            InodeKey::Root => self.root = place,
            InodeKey::Links => self.links = place,
            InodeKey::Node { store_path, node } => self.store_paths[store_path as usize][node as usize] = place,
        }
        Ok(())
    }
}

/// The blocks of inodes. An inode is placed in the first of a few open blocks that has room for it and its tail.
struct InodeArea {
    blocks: u32,
    /// The open blocks: their numbers, and the number of used bytes.
    open: Vec<(u32, u64)>,
}

/// Number of open blocks. With more, the inodes of a directory would be further apart; with fewer, more space would be
/// wasted.
const OPEN_BLOCKS: usize = 8;

impl InodeArea {
    fn new() -> Self {
        Self { blocks: 1, open: vec![(0, SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES)] }
    }

    /// Places an inode that takes `bytes` bytes with its tail, and returns its number. The first block never contains
    /// the tail of a file, because the superblock's checksum covers it, and the content of files is unknown here.
    fn place(&mut self, bytes: u64, has_file_tail: bool) -> Result<u32, ErofsError> {
        let fits = |(block, used): &(u32, u64)| used + bytes <= BLOCK_BYTES && !(*block == 0 && has_file_tail);
        let index = match self.open.iter().position(fits) {
            Some(index) => index,
            None => {
                if self.open.len() == OPEN_BLOCKS {
                    let fullest = self.open.iter().enumerate().max_by_key(|(_, (_, used))| *used);
                    let fullest = fullest.map_or(0, |(index, _)| index);
                    self.open.remove(fullest);
                }
                self.open.push((self.blocks, 0));
                self.blocks = self.blocks.checked_add(1).ok_or(TOO_MANY_BLOCKS)?;
                self.open.len() - 1
            }
        };
        let (block, used) = &mut self.open[index];
        let nid = (u64::from(*block) * BLOCK_BYTES + *used) / SLOT_BYTES;
        *used = (*used + bytes).next_multiple_of(SLOT_BYTES);
        if *used >= BLOCK_BYTES {
            self.open.remove(index);
        }
        u32::try_from(nid).map_err(|_| ErofsError::TooLarge { what: "over 128 GiB of inodes" })
    }
}
