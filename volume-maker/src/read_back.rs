//! Checks that a new volume is the requested one.

use crate::file_system::FileSystem;
use crate::request::{VolumeRequest, plain_path};
use crate::superblock;
use ext4_view::{Ext4, Ext4Error};
use program::place::descriptor_path;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A new volume is not the requested one.
#[derive(Debug, Error)]
pub enum ReadBackError {
    /// The file cannot be read.
    #[error("cannot read the volume back")]
    Read(#[source] io::Error),
    /// The file system's magic number is missing.
    #[error("there is no {} in it", .file_system.name())]
    NoFileSystem {
        /// The file system that was requested.
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
    /// The ext4 file system is damaged.
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
        /// Its path in the volume.
        directory: PathBuf,
    },
}

/// Checks that a volume has the requested size, file system and label, and for ext4 also that it is sound and contains the
/// requested directories.
pub(crate) fn check(volume: &File, request: &VolumeRequest<'_>) -> Result<(), ReadBackError> {
    let found_bytes = volume.metadata().map_err(ReadBackError::Read)?.len();
    if found_bytes != request.size_bytes {
        return Err(ReadBackError::Size { size_bytes: request.size_bytes, found_bytes });
    }
    let found = superblock::file_system(volume).map_err(ReadBackError::Read)?;
    let Some(found) = found.filter(|found| found.is_of_type(request.file_system.name())) else {
        return Err(ReadBackError::NoFileSystem { file_system: request.file_system });
    };
    let label = found.label.unwrap_or_default();
    if request.label.is_some_and(|requested| requested != label) {
        return Err(ReadBackError::Label { found: label });
    }
    if request.file_system == FileSystem::Ext4 { check_ext4(volume, request.directories) } else { Ok(()) }
}

fn check_ext4(volume: &File, directories: &[PathBuf]) -> Result<(), ReadBackError> {
    let ext4 = match Ext4::load_from_path(descriptor_path(volume)) {
        // Arguments for mkfs can turn on features that the reader does not know.
        Err(Ext4Error::Incompatible(_)) if directories.is_empty() => return Ok(()),
        loaded => loaded.map_err(|error| ReadBackError::Ext4(Box::new(error)))?,
    };
    for inner in directories.iter().filter_map(|directory| plain_path(directory)) {
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
