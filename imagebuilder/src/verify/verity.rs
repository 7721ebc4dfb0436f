//! Checks the hash tree of a sealed image.

use super::problem::{ProblemKind, Problems};
use crate::image::{FileTree, ImageError};
use crate::verity::{BLOCK_BYTES, check_superblock, hash_blocks, is_superblock, tree_of};

/// Number of bytes that are read and hashed at once.
const BUFFER_BYTES: u64 = 1 << 20;

/// Checks the tree after the first `data_bytes` bytes of an image. Returns false if there is none.
pub(super) fn check(image: &dyn FileTree, data_bytes: u64, problems: &Problems) -> bool {
    let Some(tree_bytes) = image.length_bytes().checked_sub(data_bytes).filter(|left| *left >= BLOCK_BYTES) else {
        return false;
    };
    let mut superblock = vec![0; BLOCK_BYTES as usize];
    if image.read_raw(&mut superblock, data_bytes).is_err() || !is_superblock(&superblock) {
        return false;
    }
    // A device may be longer than its image.
    let data_blocks = data_bytes / BLOCK_BYTES;
    let tree_bytes =
        if image.may_exceed_image() { tree_bytes.min(crate::verity::tree_bytes(data_blocks)) } else { tree_bytes };
    if let Err(error) = check_superblock(&superblock, data_blocks, tree_bytes) {
        problems.general(ProblemKind::Verity, format!("verity: {error}"));
        return true;
    }
    match first_difference(image, data_bytes, tree_bytes) {
        Ok(None) => {}
        Ok(Some(at)) => {
            let detail = format!("verity: the tree at byte {at} does not match the image");
            problems.general(ProblemKind::Verity, detail);
        }
        Err(error) => problems.damage(error),
    }
    true
}

/// Computes the tree again and compares it. Returns the position of the first byte of the image that differs.
fn first_difference(image: &dyn FileTree, data_bytes: u64, tree_bytes: u64) -> Result<Option<u64>, ImageError> {
    let mut hashes = Vec::new();
    let mut at = 0;
    let mut buffer = Vec::new();
    while at < data_bytes {
        let length = (data_bytes - at).min(BUFFER_BYTES);
        buffer.resize(length as usize, 0);
        image.read_raw(&mut buffer, at)?;
        hashes.extend_from_slice(&hash_blocks(&buffer));
        at += length;
    }
    let wanted = tree_of(hashes).bytes;
    let mut done = 0;
    while done < tree_bytes {
        let length = (tree_bytes - done).min(BUFFER_BYTES);
        buffer.resize(length as usize, 0);
        image.read_raw(&mut buffer, data_bytes + done)?;
        let same = &wanted[done as usize..][..length as usize];
        if let Some(position) = buffer.iter().zip(same).position(|(actual, wanted)| actual != wanted) {
            return Ok(Some(data_bytes + done + position as u64));
        }
        done += length;
    }
    Ok(None)
}
