//! Checks whether an image or another file can be written to its path, before any work is done.

use crate::cache::LAYOUT_DIRECTORY;
use crate::plan::ImagePlan;
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
    /// The output is one of the files that the image is made from.
    #[error("cannot write {}: it is in the store path {store_path}, which the image is made from", .path.display())]
    InStorePath {
        /// The output.
        path: PathBuf,
        /// Base name of the store path.
        store_path: String,
    },
    /// The output is in the directory whose files the cache removes.
    #[error("cannot write {}: the cache removes the files in {}", .path.display(), .directory.display())]
    InCache {
        /// The output.
        path: PathBuf,
        /// The directory of the cache's entries.
        directory: PathBuf,
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
    let not_a_file = |kind| OutputError::NotAFile { path: path.to_path_buf(), kind };
    // A link is replaced, and replacing /dev/stdout would break other programs. Unlike the target of another link, that of
    // an open file cannot be seen in its name.
    if path == Path::new("-") || leads_to_open_file(path) {
        return Err(not_a_file("an open file such as stdout"));
    }
    // Symbolic links are followed, so that a link to a device is recognised as a device.
    match fs::metadata(path) {
        Ok(found) => match kind(found.file_type()) {
            Some(kind) => Err(not_a_file(kind)),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.file_name().is_some() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OutputError::NoName { path: path.to_path_buf() }),
        Err(source) => Err(OutputError::Look { path: path.to_path_buf(), source }),
    }
}

/// Checks that an image is neither in a store path that it is made from nor among the entries of its cache.
///
/// # Errors
/// It is.
pub fn check_apart(path: &Path, plan: &ImagePlan, cache: Option<&Path>) -> Result<(), OutputError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // `check` reports a missing directory.
    let (Ok(directory), Some(name)) = (fs::canonicalize(parent), path.file_name()) else { return Ok(()) };
    let place = directory.join(name);
    let within = |outer: &Path| fs::canonicalize(outer).ok().and_then(|outer| place.strip_prefix(outer).ok());
    if let Some(inner) = within(&plan.store_dir)
        && let Some(first) = inner.components().next()
        && let Some(planned) = plan.paths.iter().find(|planned| planned.path.base_name() == first.as_os_str())
    {
        let store_path = planned.path.base_name().to_owned();
        return Err(OutputError::InStorePath { path: path.to_path_buf(), store_path });
    }
    match cache.map(|cache| cache.join(LAYOUT_DIRECTORY)).filter(|directory| within(directory).is_some()) {
        Some(directory) => Err(OutputError::InCache { path: path.to_path_buf(), directory }),
        None => Ok(()),
    }
}

/// Returns whether `path` is a name of an open file of a process, or a link to one: proc(5).
fn leads_to_open_file(path: &Path) -> bool {
    const MAX_LINKS: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Ok(directory) = fs::canonicalize(parent) else { return false };
        let Ok(target) = fs::read_link(&path) else { return false };
        if directory.starts_with("/proc") {
            return true;
        }
        path = directory.join(target);
    }
    false
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
