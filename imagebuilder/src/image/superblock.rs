//! Reads and checks the first 96 bytes of an image, and the codec options after them.

use super::error::{ImageError, Part};
use super::source::ImageSource;
use crate::settings::Compression;
use crate::squashfs::format::{MAGIC, METADATA_BLOCK_BYTES, METADATA_PLAIN, NO_TABLE, SUPERBLOCK_BYTES, flags};
use program::plural::counted;
use std::fmt;

/// Smallest data block in bytes.
const MIN_BLOCK_BYTES: u32 = 4096;
/// Largest data block in bytes.
const MAX_BLOCK_BYTES: u32 = 1 << 20;

/// A superblock whose sizes and positions are inside the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Number of inodes.
    pub inodes: u32,
    /// Creation time in seconds since 1970.
    pub made_at: u32,
    /// Data block size in bytes, a power of two.
    pub block_size_bytes: u32,
    /// Number of fragment blocks.
    pub fragments: u32,
    /// Number of the codec, one of `squashfs::format::codec` or 2 for LZMA and 3 for LZO.
    pub codec: u16,
    /// Bits of `squashfs::format::flags`.
    pub flags: u16,
    /// Number of user and group ids.
    pub ids: u16,
    /// Reference to the root's inode: the position of its metadata block shifted left by 16, plus the offset in the
    /// block.
    pub root: u64,
    /// Length of the file system in bytes, without padding.
    pub bytes_used: u64,
    /// Position of the id table's index.
    pub id_table: u64,
    /// Position of the head of the table of extended attributes.
    pub xattr_id_table: Option<u64>,
    /// Position of the inode table.
    pub inode_table: u64,
    /// Position of the directory table.
    pub directory_table: u64,
    /// Position of the fragment table's index; `None` if there are no fragments.
    pub fragment_table: Option<u64>,
    /// Position of the export table's index.
    pub export_table: Option<u64>,
}

/// Takes little-endian integers from the beginning of a byte slice.
pub(crate) trait TakeLe {
    /// Takes `LENGTH` bytes; `None` if there are fewer.
    fn take<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]>;

    /// Takes two bytes.
    fn take_u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    /// Takes four bytes.
    fn take_u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// Takes eight bytes.
    fn take_u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

impl TakeLe for &[u8] {
    fn take<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (head, rest) = self.split_first_chunk::<LENGTH>()?;
        *self = rest;
        Some(*head)
    }
}

/// The fields of the superblock, including the format's version.
struct Raw {
    superblock: Superblock,
    magic: u32,
    block_log: u16,
    version: (u16, u16),
}

impl Raw {
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let magic = bytes.take_u32()?;
        let inodes = bytes.take_u32()?;
        let made_at = bytes.take_u32()?;
        let block_size_bytes = bytes.take_u32()?;
        let fragments = bytes.take_u32()?;
        let codec = bytes.take_u16()?;
        let block_log = bytes.take_u16()?;
        let flags = bytes.take_u16()?;
        let ids = bytes.take_u16()?;
        let version = (bytes.take_u16()?, bytes.take_u16()?);
        let root = bytes.take_u64()?;
        let bytes_used = bytes.take_u64()?;
        let id_table = bytes.take_u64()?;
        let present = |position: u64| (position != NO_TABLE).then_some(position);
        let superblock = Superblock {
            inodes,
            made_at,
            block_size_bytes,
            fragments,
            codec,
            flags,
            ids,
            root,
            bytes_used,
            id_table,
            xattr_id_table: present(bytes.take_u64()?),
            inode_table: bytes.take_u64()?,
            directory_table: bytes.take_u64()?,
            // Without fragments, mksquashfs writes a position that contains nothing.
            fragment_table: present(bytes.take_u64()?).filter(|_| fragments > 0),
            export_table: present(bytes.take_u64()?),
        };
        Some(Self { superblock, magic, block_log, version })
    }
}

impl Superblock {
    /// Reads and checks the superblock. Its values may still be wrong, but all positions are inside the image.
    pub(crate) fn read(source: &dyn ImageSource) -> Result<Self, ImageError> {
        let not_squashfs = |reason: String| ImageError::NotSquashfs { reason };
        let length = source.length_bytes();
        if length < SUPERBLOCK_BYTES as u64 {
            return Err(not_squashfs(format!(
                "it has {}, but the superblock alone has {SUPERBLOCK_BYTES}",
                counted(length, "byte")
            )));
        }
        let mut bytes = [0; SUPERBLOCK_BYTES];
        read_at(source, &mut bytes, 0)?;
        let raw = Raw::decode(&bytes).ok_or_else(|| not_squashfs("its superblock is truncated".to_owned()))?;
        if raw.magic != MAGIC {
            return Err(not_squashfs(format!("it begins with \"{}\", not with \"hsqs\"", bytes[..4].escape_ascii())));
        }
        if raw.version != (4, 0) {
            return Err(not_squashfs(format!("its version is {}.{}", raw.version.0, raw.version.1)));
        }
        let superblock = raw.superblock;
        let size = superblock.block_size_bytes;
        if !size.is_power_of_two() || !(MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&size) {
            return Err(not_squashfs(format!("its block size is {size}, not a power of two from 4096 to 1048576")));
        }
        if size.trailing_zeros() != u32::from(raw.block_log) {
            return Err(not_squashfs(format!("its block size is both {size} and 2^{}", raw.block_log)));
        }
        superblock.check_positions(length)?;
        Ok(superblock)
    }

    /// Checks that all positions are inside the image, that the tables are in order, and that there is an inode and an
    /// id.
    fn check_positions(&self, length: u64) -> Result<(), ImageError> {
        let damaged = |reason: String| Err(ImageError::damaged(Part::Superblock, reason));
        if self.bytes_used > length {
            return damaged(format!(
                "says {} bytes are used, but the image has {length}: it is truncated",
                self.bytes_used
            ));
        }
        if self.inodes == 0 || self.ids == 0 {
            return damaged(format!("says there are {} inodes and {} ids", self.inodes, self.ids));
        }
        if self.fragments > 0 && self.fragment_table.is_none() {
            return damaged(format!("says there are {} fragments, but has no fragment table", self.fragments));
        }
        if self.inode_table < SUPERBLOCK_BYTES as u64 || self.inode_table >= self.directory_table {
            return damaged(format!(
                "says the inode table is at byte {}, the directory table at byte {}",
                self.inode_table, self.directory_table
            ));
        }
        let tables = [
            ("directory table", Some(self.directory_table)),
            ("fragment table", self.fragment_table),
            ("export table", self.export_table),
            ("id table", Some(self.id_table)),
            ("xattr table", self.xattr_id_table),
        ];
        for (name, position) in tables {
            if position.is_some_and(|position| position < self.directory_table || position > self.bytes_used) {
                return damaged(format!("says the {name} is at byte {}", position.unwrap_or_default()));
            }
        }
        Ok(())
    }

    /// Returns whether all bits of `flag` are set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag == flag
    }
}

/// Reads from the image. An error contains the position.
pub(crate) fn read_at(source: &dyn ImageSource, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
    let length_bytes = buffer.len();
    source.read_exact_at(buffer, offset).map_err(|source| ImageError::Read { length_bytes, offset, source })
}

/// The codec options in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecOptions {
    /// zlib.
    Gzip {
        /// Compression level, as the codec counts it.
        level: u32,
        /// Window size as a power of two.
        window_bits: u16,
        /// Bits of the strategies that were tried.
        strategies: u16,
    },
    /// xz.
    Xz {
        /// Size of the dictionary.
        dictionary_bytes: u32,
        /// Bits of the branch filters that were tried.
        filters: u32,
    },
    /// LZ4.
    Lz4 {
        /// Version of the block format.
        version: u32,
        /// Bit 0: made by the high compression encoder.
        flags: u32,
    },
    /// Zstandard.
    Zstd {
        /// Compression level, as the codec counts it.
        level: u32,
    },
}

impl CodecOptions {
    /// Reads the metadata block after the superblock, if there is one, and returns where data can begin.
    pub(crate) fn read(
        source: &dyn ImageSource,
        superblock: &Superblock,
        compression: Compression,
    ) -> Result<(Option<Self>, u64), ImageError> {
        let start = SUPERBLOCK_BYTES as u64;
        if !superblock.has(flags::CODEC_OPTIONS) {
            return Ok((None, start));
        }
        let damaged = |reason: String| ImageError::damaged(Part::CodecOptions, reason);
        let mut head = [0; 2];
        read_at(source, &mut head, start)?;
        let word = u16::from_le_bytes(head);
        let length = usize::from(word & !METADATA_PLAIN);
        // The kernel reads the options before it sets up the codec, so they are never compressed.
        if word & METADATA_PLAIN == 0 || length > METADATA_BLOCK_BYTES {
            return Err(damaged(format!("their length word is {word:#06x}")));
        }
        let mut bytes = vec![0; length];
        read_at(source, &mut bytes, start + 2)?;
        let options = Self::decode(&bytes, compression);
        let options = options.ok_or_else(|| damaged(format!("they have {length} bytes, too few for the codec")))?;
        let end = start + 2 + length as u64;
        if end > superblock.inode_table {
            return Err(damaged("they reach into the inode table".to_owned()));
        }
        Ok((Some(options), end))
    }

    fn decode(mut bytes: &[u8], compression: Compression) -> Option<Self> {
        let bytes = &mut bytes;
        Some(match compression {
            Compression::Gzip | Compression::None => {
                Self::Gzip { level: bytes.take_u32()?, window_bits: bytes.take_u16()?, strategies: bytes.take_u16()? }
            }
            Compression::Xz => Self::Xz { dictionary_bytes: bytes.take_u32()?, filters: bytes.take_u32()? },
            Compression::Lz4 => Self::Lz4 { version: bytes.take_u32()?, flags: bytes.take_u32()? },
            Compression::Zstd => Self::Zstd { level: bytes.take_u32()? },
        })
    }

    /// Returns the level, if the codec has one.
    pub fn level(self) -> Option<u32> {
        match self {
            Self::Gzip { level, .. } | Self::Zstd { level } => Some(level),
            Self::Xz { .. } | Self::Lz4 { .. } => None,
        }
    }
}

impl fmt::Display for CodecOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gzip { level, window_bits, strategies } => {
                write!(formatter, "level={level},window={window_bits},strategies={strategies:#x}")
            }
            Self::Xz { dictionary_bytes, filters } => {
                write!(formatter, "dictionary={dictionary_bytes},filters={filters:#x}")
            }
            Self::Lz4 { version, flags } => write!(formatter, "version={version},flags={flags:#x}"),
            Self::Zstd { level } => write!(formatter, "level={level}"),
        }
    }
}
