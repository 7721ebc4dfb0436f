//! The bytes of the disk: metadata from memory, the rest from store files that are opened when they are read.

use super::request::SECTOR_BYTES;
use crate::block_map::{BlockMap, FileId, Source};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Maximum number of store files that stay open.
const MAX_OPEN_FILES: usize = 512;

/// Bytes that can be read at any position.
pub trait DiskContent: Send + Sync {
    /// Length in bytes, a multiple of [`SECTOR_BYTES`].
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` with the bytes from `start` on.
    ///
    /// # Errors
    /// They cannot be read, or are past the end.
    fn read_at(&self, start: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// The content of an image that does not exist as a file.
#[derive(Debug)]
pub struct StoreContent {
    map: BlockMap,
    store: OwnedFd,
    open: Mutex<OpenFiles>,
}

/// The files that were read most recently.
#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<FileId, (Arc<File>, u64)>,
    /// Number of uses so far. The file with the lowest number of its last use is closed first.
    now: u64,
}

/// The store directory cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the store directory {}", .path.display())]
pub struct StoreDirError {
    /// Its path.
    pub path: PathBuf,
    /// The error of the system.
    pub source: io::Error,
}

impl StoreContent {
    /// Creates the content of `map`, whose store files must not change.
    ///
    /// # Errors
    /// [`StoreDirError`].
    pub fn open(map: BlockMap) -> Result<Self, StoreDirError> {
        let path = map.files().store_dir();
        let store = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| StoreDirError { path: path.to_owned(), source: error.into() })?;
        Ok(Self { map, store, open: Mutex::default() })
    }

    /// The content as a list of sources.
    pub fn map(&self) -> &BlockMap {
        &self.map
    }

    fn file(&self, id: FileId) -> io::Result<Arc<File>> {
        let recent = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = recent().get(id) {
            return Ok(file);
        }
        // Opened without the lock, so that other queues can continue to read.
        let file = Arc::new(self.open_file(id)?);
        recent().insert(id, Arc::clone(&file));
        Ok(file)
    }

    /// Opens a store file, which must still have the length that it has in the image. Links out of the store are not followed.
    fn open_file(&self, id: FileId) -> io::Result<File> {
        let place = self.map.file_path(id).ok_or(io::ErrorKind::NotFound)?;
        let mut path = place.store_path.base_name().as_bytes().to_vec();
        if !place.relative.is_empty() {
            path.push(b'/');
            path.extend_from_slice(&place.relative);
        }
        let path = OsString::from_vec(path);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(&self.store, Path::new(&path), flags, Mode::empty(), resolve)?;
        let status = fstat(&file)?;
        let is_file = FileType::from_raw_mode(status.st_mode).is_file();
        if !is_file || u64::try_from(status.st_size).ok() != self.map.files().file_size_bytes(id) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} has changed since it was listed", place.store_dir.join(path).display()),
            ));
        }
        Ok(File::from(file))
    }
}

impl OpenFiles {
    fn get(&mut self, id: FileId) -> Option<Arc<File>> {
        self.now += 1;
        let (file, used) = self.files.get_mut(&id)?;
        *used = self.now;
        Some(Arc::clone(file))
    }

    fn insert(&mut self, id: FileId, file: Arc<File>) {
        if self.files.len() >= MAX_OPEN_FILES {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.files.remove(&oldest);
            }
        }
        self.files.insert(id, (file, self.now));
    }
}

impl DiskContent for StoreContent {
    fn size_bytes(&self) -> u64 {
        self.map.size_bytes().next_multiple_of(SECTOR_BYTES)
    }

    fn read_at(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = start.checked_add(buffer.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let mut rest = buffer;
        for extent in self.map.extents_in(start..end) {
            let length = usize::try_from(extent.length).map_err(|_| io::ErrorKind::InvalidInput)?;
            let (part, remaining) = rest.split_at_mut_checked(length).ok_or(io::ErrorKind::InvalidInput)?;
            match extent.source {
                Source::Zeros => part.fill(0),
                Source::Metadata { offset } => {
                    let bytes = usize::try_from(offset).ok().and_then(|offset| self.map.metadata().get(offset..));
                    part.copy_from_slice(
                        bytes.and_then(|bytes| bytes.get(..length)).ok_or(io::ErrorKind::UnexpectedEof)?,
                    );
                }
                Source::File { file, offset } => self.file(file)?.read_exact_at(part, offset)?,
            }
            rest = remaining;
        }
        // The last sector may be longer than the image.
        rest.fill(0);
        Ok(())
    }
}
