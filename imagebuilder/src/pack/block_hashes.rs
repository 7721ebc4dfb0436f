//! The hashes of dm-verity of a pack's blocks, so that unchanged store paths are not hashed again for each image.
//!
//! Where an image has the bytes of a pack at a position that differs by a multiple of 4096 bytes, the blocks of both
//! have the same hashes. They are in a separate file, because only sealed images need them:
//!
//! ```text
//! the hash of each whole block of the pack, before its index (32 bytes each) | checksum (32 bytes)
//! ```
//! A hash of zeros means that it is unknown. The checksum covers the salt, the hash of the pack's index and the hashes.
//! The index contains the checksums of all segments, so hashes never belong to other bytes of the same store path. The
//! checksum is not a signature: anyone who can write to the cache can forge it, like a pack.

use crate::segment::ContentHash;
use crate::verity::{BLOCK_BYTES, HASH_BYTES, SALT};
use std::ops::Range;

/// What distinguishes a pack from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackIdentity {
    /// BLAKE3 of its index.
    pub index: ContentHash,
    /// Length of its segments in bytes: the position of its index.
    pub segments_bytes: u64,
}

/// The hashes of a pack's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHashes(Vec<u8>);

impl PackIdentity {
    fn blocks(&self) -> usize {
        usize::try_from(self.segments_bytes / BLOCK_BYTES).unwrap_or(usize::MAX)
    }

    /// Returns the length in bytes of the file with the hashes of this pack.
    pub fn hashes_file_bytes(&self) -> usize {
        self.blocks().saturating_add(1).saturating_mul(HASH_BYTES)
    }
}

impl BlockHashes {
    /// Creates hashes that are all unknown.
    pub fn unknown(pack: &PackIdentity) -> Self {
        Self(vec![0; pack.blocks() * HASH_BYTES])
    }

    /// Decodes the file with the hashes of a pack; `None` if it is damaged, or of another pack.
    pub fn decode(pack: &PackIdentity, mut file: Vec<u8>) -> Option<Self> {
        let sum = file.split_off(file.len().checked_sub(HASH_BYTES)?);
        let is_right = file.len() == pack.blocks() * HASH_BYTES && checksum(pack, &file) == sum[..];
        is_right.then_some(Self(file))
    }

    /// Encodes the hashes of a pack as a file.
    pub fn encode(&self, pack: &PackIdentity) -> Vec<u8> {
        [&self.0[..], &checksum(pack, &self.0)].concat()
    }

    /// Returns the hashes of these blocks, one after the other; `None` if the pack has fewer.
    pub fn of(&self, blocks: Range<usize>) -> Option<&[u8]> {
        self.0.get(blocks.start.checked_mul(HASH_BYTES)?..blocks.end.checked_mul(HASH_BYTES)?)
    }

    /// Adds the hashes of these blocks. Returns whether one of them was unknown.
    pub fn add(&mut self, blocks: Range<usize>, hashes: &[u8]) -> bool {
        let Some(known) = self.0.get_mut(blocks.start * HASH_BYTES..blocks.end * HASH_BYTES) else { return false };
        let mut is_new = false;
        for (known, hash) in known.chunks_exact_mut(HASH_BYTES).zip(hashes.chunks_exact(HASH_BYTES)) {
            if !is_known(known) {
                is_new = true;
                known.copy_from_slice(hash);
            }
        }
        is_new
    }

    /// Returns all hashes with the numbers of their blocks, except the unknown ones.
    pub fn known(&self) -> impl Iterator<Item = (u64, &[u8])> {
        (0..).zip(self.0.chunks_exact(HASH_BYTES)).filter(|(_, hash)| is_known(hash))
    }
}

/// Returns whether a hash is known. No block has a hash of zeros: nobody could find one.
pub fn is_known(hash: &[u8]) -> bool {
    hash.iter().any(|byte| *byte != 0)
}

fn checksum(pack: &PackIdentity, hashes: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("microvm-image 2026-11 dm-verity hashes of a pack");
    hasher.update(&SALT).update(&pack.index).update(hashes);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: PackIdentity = PackIdentity { index: [1; 32], segments_bytes: 3 * BLOCK_BYTES + 1 };

    #[test]
    fn a_file_is_only_accepted_whole_and_for_its_pack() {
        let mut hashes = BlockHashes::unknown(&PACK);
        assert!(hashes.add(1..3, &[7; 64]));
        assert!(!hashes.add(2..3, &[8; 32]), "a known hash stays");
        assert_eq!(hashes.known().map(|(block, hash)| (block, hash[0])).collect::<Vec<_>>(), [(1, 7), (2, 7)]);
        let file = hashes.encode(&PACK);
        assert_eq!(file.len(), PACK.hashes_file_bytes());
        assert_eq!(BlockHashes::decode(&PACK, file.clone()), Some(hashes));
        for other in [PackIdentity { index: [2; 32], ..PACK }, PackIdentity { segments_bytes: 5000, ..PACK }] {
            assert_eq!(BlockHashes::decode(&other, file.clone()), None, "{other:?}");
        }
        for length in 0..file.len() {
            assert_eq!(BlockHashes::decode(&PACK, file[..length].to_vec()), None);
            let mut flipped = file.clone();
            flipped[length] ^= 1;
            assert_eq!(BlockHashes::decode(&PACK, flipped), None);
        }
    }

    #[test]
    fn blocks_after_the_end_of_a_pack_have_no_hashes() {
        let mut hashes = BlockHashes::unknown(&PACK);
        assert_eq!(hashes.of(0..4), None);
        assert_eq!(hashes.of(2..3), Some(&[0; 32][..]));
        assert!(!hashes.add(2..4, &[7; 64]));
    }
}
