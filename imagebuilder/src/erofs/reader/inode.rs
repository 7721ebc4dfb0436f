//! Reads inodes and checks them against the length of the image.

use super::ErofsImage;
use crate::erofs::format::{COMPACT_INODE_BYTES, EXTENDED_INODE_BYTES, SLOT_BYTES};
use crate::image::{DirectoryInode, FileInode, ImageError, Inode, InodeForm, InodeKind, Part, TakeLe};
use std::ops::Range;

/// The limit of the kernel: one page.
const MAX_TARGET_BYTES: u64 = 4096;
/// Bytes before the shared and inline extended attributes of an inode (`struct erofs_xattr_ibody_header`).
const XATTR_HEADER_BYTES: u64 = 12;
/// Length of each unit that `i_xattr_icount` counts.
const XATTR_UNIT_BYTES: u64 = 4;
/// `i_format` without the bits of version and layout.
const UNKNOWN_FORMAT: u16 = !0b1111;

/// An inode as it is on disk.
struct Raw {
    format: u16,
    xattr_count: u16,
    mode: u16,
    links: u32,
    size_bytes: u64,
    start_block: u32,
    user_id: u32,
    group_id: u32,
    modified_at: u64,
}

impl Raw {
    fn is_extended(format: u16) -> bool {
        format & 1 != 0
    }

    fn compact(mut bytes: &[u8], epoch: u64) -> Option<Self> {
        let bytes = &mut bytes;
        let (format, xattr_count, mode) = (bytes.take_u16()?, bytes.take_u16()?, bytes.take_u16()?);
        let links = u32::from(bytes.take_u16()?);
        let size_bytes = u64::from(bytes.take_u32()?);
        let _reserved = bytes.take_u32()?;
        let (start_block, _number) = (bytes.take_u32()?, bytes.take_u32()?);
        let (user_id, group_id) = (u32::from(bytes.take_u16()?), u32::from(bytes.take_u16()?));
        Some(Self { format, xattr_count, mode, links, size_bytes, start_block, user_id, group_id, modified_at: epoch })
    }

    fn extended(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let (format, xattr_count, mode) = (bytes.take_u16()?, bytes.take_u16()?, bytes.take_u16()?);
        let _reserved = bytes.take_u16()?;
        let size_bytes = bytes.take_u64()?;
        let (start_block, _number) = (bytes.take_u32()?, bytes.take_u32()?);
        let (user_id, group_id, modified_at) = (bytes.take_u32()?, bytes.take_u32()?, bytes.take_u64()?);
        let _nanoseconds = bytes.take_u32()?;
        let links = bytes.take_u32()?;
        Some(Self { format, xattr_count, mode, links, size_bytes, start_block, user_id, group_id, modified_at })
    }
}

/// The place of an inode's content: whole blocks, then a tail.
pub(super) struct Place {
    pub(super) blocks: Range<u64>,
    pub(super) tail: Range<u64>,
}

impl ErofsImage {
    /// Reads the inode with this number.
    pub(super) fn inode(&self, nid: u64) -> Result<Inode, ImageError> {
        let superblock = self.superblock();
        let at = nid
            .checked_mul(SLOT_BYTES)
            .and_then(|offset| offset.checked_add(u64::from(superblock.metadata_block) << superblock.block_bits));
        let at = at.filter(|at| at.checked_add(COMPACT_INODE_BYTES).is_some_and(|end| end <= superblock.bytes()));
        let (Some(at), Ok(number)) = (at, u32::try_from(nid)) else {
            return Err(ImageError::damaged(Part::Superblock, format!("the image ends before inode {nid}")));
        };
        let damaged = |reason: String| ImageError::damaged(Part::InodeAt(at), reason);
        let mut bytes = [0; EXTENDED_INODE_BYTES as usize];
        let compact = &mut bytes[..COMPACT_INODE_BYTES as usize];
        self.read_raw(compact, at)?;
        let is_extended = Raw::is_extended(u16::from_le_bytes([compact[0], compact[1]]));
        let record_bytes = if is_extended { EXTENDED_INODE_BYTES } else { COMPACT_INODE_BYTES };
        let raw = if is_extended {
            if at + record_bytes > superblock.bytes() {
                return Err(damaged("the image ends in it".to_owned()));
            }
            self.read_raw(&mut bytes, at)?;
            Raw::extended(&bytes)
        } else {
            Raw::compact(&bytes, superblock.epoch)
        };
        let raw = raw.ok_or_else(|| damaged("it is truncated".to_owned()))?;
        if raw.format & UNKNOWN_FORMAT != 0 {
            return Err(damaged(format!("its format is {:#06x}", raw.format)));
        }
        let xattr_bytes = match u64::from(raw.xattr_count) {
            0 => 0,
            count => XATTR_HEADER_BYTES + (count - 1) * XATTR_UNIT_BYTES,
        };
        let tail_at = at + record_bytes + xattr_bytes;
        let (kind, end) = self.kind(&raw, at, tail_at)?;
        let modified_at = u32::try_from(raw.modified_at)
            .map_err(|_| ImageError::Unsupported { what: "a modification time after the year 2105".to_owned() })?;
        Ok(Inode {
            number,
            form: if is_extended { InodeForm::Extended } else { InodeForm::Basic },
            mode: raw.mode & 0o7777,
            user_id: raw.user_id,
            group_id: raw.group_id,
            modified_at,
            links: raw.links,
            xattr: (raw.xattr_count > 0).then_some(0),
            kind,
            place: at,
            end,
        })
    }

    /// Returns the kind of the inode, and the position at which it ends together with its tail.
    fn kind(&self, raw: &Raw, at: u64, tail_at: u64) -> Result<(InodeKind, u64), ImageError> {
        let damaged = |reason: String| ImageError::damaged(Part::InodeAt(at), reason);
        let mut end = tail_at;
        let mut file = || -> Result<FileInode, ImageError> {
            let Place { blocks, tail } = self.place(raw, at, tail_at)?;
            end = tail.end;
            let count = (blocks.end - blocks.start) >> self.superblock().block_bits;
            Ok(FileInode {
                size_bytes: raw.size_bytes,
                start: blocks.start,
                blocks: count,
                hole_bytes: 0,
                fragment: None,
                place: tail.start,
            })
        };
        let kind = match raw.mode >> 12 {
            0o4 => {
                let file = file()?;
                // Directories are read like files, whose content may be longer than 4 GiB. No listing is that long.
                let listing_bytes = u32::try_from(raw.size_bytes)
                    .map_err(|_| damaged(format!("it is a directory of {} bytes", raw.size_bytes)))?;
                InodeKind::Directory(DirectoryInode {
                    listing_bytes,
                    parent_number: 0,
                    index_entries: 0,
                    listing: (0, 0),
                    index_place: 0,
                    content: Some(file),
                })
            }
            0o10 => InodeKind::File(file()?),
            0o12 => {
                if raw.size_bytes > MAX_TARGET_BYTES || raw.size_bytes == 0 {
                    return Err(damaged(format!("its symbolic link target has {} bytes", raw.size_bytes)));
                }
                let mut target = vec![0; raw.size_bytes as usize];
                self.read_content(&file()?, 0, &mut target)?;
                if target.contains(&0) {
                    return Err(damaged("its symbolic link target contains a zero byte".to_owned()));
                }
                InodeKind::Symlink(target)
            }
            // The field of the first block contains the number of a device.
            0o6 => InodeKind::BlockDevice(raw.start_block),
            0o2 => InodeKind::CharacterDevice(raw.start_block),
            0o1 => InodeKind::Fifo,
            0o14 => InodeKind::Socket,
            _ => return Err(damaged(format!("its mode is {:#o}", raw.mode))),
        };
        Ok((kind, end))
    }

    /// Returns the place of the content, after checking that it is inside the image and that the tail ends in the block
    /// of its inode.
    fn place(&self, raw: &Raw, at: u64, tail_at: u64) -> Result<Place, ImageError> {
        let damaged = |reason: String| ImageError::damaged(Part::InodeAt(at), reason);
        let superblock = self.superblock();
        let block_bytes = superblock.block_bytes();
        let (count, tail_bytes) = match raw.format >> 1 {
            0 => (raw.size_bytes.div_ceil(block_bytes), 0),
            // A tail may be a whole block.
            2 => match raw.size_bytes.div_ceil(block_bytes) {
                0 => (0, 0),
                blocks => (blocks - 1, raw.size_bytes - (blocks - 1) * block_bytes),
            },
            layout @ (1 | 3) => {
                return Err(ImageError::Unsupported { what: format!("a compressed file (data layout {layout})") });
            }
            layout => return Err(ImageError::Unsupported { what: format!("data layout {layout}") }),
        };
        let tail = tail_at..tail_at + tail_bytes;
        if tail_at % block_bytes + tail_bytes > block_bytes || tail.end > superblock.bytes() {
            return Err(damaged(format!("its tail of {tail_bytes} bytes crosses the end of a block")));
        }
        let start = if count > 0 { u64::from(raw.start_block) << superblock.block_bits } else { 0 };
        let end = count.checked_mul(block_bytes).and_then(|bytes| start.checked_add(bytes));
        match end.filter(|end| *end <= superblock.bytes()) {
            Some(end) => Ok(Place { blocks: start..end, tail }),
            None => Err(damaged(format!("its {count} blocks from block {} on are not in the image", raw.start_block))),
        }
    }
}
