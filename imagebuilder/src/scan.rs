//! Lists the files of a store path: names, types and sizes. No content is read.

use crate::tree::{FileMode, NodeId, Tree, TreeError};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use thiserror::Error;
use twox_hash::XxHash3_128;

/// A store path cannot be listed.
#[derive(Debug, Error)]
pub enum ScanError {
    /// A file or directory cannot be read.
    #[error("cannot list {}", .path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// A file has a type that does not occur in a Nix store.
    #[error("{} is {kind}: a Nix store holds only regular files, directories and symbolic links", .path.display())]
    Kind {
        /// The file or directory.
        path: PathBuf,
        /// The type of the file, with an article.
        kind: &'static str,
    },
    /// A file has mode bits that Nix removes.
    #[error("{} has mode {mode:04o}: a Nix store holds no setuid, setgid or sticky files", .path.display())]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits, including setuid, setgid and sticky.
        mode: u32,
    },
    /// The image format does not support a name or target.
    #[error("an image cannot contain {}", .path.display())]
    Tree {
        /// The file or directory.
        path: PathBuf,
        /// The limit of the format.
        #[source]
        source: TreeError,
    },
    /// A store path does not have the NAR size in the closure's source.
    #[error(
        "{} has a NAR size of {actual_bytes} bytes, but the closure's source says {expected_bytes}: \
         the store path is damaged, or the source describes another one",
        .path.display()
    )]
    NarSize {
        /// The store path.
        path: PathBuf,
        /// The size in the source.
        expected_bytes: u64,
        /// The actual size.
        actual_bytes: u64,
    },
}

/// A listed store path.
#[derive(Debug, Default)]
pub struct Listing {
    /// The files of the store path, in the order of a NAR.
    pub tree: Tree,
    /// Modification times of the regular files, by file number, to detect whether they change before they are read.
    pub modified: Vec<(i64, i64)>,
    /// A value for each regular file, by file number, which differs when the file is replaced or changed, even if its
    /// modification time stays the same, as when Nix repairs a store path.
    pub versions: Vec<u64>,
    /// Device and inode of the regular files that have several links, by file number. `nix-store --optimise` replaces
    /// files of equal content with hard links.
    pub linked: HashMap<u32, (u64, u64)>,
}

/// Lists the store path at `path`.
///
/// # Errors
/// Something in it cannot be listed, or cannot occur in a Nix store.
pub fn list(path: &Path) -> Result<Listing, ScanError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| unreadable(path, source))?;
    let mut listing = Listing::default();
    listing.add(path, b"", metadata.file_type(), || Ok(metadata))?;
    Ok(listing)
}

impl Listing {
    fn add(
        &mut self,
        path: &Path,
        name: &[u8],
        kind: FileType,
        metadata: impl FnOnce() -> io::Result<Metadata>,
    ) -> Result<NodeId, ScanError> {
        let too_large = |source| ScanError::Tree { path: path.to_owned(), source };
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|source| unreadable(path, source))?;
            return self.tree.add_symlink(name, target.as_os_str().as_bytes()).map_err(too_large);
        }
        if !kind.is_dir() && !kind.is_file() {
            return Err(ScanError::Kind { path: path.to_owned(), kind: kind_text(kind) });
        }
        let metadata = metadata().map_err(|source| unreadable(path, source))?;
        let mode = metadata.mode() & 0o7777;
        if mode & 0o7000 != 0 {
            return Err(ScanError::Mode { path: path.to_owned(), mode });
        }
        if kind.is_dir() {
            let directory = self.tree.open_directory(name).map_err(too_large)?;
            self.add_entries(path)?;
            self.tree.close_directory(directory);
            return Ok(directory);
        }
        let file = u32::try_from(self.modified.len()).map_err(|_| too_large(TreeError::TooLarge))?;
        self.modified.push((metadata.mtime(), metadata.mtime_nsec()));
        self.versions.push(version(&metadata));
        if metadata.nlink() > 1 {
            self.linked.insert(file, (metadata.dev(), metadata.ino()));
        }
        let executable = if mode & 0o100 == 0 { FileMode::Regular } else { FileMode::Executable };
        self.tree.add_file(name, metadata.len(), executable).map_err(too_large)
    }

    /// Adds the entries of a directory, sorted by name.
    fn add_entries(&mut self, directory: &Path) -> Result<(), ScanError> {
        let fail = |source| unreadable(directory, source);
        let mut entries = fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| (entry.file_name().into_vec(), entry))).collect())
            .map_err(fail)
            .map(|entries: Vec<_>| entries)?;
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, entry) in entries {
            let path = directory.join(OsString::from_vec(name.clone()));
            let kind = entry.file_type().map_err(|source| unreadable(&path, source))?;
            self.add(&path, &name, kind, || entry.metadata())?;
        }
        Ok(())
    }
}

/// Returns a value that differs when a file is replaced or changed.
fn version(metadata: &Metadata) -> u64 {
    let numbers = [metadata.ino(), metadata.ctime().cast_unsigned(), metadata.ctime_nsec().cast_unsigned()];
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    XxHash3_128::oneshot(&bytes) as u64
}

fn unreadable(path: &Path, source: io::Error) -> ScanError {
    ScanError::Unreadable { path: path.to_owned(), source }
}

fn kind_text(kind: FileType) -> &'static str {
    if kind.is_block_device() {
        "a block device"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a named pipe"
    }
}
