//! Detecting the file system of a disk image and its label from the superblock.

use crate::image_format::by_start;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The file system of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFileSystem {
    /// Its type, as in `mkfs.TYPE`.
    pub fs_type: &'static str,
    /// Its label; empty if it has none. None if labels of this type are not read.
    pub label: Option<String>,
    /// The number of bytes that its disk must have, if that is read.
    pub size_bytes: Option<u64>,
}

impl FoundFileSystem {
    /// Whether this is a file system of that type. All of ext2, ext3 and ext4 match each other, because the kernel's
    /// ext4 driver mounts them all.
    pub fn is_of_type(&self, fs_type: &str) -> bool {
        let family =
            |name: &str| if matches!(name, "ext2" | "ext3" | "ext4") { "ext".to_owned() } else { name.to_owned() };
        let alias = match fs_type {
            "fat" | "msdos" => "vfat",
            "ntfs3" => "ntfs",
            "zfs_member" => "zfs",
            _ => fs_type,
        };
        family(self.fs_type) == family(alias)
    }
}

/// The number of bytes that contain all superblocks: the first one of ZFS is at 128 KiB.
const PROBED_BYTES: usize = 0x2_1000;

const EXT_SUPERBLOCK: usize = 1024;
const EXT_FEATURE_COMPATIBLE_HAS_JOURNAL: u32 = 4;
/// It is no file system, but contains the journal of another one.
const EXT_FEATURE_INCOMPATIBLE_JOURNAL_DEVICE: u32 = 8;
const EXT_FEATURE_INCOMPATIBLE_64BIT: u32 = 0x80;
/// The features extents, 64bit and flex_bg, each of which requires ext4 (Documentation/filesystems/ext4/super.rst).
const EXT4_FEATURES_INCOMPATIBLE: u32 = 0x40 | 0x80 | 0x200;
const BTRFS_SUPERBLOCK: usize = 0x1_0000;

/// Detects the file system of an image. Returns `None` if no known superblock is found.
///
/// # Errors
/// Fails if the image cannot be read.
pub fn file_system(image: &File) -> io::Result<Option<FoundFileSystem>> {
    let mut bytes = vec![0; PROBED_BYTES];
    let mut filled = 0;
    while filled < bytes.len() {
        match image.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(recognise(&bytes))
}

fn recognise(bytes: &[u8]) -> Option<FoundFileSystem> {
    ext(bytes)
        .or_else(|| xfs(bytes))
        .or_else(|| btrfs(bytes))
        .or_else(|| f2fs(bytes))
        .or_else(|| vfat(bytes))
        .or_else(|| others(bytes))
        .or_else(|| partitions(bytes))
}

fn ext(bytes: &[u8]) -> Option<FoundFileSystem> {
    let superblock = bytes.get(EXT_SUPERBLOCK..EXT_SUPERBLOCK + 1024)?;
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    let word =
        |at: usize| u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]);
    let (compatible, incompatible) = (word(0x5c), word(0x60));
    let label = Some(label(&superblock[0x78..0x88]));
    if incompatible & EXT_FEATURE_INCOMPATIBLE_JOURNAL_DEVICE != 0 {
        return Some(FoundFileSystem { fs_type: "an external journal of ext4", label, size_bytes: None });
    }
    let high = if incompatible & EXT_FEATURE_INCOMPATIBLE_64BIT != 0 { word(0x150) } else { 0 };
    let blocks = u64::from(word(0x04)) | u64::from(high) << 32;
    let size_bytes = Some(blocks.saturating_mul(1024 << word(0x18).min(6)));
    let fs_type = if incompatible & EXT4_FEATURES_INCOMPATIBLE != 0 {
        "ext4"
    } else if compatible & EXT_FEATURE_COMPATIBLE_HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    };
    Some(FoundFileSystem { fs_type, label, size_bytes })
}

/// fs/xfs/libxfs/xfs_format.h: sb_magicnum, sb_blocksize, sb_dblocks, sb_fname.
fn xfs(bytes: &[u8]) -> Option<FoundFileSystem> {
    if !bytes.starts_with(b"XFSB") {
        return None;
    }
    let block_bytes = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
    let blocks = u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?);
    let size_bytes = Some(blocks.saturating_mul(block_bytes.into()));
    Some(FoundFileSystem { fs_type: "xfs", label: Some(label(bytes.get(108..120)?)), size_bytes })
}

/// fs/btrfs/accessors.h, struct btrfs_super_block: magic at 0x40, the size of this device at 0xd1, label at 0x12b.
fn btrfs(bytes: &[u8]) -> Option<FoundFileSystem> {
    let superblock = bytes.get(BTRFS_SUPERBLOCK..BTRFS_SUPERBLOCK + 0x1000)?;
    if &superblock[0x40..0x48] != b"_BHRfS_M" {
        return None;
    }
    let size_bytes = Some(u64::from_le_bytes(superblock[0xd1..0xd9].try_into().ok()?));
    Some(FoundFileSystem { fs_type: "btrfs", label: Some(label(&superblock[0x12b..0x22b])), size_bytes })
}

/// The label of FAT12 and FAT16 is in the boot sector at offset 43, that of FAT32 at 71; `NO NAME` means none.
fn vfat(bytes: &[u8]) -> Option<FoundFileSystem> {
    if bytes.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let at = match (&bytes[54..57], &bytes[82..87]) {
        (_, b"FAT32") => 71,
        (b"FAT", _) => 43,
        _ => return None,
    };
    let label = String::from_utf8_lossy(&bytes[at..at + 11]).trim_end().to_owned();
    let label = if label == "NO NAME" { String::new() } else { label };
    Some(FoundFileSystem { fs_type: "vfat", label: Some(label), size_bytes: None })
}

/// include/linux/f2fs_fs.h, struct f2fs_super_block: the magic comes first, and the label is 512 units of UTF-16 at
/// 0x7c.
fn f2fs(bytes: &[u8]) -> Option<FoundFileSystem> {
    let superblock = bytes.get(1024..1024 + 0x7c + 1024)?;
    if superblock[..4] != [0x10, 0x20, 0xf5, 0xf2] {
        return None;
    }
    let units = superblock[0x7c..].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    Some(FoundFileSystem { fs_type: "f2fs", label: Some(String::from_utf16_lossy(&units)), size_bytes: None })
}

/// An MBR partition table. Checked last, because boot sectors of file systems have the same signature.
fn partitions(bytes: &[u8]) -> Option<FoundFileSystem> {
    if bytes.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    // The four entries start at 446. Each has a flag, which is 0 or 0x80, and a partition type.
    let entries = bytes[446..510].chunks_exact(16);
    let is_table =
        entries.clone().all(|entry| matches!(entry[0], 0 | 0x80)) && entries.into_iter().any(|entry| entry[4] != 0);
    is_table.then_some(FoundFileSystem { fs_type: "an MBR partition table", label: None, size_bytes: None })
}

/// Whether [`file_system`] detects this type, so that an image in which it detects nothing is of another type.
pub fn is_recognised(fs_type: &str) -> bool {
    let with_label = ["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "fat", "msdos", "f2fs", "ntfs3"];
    with_label.contains(&fs_type) || OTHER_SIGNATURES.iter().any(|(name, _, _)| *name == fs_type)
}

/// File systems and images that are only detected, so that they are not overwritten or mistaken for others: name,
/// offset, magic. Sources: the probes of libblkid in util-linux, and docs/interop of qemu.
const OTHER_SIGNATURES: [(&str, usize, &[u8]); 42] = [
    ("squashfs", 0, b"hsqs"),
    ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("bcachefs", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9]),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    // At the end of the first page, whose size depends on the processor.
    ("swap", 4086, b"SWAPSPACE2"),
    ("swap", 8182, b"SWAPSPACE2"),
    ("swap", 16374, b"SWAPSPACE2"),
    ("swap", 32758, b"SWAPSPACE2"),
    ("swap", 65526, b"SWAPSPACE2"),
    ("the memory of a hibernated system", 4086, b"S1SUSPEND"),
    ("the memory of a hibernated system", 4086, b"S2SUSPEND"),
    // In one of the first four sectors.
    ("LVM", 512 + 24, b"LVM2 001"),
    ("LVM", 24, b"LVM2 001"),
    ("LVM", 1024 + 24, b"LVM2 001"),
    ("LVM", 1536 + 24, b"LVM2 001"),
    (
        "a bcache device",
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81],
    ),
    ("ufs", 8192 + 1372, &[0x54, 0x19, 0x01, 0x00]),
    ("ufs", 65536 + 1372, &[0x19, 0x01, 0x54, 0x19]),
    ("apfs", 32, b"NXSB"),
    ("a RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("a RAID member", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ("iso9660", 0x8001, b"CD001"),
    ("udf", 0x8001, b"BEA01"),
    ("jfs", 0x8000, b"JFS1"),
    ("nilfs2", 1024 + 6, &[0x34, 0x34]),
    ("hfsplus", 1024, b"H+"),
    ("hfsplus", 1024, b"HX"),
    ("reiserfs", 0x1_0034, b"ReIsEr"),
    ("ocfs2", 0x2000, b"OCFSV2"),
    ("gfs2", 0x1_0000, &[0x01, 0x16, 0x19, 0x70]),
    ("zfs", 0x2_0000, &[0x0c, 0xb1, 0xba, 0]),
    ("cramfs", 0, &[0x45, 0x3d, 0xcd, 0x28]),
    ("romfs", 0, b"-rom1fs-"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a vdi image", 0x40, &[0x7f, 0x10, 0xda, 0xbe]),
    ("a QED image", 0, b"QED\0"),
    ("a Parallels image", 0, b"WithoutFreeSpace"),
    ("a Parallels image", 0, b"WithouFreSpacExt"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("a cpio archive", 0, b"07070"),
];

fn others(bytes: &[u8]) -> Option<FoundFileSystem> {
    let found = OTHER_SIGNATURES.iter().find(|(_, at, magic)| bytes.get(*at..*at + magic.len()) == Some(*magic));
    let fs_type = found.map(|(name, _, _)| *name).or_else(|| by_start(bytes).map(|format| format.name))?;
    Some(FoundFileSystem { fs_type, label: None, size_bytes: None })
}

fn label(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_recognised_in_zeros_or_a_short_file() {
        assert_eq!(recognise(&vec![0; PROBED_BYTES]), None);
        assert_eq!(recognise(&[]), None);
        assert_eq!(recognise(b"XFS"), None);
    }

    #[test]
    fn all_ext_types_and_all_fat_types_match_each_other() {
        let ext4 = FoundFileSystem { fs_type: "ext4", label: None, size_bytes: None };
        assert!(ext4.is_of_type("ext3") && ext4.is_of_type("ext4") && !ext4.is_of_type("xfs"));
        let vfat = FoundFileSystem { fs_type: "vfat", label: None, size_bytes: None };
        assert!(vfat.is_of_type("msdos") && !vfat.is_of_type("ext4"));
    }

    #[test]
    fn a_disk_image_format_is_recognised_by_its_magic() {
        let mut bytes = vec![0; PROBED_BYTES];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        assert_eq!(recognise(&bytes).map(|found| found.fs_type), Some("a qcow2 image"));
    }
}
