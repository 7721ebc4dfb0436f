//! Determines the content of the store paths, from their packs or by listing them.

use super::check::matches_store;
use super::earlier::Earlier;
use super::read_ahead::ScanAhead;
use super::source::{InputPath, PathData};
use super::{BuildError, BuildOptions, CacheTrust, cache_warning};
use crate::cache::{Cache, CacheError};
use crate::open_files::OpenFiles;
use crate::pack::{OpenError, Pack, PackFile, PackOpener, PackSource};
use crate::plan::{ImagePlan, PlannedPath};
use crate::scan::{self, ScanError};
use crate::settings::ImageSettings;
use crate::store_path::StorePath;
use crate::threads::{map_for_disk, map_in_parallel};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The store paths of an image.
pub(super) struct Scanned {
    /// The store paths in the order of the data.
    pub(super) store_paths: Vec<InputPath>,
    /// Numbers of the store paths that were listed because their pack was damaged.
    pub(super) rebuilt: BTreeSet<usize>,
}

impl Scanned {
    /// Returns whether the build keeps packs open.
    pub(super) fn has_open_packs(&self) -> bool {
        self.store_paths.iter().any(|store_path| store_path.pack().is_some() || store_path.earlier.is_some())
    }
}

/// Looks up packs, and lists store paths without one.
pub(super) struct Scanner<'a> {
    plan: &'a ImagePlan,
    settings: &'a ImageSettings,
    trust: CacheTrust,
    source: Option<&'a dyn PackSource>,
    source_works: AtomicBool,
    cache: Option<&'a Cache>,
    cancel: &'a AtomicBool,
    opener: PackOpener,
    ahead: ScanAhead,
    warnings: Mutex<Vec<String>>,
}

/// The result of a lookup of a pack.
enum Found {
    Sound(Box<Pack>),
    Nothing,
    Damaged,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(
        (plan, settings): (&'a ImagePlan, &'a ImageSettings),
        options: &'a BuildOptions,
        cache: Option<&'a Cache>,
        (cancel, open_files): (&'a AtomicBool, OpenFiles),
    ) -> Self {
        Self {
            plan,
            settings,
            trust: options.cache_trust,
            source: options.packs.as_deref(),
            source_works: AtomicBool::new(true),
            cache,
            cancel,
            opener: PackOpener::new(settings, open_files),
            ahead: ScanAhead::default(),
            warnings: Mutex::new(Vec::new()),
        }
    }

    /// Returns the warnings about packs, only the first of each kind.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        // One is enough if every store path has the same problem.
        if warnings.is_empty() {
            warnings.push(warning);
        }
    }

    /// Determines the content of all store paths, in the order of the data.
    ///
    /// They are ordered by name, not by hash: an update changes hashes, which should not change the content that a path
    /// shares with its neighbours.
    pub(super) fn scan(&self, threads: usize) -> Result<Scanned, BuildError> {
        let paths = &self.plan.paths;
        let order = StorePath::order(paths.iter().map(|planned| &planned.path), StorePath::name);
        let ordered: Vec<&PlannedPath> = order.into_iter().map(|number| &paths[number]).collect();
        // Packs of paths without a hash are compared with the store, which takes processor time.
        let has_packs = self.cache.is_some() || self.source.is_some();
        let compares = self.trust != CacheTrust::Checksums || paths.iter().any(|planned| planned.nar_hash.is_none());
        let scan = |planned: &&PlannedPath| self.scan_path(planned);
        let results = if has_packs && compares {
            map_in_parallel(threads, &ordered, scan)
        } else {
            map_for_disk(threads, &ordered, scan)
        };
        let mut scanned = Scanned { store_paths: Vec::with_capacity(results.len()), rebuilt: BTreeSet::new() };
        let mut problems = Vec::new();
        let mut first_file = 0;
        for (number, result) in results.into_iter().enumerate() {
            match result {
                Ok((mut store_path, is_damaged)) => {
                    store_path.first_file = first_file;
                    first_file += store_path.tree().file_sizes().len();
                    scanned.store_paths.push(store_path);
                    if is_damaged {
                        scanned.rebuilt.insert(number);
                    }
                }
                Err(BuildError::Scan(mut more)) => problems.append(&mut more),
                Err(other) => return Err(other),
            }
        }
        if problems.is_empty() { Ok(scanned) } else { Err(BuildError::Scan(problems)) }
    }

    /// Lists the store paths of packs that turned out to be damaged.
    pub(super) fn scan_again(&self, scanned: &mut Scanned, damaged: &BTreeSet<usize>) -> Result<(), BuildError> {
        scanned.rebuilt.extend(damaged);
        self.list_again(scanned, damaged.iter().copied())
    }

    /// Closes all packs, and lists their store paths.
    pub(super) fn give_packs_up(&self, scanned: &mut Scanned) -> Result<(), BuildError> {
        scanned.store_paths.iter_mut().for_each(|store_path| store_path.earlier = None);
        let is_packed = |number: &usize| scanned.store_paths[*number].pack().is_some();
        let packed: Vec<usize> = (0..scanned.store_paths.len()).filter(is_packed).collect();
        self.list_again(scanned, packed.into_iter())
    }

    fn list_again(&self, scanned: &mut Scanned, numbers: impl Iterator<Item = usize>) -> Result<(), BuildError> {
        for number in numbers {
            let store_path = self.list(&scanned.store_paths[number].planned)?;
            scanned.store_paths[number].data = store_path.data;
        }
        let mut first_file = 0;
        for store_path in &mut scanned.store_paths {
            store_path.first_file = first_file;
            first_file += store_path.tree().file_sizes().len();
        }
        Ok(())
    }

    /// Determines the content of a store path, and returns whether its pack was damaged.
    fn scan_path(&self, planned: &PlannedPath) -> Result<(InputPath, bool), BuildError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(BuildError::Interrupted);
        }
        let mut is_damaged = false;
        for ask in [Self::query_source, Self::query_cache] {
            match self.open(ask(self, planned), planned) {
                Found::Nothing => {}
                Found::Damaged => is_damaged = true,
                Found::Sound(pack) if planned.nar_hash.is_some() && self.trust == CacheTrust::Checksums => {
                    return Ok((self.store_path(planned, PathData::Packed(pack)), false));
                }
                // The path has no hash, so only the store has its content, or the pack must be compared with the store.
                Found::Sound(pack) => {
                    let store_path = self.list(planned)?;
                    if matches_store(&pack, &store_path, self.settings, self.trust, self.cancel)? {
                        return Ok((self.store_path(planned, PathData::Packed(pack)), false));
                    }
                    return Ok((store_path, planned.nar_hash.is_some()));
                }
            }
        }
        let earlier = self.earlier(planned).map(Box::new);
        let store_path = self.list(planned)?;
        self.ahead.listed(&store_path);
        Ok((InputPath { earlier, ..store_path }, is_damaged))
    }

    fn query_source(&self, planned: &PlannedPath) -> Option<io::Result<PackFile>> {
        let source = self.source.filter(|_| planned.nar_hash.is_some() && self.source_works.load(Ordering::Relaxed))?;
        match source.find_pack(planned, self.settings) {
            Ok(file) => file.map(PackFile::new),
            Err(error) => {
                self.source_works.store(false, Ordering::Relaxed);
                self.warn(format!("{error}; the build continues without it, and the image is the same"));
                None
            }
        }
    }

    fn query_cache(&self, planned: &PlannedPath) -> Option<io::Result<PackFile>> {
        let found = self.cache?.find_pack(planned, self.settings).unwrap_or_else(|error| {
            self.warn(cache_warning(&error));
            None
        });
        found.map(Ok)
    }

    /// Returns the pack of the earlier version. With an untrusted cache it is not used, because it cannot be compared
    /// with the store as a whole.
    fn earlier(&self, planned: &PlannedPath) -> Option<Earlier> {
        let cache = self.cache.filter(|_| self.trust == CacheTrust::Checksums)?;
        let file = cache.find_earlier_pack(planned, self.settings)?;
        Earlier::open(file, &self.opener)
    }

    fn open(&self, file: Option<io::Result<PackFile>>, planned: &PlannedPath) -> Found {
        let open = |file: io::Result<PackFile>| self.opener.open(file?, planned);
        match file.map(open) {
            None => Found::Nothing,
            Some(Ok(pack)) => Found::Sound(Box::new(pack)),
            Some(Err(OpenError::Damaged { .. })) => Found::Damaged,
            Some(Err(error @ OpenError::TooManyOpen)) => {
                self.warn(format!("{error} (ulimit -n): the others are rebuilt, and the build takes longer"));
                Found::Nothing
            }
            Some(Err(OpenError::Io(source))) => {
                let path = PathBuf::from(planned.path.base_name());
                self.warn(cache_warning(&CacheError { action: "read a pack", path, source }));
                Found::Damaged
            }
        }
    }

    fn store_path(&self, planned: &PlannedPath, data: PathData) -> InputPath {
        let location = self.plan.store_dir.join(planned.path.base_name());
        InputPath { planned: planned.clone(), location, data, first_file: 0, earlier: None }
    }

    fn list(&self, planned: &PlannedPath) -> Result<InputPath, BuildError> {
        list(planned, self.plan.store_dir.join(planned.path.base_name()))
    }
}

/// Lists a store path.
pub(super) fn list(planned: &PlannedPath, location: PathBuf) -> Result<InputPath, BuildError> {
    let listing = scan::list(&location).map_err(|problem| BuildError::Scan(vec![problem]))?;
    let actual_bytes = listing.tree.nar_size_bytes();
    match planned.nar_size_bytes.filter(|expected| *expected != actual_bytes) {
        Some(expected_bytes) => {
            Err(BuildError::Scan(vec![ScanError::NarSize { path: location, expected_bytes, actual_bytes }]))
        }
        None => {
            let (planned, data) = (planned.clone(), PathData::Listed(Box::new(listing)));
            Ok(InputPath { planned, location, data, first_file: 0, earlier: None })
        }
    }
}
