//! Checks that a new volume is the requested one.

use super::{FileSystem, VolumeRequest, inner_path};
use ext4_view::{Ext4, Ext4Error};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A new volume is not the requested one.
#[derive(Debug, Error)]
pub enum ReadBackError {
    /// The file cannot be read.
    #[error("cannot read the volume back")]
    Read(#[source] io::Error),
    /// The filesystem's magic number is missing.
    #[error("there is no {} in it", .file_system.name())]
    NoFileSystem {
        /// The filesystem.
        file_system: FileSystem,
    },
    /// Its size has changed.
    #[error("it has {found_bytes} bytes, not {size_bytes}")]
    Size {
        /// The requested size.
        size_bytes: u64,
        /// The actual size.
        found_bytes: u64,
    },
    /// The ext4 filesystem is damaged.
    #[error("its ext4 cannot be read")]
    Ext4(#[source] Box<Ext4Error>),
    /// The label is not the requested one.
    #[error("its label is {found:?}")]
    Label {
        /// The actual label.
        found: String,
    },
    /// A directory is missing, or has the wrong owner or mode.
    #[error("its {} is not a directory that root owns with the mode 0755", .directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
    },
}

/// Returns the position and the value of a filesystem's magic number: `ext4_super_block.s_magic`,
/// `xfs_dsb.sb_magicnum`, `btrfs_super_block.magic`, and the boot sector's signature.
fn mark(file_system: FileSystem) -> (u64, &'static [u8]) {
    match file_system {
        FileSystem::Ext4 => (0x438, &[0x53, 0xef]),
        FileSystem::Xfs => (0, b"XFSB"),
        FileSystem::Btrfs => (0x1_0040, b"_BHRfS_M"),
        FileSystem::Vfat => (510, &[0x55, 0xaa]),
    }
}

/// Checks that the volume in `file` has the requested size and filesystem, and for ext4 the requested label and
/// directories.
pub(super) fn check(file: &Path, request: &VolumeRequest) -> Result<(), ReadBackError> {
    let volume = File::open(file).map_err(ReadBackError::Read)?;
    let found_bytes = volume.metadata().map_err(ReadBackError::Read)?.len();
    if found_bytes != request.size_bytes {
        return Err(ReadBackError::Size { size_bytes: request.size_bytes, found_bytes });
    }
    let (offset, expected) = mark(request.file_system);
    let mut found = vec![0; expected.len()];
    // A volume that is too short to contain the magic number has none.
    if volume.read_exact_at(&mut found, offset).is_err() || found != expected {
        return Err(ReadBackError::NoFileSystem { file_system: request.file_system });
    }
    match request.file_system {
        FileSystem::Ext4 => check_ext4(file, request),
        FileSystem::Xfs | FileSystem::Btrfs | FileSystem::Vfat => Ok(()),
    }
}

fn check_ext4(file: &Path, request: &VolumeRequest) -> Result<(), ReadBackError> {
    let sound = |error| ReadBackError::Ext4(Box::new(error));
    let ext4 = Ext4::load_from_path(file).map_err(sound)?;
    if let Some(label) = &request.label
        && ext4.label().to_str() != Ok(label)
    {
        return Err(ReadBackError::Label { found: ext4.label().display().to_string() });
    }
    for inner in request.directories.iter().filter_map(|directory| inner_path(directory)) {
        for part in inner.ancestors() {
            let directory = Path::new("/").join(part);
            let is_right = ext4
                .metadata(directory.as_os_str().as_encoded_bytes())
                .is_ok_and(|found| found.is_dir() && found.uid() == 0 && found.gid() == 0 && found.mode() == 0o755);
            if !is_right {
                return Err(ReadBackError::Directory { directory });
            }
        }
    }
    Ok(())
}
