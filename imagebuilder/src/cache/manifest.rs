//! Manifests: what a store path of a given NAR hash holds, with the hashes of its files, so that nothing of it has to be
//! listed, read or hashed again.
//!
//! An entry is: checksum (32 bytes) | nodes in depth-first order, the root first. A node is: kind (u8) | length of its
//! name (u8) | name | by kind
//! - 0, directory: number of its entries (u32), the entries follow;
//! - 1 and 2, file and executable file: size (u64), hash (32 bytes) of each range of 4 MiB, none for an empty file;
//! - 3, symbolic link: length of its target (u16), target.

use super::{Cache, CacheError, Lookup, checksum, read_entry};
use crate::plan::PlannedPath;
use crate::segment::{ContentHash, RANGE_BYTES};
use crate::squashfs::format::PutLe;
use crate::tree::{Entry, FileMode, NodeId, Tree};
use std::io;
use std::path::{Path, PathBuf};

const CHECKSUM_KIND: &str = "microvm-image 2026-11 cached manifest";
const CHECKSUM_BYTES: usize = 32;
/// A manifest of ten million files is under this.
const ENTRY_BYTES_MAX: u64 = 1 << 30;
/// Linux allows paths of 4096 bytes, so no tree that was ever listed is deeper than this.
const DEPTH_MAX: usize = 2048;

/// A tree and the hashes of its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The files.
    pub tree: Tree,
    /// Hashes of the ranges of all its regular files, one file after the other.
    pub range_hashes: Vec<ContentHash>,
}

/// Number of ranges a file of so many bytes is cut into.
pub fn range_count(size_bytes: u64) -> usize {
    usize::try_from(size_bytes.div_ceil(RANGE_BYTES)).unwrap_or(usize::MAX)
}

/// The longest an entry can be: every node takes more bytes in the NAR than here, and so does a file for its hashes. So what
/// is in the place of an entry is not read when it is longer.
fn entry_bytes_max(nar_size_bytes: Option<u64>) -> u64 {
    nar_size_bytes.map_or(ENTRY_BYTES_MAX, |size| size.saturating_add(CHECKSUM_BYTES as u64).min(ENTRY_BYTES_MAX))
}

impl Cache {
    /// Looks up what a store path holds.
    ///
    /// # Errors
    /// The entry is there and cannot be read.
    pub fn load_manifest(&self, path: &PlannedPath) -> Result<Lookup<Manifest>, CacheError> {
        let Some(nar_hash) = &path.nar_hash else { return Ok(Lookup::Miss) };
        let entry = self.manifest_path(path.path.base_name(), nar_hash);
        let mut buffer = Vec::new();
        match read_entry(&entry, entry_bytes_max(path.nar_size_bytes), &mut buffer, 0) {
            Ok(length) => Ok(decode(path.path.base_name(), nar_hash, &buffer[..length])
                .filter(|manifest| path.nar_size_bytes.is_none_or(|size| size == manifest.tree.nar_size_bytes()))
                .map_or(Lookup::Damaged, Lookup::Hit)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lookup::Miss),
            Err(source) => Err(CacheError { action: "read an entry", path: entry, source }),
        }
    }

    /// Keeps what a store path holds; nothing is kept of a path without NAR hash.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn store_manifest(
        &self,
        path: &PlannedPath,
        tree: &Tree,
        range_hashes: &[ContentHash],
    ) -> Result<(), CacheError> {
        let Some(nar_hash) = &path.nar_hash else { return Ok(()) };
        let base_name = path.path.base_name();
        let content = encode(tree, range_hashes);
        let sum = checksum(CHECKSUM_KIND, &[base_name.as_bytes(), nar_hash], &content);
        self.publish(&self.manifest_path(base_name, nar_hash), &[&sum, &content])
    }

    fn manifest_path(&self, base_name: &str, nar_hash: &[u8; 32]) -> PathBuf {
        let hex = blake3::Hash::from_bytes(*nar_hash).to_hex();
        self.root.join("manifests").join(base_name).join(hex.as_str())
    }
}

/// Checks an entry by its file: for fsck. The key is read off the file's place.
pub(super) fn check_entry(path: &Path) -> io::Result<bool> {
    let base_name = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let nar_hash = path.file_name().and_then(|name| name.to_str()).and_then(|hex| blake3::Hash::from_hex(hex).ok());
    let (Some(base_name), Some(nar_hash)) = (base_name, nar_hash) else { return Ok(false) };
    let mut buffer = Vec::new();
    let length = read_entry(path, ENTRY_BYTES_MAX, &mut buffer, 0)?;
    Ok(decode(base_name, nar_hash.as_bytes(), &buffer[..length]).is_some())
}

fn encode(tree: &Tree, range_hashes: &[ContentHash]) -> Vec<u8> {
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
        // `Tree` takes no longer names and targets.
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

fn decode(base_name: &str, nar_hash: &[u8; 32], bytes: &[u8]) -> Option<Manifest> {
    let (sum, content) = bytes.split_at_checked(CHECKSUM_BYTES)?;
    if checksum(CHECKSUM_KIND, &[base_name.as_bytes(), nar_hash], content) != *sum {
        return None;
    }
    let mut reader = Reader { rest: content };
    let mut manifest = Manifest::default();
    // Directories whose entries are still to come: number of entries left, and the name of the last one.
    let mut open: Vec<(NodeId, u32, Vec<u8>)> = Vec::new();
    loop {
        let node = reader.node(&mut manifest)?;
        let name = manifest.tree.name(node.id).to_vec();
        if let Some((_, left, last)) = open.last_mut() {
            // A name is one component, and the names of a directory are sorted.
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
            if open.len() > DEPTH_MAX {
                return None;
            }
        }
        while let Some((directory, _, _)) = open.pop_if(|(_, left, _)| *left == 0) {
            manifest.tree.close_directory(directory);
        }
        if open.is_empty() {
            return reader.rest.is_empty().then_some(manifest);
        }
    }
}

struct DecodedNode {
    id: NodeId,
    /// Number of entries, of a directory.
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

    fn node(&mut self, manifest: &mut Manifest) -> Option<DecodedNode> {
        let [kind, name_bytes] = self.array()?;
        let name = self.take(usize::from(name_bytes))?;
        let tree = &mut manifest.tree;
        let (id, entries) = match kind {
            0 => (tree.open_directory(name).ok()?, Some(u32::from_le_bytes(self.array()?))),
            1 | 2 => {
                let size_bytes = u64::from_le_bytes(self.array()?);
                for _ in 0..range_count(size_bytes) {
                    manifest.range_hashes.push(self.array()?);
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

    fn sample() -> Manifest {
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
        Manifest { tree, range_hashes: vec![[1; 32], [2; 32]] }
    }

    fn entry(manifest: &Manifest) -> Vec<u8> {
        let content = encode(&manifest.tree, &manifest.range_hashes);
        [&checksum(CHECKSUM_KIND, &[b"name", &[7; 32]], &content)[..], &content].concat()
    }

    #[test]
    fn no_entry_is_longer_than_its_nar_lets_expect() {
        let mut large = Tree::default();
        large.add_file(b"", 1 << 40, FileMode::Regular).unwrap();
        let hashes = vec![[3; 32]; range_count(1 << 40)];
        for manifest in [sample(), Manifest { tree: large, range_hashes: hashes }] {
            let length_bytes = entry(&manifest).len() as u64;
            assert!(length_bytes <= entry_bytes_max(Some(manifest.tree.nar_size_bytes())), "{length_bytes}");
        }
        assert_eq!(entry_bytes_max(None), ENTRY_BYTES_MAX);
    }

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let manifest = sample();
        assert_eq!(decode("name", &[7; 32], &entry(&manifest)).unwrap(), manifest);
    }

    #[test]
    fn a_manifest_that_is_cut_changed_or_moved_is_no_manifest() {
        let bytes = entry(&sample());
        for length in 0..bytes.len() {
            assert_eq!(decode("name", &[7; 32], &bytes[..length]), None);
        }
        for position in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[position] ^= 1;
            assert_eq!(decode("name", &[7; 32], &changed), None);
        }
        assert_eq!(decode("other", &[7; 32], &bytes), None);
        assert_eq!(decode("name", &[8; 32], &bytes), None);
    }
}
