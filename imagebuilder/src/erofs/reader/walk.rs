//! Walks the tree of an image like the walk of `crate::image`: every directory comes before its content.

use super::listing::{Listing, ListingEntry, number_of};
use super::{ErofsImage, MAX_INODES};
use crate::image::{ImageError, ImagePath, Inode, InodeKind, Node, Part};
use std::collections::HashSet;

/// Maximum depth of a directory.
const MAX_DEPTH: usize = 4096;

impl ErofsImage {
    /// Returns the inode of a directory entry, after checking that both have the same type.
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

    /// Looks up a path. Returns it without unnecessary slashes, its inode, and the inode number of its directory.
    pub(super) fn look_up(&self, path: &[u8]) -> Result<(Vec<u8>, Inode, u32), ImageError> {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
        let not_found = || ImageError::NotFound { path: ImagePath(names.join(&b'/')) };
        let mut inode = self.root()?;
        if !matches!(inode.kind, InodeKind::Directory(_)) {
            return Err(ImageError::damaged(Part::Superblock, "says the root is not a directory"));
        }
        let mut parent = inode.number;
        for name in &names {
            if !matches!(inode.kind, InodeKind::Directory(_)) {
                return Err(not_found());
            }
            let mut found = None;
            for entry in Listing::new(self, &inode, parent)? {
                let entry = entry?;
                if entry.name == *name {
                    found = Some(entry);
                    break;
                }
            }
            parent = inode.number;
            inode = self.inode_of(&found.ok_or_else(not_found)?)?;
        }
        Ok((names.join(&b'/'), inode, parent))
    }
}

/// An iterator over a node and all nodes below it.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    image: &'a ErofsImage,
    first: Option<(Node, u32)>,
    levels: Vec<Level<'a>>,
    visited: HashSet<u32>,
    listing_bytes_left: u64,
    nodes_left: u64,
    path: Vec<u8>,
}

#[derive(Debug)]
struct Level<'a> {
    listing: Listing<'a>,
    number: u32,
    path_bytes: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(image: &'a ErofsImage, path: Vec<u8>, inode: Inode, parent: u32) -> Self {
        Self {
            image,
            levels: Vec::new(),
            visited: HashSet::new(),
            listing_bytes_left: image.superblock().bytes(),
            nodes_left: MAX_INODES,
            path: path.clone(),
            first: Some((Node::new(0, path, inode), parent)),
        }
    }

    /// Begins the listing of a directory, which is in the directory `parent`.
    fn enter(&mut self, inode: &Inode, listing_bytes: u32, parent: u32) -> Result<(), ImageError> {
        let damaged =
            |reason: String, path: &[u8]| Err(ImageError::damaged(Part::InodeAt(inode.place), reason).at(path));
        if !self.visited.insert(inode.number) {
            return damaged(format!("directory inode {} is reached a second time", inode.number), &self.path);
        }
        if self.levels.len() >= MAX_DEPTH {
            let reason = "directories are nested too deep".to_owned();
            return Err(ImageError::Limit { part: Part::InodeAt(inode.place), reason, limit: MAX_DEPTH as u64 });
        }
        match self.listing_bytes_left.checked_sub(u64::from(listing_bytes)) {
            Some(left) => self.listing_bytes_left = left,
            None => return damaged("the listings of all directories are longer than the image".to_owned(), &self.path),
        }
        let listing = Listing::new(self.image, inode, parent).map_err(|error| error.at(&self.path))?;
        self.levels.push(Level { listing, number: inode.number, path_bytes: self.path.len() });
        Ok(())
    }

    /// Yields a node. If it is a directory, its listing comes next.
    fn yield_node(&mut self, node: Node, parent: u32) -> Result<Node, ImageError> {
        match self.nodes_left.checked_sub(1) {
            Some(left) => self.nodes_left = left,
            None => {
                let reason = "too many names".to_owned();
                return Err(ImageError::Limit { part: Part::Superblock, reason, limit: MAX_INODES });
            }
        }
        if let InodeKind::Directory(directory) = &node.inode.kind {
            self.enter(&node.inode, directory.listing_bytes, parent)?;
        }
        Ok(node)
    }

    fn entry(&mut self, depth: usize, parent: u32, entry: &ListingEntry) -> Result<Node, ImageError> {
        let inode = self.image.inode_of(entry).map_err(|error| error.at(&self.path))?;
        let node = Node::new(depth, self.path.clone(), inode);
        self.yield_node(node, parent)
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Node, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((first, parent)) = self.first.take() {
            return Some(self.yield_node(first, parent));
        }
        if self.nodes_left == 0 {
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
                    self.path.extend_from_slice(&entry.name);
                    let parent = level.number;
                    return Some(self.entry(depth, parent, &entry));
                }
            }
        }
    }
}
