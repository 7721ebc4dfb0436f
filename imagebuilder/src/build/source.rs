//! The store paths of an image, listed or known from packs, and how their files are read.

use super::BuildError;
use crate::pack::Pack;
use crate::plan::PlannedPath;
use crate::scan::Listing;
use crate::segment::RANGE_BYTES;
use crate::tree::{Entry, NodeId, Tree};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use rustix::fs::copy_file_range;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// A store path of the image.
#[derive(Debug)]
pub(super) struct Member {
    /// Its name and hash.
    pub(super) planned: PlannedPath,
    /// The location of its files.
    pub(super) location: PathBuf,
    /// The description of its files.
    pub(super) knowledge: Knowledge,
    /// Number of its first regular file among those of the whole image.
    pub(super) first_file: usize,
}

/// How the files of a store path are known.
#[derive(Debug)]
pub(super) enum Knowledge {
    /// A listing; the content must be read.
    Listed(Listing),
    /// A pack, which has everything that the image needs.
    Packed(Box<Pack>),
}

impl Member {
    /// Returns the files.
    pub(super) fn tree(&self) -> &Tree {
        match &self.knowledge {
            Knowledge::Listed(listing) => &listing.tree,
            Knowledge::Packed(pack) => pack.tree(),
        }
    }

    /// Returns the pack, if there is one.
    pub(super) fn pack(&self) -> Option<&Pack> {
        match &self.knowledge {
            Knowledge::Listed(_) => None,
            Knowledge::Packed(pack) => Some(pack),
        }
    }

    /// Returns the listing, if there is no pack.
    pub(super) fn listing(&self) -> Option<&Listing> {
        match &self.knowledge {
            Knowledge::Listed(listing) => Some(listing),
            Knowledge::Packed(_) => None,
        }
    }

    /// Returns the length of all its files in bytes.
    pub(super) fn input_bytes(&self) -> u64 {
        self.tree().file_sizes().iter().sum()
    }

    /// Returns the path of a node.
    pub(super) fn path_of(&self, node: NodeId) -> PathBuf {
        let tree = self.tree();
        let mut names = Vec::new();
        let mut below = node;
        while let Some(parent) = tree.parent(below) {
            names.push(tree.name(below));
            below = parent;
        }
        let mut path = self.location.clone().into_os_string();
        for name in names.into_iter().rev() {
            path.push("/");
            path.push(OsStr::from_bytes(name));
        }
        path.into()
    }

    /// Returns the length of a file in bytes; 0 for other nodes.
    pub(super) fn file_length(&self, node: NodeId) -> u64 {
        match self.tree().entry(node) {
            Entry::File { size_bytes, .. } => size_bytes,
            Entry::Directory { .. } | Entry::Symlink { .. } => 0,
        }
    }

    /// Fills `out` with a range of a file, and checks that the file has not changed since it was listed.
    pub(super) fn read(&self, node: NodeId, range: usize, out: &mut [u8]) -> Result<(), BuildError> {
        let file = SourceFile::open(self, node)?;
        file.read_at(range as u64 * RANGE_BYTES, out)?;
        file.finish()
    }

    /// Opens a regular file.
    pub(super) fn open(&self, node: NodeId) -> Result<SourceFile, BuildError> {
        SourceFile::open(self, node)
    }
}

/// A regular file of a store path, open for reading.
#[derive(Debug)]
pub(super) struct SourceFile {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    /// The modification time, if the file was listed.
    modified: Option<(i64, i64)>,
}

impl SourceFile {
    fn open(member: &Member, node: NodeId) -> Result<Self, BuildError> {
        let path = member.path_of(node);
        let Entry::File { file: number, size_bytes, .. } = member.tree().entry(node) else {
            return Err(BuildError::Changed { path });
        };
        let modified = member.listing().map(|listing| listing.modified[number as usize]);
        Self::open_path(path, size_bytes, modified)
    }

    /// Opens the file at `path`, which had this length and modification time when it was listed.
    pub(super) fn open_path(path: PathBuf, size_bytes: u64, modified: Option<(i64, i64)>) -> Result<Self, BuildError> {
        // Without waiting: a pipe in place of the file would have no writer.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let opened = File::options().read(true).custom_flags(flags).open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BuildError::Changed { path }),
            other => other.map_err(|source| BuildError::Read { path: path.clone(), source })?,
        };
        Ok(Self { file, path, size_bytes, modified })
    }

    /// Fills `out` with the bytes from `offset` on.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), BuildError> {
        self.file.read_exact_at(out, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => BuildError::Changed { path: self.path.clone() },
            _ => BuildError::Read { path: self.path.clone(), source },
        })
    }

    /// Whether these bytes are a hole of the file: they take no space, and are zeros.
    pub(super) fn is_hole(&self, offset: u64, length: u64) -> bool {
        let seek = |offset: u64| lseek(&self.file, i64::try_from(offset).unwrap_or(i64::MAX), Whence::SeekData);
        match seek(offset) {
            Ok(data) => u64::try_from(data).is_ok_and(|data| data >= offset + length),
            // There is no data behind `offset`.
            Err(Errno::ENXIO) => true,
            Err(_) => false,
        }
    }

    /// Copies whole blocks to a place in another file by `copy_file_range`, which shares them where the file system
    /// can. Returns how many bytes were copied: less than `length` if this does not work here.
    pub(super) fn share(&self, offset: u64, (target, at): (&File, u64), length: u64) -> Result<u64, BuildError> {
        let mut done = 0;
        while done < length {
            let (mut from, mut to) = (offset + done, at + done);
            let left = usize::try_from(length - done).unwrap_or(usize::MAX);
            match copy_file_range(&self.file, Some(&mut from), target, Some(&mut to), left) {
                // The file is shorter than it was.
                Ok(0) => return Err(BuildError::Changed { path: self.path.clone() }),
                Ok(copied) => done += copied as u64,
                Err(rustix::io::Errno::INTR) => {}
                // Reading and writing works everywhere, or gives the error with its reason.
                Err(_) => return Ok(done),
            }
        }
        Ok(done)
    }

    /// Says whether the file was left alone until it had been read: its length and modification time are those that
    /// were listed. The change time does not count: `nix-store --optimise` may link files meanwhile.
    pub(super) fn finish(self) -> Result<(), BuildError> {
        let metadata = self.file.metadata().map_err(|source| BuildError::Read { path: self.path.clone(), source })?;
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        let same = metadata.len() == self.size_bytes && self.modified.is_none_or(|listed| listed == modified);
        if same { Ok(()) } else { Err(BuildError::Changed { path: self.path }) }
    }
}
