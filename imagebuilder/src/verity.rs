//! dm-verity: a hash tree after the image. With it, the kernel checks every block that it reads.
//!
//! The image is followed by a superblock of one block and the tree, as `veritysetup format` makes them with SHA-256,
//! blocks of 4096 bytes, and the data and the tree in one file. Salt and UUID are fixed, so that equal images have
//! equal trees. A salt keeps an attacker from using hashes that were computed in advance; the content of a Nix store is
//! public anyway.
//!
//! Every block of the tree contains the hashes of 128 blocks below it. The lowest level contains the hashes of the
//! blocks of the image. The levels are stored from the highest, which is one block, to the lowest. The root hash is the
//! hash of the highest block; with it, everything can be checked.
//!
//! Source: `lib/verity/verity.c` and `verity_hash.c` of cryptsetup 2.6, and the kernel's
//! `Documentation/admin-guide/device-mapper/verity.rst`.

use crate::little_endian::PutLe;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use thiserror::Error;

/// Length of the blocks of data and tree in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// Length of a SHA-256 hash in bytes.
pub(crate) const HASH_BYTES: usize = 32;
/// Number of hashes in a block of the tree.
const HASHES_PER_BLOCK: usize = BLOCK_BYTES as usize / HASH_BYTES;
/// The first bytes of the superblock.
const SIGNATURE: &[u8; 8] = b"verity\0\0";
/// The bytes that are hashed before each block.
pub(crate) const SALT: [u8; 32] = *b"microvm-image: the salt is fixed";
/// Identifies the tree to people who read the superblock.
const UUID: [u8; 16] = [0x6d, 0x69, 0x63, 0x72, 0x6f, 0x76, 0x4d, 0x00, 0x80, 0x69, 0x6d, 0x61, 0x67, 0x65, 0x00, 0x01];

/// The values that a program needs to open a sealed image. Their serialised form is version 1 of `IMAGE.verity.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Seal {
    /// Version of this document's format.
    pub version: u32,
    /// Hash of the whole image, in hex.
    pub root_hash: String,
    /// Length of the image in bytes, without superblock and tree. The superblock begins there.
    pub hash_offset_bytes: u64,
    /// Length of the blocks of data and tree in bytes.
    pub block_size_bytes: u64,
    /// Hash algorithm, `sha256`.
    pub algorithm: String,
    /// Salt in hex. It is also in the superblock.
    pub salt: String,
}

/// Why the data after an image are not its hash tree.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VerityError {
    /// There is no superblock.
    #[error("there is no verity superblock")]
    NoSuperblock,
    /// The settings in the superblock are not those that this program writes.
    #[error("its superblock has settings that microvm-image does not use")]
    OtherSettings,
    /// The tree is truncated, or something follows it.
    #[error("superblock and tree have {actual_bytes} bytes, but should have {wanted_bytes}")]
    Length {
        /// The length of the data in bytes.
        actual_bytes: u64,
        /// The right length.
        wanted_bytes: u64,
    },
}

/// A hash tree and its superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashTree {
    /// Hash of the highest block, or of the only data block.
    pub root_hash: [u8; HASH_BYTES],
    /// What follows the image.
    pub bytes: Vec<u8>,
}

/// Hashes blocks of data and returns the concatenated hashes. The length of `data` is a multiple of [`BLOCK_BYTES`].
pub fn hash_blocks(data: &[u8]) -> Vec<u8> {
    let salted = Sha256::new_with_prefix(SALT);
    let mut hashes = Vec::with_capacity(data.len() / HASHES_PER_BLOCK);
    for block in data.chunks(BLOCK_BYTES as usize) {
        hashes.extend_from_slice(&salted.clone().chain_update(block).finalize());
    }
    hashes
}

/// Makes the tree from the hashes of all data blocks. There is at least one.
pub fn tree_of(hashes: Vec<u8>) -> HashTree {
    let data_blocks = (hashes.len() / HASH_BYTES) as u64;
    let mut levels = Vec::new();
    let mut level = hashes;
    while level.len() > HASH_BYTES {
        level.resize(level.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        let above = hash_blocks(&level);
        levels.push(level);
        level = above;
    }
    let mut bytes = superblock(data_blocks);
    levels.iter().rev().for_each(|level| bytes.extend_from_slice(level));
    let mut root_hash = [0; HASH_BYTES];
    root_hash.iter_mut().zip(&level).for_each(|(to, from)| *to = *from);
    HashTree { root_hash, bytes }
}

/// Returns the length of superblock and tree in bytes for this number of data blocks.
pub fn tree_bytes(data_blocks: u64) -> u64 {
    let mut total = 1;
    let mut level = data_blocks;
    while level > 1 {
        level = level.div_ceil(HASHES_PER_BLOCK as u64);
        total += level;
    }
    total * BLOCK_BYTES
}

/// Returns the superblock, padded to a block (`struct verity_sb`).
fn superblock(data_blocks: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
    bytes.extend_from_slice(SIGNATURE); // signature
    bytes.put_u32(1); // version
    bytes.put_u32(1); // hash_type: salt before the data
    bytes.extend_from_slice(&UUID); // uuid
    bytes.extend_from_slice(b"sha256"); // algorithm, padded to 32 bytes
    bytes.resize(64, 0);
    bytes.put_u32(BLOCK_BYTES as u32); // data_block_size
    bytes.put_u32(BLOCK_BYTES as u32); // hash_block_size
    bytes.put_u64(data_blocks); // data_blocks
    bytes.put_u16(SALT.len() as u16); // salt_size
    bytes.resize(88, 0);
    bytes.extend_from_slice(&SALT); // salt, padded to 256 bytes
    bytes.resize(BLOCK_BYTES as usize, 0);
    bytes
}

/// Returns whether these bytes begin like a superblock.
pub fn is_superblock(bytes: &[u8]) -> bool {
    bytes.starts_with(SIGNATURE)
}

/// Checks the superblock of a tree over `data_blocks` blocks. Superblock and tree together have `actual_bytes` bytes.
///
/// # Errors
/// It is not the superblock that this program writes for this number of blocks.
pub fn check_superblock(bytes: &[u8], data_blocks: u64, actual_bytes: u64) -> Result<(), VerityError> {
    if !is_superblock(bytes) {
        return Err(VerityError::NoSuperblock);
    }
    if bytes != superblock(data_blocks) {
        return Err(VerityError::OtherSettings);
    }
    let wanted_bytes = tree_bytes(data_blocks);
    if actual_bytes == wanted_bytes { Ok(()) } else { Err(VerityError::Length { actual_bytes, wanted_bytes }) }
}

impl Seal {
    /// Returns the values for an image of `data_bytes` bytes whose tree has this root hash.
    pub fn new(root_hash: &[u8], data_bytes: u64) -> Self {
        Self {
            version: 1,
            root_hash: hex(root_hash),
            hash_offset_bytes: data_bytes,
            block_size_bytes: BLOCK_BYTES,
            algorithm: "sha256".to_owned(),
            salt: hex(&SALT),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_as_long_as_it_is_counted() {
        for blocks in [1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1, 40_000] {
            let tree = tree_of(vec![7; blocks * HASH_BYTES]);
            assert_eq!(tree.bytes.len() as u64, tree_bytes(blocks as u64), "{blocks}");
            let length = tree.bytes.len() as u64;
            let first = &tree.bytes[..4096];
            assert_eq!(check_superblock(first, blocks as u64, length), Ok(()));
            assert_eq!(check_superblock(first, blocks as u64 + 1, length), Err(VerityError::OtherSettings));
            let longer = VerityError::Length { actual_bytes: length + 1, wanted_bytes: length };
            assert_eq!(check_superblock(first, blocks as u64, length + 1), Err(longer));
        }
    }

    #[test]
    fn the_root_of_one_block_is_its_hash() {
        let hashes = hash_blocks(&[1; 4096]);
        assert_eq!(tree_of(hashes.clone()).root_hash[..], hashes[..]);
    }
}
