//! Decompresses single blocks, to compare them with what they should hold.

use crate::settings::Compression;
use crate::squashfs::format::BLOCK_PLAIN;

/// A block that is not what its size word says.
#[derive(Debug)]
pub struct Undecodable;

/// Decompresses blocks of one codec.
pub struct Decoder {
    compression: Compression,
}

impl Decoder {
    /// For a codec.
    pub fn new(compression: Compression) -> Self {
        Self { compression }
    }

    /// Takes a block off the front of `stored` and appends its `length` bytes to `out`.
    pub fn take_block(
        &mut self,
        word: u32,
        stored: &mut &[u8],
        length: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Undecodable> {
        let (block, rest) = stored.split_at_checked((word & !BLOCK_PLAIN) as usize).ok_or(Undecodable)?;
        *stored = rest;
        if word == 0 {
            out.resize(out.len() + length, 0);
        } else if word & BLOCK_PLAIN != 0 {
            out.extend_from_slice(block);
        } else if self.compression == Compression::Zstd {
            out.extend_from_slice(&zstd::bulk::decompress(block, length).map_err(|_| Undecodable)?);
        } else {
            return Err(Undecodable);
        }
        Ok(())
    }
}
