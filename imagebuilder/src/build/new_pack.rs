//! Packs that are being written.

use super::job::KeepJob;
use super::output::write_all_at;
use crate::cache::{Cache, CacheError, UnfinishedPack};
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
    file: Arc<UnfinishedPack>,
    _permit: Option<OpenFilePermit>,
}

/// A pack that is being written.
#[derive(Debug)]
pub(super) struct NewPack {
    file: PackFile,
    /// Base name of its store path.
    base_name: String,
}

impl NewPack {
    /// Creates an empty pack.
    pub(super) fn new(file: PackFile, path: &PlannedPath) -> Self {
        Self { file, base_name: path.path.base_name().to_owned() }
    }

    /// Returns the file.
    pub(super) fn file(&self) -> &Arc<UnfinishedPack> {
        &self.file.file
    }

    /// Returns whether it will be kept.
    pub(super) fn is_intact(&self) -> bool {
        !self.file().is_discarded()
    }

    /// Writes bytes at a position. After an error the pack is discarded.
    pub(super) fn write_at(&self, slices: &mut [IoSlice<'_>], at: u64) -> Result<(), CacheError> {
        let written = self.file().write(|file| write_all_at(file, slices, at, &|_| false));
        written.unwrap_or(Ok(())).map_err(|source| self.discard(source))
    }

    fn discard(&self, source: io::Error) -> CacheError {
        self.file().discard();
        CacheError { action: "write a pack", path: PathBuf::from(&self.base_name), source }
    }

    /// Copies the segments that only the image has, and writes the index. Returns `None` if the pack was discarded.
    pub(super) fn complete(
        &self,
        job: &KeepJob,
        head: &PackHead<'_>,
        image: Option<&File>,
    ) -> Result<Option<PackIdentity>, CacheError> {
        let mut buffer = Vec::new();
        let completed = self.file().write(|pack| {
            for part in &job.from_image {
                buffer.resize(part.bytes as usize, 0);
                let image = image.ok_or(io::ErrorKind::NotFound)?;
                image.read_exact_at(&mut buffer, part.image_at)?;
                pack.write_all_at(&buffer, part.pack_at)?;
            }
            let index = write_index(pack, job.end, head, &job.segments)?;
            Ok(PackIdentity { index, segments_bytes: job.end })
        });
        completed.transpose().map_err(|source| self.discard(source))
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
    pub(super) file: Arc<UnfinishedPack>,
    /// Whether it is complete.
    pub(super) whole: AtomicBool,
    /// The first error.
    pub(super) first_error: Mutex<Option<CacheError>>,
}

impl SinglePack {
    /// Creates a receiver for a pack in this file.
    pub(super) fn new(file: UnnamedFile) -> Self {
        Self { file: Arc::new(UnfinishedPack::new(file)), whole: AtomicBool::new(false), first_error: Mutex::new(None) }
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
