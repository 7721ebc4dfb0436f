//! May an image or another file be written where it is asked for? Looked at before any work.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why nothing can be written there.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The directory is missing.
    #[error("cannot write {}: there is no directory {}", .path.display(), .directory.display())]
    NoDirectory {
        /// The output.
        path: PathBuf,
        /// The directory it should go to.
        directory: PathBuf,
    },
    /// What is there is not a regular file.
    #[error("cannot write {}: it is {kind}, and only regular files are replaced", .path.display())]
    NotAFile {
        /// The output.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The path ends in no file name.
    #[error("cannot write {}: it names no file", .path.display())]
    NoName {
        /// The output.
        path: PathBuf,
    },
    /// It cannot be looked at.
    #[error("cannot write {}", .path.display())]
    Look {
        /// The output.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Checks whether `path` can be written: its directory exists, and it is a regular file or does not exist.
///
/// # Errors
/// It may not.
pub fn check(path: &Path) -> Result<(), OutputError> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    };
    if !directory.is_dir() {
        return Err(OutputError::NoDirectory { path: path.to_path_buf(), directory: directory.to_path_buf() });
    }
    // Links are followed: one that leads to a device must not be taken for a file that is in the way.
    match fs::metadata(path) {
        Ok(found) => match kind(found.file_type()) {
            Some(kind) => Err(OutputError::NotAFile { path: path.to_path_buf(), kind }),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.file_name().is_some() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OutputError::NoName { path: path.to_path_buf() }),
        Err(source) => Err(OutputError::Look { path: path.to_path_buf(), source }),
    }
}

/// What is there, when it is not a regular file.
fn kind(file_type: FileType) -> Option<&'static str> {
    if file_type.is_file() {
        None
    } else if file_type.is_dir() {
        Some("a directory")
    } else if file_type.is_block_device() {
        Some("a block device")
    } else if file_type.is_char_device() {
        Some("a character device")
    } else if file_type.is_fifo() {
        Some("a pipe")
    } else {
        Some("a socket")
    }
}
