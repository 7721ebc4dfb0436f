//! Compares the tree with the inodes: every inode must have a name, and link counts, parents and directory indexes must
//! be correct.

use super::problem::{ProblemKind, Problems};
use super::tables::Inodes;
use crate::image::{DirectoryInode, FileTree, Image, ImageError, InodeKind, InodeSet, InodeType, Node};
use program::plural::counted;

/// Walks the whole tree and counts the names of every inode.
pub(super) fn check_tree(image: &Image, inodes: &Inodes, problems: &Problems) {
    let walk = match image.walk() {
        Ok(walk) => walk,
        Err(error) => return problems.damage(error),
    };
    let names = vec![0; inodes.links.len()];
    let mut state = TreeCheck { image, problems, names, parents: Vec::new(), whole: true };
    for node in walk {
        match node {
            Ok(node) => state.check_node(&node),
            Err(error) => {
                state.whole = false;
                problems.damage(error);
            }
        }
    }
    state.leave(0);
    if state.whole {
        state.check_links(inodes);
    }
}

struct TreeCheck<'a> {
    image: &'a Image,
    problems: &'a Problems,
    /// Number of directory entries of each inode, by its number.
    names: Vec<u32>,
    /// The directories above the current node.
    parents: Vec<Parent>,
    /// Whether the whole tree was readable. Only then do inodes that were not visited have no name.
    whole: bool,
}

struct Parent {
    path: Vec<u8>,
    number: u32,
    links: u32,
    entries: u32,
    subdirectories: u32,
}

impl TreeCheck<'_> {
    fn check_node(&mut self, node: &Node) {
        self.leave(node.depth);
        if let Some(names) = usize::try_from(node.inode.number).ok().and_then(|number| self.names.get_mut(number)) {
            *names = names.saturating_add(1);
        }
        let parent_number = self.parents.last_mut().map(|parent| {
            parent.entries = parent.entries.saturating_add(1);
            parent.subdirectories += u32::from(node.inode.inode_type() == InodeType::Directory);
            parent.number
        });
        let InodeKind::Directory(directory) = &node.inode.kind else {
            return;
        };
        // The parent of the root differs between tools, and no reader uses it.
        if parent_number.is_some_and(|number| number != directory.parent_number) {
            let detail = format!(
                "says inode {} holds it, inode {} does",
                directory.parent_number,
                parent_number.unwrap_or_default()
            );
            self.problems.at(&node.path, ProblemKind::Directory, detail);
        }
        if let Err(error) = check_index(self.image, node, directory) {
            match error {
                ImageError::Damaged { reason, .. } => {
                    self.problems.at(&node.path, ProblemKind::Directory, reason);
                }
                error => self.problems.damage(error.at(&node.path)),
            }
        }
        self.parents.push(Parent {
            path: node.path.clone(),
            number: node.inode.number,
            links: node.inode.links,
            entries: 0,
            subdirectories: 0,
        });
    }

    /// Ends the directories that do not contain a node of this depth.
    fn leave(&mut self, depth: usize) {
        while self.parents.len() > depth {
            let Some(parent) = self.parents.pop() else { return };
            // gensquashfs counts all entries, other tools only directories.
            let counts = [parent.subdirectories, parent.entries].map(|count| count.saturating_add(2));
            if self.whole && !counts.contains(&parent.links) {
                let detail = format!("has the link count {}, but should have {}", parent.links, counts[0]);
                self.problems.at(&parent.path, ProblemKind::Links, detail);
            }
        }
    }

    fn check_links(&self, inodes: &Inodes) {
        for (number, (links, names)) in inodes.links.iter().zip(&self.names).enumerate().skip(1) {
            let is_in = |set: &InodeSet| u32::try_from(number).is_ok_and(|number| set.contains(number));
            let directory = is_in(&inodes.directories);
            if !is_in(&inodes.present) {
                self.problems.general(ProblemKind::Damaged, format!("inode table: no inode has the number {number}"));
            } else if *names == 0 {
                self.problems
                    .general(ProblemKind::Unreachable, format!("inode {number}: no directory entry refers to it"));
            } else if !directory && links != names {
                let detail = format!("inode {number}: has the link count {links}, but {}", counted(*names, "name"));
                self.problems.general(ProblemKind::Links, detail);
            }
        }
    }
}

/// Checks that the index entries are in order, and that each has the position of a header, its metadata block, and the
/// first name after it.
fn check_index(image: &Image, node: &Node, directory: &DirectoryInode) -> Result<(), ImageError> {
    let number = node.inode.number;
    if directory.index_entries == 0 {
        return Ok(());
    }
    let mut index = image.directory_index(number, directory).peekable();
    let mut listing = image.listing(number, directory)?;
    let start = listing.start();
    while let Some(entry) = listing.next().transpose()? {
        let Some(header_at) = entry.header_at else { continue };
        let Some(indexed) = index.peek() else { break };
        let indexed = match indexed {
            Ok(indexed) if indexed.listing_offset == header_at => indexed,
            Ok(_) => continue,
            Err(_) => break,
        };
        if indexed.name != entry.name {
            return Err(image.index_error(number, header_at, "does not name the first entry after it"));
        }
        if !image.is_in_directory_piece(start + u64::from(header_at), indexed.piece) {
            return Err(image.index_error(number, header_at, "does not name the metadata block that it is in"));
        }
        index.next();
    }
    match index.next() {
        None => Ok(()),
        Some(Ok(left)) => {
            Err(image.index_error(number, left.listing_offset, "does not point to a header, or is out of order"))
        }
        Some(Err(error)) => Err(error),
    }
}
