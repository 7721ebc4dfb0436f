//! Writes a small file completely or not at all, even if there is a power cut.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A file could not be written. An existing file is unchanged.
#[derive(Debug, Error)]
#[error("cannot write {}", .path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// The error of the system.
    pub source: io::Error,
}

/// Writes `content` to a file beside `path` and renames it. The file is on disk before it is renamed: file systems may
/// write a rename before the content, and a power cut between the two would leave a file of zeros.
///
/// # Errors
/// The directory is missing, full, or may not be written to.
pub fn write(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    let temporary = temporary_sibling(path);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_directory_of(path));
    written.map_err(|source| {
        // Only the first error matters to the user, so a failure to remove the temporary file is not reported.
        _ = fs::remove_file(&temporary);
        WriteError { path: path.to_path_buf(), source }
    })
}

/// Syncs the directory that contains `path`, so that the names in it survive a power cut.
///
/// # Errors
/// The disk fails.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        // The user may write to the directory but not read it, or the file system cannot sync directories.
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => Ok(()),
        other => other,
    }
}

/// Returns a unique hidden name in the same directory. It is random because a killed process with the same id may have
/// left a file.
pub fn temporary_sibling(path: &Path) -> PathBuf {
    // The keys of a hasher are the only random numbers that the standard library offers.
    let chance = RandomState::new().build_hasher().finish();
    let name = path.file_name().unwrap_or_default().as_bytes();
    // A name has at most 255 bytes.
    let beginning = OsStr::from_bytes(&name[..name.len().min(BEGINNING_BYTES)]);
    let mut hidden = OsString::from(".");
    hidden.push(beginning);
    hidden.push(format!(".{chance:016x}.tmp"));
    path.with_file_name(hidden)
}

/// Number of bytes of the file's name that its temporary file's name begins with, to identify leftover files.
const BEGINNING_BYTES: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_file_is_replaced_and_no_temporary_file_remains() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan.json");
        for content in ["first", "second"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_longest_names_can_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("é".repeat(127));
        write(&path, b"x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_failed_write_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write(&path, b"x").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}", path.display()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(write(Path::new("/no/such/directory/file"), b"x").is_err());
    }
}
