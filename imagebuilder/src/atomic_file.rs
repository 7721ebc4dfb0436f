//! Writes a small file whole or not at all.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use thiserror::Error;

/// Why a file was not written. Then what stood there before stands there still.
#[derive(Debug, Error)]
#[error("cannot write {}", .path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Writes `content` to a file beside `path` and renames it.
///
/// # Errors
/// The directory is missing, full, or may not be written to.
pub fn write(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    let temporary = beside(path);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // The error that is told is the first one; a file that cannot be removed either is not the user's concern.
        _ = fs::remove_file(&temporary);
        WriteError { path: path.to_path_buf(), source }
    })
}

/// A hidden name in the same directory, of this process alone.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_what_was_there_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan.json");
        for content in ["first", "second"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write(&path, b"x").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}", path.display()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(write(Path::new("/no/such/directory/file"), b"x").is_err());
    }
}
