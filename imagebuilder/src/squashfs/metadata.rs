//! Writes metadata tables: a stream of bytes, divided into blocks of 8 KiB. Each block has a two-byte header and is
//! stored compressed or uncompressed.

use crate::encode::{EncodeError, Encoder};
use crate::squashfs::format::{BLOCK_PLAIN, METADATA_BLOCK_BYTES, METADATA_PLAIN, MetadataPosition};

/// Writes one metadata table into memory.
pub struct MetadataWriter<'a> {
    encoder: Option<&'a mut Encoder>,
    stored: Vec<u8>,
    pending: Vec<u8>,
    block_starts: Vec<u64>,
}

impl<'a> MetadataWriter<'a> {
    /// Creates a table whose blocks are compressed by `encoder`; `None` stores all blocks uncompressed.
    pub fn new(encoder: Option<&'a mut Encoder>) -> Self {
        Self { encoder, stored: Vec::new(), pending: Vec::new(), block_starts: Vec::new() }
    }

    /// Returns the position of the next byte.
    pub fn position(&self) -> MetadataPosition {
        MetadataPosition {
            block: u32::try_from(self.stored.len()).unwrap_or(u32::MAX),
            offset: u16::try_from(self.pending.len()).unwrap_or(u16::MAX),
        }
    }

    /// Appends bytes. A record can cross the end of a block.
    ///
    /// # Errors
    /// The codec failed.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), EncodeError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(METADATA_BLOCK_BYTES - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == METADATA_BLOCK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the table. Returns its stored bytes and the position of each block in them.
    ///
    /// # Errors
    /// The codec failed.
    pub fn finish(mut self) -> Result<(Vec<u8>, Vec<u64>), EncodeError> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        Ok((self.stored, self.block_starts))
    }

    fn flush(&mut self) -> Result<(), EncodeError> {
        let header = self.stored.len();
        self.block_starts.push(header as u64);
        self.stored.extend_from_slice(&[0; 2]);
        let word = match &mut self.encoder {
            Some(encoder) => encoder.encode_block(&self.pending, &mut self.stored)?,
            None => {
                self.stored.extend_from_slice(&self.pending);
                BLOCK_PLAIN
            }
        };
        let length = u16::try_from(self.stored.len() - header - 2).unwrap_or(u16::MAX);
        let plain = if word & BLOCK_PLAIN == 0 { 0 } else { METADATA_PLAIN };
        self.stored[header..header + 2].copy_from_slice(&(length | plain).to_le_bytes());
        self.pending.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_refer_to_the_stored_blocks() {
        let mut writer = MetadataWriter::new(None);
        writer.write(&[7; 8191]).unwrap();
        assert_eq!(writer.position(), MetadataPosition { block: 0, offset: 8191 });
        writer.write(&[8; 3]).unwrap();
        assert_eq!(writer.position(), MetadataPosition { block: 8194, offset: 2 });
        let (stored, starts) = writer.finish().unwrap();
        assert_eq!(starts, [0, 8194]);
        assert_eq!(stored.len(), 8194 + 4);
        assert_eq!(stored[..2], (8192u16 | METADATA_PLAIN).to_le_bytes());
        assert_eq!(stored[8194..8196], (2u16 | METADATA_PLAIN).to_le_bytes());
    }
}
