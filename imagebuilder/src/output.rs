//! Checks whether an image or another file can be written to its path, before any work is done.

use program::presence::is_directory;
use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The output cannot be written.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The directory is missing.
    #[error("cannot write {}: there is no directory {}", .path.display(), .directory.display())]
    NoDirectory {
        /// The output.
        path: PathBuf,
        /// Its directory.
        directory: PathBuf,
    },
    /// The path exists and is not a regular file.
    #[error("cannot write {}: it is {kind}, and only regular files are replaced", .path.display())]
    NotAFile {
        /// The output.
        path: PathBuf,
        /// The type of the existing file, with an article.
        kind: &'static str,
    },
    /// The path does not end with a file name.
    #[error("cannot write {}: it names no file", .path.display())]
    NoName {
        /// The output.
        path: PathBuf,
    },
    /// The metadata of the path cannot be read.
    #[error("cannot write {}", .path.display())]
    Look {
        /// The output.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Checks whether `path` can be written: its directory exists, and it is a regular file or does not exist.
///
/// # Errors
/// It cannot be written.
pub fn check(path: &Path) -> Result<(), OutputError> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    };
    match is_directory(directory) {
        Ok(true) => {}
        Ok(false) => {
            return Err(OutputError::NoDirectory { path: path.to_path_buf(), directory: directory.to_path_buf() });
        }
        Err(source) => return Err(OutputError::Look { path: path.to_path_buf(), source }),
    }
    // Symbolic links are followed, so that a link to a device is recognised as a device.
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

/// Returns the name of a file type; `None` for a regular file.
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
