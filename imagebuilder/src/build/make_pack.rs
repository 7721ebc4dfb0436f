//! Makes the pack of one store path.

use super::earlier::Earlier;
use super::new_pack::SinglePack;
use super::scan::list;
use super::{BuildError, Target, write_blocks};
use crate::cache::{CacheError, UnfinishedPack};
use crate::plan::PlannedPath;
use crate::progress::Silent;
use crate::settings::ImageSettings;
use crate::threads::MAX_JOBS;
use program::unnamed_file::UnnamedFile;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

/// The pack to make.
#[derive(Clone, Copy, Debug)]
pub struct PackRequest<'a> {
    /// The store path. Its NAR hash is written to the pack; the caller must check that it is correct.
    pub path: &'a PlannedPath,
    /// The location of its files.
    pub location: &'a Path,
    /// Codec and block sizes.
    pub settings: &'a ImageSettings,
    /// Directory in which the file is created.
    pub directory: &'a Path,
    /// The pack of an earlier version, whose compressed blocks are reused. It is trusted like the cache.
    pub earlier: Option<&'a File>,
    /// Number of threads that read and compress, from 1 to [`MAX_JOBS`].
    pub jobs: usize,
}

/// Makes a pack as a complete file without a name. [`crate::cache::Cache::keep_pack`] can give it a name.
///
/// # Errors
/// The location does not contain a store path of this NAR size, it cannot be read, or the pack cannot be written.
/// Nothing remains then.
pub fn make_pack(request: &PackRequest<'_>, cancel: &AtomicBool) -> Result<Arc<UnfinishedPack>, BuildError> {
    let place = request.directory.join("pack");
    let fail = |source| CacheError { action: "create a pack", path: request.directory.to_owned(), source };
    let one = SinglePack::new(UnnamedFile::create_sibling(&place).map_err(fail)?);
    let mut store_path = list(request.path, request.location.to_owned())?;
    let earlier = request.earlier.and_then(|file| file.try_clone().ok());
    store_path.earlier = earlier.and_then(|file| Earlier::open_one(file, request.settings)).map(Box::new);
    let store_paths = [store_path];
    let target = Target { store_paths: &store_paths, settings: request.settings, image: None, keeper: Some(&one) };
    let threads = request.jobs.clamp(1, MAX_JOBS);
    write_blocks(&target, threads, cancel, &|error| one.record_error(error), &mut Silent)?;
    if let Some(error) = one.first_error.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error.into());
    }
    if !one.whole.load(Ordering::Relaxed) {
        return Err(BuildError::Defect { what: "a pack was not completed" });
    }
    Ok(one.file)
}
