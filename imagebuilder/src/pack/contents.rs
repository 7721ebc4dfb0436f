//! The nodes of a store path and the hashes of its files, so that its files need not be listed, read or hashed again.
//!
//! The nodes are in depth-first order, beginning with the root. A node is: kind (u8) | length of its name (u8) | name |
//! by kind
//! - 0, directory: number of its entries (u32); the entries follow;
//! - 1 and 2, file and executable file: size (u64), hash (32 bytes) of each range of 4 MiB; none for an empty file;
//! - 3, symbolic link: length of its target (u16), target.

use crate::little_endian::PutLe;
use crate::segment::{ContentHash, range_count};
use crate::tree::{Entry, FileMode, NodeId, Tree};

/// Maximum depth of a tree. Linux allows paths of 4096 bytes, so no tree on disk is deeper.
const MAX_DEPTH: usize = 2048;

/// A tree and the hashes of its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathContents {
    /// The files of the store path, without their content.
    pub tree: Tree,
    /// The hashes of the ranges of all regular files, one file after the other.
    pub range_hashes: Vec<ContentHash>,
}

/// Encodes the nodes as bytes.
pub fn encode(tree: &Tree, range_hashes: &[ContentHash]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut hashes = range_hashes.iter();
    for node in 0..tree.len() {
        let entry = tree.entry(node);
        out.push(match entry {
            Entry::Directory { .. } => 0,
            Entry::File { executable: false, .. } => 1,
            Entry::File { executable: true, .. } => 2,
            Entry::Symlink { .. } => 3,
        });
        let name = tree.name(node);
        // `Tree` refuses longer names and targets.
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name);
        match entry {
            Entry::Directory { .. } => out.put_u32(u32::try_from(tree.children(node).count()).unwrap_or(u32::MAX)),
            Entry::File { size_bytes, .. } => {
                out.put_u64(size_bytes);
                for hash in hashes.by_ref().take(range_count(size_bytes)) {
                    out.extend_from_slice(hash);
                }
            }
            Entry::Symlink { target } => {
                out.put_u16(u16::try_from(target.len()).unwrap_or(u16::MAX));
                out.extend_from_slice(target);
            }
        }
    }
    out
}

/// Decodes nodes; `None` if they are not valid nodes of a store path.
pub fn decode(bytes: &[u8]) -> Option<PathContents> {
    let mut reader = Reader { rest: bytes };
    let mut contents = PathContents::default();
    // The open directories, each with the number of remaining entries and the name of the last one.
    let mut open: Vec<(NodeId, u32, Vec<u8>)> = Vec::new();
    loop {
        let node = reader.node(&mut contents)?;
        let name = contents.tree.name(node.id).to_vec();
        if let Some((_, left, last)) = open.last_mut() {
            // A name must be a single component, and the names of a directory must ascend.
            if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name <= *last {
                return None;
            }
            *left -= 1;
            *last = name;
        } else if !name.is_empty() {
            return None;
        }
        if let Some(entries) = node.entries {
            open.push((node.id, entries, Vec::new()));
            if open.len() > MAX_DEPTH {
                return None;
            }
        }
        while let Some((directory, _, _)) = open.pop_if(|(_, left, _)| *left == 0) {
            contents.tree.close_directory(directory);
        }
        if open.is_empty() {
            return reader.rest.is_empty().then_some(contents);
        }
    }
}

struct DecodedNode {
    id: NodeId,
    /// Number of entries, if the node is a directory.
    entries: Option<u32>,
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn node(&mut self, contents: &mut PathContents) -> Option<DecodedNode> {
        let [kind, name_bytes] = self.array()?;
        let name = self.take(usize::from(name_bytes))?;
        let tree = &mut contents.tree;
        let (id, entries) = match kind {
            0 => (tree.open_directory(name).ok()?, Some(u32::from_le_bytes(self.array()?))),
            1 | 2 => {
                let size_bytes = u64::from_le_bytes(self.array()?);
                for _ in 0..range_count(size_bytes) {
                    contents.range_hashes.push(self.array()?);
                }
                let mode = if kind == 2 { FileMode::Executable } else { FileMode::Regular };
                (tree.add_file(name, size_bytes, mode).ok()?, None)
            }
            3 => {
                let target_bytes = u16::from_le_bytes(self.array()?);
                (tree.add_symlink(name, self.take(usize::from(target_bytes))?).ok()?, None)
            }
            _ => return None,
        };
        Some(DecodedNode { id, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::RANGE_BYTES;

    fn sample() -> PathContents {
        let mut tree = Tree::default();
        let root = tree.open_directory(b"").unwrap();
        let bin = tree.open_directory(b"bin").unwrap();
        tree.add_file(b"a", RANGE_BYTES + 1, FileMode::Executable).unwrap();
        tree.add_symlink(b"b\xff", b"../a").unwrap();
        tree.close_directory(bin);
        let empty = tree.open_directory(b"empty").unwrap();
        tree.close_directory(empty);
        tree.add_file(b"none", 0, FileMode::Regular).unwrap();
        tree.close_directory(root);
        PathContents { tree, range_hashes: vec![[1; 32], [2; 32]] }
    }

    #[test]
    fn encoded_contents_are_decoded_unchanged() {
        let contents = sample();
        assert_eq!(decode(&encode(&contents.tree, &contents.range_hashes)).unwrap(), contents);
    }

    #[test]
    fn truncated_contents_are_refused() {
        let contents = sample();
        let bytes = encode(&contents.tree, &contents.range_hashes);
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), None);
        }
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), None);
    }
}
