//! Whether something exists, as opposed to an I/O error that prevents finding out.

use std::fs;
use std::io;
use std::path::Path;

/// Whether there is a directory at `path`, or a link to one.
///
/// # Errors
/// Fails if the system cannot tell, for example because the disk fails or a directory cannot be entered.
pub fn is_directory(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}
