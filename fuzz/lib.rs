//! Shared by the targets: files for parsers that read files, a cache, and a plan for its entries.

use imagebuilder::cache::Cache;
use imagebuilder::closure::{Closure, ClosureError, ClosureSource, read};
use imagebuilder::plan::{ImagePlan, PlannedPath};
use imagebuilder::settings::ImageSettings;
use imagebuilder::store_path::StorePath;
use std::path::{Path, PathBuf};

/// Base name of the planned store path.
pub const BASE_NAME: &str = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello";

/// A directory for one target. It is below `$TMPDIR`, which `run.sh` removes, because a fuzzer ends without cleaning
/// up.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a new directory.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory").keep())
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a closure, and checks that an accepted one has at least one path, sorted paths, and no path twice.
pub fn read_closure(source: &ClosureSource) -> Result<Closure, ClosureError> {
    let closure = read(source, None).inspect_err(|error| drop(error.to_string()))?;
    assert!(!closure.paths.is_empty());
    assert!(closure.paths.is_sorted_by(|left, right| left.path < right.path));
    assert!(closure.paths.iter().all(|planned| !planned.path.base_name().contains('/')));
    Ok(closure)
}

/// Returns a planned store path with a NAR hash.
pub fn planned_path() -> PlannedPath {
    let path = StorePath::from_base_name(BASE_NAME).expect("a store path");
    PlannedPath { path, nar_hash: Some([7; 32]), nar_size_bytes: None }
}

/// Returns a plan of that path.
pub fn plan() -> ImagePlan {
    ImagePlan {
        store_dir: "/nix/store".into(),
        format: ImageSettings::default().into(),
        verity: false,
        paths: vec![planned_path()],
    }
}

/// Opens an empty cache.
pub fn open_cache(scratch: &Scratch) -> Cache {
    Cache::open(scratch.path()).expect("a cache")
}

/// Returns the path of the only entry below a directory of the cache. A target first stores a valid entry to find its
/// path.
pub fn only_entry(directory: &Path) -> PathBuf {
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                return path;
            }
            open.push(path);
        }
    }
    panic!("no entry below {}", directory.display());
}
