//! Walks the tree of an image: every directory before its entries, names in ascending order.
//!
//! Malicious images cannot make a walk endless: a directory that is reached twice (a cycle, or a tree that doubles at
//! every level) is an error, the total length of all listings is limited to that of the directory table, and depth is
//! limited. So the time and memory of a walk are proportional to the size of the tables.

use super::Image;
use super::error::{ImageError, Part};
use super::inode::{DirectoryInode, Inode, InodeKind};
use super::listing::{Listing, ListingEntry};

/// Maximum depth of a directory. Linux does not allow paths longer than 4096 bytes, so no store reaches it.
const MAX_DEPTH: usize = 4096;

/// A set of inode numbers, one bit for each.
#[derive(Debug)]
pub(crate) struct InodeSet {
    words: Vec<u64>,
}

impl InodeSet {
    /// Creates an empty set for an image with this number of inodes.
    pub(crate) fn new(inodes: u32) -> Self {
        Self { words: vec![0; usize::try_from(inodes / 64 + 1).unwrap_or_default()] }
    }

    /// Adds a number and returns whether it is new.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        let bit = 1 << (number % 64);
        match self.words.get_mut(usize::try_from(number / 64).unwrap_or(usize::MAX)) {
            Some(word) => {
                let new = *word & bit == 0;
                *word |= bit;
                new
            }
            None => false,
        }
    }

    /// Returns whether the set contains a number.
    pub(crate) fn contains(&self, number: u32) -> bool {
        let word = self.words.get(usize::try_from(number / 64).unwrap_or(usize::MAX));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// A node of the tree: a directory, a file, or another inode under one of its names.
#[derive(Clone, Debug)]
pub struct Node {
    /// 0 for the root.
    pub depth: usize,
    /// Its path, separated by `/`; empty for the root.
    pub path: Vec<u8>,
    /// Where the last component begins in the path.
    name_start: usize,
    /// Its inode.
    pub inode: Inode,
}

impl Node {
    pub(crate) fn new(depth: usize, path: Vec<u8>, inode: Inode) -> Self {
        let name_start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        Self { depth, path, name_start, inode }
    }

    /// Returns the last component of the path; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.path.get(self.name_start..).unwrap_or_default()
    }
}

/// An iterator over a node and all nodes below it.
///
/// After an error it continues with the next name, or with the parent if a listing is damaged.
#[derive(Debug)]
pub struct Walk<'a> {
    image: &'a Image,
    first: Option<Node>,
    levels: Vec<Level<'a>>,
    visited: InodeSet,
    listing_bytes_left: u64,
    path: Vec<u8>,
}

#[derive(Debug)]
struct Level<'a> {
    listing: Listing<'a>,
    path_bytes: usize,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(image: &'a Image, path: Vec<u8>, inode: Inode) -> Self {
        let name_start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        Self {
            image,
            levels: Vec::new(),
            visited: InodeSet::new(image.superblock.inodes),
            listing_bytes_left: image.directories.length(),
            path: path.clone(),
            first: Some(Node { depth: 0, path, name_start, inode }),
        }
    }

    /// Starts to iterate over the listing of a directory.
    fn enter(&mut self, inode: &Inode, directory: &DirectoryInode) -> Result<(), ImageError> {
        if !self.visited.insert(inode.number) {
            let reason = format!("directory inode {} is reached a second time", inode.number);
            return Err(ImageError::damaged(Part::DirectoryTable, reason).at(&self.path));
        }
        if self.levels.len() >= MAX_DEPTH {
            let reason = "directories are nested too deep".to_owned();
            return Err(ImageError::Limit { part: Part::DirectoryTable, reason, limit: MAX_DEPTH as u64 });
        }
        let left = self.listing_bytes_left.checked_sub(u64::from(directory.listing_bytes));
        self.listing_bytes_left = left.ok_or_else(|| {
            ImageError::damaged(Part::DirectoryTable, "its listings overlap: together they are longer than the table")
                .at(&self.path)
        })?;
        let listing =
            Listing::new(&self.image.directories, inode.number, directory).map_err(|error| error.at(&self.path))?;
        self.levels.push(Level { listing, path_bytes: self.path.len() });
        Ok(())
    }

    /// Returns a node. If it is a directory, its entries follow.
    fn yield_node(&mut self, node: Node) -> Result<Node, ImageError> {
        if let InodeKind::Directory(directory) = &node.inode.kind {
            self.enter(&node.inode, directory)?;
        }
        Ok(node)
    }

    fn entry(&mut self, depth: usize, entry: &ListingEntry) -> Result<Node, ImageError> {
        let inode = self.image.inode_of(entry).map_err(|error| error.at(&self.path))?;
        let name_start = self.path.len() - entry.name.len();
        self.yield_node(Node { depth, path: self.path.clone(), name_start, inode })
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Node, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(self.yield_node(first));
        }
        loop {
            let depth = self.levels.len();
            let level = self.levels.last_mut()?;
            self.path.truncate(level.path_bytes);
            match level.listing.next() {
                None => {
                    self.levels.pop();
                }
                Some(Err(error)) => {
                    self.levels.pop();
                    return Some(Err(error.at(&self.path)));
                }
                Some(Ok(entry)) => {
                    if !self.path.is_empty() {
                        self.path.push(b'/');
                    }
                    self.path.extend_from_slice(&entry.name);
                    return Some(self.entry(depth, &entry));
                }
            }
        }
    }
}
