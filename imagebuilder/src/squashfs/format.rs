//! All on-disk records of squashfs 4.0 that this project writes. All integers are little-endian.
//!
//! Source: the kernel's `fs/squashfs/squashfs_fs.h` and the code in that directory, which must be able to read an
//! image.
//!
//! ```text
//! superblock (96 bytes) | codec options | data and fragment blocks | inode table | directory table
//! | fragment table | export table | id table | zero padding to 4 KiB
//! ```
//!
//! The kernel checks that the index of each of the last three tables ends exactly where the next table begins.

use crate::little_endian::PutLe;

/// The magic number, `hsqs`.
pub const MAGIC: u32 = 0x7371_7368;
/// Length of the superblock in bytes.
pub const SUPERBLOCK_BYTES: usize = 96;
/// Length in bytes of a metadata block before compression. Inodes, directories and tables consist of such blocks.
pub const METADATA_BLOCK_BYTES: usize = 8192;
/// Set in the two-byte header of a metadata block that is stored uncompressed.
pub const METADATA_PLAIN: u16 = 1 << 15;
/// Set in the size word of a data or fragment block that is stored uncompressed.
pub const BLOCK_PLAIN: u32 = 1 << 24;
/// "No such table" in the superblock.
pub const NO_TABLE: u64 = u64::MAX;
/// "No fragment" in a file inode.
pub const NO_FRAGMENT: u32 = u32::MAX;
/// "No extended attributes" in an extended inode.
pub const NO_XATTR: u32 = u32::MAX;
/// Maximum number of entries after a directory header (`SQUASHFS_DIR_COUNT`).
pub const MAX_DIRECTORY_HEADER_ENTRIES: usize = 256;
/// Longest name of a directory entry in bytes (`SQUASHFS_NAME_LEN`).
pub const MAX_NAME_BYTES: usize = 256;
/// The size of a directory is three bytes larger than its listing, for `.` and `..`, which are not stored.
pub const DIRECTORY_SIZE_EXTRA: u32 = 3;
/// The image is padded to a multiple of this length, because block devices are read in whole pages.
pub const IMAGE_ALIGNMENT_BYTES: u64 = 4096;

/// Bits in the superblock's field of flags (`SQUASHFS_*` in fs/squashfs/squashfs_fs.h).
pub mod flags {
    /// Inode blocks are stored uncompressed.
    pub const PLAIN_INODES: u16 = 1 << 0;
    /// Data blocks are stored uncompressed.
    pub const PLAIN_DATA: u16 = 1 << 1;
    /// Fragment blocks are stored uncompressed.
    pub const PLAIN_FRAGMENTS: u16 = 1 << 3;
    /// There are no fragments.
    pub const NO_FRAGMENTS: u16 = 1 << 4;
    /// Equal files share their blocks.
    pub const DUPLICATES: u16 = 1 << 6;
    /// There is an export table (NFS, `open_by_handle_at`).
    pub const EXPORTABLE: u16 = 1 << 7;
    /// There are no extended attributes.
    pub const NO_XATTRS: u16 = 1 << 9;
    /// A metadata block with codec options follows the superblock.
    pub const CODEC_OPTIONS: u16 = 1 << 10;
    /// The id table is stored uncompressed.
    pub const PLAIN_IDS: u16 = 1 << 11;
}

/// Codec numbers of the superblock.
pub mod codec {
    /// zlib streams.
    pub const GZIP: u16 = 1;
    /// xz streams.
    pub const XZ: u16 = 4;
    /// LZ4 blocks.
    pub const LZ4: u16 = 5;
    /// zstd frames.
    pub const ZSTD: u16 = 6;
}

/// Inode types in inodes and directory entries. Entries always contain the basic type.
pub mod inode_type {
    /// Directory with a listing of less than 64 KiB and without an index.
    pub const BASIC_DIRECTORY: u16 = 1;
    /// File whose start and size fit into 32 bits, with one link and no holes.
    pub const BASIC_FILE: u16 = 2;
    /// Symbolic link.
    pub const BASIC_SYMLINK: u16 = 3;
    /// Directory with an index or a long listing.
    pub const EXTENDED_DIRECTORY: u16 = 8;
    /// File with 64-bit start and size, or holes.
    pub const EXTENDED_FILE: u16 = 9;
}

/// The first 96 bytes of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Number of inodes, which is also the number of entries in the export table.
    pub inodes: u32,
    /// Creation time in seconds since 1970.
    pub made_at: u32,
    /// Data block size in bytes, a power of two.
    pub block_size_bytes: u32,
    /// Number of fragment blocks.
    pub fragments: u32,
    /// One of [`codec`].
    pub codec: u16,
    /// Bits of [`flags`].
    pub flags: u16,
    /// Number of user and group ids.
    pub ids: u16,
    /// Where the root directory's inode is.
    pub root: InodeRef,
    /// Length of the file system in bytes, without padding.
    pub bytes_used: u64,
    /// Position of the id table's index.
    pub id_table: u64,
    /// Position of the inode table.
    pub inode_table: u64,
    /// Position of the directory table.
    pub directory_table: u64,
    /// Position of the fragment table's index, or [`NO_TABLE`].
    pub fragment_table: u64,
    /// Position of the export table's index.
    pub export_table: u64,
}

impl Superblock {
    /// Returns the 96 bytes on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SUPERBLOCK_BYTES);
        out.put_u32(MAGIC);
        out.put_u32(self.inodes);
        out.put_u32(self.made_at);
        out.put_u32(self.block_size_bytes);
        out.put_u32(self.fragments);
        out.put_u16(self.codec);
        out.put_u16(u16::try_from(self.block_size_bytes.trailing_zeros()).unwrap_or(u16::MAX));
        out.put_u16(self.flags);
        out.put_u16(self.ids);
        out.put_u16(4); // major version
        out.put_u16(0); // minor version
        out.put_u64(self.root.0);
        out.put_u64(self.bytes_used);
        out.put_u64(self.id_table);
        out.put_u64(NO_TABLE); // extended attributes: a Nix store has none
        out.put_u64(self.inode_table);
        out.put_u64(self.directory_table);
        out.put_u64(self.fragment_table);
        out.put_u64(self.export_table);
        out
    }
}

/// A reference to an inode: the position of its metadata block in the inode table, and the offset in the decompressed
/// block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeRef(pub u64);

impl InodeRef {
    /// Creates a reference from the block's position and the offset in it.
    pub fn new(position: MetadataPosition) -> Self {
        Self((u64::from(position.block) << 16) | u64::from(position.offset))
    }

    /// Returns the position of the metadata block, from the start of the inode table.
    pub fn block(self) -> u32 {
        u32::try_from(self.0 >> 16).unwrap_or(u32::MAX)
    }

    /// Returns the offset in the decompressed block.
    pub fn offset(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

/// A place in a metadata table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataPosition {
    /// Position of the stored metadata block, from the start of the table.
    pub block: u32,
    /// Offset in the decompressed block, below 8192.
    pub offset: u16,
}

/// The fields that all inodes begin with, without the type.
#[derive(Clone, Copy, Debug)]
pub struct InodeHead {
    /// Permission bits, without the type.
    pub mode: u16,
    /// Modification time in seconds since 1970.
    pub modified_at: u32,
    /// Number of the inode, from 1.
    pub number: u32,
    /// Index of the group in the id table.
    pub group_entry: u16,
}

impl InodeHead {
    /// Appends sixteen bytes. The user is entry 0 of the id table.
    fn encode(self, inode_type: u16, out: &mut Vec<u8>) {
        out.put_u16(inode_type);
        out.put_u16(self.mode);
        out.put_u16(0); // user id
        out.put_u16(self.group_entry);
        out.put_u32(self.modified_at);
        out.put_u32(self.number);
    }
}

/// A file's content in the image.
#[derive(Clone, Copy, Debug)]
pub struct FileInode<'a> {
    /// The fields of all inodes.
    pub head: InodeHead,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Position of the first block in the image.
    pub start: u64,
    /// Size words, one per block; 0 for a hole.
    pub block_words: &'a [u32],
    /// Bytes of the blocks that are holes.
    pub hole_bytes: u64,
    /// Number of the fragment block that contains the whole file, and the offset in it.
    pub fragment: Option<(u32, u32)>,
}

impl FileInode<'_> {
    /// Appends the basic form if the file fits into it, otherwise the extended form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (fragment, offset) = self.fragment.unwrap_or((NO_FRAGMENT, 0));
        match (u32::try_from(self.start), u32::try_from(self.size_bytes), self.hole_bytes) {
            (Ok(start), Ok(size_bytes), 0) => {
                self.head.encode(inode_type::BASIC_FILE, out);
                out.put_u32(start);
                out.put_u32(fragment);
                out.put_u32(offset);
                out.put_u32(size_bytes);
            }
            _ => {
                self.head.encode(inode_type::EXTENDED_FILE, out);
                out.put_u64(self.start);
                out.put_u64(self.size_bytes);
                out.put_u64(self.hole_bytes);
                out.put_u32(1); // links
                out.put_u32(fragment);
                out.put_u32(offset);
                out.put_u32(NO_XATTR);
            }
        }
        for word in self.block_words {
            out.put_u32(*word);
        }
    }
}

/// A symbolic link.
#[derive(Clone, Copy, Debug)]
pub struct SymlinkInode<'a> {
    /// The fields of all inodes.
    pub head: InodeHead,
    /// The target's bytes, without a terminator.
    pub target: &'a [u8],
}

impl SymlinkInode<'_> {
    /// Appends the basic form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.head.encode(inode_type::BASIC_SYMLINK, out);
        out.put_u32(1); // links
        out.put_u32(u32::try_from(self.target.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(self.target);
    }
}

/// One entry of a directory's index: the header at `listing_offset` is followed by the entry `name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryIndexEntry {
    /// Offset of a directory header in the listing.
    pub listing_offset: u32,
    /// Position of the metadata block in which that header begins, from the start of the directory table.
    pub block: u32,
    /// Name of the first entry after that header.
    pub name: Vec<u8>,
}

/// The inode of a directory, which refers to its listing.
#[derive(Clone, Debug)]
pub struct DirectoryInode<'a> {
    /// The fields of all inodes.
    pub head: InodeHead,
    /// Two, plus the number of directories in it.
    pub links: u32,
    /// Inode number of the parent directory; the root has the number after the last inode.
    pub parent_number: u32,
    /// Length of the listing in bytes.
    pub listing_bytes: u32,
    /// Where the listing begins in the directory table.
    pub listing: MetadataPosition,
    /// Index entries from which the kernel can start a lookup.
    pub index: &'a [DirectoryIndexEntry],
}

impl DirectoryInode<'_> {
    /// Appends the basic form if the directory fits into it, otherwise the extended form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let size = self.listing_bytes.saturating_add(DIRECTORY_SIZE_EXTRA);
        match (u16::try_from(size), self.index) {
            (Ok(size), []) => {
                self.head.encode(inode_type::BASIC_DIRECTORY, out);
                out.put_u32(self.listing.block);
                out.put_u32(self.links);
                out.put_u16(size);
                out.put_u16(self.listing.offset);
                out.put_u32(self.parent_number);
            }
            (_, index) => {
                self.head.encode(inode_type::EXTENDED_DIRECTORY, out);
                out.put_u32(self.links);
                out.put_u32(size);
                out.put_u32(self.listing.block);
                out.put_u32(self.parent_number);
                out.put_u16(u16::try_from(index.len()).unwrap_or(u16::MAX));
                out.put_u16(self.listing.offset);
                out.put_u32(NO_XATTR);
                for entry in index {
                    out.put_u32(entry.listing_offset);
                    out.put_u32(entry.block);
                    out.put_u32(u32::try_from(entry.name.len().saturating_sub(1)).unwrap_or(u32::MAX));
                    out.extend_from_slice(&entry.name);
                }
            }
        }
    }
}

/// The header of up to 256 directory entries whose inodes are in the same metadata block.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryHeader {
    /// Number of entries, at least 1.
    pub entries: u32,
    /// Position of the metadata block of their inodes.
    pub inode_block: u32,
    /// Entries contain the signed difference between their inode number and this number.
    pub base_number: u32,
}

impl DirectoryHeader {
    /// Length in bytes.
    pub const BYTES: usize = 12;

    /// Appends twelve bytes.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u32(self.entries - 1);
        out.put_u32(self.inode_block);
        out.put_u32(self.base_number);
    }
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryEntry<'a> {
    /// Offset of the inode in its decompressed metadata block.
    pub inode_offset: u16,
    /// Inode number minus the header's base number.
    pub number_difference: i16,
    /// Basic type of the inode.
    pub inode_type: u16,
    /// The name's bytes, at least one.
    pub name: &'a [u8],
}

impl DirectoryEntry<'_> {
    /// Bytes in front of the name.
    pub const HEAD_BYTES: usize = 8;

    /// Appends eight bytes and the name.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.inode_offset);
        out.extend_from_slice(&self.number_difference.to_le_bytes());
        out.put_u16(self.inode_type);
        out.put_u16(u16::try_from(self.name.len().saturating_sub(1)).unwrap_or(u16::MAX));
        out.extend_from_slice(self.name);
    }
}

/// An entry of the fragment table: the location of a fragment block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentEntry {
    /// Position in the image.
    pub start: u64,
    /// Size word: the number of stored bytes, and [`BLOCK_PLAIN`] if they are uncompressed.
    pub word: u32,
}

impl FragmentEntry {
    /// Appends sixteen bytes.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u64(self.start);
        out.put_u32(self.word);
        out.put_u32(0); // unused
    }
}
