//! Checks that a store path has the NAR hash in the closure's source, before its pack is added to a cache. Every later
//! image would otherwise contain damage that the store had at that time.

use super::BuildError;
use super::source::InputPath;
use super::whole_path::WholePath;
use crate::nar::{NarDigest, NarHasher};
use crate::nar_hash;
use crate::tree::{Entry, FileMode, NodeId};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
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
pub(super) fn check(store_path: &InputPath, cancel: &AtomicBool) -> Result<Option<NarHashMismatch>, BuildError> {
    let Some(expected) = store_path.planned.nar_hash else { return Ok(None) };
    let actual = digest(store_path, cancel)?.sha256;
    let path = store_path.location.clone();
    Ok((actual != expected).then_some(NarHashMismatch { path, expected, actual }))
}

/// Serialises the files of a store path.
fn digest(store_path: &InputPath, cancel: &AtomicBool) -> Result<NarDigest, BuildError> {
    let tree = store_path.tree();
    let (mut nar, mut files) = (NarHasher::new(), WholePath::new(store_path, cancel));
    // The last nodes of the open directories.
    let mut ends: Vec<NodeId> = Vec::new();
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
                files.read(node, |_, piece| nar.bytes(piece))?;
                nar.end_file(size_bytes);
            }
        }
    }
    Ok(nar.finish())
}
