//! All on-disk records of EROFS that this project writes. All integers are little-endian.
//!
//! Source: the kernel's `fs/erofs/erofs_fs.h` and the code in that directory, which must be able to read an image.

use crate::little_endian::PutLe;
use crc::{CRC_32_ISCSI, Crc};

/// The superblock's first four bytes.
pub const MAGIC: u32 = 0xe0f5_e1e2;
/// Position of the superblock. Boot loaders can use the bytes before it.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Length of the superblock in bytes.
pub const SUPERBLOCK_BYTES: u64 = 128;
/// Base 2 logarithm of the block size.
pub const BLOCK_BITS: u8 = 12;
/// Length of a block in bytes: the page size, because Linux before 6.4 accepts no other.
pub const BLOCK_BYTES: u64 = 1 << BLOCK_BITS;
/// Inodes begin at multiples of this. The number of an inode (*nid*) is its position in this unit.
pub const SLOT_BYTES: u64 = 32;
/// Length of a compact inode in bytes.
pub const COMPACT_INODE_BYTES: u64 = 32;
/// Length of an extended inode in bytes.
pub const EXTENDED_INODE_BYTES: u64 = 64;
/// Length of a directory entry in bytes, without its name.
pub const DIRECTORY_ENTRY_BYTES: u64 = 12;
/// "No block" in an inode without blocks.
pub const NO_BLOCK: u32 = u32::MAX;

/// Bits of the superblock's compatible features. Readers that do not support them can read the image.
pub mod compatible {
    /// The superblock has a checksum.
    pub const SUPERBLOCK_CHECKSUM: u32 = 1 << 0;
    /// The times are modification times, not change times.
    pub const MODIFICATION_TIME: u32 = 1 << 1;
}

/// The file system's UUID, the same in every image. Nothing mounts a store disk by its UUID.
const UUID: [u8; 16] = [0x2b, 0xa3, 0xa4, 0xf8, 0x1a, 0x5e, 0x5c, 0x5b, 0x9a, 0x3c, 0xb7, 0xe0, 0xb1, 0xc9, 0xd2, 0xf4];

/// How the content of an inode is stored (`i_format`, bits 1 to 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataLayout {
    /// Whole blocks that follow each other (`EROFS_INODE_FLAT_PLAIN`).
    Blocks = 0,
    /// The same, but the rest after the last whole block is after the inode (`EROFS_INODE_FLAT_INLINE`).
    BlocksAndTail = 2,
}

/// The type of an inode in directory entries (`EROFS_FT_*`, the numbers of `FT_*` in the kernel's `fs_types.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 7,
}

impl FileType {
    /// Returns the bits of `i_mode` above the permissions (`S_IF*`).
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// The fields of the superblock that differ between images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Number of the root directory's inode. The field has 16 bits, so the inode begins in the first 2 MiB.
    pub root_nid: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// Number of blocks with content.
    pub blocks: u32,
}

impl Superblock {
    /// Appends the 128 bytes of the superblock, without its checksum.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(MAGIC);
        out.put_u32(0); // checksum: see `put_checksum`
        out.put_u32(compatible::SUPERBLOCK_CHECKSUM | compatible::MODIFICATION_TIME); // feature_compat
        out.push(BLOCK_BITS); // blkszbits
        out.push(0); // sb_extslots: the superblock is not longer than 128 bytes
        out.put_u16(self.root_nid); // rootnid_2b
        out.put_u64(self.inodes); // inos
        out.put_u64(u64::from(crate::attributes::MODIFIED_AT)); // epoch: the time of all compact inodes, in seconds since 1970
        out.put_u32(0); // fixed_nsec: nanoseconds of that time
        out.put_u32(self.blocks); // blocks
        out.put_u32(0); // meta_blkaddr: the block from which inode numbers count
        out.put_u32(0); // xattr_blkaddr: no shared extended attributes
        out.extend_from_slice(&UUID); // uuid
        out.extend_from_slice(&[0; 16]); // volume_name: none
        out.put_u32(0); // feature_incompat: none, so Linux 5.4 can read the image
        out.put_u16(0); // available_compr_algs: nothing is compressed
        out.put_u16(0); // extra_devices: the image is on one device
        out.put_u16(0); // devt_slotoff: no table of devices
        out.push(0); // dirblkbits: blocks of directories are as long as all blocks
        out.push(0); // xattr_prefix_count
        out.put_u32(0); // xattr_prefix_start
        out.put_u64(0); // packed_nid: no inode holds packed tails
        out.push(0); // xattr_filter_reserved
        out.extend_from_slice(&[0; 23]); // reserved
    }
}

/// Writes the superblock's checksum into the first block of an image: crc32c of everything from the superblock to the
/// end of the block, its own four bytes taken as zero. As in the kernel, the result is not inverted.
pub fn put_checksum(first_block: &mut [u8]) {
    let covered = &mut first_block[SUPERBLOCK_OFFSET as usize..BLOCK_BYTES as usize];
    covered[4..8].fill(0);
    let checksum = superblock_checksum(covered);
    covered[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// Returns the checksum of the bytes from the superblock to the end of its block, whose field for the checksum is zero.
pub fn superblock_checksum(covered: &[u8]) -> u32 {
    !Crc::<u32>::new(&CRC_32_ISCSI).checksum(covered)
}

/// An inode. Its owner is root, it has no extended attributes, and its time is that of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Directory, regular file or symbolic link.
    pub file_type: FileType,
    /// Permission bits, and the sticky bit.
    pub mode: u16,
    /// Number of its group.
    pub group_id: u32,
    /// Number of names. Directories have two, plus one for each directory in them.
    pub links: u32,
    /// Length of the content in bytes.
    pub size_bytes: u64,
    /// How the content is stored.
    pub layout: DataLayout,
    /// First block of the content, or [`NO_BLOCK`].
    pub start_block: u32,
    /// Inode number for programs that use only 32 bits. It counts from 1.
    pub number: u32,
}

impl Inode {
    /// Returns the length of an inode's record. The compact form has 16 bits for the links and 32 for the size.
    pub fn record_bytes(links: u32, size_bytes: u64) -> u64 {
        if links > u32::from(u16::MAX) || size_bytes > u64::from(u32::MAX) {
            EXTENDED_INODE_BYTES
        } else {
            COMPACT_INODE_BYTES
        }
    }

    /// Appends the inode in the shortest possible form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let is_extended = Self::record_bytes(self.links, self.size_bytes) == EXTENDED_INODE_BYTES;
        out.put_u16(u16::from(is_extended) | ((self.layout as u16) << 1)); // i_format
        out.put_u16(0); // i_xattr_icount: no extended attributes
        out.put_u16(self.file_type.mode_bits() | self.mode); // i_mode
        if is_extended {
            out.put_u16(0); // i_reserved
            out.put_u64(self.size_bytes); // i_size
        } else {
            // `record_bytes` has checked that both fit.
            out.put_u16(self.links as u16); // i_nlink
            out.put_u32(self.size_bytes as u32); // i_size
            out.put_u32(0); // i_reserved
        }
        out.put_u32(self.start_block); // i_u.raw_blkaddr
        out.put_u32(self.number); // i_ino
        if is_extended {
            out.put_u32(0); // i_uid
            out.put_u32(self.group_id); // i_gid
            out.put_u64(u64::from(crate::attributes::MODIFIED_AT)); // i_mtime
            out.put_u32(0); // i_mtime_nsec
            out.put_u32(self.links); // i_nlink
            out.extend_from_slice(&[0; 16]); // i_reserved2
        } else {
            out.put_u16(0); // i_uid
            out.put_u16(self.group_id as u16); // i_gid: the only group besides root's is 30000
            out.put_u32(0); // i_reserved2
        }
    }
}

/// A directory entry. The entries of a block come first, then their names, which are not terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Number of the inode.
    pub nid: u64,
    /// Where its name begins in the block. That of a block's first entry also determines the number of entries in the
    /// block.
    pub name_offset: u16,
    /// Type of the inode.
    pub file_type: FileType,
}

impl DirectoryEntry {
    /// Appends the entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.nid); // nid
        out.put_u16(self.name_offset); // nameoff
        out.push(self.file_type as u8); // file_type
        out.push(0); // reserved
    }
}
