//! Walks the tree of an image of either format: every directory before its entries, names in ascending order.
//!
//! Malicious images cannot make a walk endless: a directory that is reached twice (a cycle, or a tree that doubles at
//! every level) is an error, the total length of all listings is limited to that of the image's directory data, and
//! depth is limited. So the time and memory of a walk are proportional to the size of the directory data.

use super::error::{ImageError, Part};
use super::image_path::ImagePath;
use super::inode::{DirectoryInode, Inode, InodeKind};
use std::collections::HashSet;
use std::fmt;

/// Maximum depth of a directory. Linux does not allow paths longer than 4096 bytes, so no store reaches it.
const MAX_DEPTH: usize = 4096;

/// The limits of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalkLimits {
    /// Bytes of the listings of all directories.
    pub(crate) listing_bytes: u64,
    /// Number of names.
    pub(crate) names: u64,
}

/// The directories of an image.
pub(crate) trait Directories: Sync + fmt::Debug {
    /// An entry of a directory.
    type Entry;
    /// The entries of a directory, in ascending order of their names.
    type Listing<'a>: Iterator<Item = Result<Self::Entry, ImageError>> + Send + fmt::Debug
    where
        Self: 'a;

    /// Returns the inode of the root, which is a directory.
    fn root_inode(&self) -> Result<Inode, ImageError>;

    /// Opens the listing of a directory, which is in the directory with the inode number `parent`.
    fn listing(&self, inode: &Inode, directory: &DirectoryInode, parent: u32) -> Result<Self::Listing<'_>, ImageError>;

    /// Returns the name of an entry.
    fn name(entry: &Self::Entry) -> &[u8];

    /// Returns the inode of an entry, after checking that both agree.
    fn inode_of(&self, entry: &Self::Entry) -> Result<Inode, ImageError>;

    /// Returns the limits of a walk.
    fn limits(&self) -> WalkLimits;

    /// Returns the part of the image that is damaged if a directory breaks a rule of the tree.
    fn directory_part(inode: &Inode) -> Part;
}

/// A node that has been looked up: its path without unnecessary slashes, its inode, and the inode number of its
/// directory.
pub(crate) struct Found {
    pub(crate) path: Vec<u8>,
    pub(crate) inode: Inode,
    parent: u32,
}

/// Looks up a path without following symbolic links. Leading, doubled and trailing slashes and `.` are ignored.
pub(crate) fn look_up<D: Directories>(image: &D, path: &[u8]) -> Result<Found, ImageError> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    let not_found = || ImageError::NotFound { path: ImagePath(names.join(&b'/')) };
    let mut inode = image.root_inode()?;
    let mut parent = inode.number;
    for name in &names {
        let InodeKind::Directory(directory) = &inode.kind else {
            return Err(not_found());
        };
        let mut found = None;
        for entry in image.listing(&inode, directory, parent)? {
            let entry = entry?;
            if D::name(&entry) == *name {
                found = Some(entry);
                break;
            }
        }
        parent = inode.number;
        inode = image.inode_of(&found.ok_or_else(not_found)?)?;
    }
    Ok(Found { path: names.join(&b'/'), inode, parent })
}

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
    /// The inode that the name refers to.
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
pub(crate) struct Walk<'a, D: Directories> {
    image: &'a D,
    first: Option<(Node, u32)>,
    levels: Vec<Level<D::Listing<'a>>>,
    visited: HashSet<u32>,
    left: WalkLimits,
    path: Vec<u8>,
}

#[derive(Debug)]
struct Level<Listing> {
    listing: Listing,
    number: u32,
    path_bytes: usize,
}

impl<'a, D: Directories> Walk<'a, D> {
    /// Begins at a path, which is the first node.
    pub(crate) fn new(image: &'a D, path: &[u8]) -> Result<Self, ImageError> {
        let Found { path, inode, parent } = look_up(image, path)?;
        let first = Some((Node::new(0, path.clone(), inode), parent));
        Ok(Self { image, first, levels: Vec::new(), visited: HashSet::new(), left: image.limits(), path })
    }

    /// Starts to iterate over the listing of a directory.
    fn enter(&mut self, inode: &Inode, directory: &DirectoryInode, parent: u32) -> Result<(), ImageError> {
        let part = || D::directory_part(inode);
        if !self.visited.insert(inode.number) {
            let reason = format!("directory inode {} is reached a second time", inode.number);
            return Err(ImageError::damaged(part(), reason).at(&self.path));
        }
        if self.levels.len() >= MAX_DEPTH {
            let reason = "directories are nested too deep".to_owned();
            return Err(ImageError::Limit { part: part(), reason, limit: MAX_DEPTH as u64 });
        }
        let left = self.left.listing_bytes.checked_sub(u64::from(directory.listing_bytes));
        self.left.listing_bytes = left.ok_or_else(|| {
            ImageError::damaged(part(), "the listings overlap: together they are longer than the directory data")
                .at(&self.path)
        })?;
        let listing = self.image.listing(inode, directory, parent).map_err(|error| error.at(&self.path))?;
        self.levels.push(Level { listing, number: inode.number, path_bytes: self.path.len() });
        Ok(())
    }

    /// Returns a node. If it is a directory, its entries follow.
    fn yield_node(&mut self, node: Node, parent: u32) -> Result<Node, ImageError> {
        let Some(left) = self.left.names.checked_sub(1) else {
            let (reason, limit) = ("too many names".to_owned(), self.image.limits().names);
            return Err(ImageError::Limit { part: Part::Superblock, reason, limit });
        };
        self.left.names = left;
        if let InodeKind::Directory(directory) = &node.inode.kind {
            self.enter(&node.inode, directory, parent)?;
        }
        Ok(node)
    }

    fn entry(&mut self, depth: usize, parent: u32, entry: &D::Entry) -> Result<Node, ImageError> {
        let inode = self.image.inode_of(entry).map_err(|error| error.at(&self.path))?;
        self.yield_node(Node::new(depth, self.path.clone(), inode), parent)
    }
}

impl<D: Directories> Iterator for Walk<'_, D> {
    type Item = Result<Node, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((first, parent)) = self.first.take() {
            return Some(self.yield_node(first, parent));
        }
        if self.left.names == 0 {
            self.levels.clear();
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
                    self.path.extend_from_slice(D::name(&entry));
                    let parent = level.number;
                    return Some(self.entry(depth, parent, &entry));
                }
            }
        }
    }
}
