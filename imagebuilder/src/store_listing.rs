//! A listing of the files of a closure, without their content. It determines the layout of an image without
//! compression.

use crate::block_map::{FileId, StoreFiles, StorePathTree};
use crate::plan::{ImagePlan, PlannedPath};
use crate::scan::{self, Listing, ScanError};
use crate::threads::map_for_disk;
use crate::tree::Entry;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// The files of a closure.
#[derive(Debug)]
pub struct StoreListing {
    /// The files, in store paths that are sorted by base name.
    pub files: Arc<StoreFiles>,
    /// Modification times of the regular files, indexed by store path and file number.
    modified: Vec<Vec<(i64, i64)>>,
    /// What differs when a regular file is replaced or changed, indexed by store path and file number.
    versions: Vec<Vec<u64>>,
    /// Device and inode of the regular files that have several links.
    linked: HashMap<FileId, (u64, u64)>,
}

impl StoreListing {
    /// Lists the store paths of a plan with `threads` threads or more, because they may
    /// wait for the disk.
    ///
    /// # Errors
    /// All problems: files that cannot be listed or cannot occur in a store, and store paths with another NAR size than
    /// in the plan.
    pub fn of(plan: &ImagePlan, threads: usize) -> Result<Self, Vec<ScanError>> {
        let mut store_paths = Vec::with_capacity(plan.paths.len());
        let mut modified = Vec::with_capacity(plan.paths.len());
        let mut versions = Vec::with_capacity(plan.paths.len());
        let mut linked = HashMap::new();
        let mut problems = Vec::new();
        let listings = map_for_disk(threads, &plan.paths, |planned| list(planned, plan));
        for ((planned, store_path), listing) in plan.paths.iter().zip(0..).zip(listings) {
            match listing {
                Err(problem) => problems.push(problem),
                Ok(listing) => {
                    linked.extend(linked_files(&listing, store_path));
                    modified.push(listing.modified);
                    versions.push(listing.versions);
                    store_paths.push(StorePathTree { path: planned.path.clone(), tree: listing.tree });
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self { files: Arc::new(StoreFiles::new(plan.store_dir.clone(), store_paths)), modified, versions, linked })
    }

    /// Returns all regular files.
    pub fn regular_files(&self) -> impl Iterator<Item = (FileId, u64)> + '_ {
        self.files.store_paths().iter().zip(0..).flat_map(|(StorePathTree { tree, .. }, store_path)| {
            (0..tree.len()).filter_map(move |node| match tree.entry(node) {
                Entry::File { size_bytes, .. } => Some((FileId { store_path, node }, size_bytes)),
                Entry::Directory { .. } | Entry::Symlink { .. } => None,
            })
        })
    }

    /// Returns the modification time of a regular file when it was listed.
    pub(crate) fn modified(&self, file: FileId) -> Option<(i64, i64)> {
        self.modified.get(file.store_path as usize)?.get(self.number(file)?).copied()
    }

    /// Returns what differs when a regular file is replaced or changed.
    pub(crate) fn version(&self, file: FileId) -> Option<u64> {
        self.versions.get(file.store_path as usize)?.get(self.number(file)?).copied()
    }

    /// Returns the number of a regular file among those of its store path.
    fn number(&self, file: FileId) -> Option<usize> {
        match self.files.store_paths().get(file.store_path as usize)?.tree.entry(file.node) {
            Entry::File { file: number, .. } => Some(number as usize),
            Entry::Directory { .. } | Entry::Symlink { .. } => None,
        }
    }

    /// Returns the device and inode of a file that has several links.
    pub(crate) fn linked(&self, file: FileId) -> Option<(u64, u64)> {
        self.linked.get(&file).copied()
    }

    /// Returns the path of a file.
    pub(crate) fn path(&self, file: FileId) -> PathBuf {
        let Some(place) = self.files.file_path(file) else { return PathBuf::new() };
        let mut path = place.store_dir.join(place.store_path.base_name());
        if !place.relative.is_empty() {
            path.push(OsStr::from_bytes(&place.relative));
        }
        path
    }
}

/// Lists a store path, and compares its size with that in the plan.
fn list(planned: &PlannedPath, plan: &ImagePlan) -> Result<Listing, ScanError> {
    let path = plan.store_dir.join(planned.path.base_name());
    let listing = scan::list(&path)?;
    let actual_bytes = listing.tree.nar_size_bytes();
    match planned.nar_size_bytes.filter(|expected| *expected != actual_bytes) {
        Some(expected_bytes) => Err(ScanError::NarSize { path, expected_bytes, actual_bytes }),
        None => Ok(listing),
    }
}

/// Returns the files of a listing that have several links.
fn linked_files(listing: &Listing, store_path: u32) -> Vec<(FileId, (u64, u64))> {
    if listing.linked.is_empty() {
        return Vec::new();
    }
    let tree = &listing.tree;
    let linked = |node| match tree.entry(node) {
        Entry::File { file, .. } => Some((FileId { store_path, node }, *listing.linked.get(&file)?)),
        Entry::Directory { .. } | Entry::Symlink { .. } => None,
    };
    (0..tree.len()).filter_map(linked).collect()
}
