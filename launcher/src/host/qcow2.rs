//! Reading the features of a qcow2 image that a hypervisor may not support: docs/interop/qcow2.rst of qemu.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The part of the header of version 3 that is read here.
const HEADER_BYTES: usize = 104;
/// The most table bytes to search for compressed clusters: with clusters of 64 KiB, they cover the first 128 GiB.
const MAX_TABLE_BYTES: u64 = 16 << 20;
/// The mask of the L2 table's offset in an entry of the L1 table.
const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// The smallest and the largest cluster size of the format, as exponents: 512 bytes and 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

const EXTERNAL_DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// The header of a qcow2 image.
pub(super) struct Qcow2<'image> {
    image: &'image File,
    header: [u8; HEADER_BYTES],
}

impl<'image> Qcow2<'image> {
    /// Reads the header. Version 2 has a shorter one; the fields that it lacks are zero.
    pub(super) fn read(image: &'image File) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        let mut filled = 0;
        while filled < header.len() {
            match image.read_at(&mut header[filled..], filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(Self { image, header })
    }

    pub(super) fn version(&self) -> u32 {
        self.word(4)
    }

    pub(super) fn has_backing_file(&self) -> bool {
        self.long(8) != 0
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.word(32) != 0
    }

    pub(super) fn has_external_data_file(&self) -> bool {
        self.features() & EXTERNAL_DATA_FILE != 0
    }

    pub(super) fn has_extended_l2_entries(&self) -> bool {
        self.features() & EXTENDED_L2 != 0
    }

    /// Whether the image contains compressed clusters. Only the first tables are read, because a program that
    /// compresses starts with the first cluster.
    pub(super) fn is_compressed(&self) -> io::Result<bool> {
        let cluster_bits = self.word(20);
        if self.features() & COMPRESSION_TYPE != 0 {
            return Ok(true);
        }
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Ok(false);
        }
        let cluster_bytes = 1_u64 << cluster_bits;
        let l1_bytes = (u64::from(self.word(36)) * 8).min(MAX_TABLE_BYTES);
        let mut left = MAX_TABLE_BYTES;
        for entry in self.table(self.long(40), l1_bytes)? {
            let offset = entry & L2_OFFSET;
            if offset == 0 {
                continue;
            }
            if left == 0 {
                break;
            }
            left = left.saturating_sub(cluster_bytes);
            if self.table(offset, cluster_bytes)?.any(|entry| entry & COMPRESSED != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the entries of a table, up to the end of the image.
    fn table(&self, offset: u64, length: u64) -> io::Result<impl Iterator<Item = u64> + use<>> {
        let end = self.image.metadata()?.len();
        let is_device = end == 0;
        let length = if is_device { length } else { length.min(end.saturating_sub(offset)) };
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.image.read_exact_at(&mut bytes, offset)?;
        let entries: Vec<u64> = bytes.chunks_exact(8).map(big_endian).collect();
        Ok(entries.into_iter())
    }

    fn features(&self) -> u64 {
        if self.version() >= 3 { self.long(72) } else { 0 }
    }

    fn word(&self, at: usize) -> u32 {
        self.header[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn long(&self, at: usize) -> u64 {
        big_endian(&self.header[at..at + 8])
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
