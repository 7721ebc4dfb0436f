//! Appends the hash tree of dm-verity to a complete image.

use super::BuildError;
use super::output::ImageFile;
use crate::threads::map_in_parallel;
use crate::verity::{self, Seal};
use program::atomic_file::{self, WriteError};
use std::ffi::OsString;
use std::fs;
use std::io::IoSlice;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Number of bytes that a thread reads and hashes at once. They were written a moment ago, so they are in the page
/// cache.
const CHUNK_BYTES: u64 = 1 << 20;

/// Hashes the first `data_bytes` bytes of the image, a multiple of 4096, and writes superblock and tree after them.
/// Returns the values to open the image with, and its new length.
pub(super) fn seal(
    output: &ImageFile<'_>,
    data_bytes: u64,
    threads: usize,
    cancel: &AtomicBool,
) -> Result<(Seal, u64), BuildError> {
    let chunks: Vec<Range<u64>> = (0..data_bytes.div_ceil(CHUNK_BYTES))
        .map(|number| number * CHUNK_BYTES..data_bytes.min((number + 1) * CHUNK_BYTES))
        .collect();
    let hashes = map_in_parallel(threads, &chunks, |chunk| {
        if cancel.load(Ordering::Relaxed) {
            return Err(BuildError::Interrupted);
        }
        let mut data = vec![0; (chunk.end - chunk.start) as usize];
        output.read_at(&mut data, chunk.start)?;
        Ok(verity::hash_blocks(&data))
    });
    let mut all = Vec::new();
    for hashes in hashes {
        all.extend_from_slice(&hashes?);
    }
    let tree = verity::tree_of(all);
    output.write_at(&mut [IoSlice::new(&tree.bytes)], data_bytes)?;
    Ok((Seal::new(&tree.root_hash, data_bytes), data_bytes + tree.bytes.len() as u64))
}

/// Returns the path `IMAGE.verity.json`, in the directory of the image.
fn sidecar_path(image: &Path) -> PathBuf {
    let mut name = OsString::from(image.as_os_str());
    name.push(".verity.json");
    name.into()
}

/// Returns the document, with a newline at its end. Writing text fields as JSON cannot fail.
fn text(seal: &Seal) -> String {
    serde_json::to_string_pretty(seal).unwrap_or_default() + "\n"
}

/// Writes the document to the directory of the image.
pub(super) fn write_sidecar(seal: &Seal, image: &Path) -> Result<(), WriteError> {
    atomic_file::write(&sidecar_path(image), text(seal).as_bytes())
}

/// Returns whether the directory of the image has this document.
pub(super) fn has_sidecar(seal: &Seal, image: &Path) -> bool {
    fs::read(sidecar_path(image)).is_ok_and(|found| found == text(seal).as_bytes())
}
