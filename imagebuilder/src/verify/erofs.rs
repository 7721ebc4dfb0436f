//! Checks an erofs image: the tree, link counts, overlapping structures, and the bytes after the image.

use super::problem::{ProblemKind, Problems};
use crate::erofs::format::{SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET};
use crate::erofs::reader::ErofsImage;
use crate::image::{FileTree, InodeKind, Node};
use program::plural::counted;

/// Maximum length of the padding that is checked. Images for DAX are padded to a multiple of 2 MiB.
const MAX_PADDING_BYTES: u64 = 2 << 20;
/// Number of bytes that are read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// What a range of the image contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    Superblock,
    /// An inode and its tail.
    Inode,
    /// Blocks of a directory.
    Metadata,
    /// Blocks of a file. Several inodes may have the same blocks.
    Data,
}

/// Checks everything that needs only the image.
pub(super) fn check(image: &ErofsImage, problems: &Problems) {
    let mut state =
        Check { image, problems, uses: Vec::new(), names: Vec::new(), parents: Vec::new(), nodes: 0, whole: true };
    match image.walk() {
        Ok(walk) => {
            for node in walk {
                match node {
                    Ok(node) => state.node(&node),
                    Err(error) => {
                        state.whole = false;
                        problems.damage(error);
                    }
                }
            }
            state.leave(0);
        }
        Err(error) => return problems.damage(error),
    }
    if state.whole {
        state.check_names();
    }
    state.check_uses();
}

struct Check<'a> {
    image: &'a ErofsImage,
    problems: &'a Problems,
    uses: Vec<(u64, u64, Use)>,
    /// Inode number and link count of everything except directories, once for each name.
    names: Vec<(u32, u32)>,
    /// The directories above the current node.
    parents: Vec<Parent>,
    nodes: u64,
    /// Whether the whole tree was readable.
    whole: bool,
}

struct Parent {
    path: Vec<u8>,
    links: u32,
    subdirectories: u32,
}

impl Check<'_> {
    fn node(&mut self, node: &Node) {
        self.leave(node.depth);
        self.nodes += 1;
        let inode = &node.inode;
        let content = match &inode.kind {
            InodeKind::Directory(directory) => {
                if let Some(parent) = self.parents.last_mut() {
                    parent.subdirectories += 1;
                }
                self.parents.push(Parent { path: node.path.clone(), links: inode.links, subdirectories: 0 });
                directory.content.as_ref().map(|content| (content, Use::Metadata))
            }
            InodeKind::File(file) => Some((file, Use::Data)),
            _ => None,
        };
        if !matches!(inode.kind, InodeKind::Directory(_)) {
            self.names.push((inode.number, inode.links));
        }
        self.uses.push((inode.place, inode.end, Use::Inode));
        if let Some((file, use_)) = content.filter(|(file, _)| file.blocks > 0) {
            let end = file.start + (file.blocks << self.image.superblock().block_bits);
            self.uses.push((file.start, end, use_));
        }
    }

    /// Finishes the directories that do not contain a node of this depth.
    fn leave(&mut self, depth: usize) {
        while self.parents.len() > depth {
            let Some(parent) = self.parents.pop() else { return };
            let right = parent.subdirectories.saturating_add(2);
            if self.whole && parent.links != right {
                let detail = format!("has the link count {}, but should have {right}", parent.links);
                self.problems.at(&parent.path, ProblemKind::Links, detail);
            }
        }
    }

    /// Checks that link counts equal the numbers of names, and that the superblock counts all inodes.
    fn check_names(&mut self) {
        self.names.sort_unstable();
        let mut inodes = self.nodes - self.names.len() as u64;
        for names in self.names.chunk_by(|left, right| left.0 == right.0) {
            inodes += 1;
            let (number, links) = names[0];
            if links as usize != names.len() {
                let detail =
                    format!("inode {number}: has the link count {links}, but {}", counted(names.len(), "name"));
                self.problems.general(ProblemKind::Links, detail);
            }
        }
        let stated = self.image.superblock().inodes;
        // Some versions of mkfs.erofs also count an inode without a name, so only a number that is too small is an
        // error.
        if stated < inodes {
            let detail = format!("superblock: says there are {stated} inodes, but the tree has {inodes}");
            self.problems.general(ProblemKind::Damaged, detail);
        }
    }

    /// Checks that inodes and blocks do not overlap. Equal files may have the same blocks.
    fn check_uses(&mut self) {
        self.uses.push((SUPERBLOCK_OFFSET, SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES, Use::Superblock));
        self.uses.sort_unstable();
        // Removes the ranges of further names of an inode, and of equal files.
        self.uses.dedup();
        let mut before: Option<(u64, u64, Use)> = None;
        for (start, end, use_) in self.uses.drain(..) {
            if let Some((_, end_before, use_before)) = before.filter(|(_, end_before, _)| *end_before > start) {
                let name = |use_| match use_ {
                    Use::Superblock => "the superblock",
                    Use::Inode => "an inode",
                    Use::Metadata => "a directory",
                    Use::Data => "a file",
                };
                let detail = format!(
                    "{} from byte {start} on overlaps {}, which ends at byte {end_before}",
                    name(use_),
                    name(use_before)
                );
                self.problems.general(ProblemKind::Layout, detail);
            }
            if before.is_none_or(|(_, end_before, _)| end > end_before) {
                before = Some((start, end, use_));
            }
        }
    }
}

/// Checks that only zeros follow the image.
pub(super) fn check_padding(image: &ErofsImage, problems: &Problems) {
    let used = image.superblock().bytes();
    if image.may_exceed_image() {
        return;
    }
    let end = image.length_bytes().min(used.saturating_add(MAX_PADDING_BYTES));
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = used;
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        if let Err(error) = image.read_raw(&mut buffer[..count], at) {
            return problems.damage(error);
        }
        if let Some(position) = buffer[..count].iter().position(|byte| *byte != 0) {
            let at = at + position as u64;
            let detail = format!("padding: byte {at} is not zero, but the file system ends at {used}");
            return problems.general(ProblemKind::Padding, detail);
        }
        at += count as u64;
    }
}
