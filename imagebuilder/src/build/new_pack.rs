//! Packs that are being written.

use super::job::KeepJob;
use super::output::write_all_at;
use crate::cache::{Cache, CacheError};
use crate::open_files::{OpenFilePermit, OpenFiles};
use crate::pack::block_hashes::PackIdentity;
use crate::pack::{PackHead, write_index};
use crate::plan::PlannedPath;
use crate::settings::ImageSettings;
use program::unnamed_file::UnnamedFile;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A receiver of new packs.
pub(super) trait PackKeeper: Sync {
    /// Creates an empty file for a pack; `None` if no more packs are needed, or too many files are open.
    fn create(&self) -> Result<Option<PackFile>, CacheError>;

    /// Receives a complete pack.
    fn keep(&self, path: &PlannedPath, pack: &NewPack) -> Result<(), CacheError>;
}

/// A file for a pack, and the permission to keep it open.
#[derive(Debug)]
pub(super) struct PackFile {
    file: Arc<UnnamedFile>,
    _permit: Option<OpenFilePermit>,
}

/// A pack that is being written.
#[derive(Debug)]
pub(super) struct NewPack {
    file: PackFile,
    /// Base name of its store path.
    base_name: String,
    /// Whether writing failed, so that the pack will not be kept.
    failed: AtomicBool,
}

impl NewPack {
    /// Creates an empty pack.
    pub(super) fn new(file: PackFile, path: &PlannedPath) -> Self {
        Self { file, base_name: path.path.base_name().to_owned(), failed: AtomicBool::new(false) }
    }

    /// Returns the file.
    pub(super) fn file(&self) -> &Arc<UnnamedFile> {
        &self.file.file
    }

    /// Returns whether it will be kept.
    pub(super) fn is_intact(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    /// Writes bytes at a position. After an error the pack is discarded.
    pub(super) fn write_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> Result<(), CacheError> {
        if !self.is_intact() {
            return Ok(());
        }
        write_all_at(self.file().file(), slices, at, &|_| false).map_err(|source| self.abort(source))
    }

    fn abort(&self, source: io::Error) -> CacheError {
        self.failed.store(true, Ordering::Relaxed);
        // Free the space for others.
        let _ = self.file().file().set_len(0);
        CacheError { action: "write a pack", path: PathBuf::from(&self.base_name), source }
    }

    /// Copies the segments that only the image has, and writes the index.
    pub(super) fn complete(
        &self,
        job: &KeepJob,
        head: &PackHead<'_>,
        image: Option<&File>,
    ) -> Result<PackIdentity, CacheError> {
        let mut buffer = Vec::new();
        let copied = job.from_image.iter().try_for_each(|part| {
            buffer.resize(part.bytes as usize, 0);
            let image = image.ok_or(io::ErrorKind::NotFound)?;
            image.read_exact_at(&mut buffer, part.image_at)?;
            self.file().file().write_all_at(&buffer, part.pack_at)
        });
        copied
            .and_then(|()| write_index(self.file().file(), job.end, head, &job.segments))
            .map(|index| PackIdentity { index, segments_bytes: job.end })
            .map_err(|source| self.abort(source))
    }
}

/// Adds packs to a cache.
pub(super) struct CacheKeeper<'a> {
    /// The cache that receives the packs.
    pub(super) cache: &'a Cache,
    /// The settings of the packs.
    pub(super) settings: &'a ImageSettings,
    /// Files that may be kept open.
    pub(super) open_files: OpenFiles,
}

impl PackKeeper for CacheKeeper<'_> {
    fn create(&self) -> Result<Option<PackFile>, CacheError> {
        // The next build makes a pack that is not made now.
        let Some(permit) = self.open_files.permit() else { return Ok(None) };
        let file = self.cache.new_pack(self.settings)?;
        Ok(file.map(|file| PackFile { file, _permit: Some(permit) }))
    }

    fn keep(&self, path: &PlannedPath, pack: &NewPack) -> Result<(), CacheError> {
        if pack.is_intact() { self.cache.keep_pack(path, self.settings, pack.file()) } else { Ok(()) }
    }
}

/// Receives a single pack, for the caller.
pub(super) struct SinglePack {
    /// The file of the pack.
    pub(super) file: Arc<UnnamedFile>,
    /// Whether it is complete.
    pub(super) whole: AtomicBool,
    /// The first error.
    pub(super) first_error: Mutex<Option<CacheError>>,
}

impl SinglePack {
    /// Creates a receiver for a pack in this file.
    pub(super) fn new(file: UnnamedFile) -> Self {
        Self { file: Arc::new(file), whole: AtomicBool::new(false), first_error: Mutex::new(None) }
    }

    /// Records an error, unless there is an earlier one.
    pub(super) fn record_error(&self, error: CacheError) {
        self.first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

impl PackKeeper for SinglePack {
    fn create(&self) -> Result<Option<PackFile>, CacheError> {
        Ok(Some(PackFile { file: self.file.clone(), _permit: None }))
    }

    fn keep(&self, _path: &PlannedPath, pack: &NewPack) -> Result<(), CacheError> {
        self.whole.store(pack.is_intact(), Ordering::Relaxed);
        Ok(())
    }
}
