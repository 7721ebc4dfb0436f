//! Reads and checks the superblock.

use crate::erofs::format::{MAGIC, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSET, compatible, superblock_checksum};
use crate::image::{ImageError, ImageSource, Part, TakeLe};
use program::plural::counted;

/// Block sizes that Linux can mount: 512 bytes to 64 KiB, the largest page.
const BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=16;
/// Incompatible feature: zeros before compressed data. mkfs.erofs sets it also in images without compressed data.
const ZERO_PADDING: u32 = 1 << 0;

/// The superblock of an image. Its sizes were compared with the length of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErofsSuperblock {
    /// Base 2 logarithm of the block size.
    pub block_bits: u8,
    /// Number of the root directory's inode.
    pub root_nid: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// Number of blocks of the image.
    pub blocks: u32,
    /// First block of the area that inode numbers count from.
    pub metadata_block: u32,
    /// Modification time of compact inodes, in seconds since 1970.
    pub epoch: u64,
    /// Bits of the compatible features.
    pub compatible: u32,
    /// Bits of the incompatible features.
    pub incompatible: u32,
}

impl ErofsSuperblock {
    /// Reads the superblock.
    pub(super) fn read(source: &dyn ImageSource) -> Result<Self, ImageError> {
        let not_erofs = |reason: String| ImageError::NotErofs { reason };
        let mut bytes = [0; SUPERBLOCK_BYTES as usize];
        if source.length_bytes() < SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES {
            return Err(not_erofs(format!("it has only {}", counted(source.length_bytes(), "byte"))));
        }
        read(source, &mut bytes, SUPERBLOCK_OFFSET)?;
        let Some((magic, checksum, superblock, extra_devices)) = parse(&bytes) else {
            return Err(not_erofs("its superblock is truncated".to_owned()));
        };
        if magic != MAGIC {
            return Err(not_erofs(format!("it has {magic:#010x} at byte 1024")));
        }
        if !BLOCK_BITS.contains(&superblock.block_bits) {
            return Err(not_erofs(format!("its blocks have 2^{} bytes", superblock.block_bits)));
        }
        if superblock.incompatible & !ZERO_PADDING != 0 || extra_devices > 0 {
            let what = format!(
                "an erofs image with the features {:#x} and {extra_devices} further devices",
                superblock.incompatible
            );
            return Err(ImageError::Unsupported { what });
        }
        if superblock.bytes() > source.length_bytes() || superblock.blocks == 0 {
            let reason =
                format!("says there are {} bytes, but the image has {}", superblock.bytes(), source.length_bytes());
            return Err(ImageError::damaged(Part::Superblock, reason));
        }
        if superblock.compatible & compatible::SUPERBLOCK_CHECKSUM != 0 {
            check(source, &superblock, checksum)?;
        }
        Ok(superblock)
    }

    /// Length of a block in bytes.
    pub fn block_bytes(&self) -> u64 {
        1 << self.block_bits
    }

    /// Length of the image in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) << self.block_bits
    }

    /// Returns the names of the features, for display.
    pub fn feature_names(&self) -> Vec<&'static str> {
        let named = [
            (self.compatible & compatible::SUPERBLOCK_CHECKSUM, "superblock-checksum"),
            (self.compatible & compatible::MODIFICATION_TIME, "modification-time"),
            (self.incompatible & ZERO_PADDING, "zero-padding"),
        ];
        named.into_iter().filter_map(|(bit, name)| (bit != 0).then_some(name)).collect()
    }
}

fn read(source: &dyn ImageSource, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
    let length_bytes = buffer.len();
    source.read_exact_at(buffer, offset).map_err(|source| ImageError::Read { length_bytes, offset, source })
}

/// Returns the magic number, the checksum, the superblock and the number of further devices.
fn parse(mut bytes: &[u8]) -> Option<(u32, u32, ErofsSuperblock, u16)> {
    let bytes = &mut bytes;
    let (magic, checksum, compatible) = (bytes.take_u32()?, bytes.take_u32()?, bytes.take_u32()?);
    let [block_bits, _extension_slots] = bytes.take()?;
    let root_nid = bytes.take_u16()?;
    let (inodes, epoch) = (bytes.take_u64()?, bytes.take_u64()?);
    let _nanoseconds = bytes.take_u32()?;
    let (blocks, metadata_block) = (bytes.take_u32()?, bytes.take_u32()?);
    let _xattr_block = bytes.take_u32()?;
    let _uuid_and_name: [u8; 32] = bytes.take()?;
    let incompatible = bytes.take_u32()?;
    let _algorithms = bytes.take_u16()?;
    let extra_devices = bytes.take_u16()?;
    let superblock =
        ErofsSuperblock { block_bits, root_nid, inodes, blocks, metadata_block, epoch, compatible, incompatible };
    Some((magic, checksum, superblock, extra_devices))
}

/// Compares the checksum of the superblock's block, or of the superblock to the end of its block.
fn check(source: &dyn ImageSource, superblock: &ErofsSuperblock, checksum: u32) -> Result<(), ImageError> {
    let block = superblock.block_bytes();
    let length = if block > SUPERBLOCK_OFFSET { block - SUPERBLOCK_OFFSET } else { block };
    let mut covered = vec![0; length as usize];
    if SUPERBLOCK_OFFSET + length > source.length_bytes() {
        return Err(ImageError::damaged(Part::Superblock, "its block is truncated"));
    }
    read(source, &mut covered, SUPERBLOCK_OFFSET)?;
    covered[4..8].fill(0);
    let actual = superblock_checksum(&covered);
    if actual == checksum {
        return Ok(());
    }
    Err(ImageError::damaged(
        Part::Superblock,
        format!("its checksum is {checksum:#010x}, but should be {actual:#010x}"),
    ))
}
