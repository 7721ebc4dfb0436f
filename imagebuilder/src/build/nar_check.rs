//! Checks that a store path has the NAR hash in the closure's source, before its pack is added to a cache. Every later
//! image would otherwise contain damage that the store had at that time.

use super::BuildError;
use super::source::{InputPath, SourceFile};
use crate::nar::{NarDigest, NarHasher};
use crate::nar_hash;
use crate::segment::{RANGE_BYTES, range_count, range_length};
use crate::tree::{Entry, FileMode, NodeId, Tree};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;

/// A store path does not have the NAR hash in the closure's source.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{} has the NAR hash {}, but the closure's source says {}: the store path is damaged, or the source describes \
     another one",
    .path.display(), nar_hash::print(.actual), nar_hash::print(.expected)
)]
pub struct NarHashMismatch {
    /// The location of the store path.
    pub path: PathBuf,
    /// The hash in the source.
    pub expected: [u8; 32],
    /// The actual hash.
    pub actual: [u8; 32],
}

/// Compares a listed store path with its NAR hash; `None` if it is correct, or if its hash is unknown.
///
/// The files have been read shortly before, so they are read from memory.
pub(super) fn check(
    store_path: &InputPath,
    buffer: &mut [u8],
    cancel: &AtomicBool,
) -> Result<Option<NarHashMismatch>, BuildError> {
    let Some(expected) = store_path.planned.nar_hash else { return Ok(None) };
    let actual = digest(store_path, buffer, cancel)?.sha256;
    let path = store_path.location.clone();
    Ok((actual != expected).then_some(NarHashMismatch { path, expected, actual }))
}

/// Serialises the files of a store path. `buffer` holds a range.
fn digest(store_path: &InputPath, buffer: &mut [u8], cancel: &AtomicBool) -> Result<NarDigest, BuildError> {
    let tree = store_path.tree();
    let mut nar = NarHasher::new();
    // The last nodes of the open directories.
    let mut ends: Vec<NodeId> = Vec::new();
    // The directory of the files before this node.
    let (mut directory, mut in_directory) = (None, 0);
    for node in 0..tree.len() {
        while ends.last().is_some_and(|end| *end <= node) {
            ends.pop();
        }
        nar.begin(ends.len(), tree.name(node));
        match tree.entry(node) {
            Entry::Directory { end } => {
                nar.directory();
                ends.push(end);
            }
            Entry::Symlink { target } => nar.symlink(target),
            Entry::File { executable, size_bytes, .. } => {
                let mode = if executable { FileMode::Executable } else { FileMode::Regular };
                nar.begin_file(mode, size_bytes);
                if node >= in_directory {
                    in_directory = end_of_files(tree, node);
                    directory = store_path.directory_of(Some(node), (in_directory - node) as usize);
                }
                if size_bytes > 0 {
                    let file = store_path.open(directory.as_ref(), node)?;
                    add_content(&mut nar, (file, size_bytes), buffer, cancel)?;
                }
                nar.end_file(size_bytes);
            }
        }
    }
    Ok(nar.finish())
}

/// Returns the end of the nodes from `node` on that are in the same directory and are not directories.
fn end_of_files(tree: &Tree, node: NodeId) -> NodeId {
    let parent = tree.parent(node);
    let is_other = |next: &NodeId| tree.parent(*next) != parent || matches!(tree.entry(*next), Entry::Directory { .. });
    (node + 1..tree.len()).find(is_other).unwrap_or(tree.len())
}

fn add_content(
    nar: &mut NarHasher,
    (file, size_bytes): (SourceFile, u64),
    buffer: &mut [u8],
    cancel: &AtomicBool,
) -> Result<(), BuildError> {
    for range in 0..range_count(size_bytes) {
        if cancel.load(Ordering::Relaxed) {
            return Err(BuildError::Interrupted);
        }
        let content = &mut buffer[..range_length(size_bytes, range)];
        file.read_at(range as u64 * RANGE_BYTES, content)?;
        nar.bytes(content);
    }
    file.finish()
}
