//! The filesystems of volumes: their programs, packages and labels.

use std::ffi::{OsStr, OsString};
use thiserror::Error;

/// Characters that a FAT label cannot contain (Microsoft's FAT specification, section 6.1, and `mkfs.fat`).
const NOT_IN_FAT_LABELS: &str = "\"*+,./:;<=>?[\\]|";

/// A filesystem that a volume can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileSystem {
    /// ext2.
    Ext2,
    /// ext3.
    Ext3,
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT with long names.
    Vfat,
    /// F2FS.
    F2fs,
}

/// A filesystem does not support a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LabelProblem {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It has too many bytes.
    #[error("it has {length_bytes} bytes, but the maximum is {max_bytes}")]
    TooLong {
        /// Its length in bytes.
        length_bytes: usize,
        /// The maximum length in bytes.
        max_bytes: usize,
    },
    /// It contains a character that is not allowed.
    #[error("it contains {character:?}")]
    Character {
        /// The first such character.
        character: char,
    },
}

/// A volume is too small for a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{} needs at least {}, but the size is {}", .file_system.name(), size(*.min_bytes), size(*.size_bytes))]
pub struct TooSmall {
    /// The file system.
    pub file_system: FileSystem,
    /// The size of the volume.
    pub size_bytes: u64,
    /// The minimum.
    pub min_bytes: u64,
}

fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes > 0 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes > 0 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} bytes"),
    }
}

impl FileSystem {
    /// All filesystems that can be created.
    pub const ALL: [Self; 7] = [Self::Ext2, Self::Ext3, Self::Ext4, Self::Xfs, Self::Btrfs, Self::Vfat, Self::F2fs];

    /// Returns the filesystem with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Returns the filesystem that this mkfs program creates.
    pub fn of_mkfs_program(program: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.mkfs_program() == program)
    }

    /// Returns the name on the command line and in `/proc/filesystems`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::F2fs => "f2fs",
        }
    }

    /// Returns the program that creates it.
    pub fn mkfs_program(self) -> &'static str {
        match self {
            Self::Ext2 => "mkfs.ext2",
            Self::Ext3 => "mkfs.ext3",
            Self::Ext4 => "mkfs.ext4",
            Self::Xfs => "mkfs.xfs",
            Self::Btrfs => "mkfs.btrfs",
            Self::Vfat => "mkfs.vfat",
            Self::F2fs => "mkfs.f2fs",
        }
    }

    /// Returns the Debian package that contains the program.
    pub fn debian_package(self) -> &'static str {
        match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => "e2fsprogs",
            Self::Xfs => "xfsprogs",
            Self::Btrfs => "btrfs-progs",
            Self::Vfat => "dosfstools",
            Self::F2fs => "f2fs-tools",
        }
    }

    /// Returns the Nixpkgs package that contains the program.
    pub fn nix_package(self) -> &'static str {
        // The names are the same for all filesystems so far.
        self.debian_package()
    }

    /// Returns the maximum length of a label in bytes: `s_volume_name` of ext4, `sb_fname` of XFS, `BTRFS_LABEL_SIZE`
    /// without the final zero, the 8.3 name of a FAT directory entry, and the 512 units of F2FS.
    pub fn label_max_bytes(self) -> usize {
        match self {
            Self::Ext2 | Self::Ext3 | Self::Ext4 => 16,
            Self::Xfs => 12,
            Self::Btrfs => 255,
            Self::Vfat => 11,
            Self::F2fs => 512,
        }
    }

    /// Checks that the filesystem supports the label, and that `/dev/disk/by-label` can show it.
    ///
    /// # Errors
    /// The label is empty, too long, or contains a character that is not allowed.
    pub fn check_label(self, label: &str) -> Result<(), LabelProblem> {
        let max_bytes = self.label_max_bytes();
        if label.is_empty() {
            return Err(LabelProblem::Empty);
        }
        if label.len() > max_bytes {
            return Err(LabelProblem::TooLong { length_bytes: label.len(), max_bytes });
        }
        let forbidden = |character: &char| {
            let fat = self == Self::Vfat && (!character.is_ascii() || NOT_IN_FAT_LABELS.contains(*character));
            character.is_control() || fat
        };
        match label.chars().find(forbidden) {
            Some(character) => Err(LabelProblem::Character { character }),
            None => Ok(()),
        }
    }

    /// Returns a size in bytes below which no mkfs program creates it without additional arguments.
    pub fn min_bytes(self) -> u64 {
        match self {
            // Measured with mke2fs 1.47 and blocks of 4 KiB.
            Self::Ext2 | Self::Ext3 | Self::Ext4 => 224 << 10,
            // Since xfsprogs 5.19: mkfs.xfs(8), `--unsupported`.
            Self::Xfs => 300 << 20,
            // btrfs_min_dev_size in mkfs/common.c, with nodes of 16 KiB and duplicated metadata.
            Self::Btrfs => 109 << 20,
            // Measured with mkfs.fat 4.2.
            Self::Vfat => 50 << 10,
            // F2FS_MIN_SEGMENTS in linux/f2fs_fs.h, after a segment for the superblock. mkfs.f2fs 1.15 needs 52 MiB, which other
            // versions may not.
            Self::F2fs => 20 << 20,
        }
    }

    /// Checks that a volume is large enough for the file system. Additional arguments for mkfs can make it smaller, such as
    /// `--mixed` of Btrfs, so mkfs decides then.
    ///
    /// # Errors
    /// The size is too small.
    pub fn check_size(self, size_bytes: u64, mkfs_arguments: &[impl AsRef<OsStr>]) -> Result<(), TooSmall> {
        let min_bytes = self.min_bytes();
        if size_bytes < min_bytes && mkfs_arguments.is_empty() {
            return Err(TooSmall { file_system: self, size_bytes, min_bytes });
        }
        Ok(())
    }

    /// Returns the arguments of the mkfs program, without the name of the file and the user's arguments.
    pub(crate) fn mkfs_arguments(self, label: Option<&str>) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = match self {
            // By default, small filesystems have blocks of 1 KiB, a quarter of the guest's pages. Without `root_owner`,
            // the root directory would belong to the user who creates the volume.
            Self::Ext2 | Self::Ext3 | Self::Ext4 => {
                vec!["-q".into(), "-F".into(), "-b4096".into(), "-Eroot_owner=0:0".into()]
            }
            // The file is new and empty, so mkfs has nothing to overwrite.
            Self::Xfs | Self::Btrfs => vec!["-q".into(), "-f".into()],
            // With `-q`, mkfs.f2fs does not say why it fails.
            Self::F2fs | Self::Vfat => vec![],
        };
        if let Some(label) = label {
            let option = match self {
                Self::Vfat => "-n",
                Self::F2fs => "-l",
                _ => "-L",
            };
            arguments.push(option.into());
            arguments.push(label.into());
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_longer_than_the_maximum_are_refused() {
        for file_system in FileSystem::ALL {
            let max_bytes = file_system.label_max_bytes();
            assert_eq!(file_system.check_label(&"A".repeat(max_bytes)), Ok(()));
            assert_eq!(
                file_system.check_label(&"A".repeat(max_bytes + 1)),
                Err(LabelProblem::TooLong { length_bytes: max_bytes + 1, max_bytes })
            );
            assert_eq!(file_system.check_label(""), Err(LabelProblem::Empty));
            assert_eq!(file_system.check_label("a\nb"), Err(LabelProblem::Character { character: '\n' }));
        }
    }

    #[test]
    fn a_size_is_too_small_unless_arguments_for_mkfs_may_allow_it() {
        for file_system in FileSystem::ALL {
            let min_bytes = file_system.min_bytes();
            assert_eq!(file_system.check_size(min_bytes, &[""; 0]), Ok(()));
            let too_small = file_system.check_size(min_bytes - 512, &[""; 0]).unwrap_err();
            assert!(
                too_small.to_string().starts_with(&format!("{} needs at least ", file_system.name())),
                "{too_small}"
            );
            assert_eq!(file_system.check_size(512, &["--mixed"]), Ok(()));
        }
        let too_small = FileSystem::Xfs.check_size(64 << 20, &[""; 0]).unwrap_err();
        assert_eq!(too_small.to_string(), "xfs needs at least 300 MiB, but the size is 64 MiB");
    }

    #[test]
    fn the_length_of_a_label_is_counted_in_bytes() {
        assert_eq!(FileSystem::Ext4.check_label("ääääääää"), Ok(()));
        assert_eq!(
            FileSystem::Ext4.check_label("äääääääää"),
            Err(LabelProblem::TooLong { length_bytes: 18, max_bytes: 16 })
        );
    }

    #[test]
    fn fat_refuses_characters_that_its_labels_cannot_contain() {
        assert_eq!(FileSystem::Vfat.check_label("MY DISK"), Ok(()));
        for character in ['ä', '/', '*', '"', '.'] {
            assert_eq!(
                FileSystem::Vfat.check_label(&format!("A{character}")),
                Err(LabelProblem::Character { character })
            );
        }
    }
}
