//! What the targets share: files for parsers that read them, a cache and a plan for its entries.

use imagebuilder::cache::Cache;
use imagebuilder::closure::{Closure, ClosureError, ClosureSource, read};
use imagebuilder::plan::{ImagePlan, PlannedPath};
use imagebuilder::settings::ImageSettings;
use imagebuilder::store_path::StorePath;
use std::path::{Path, PathBuf};

/// Name of the store path that the planned one has.
pub const BASE_NAME: &str = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello";

/// A directory for one target. It is below `$TMPDIR`, which `run.sh` removes: a fuzzer ends without cleaning up.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory").keep())
    }

    /// Where it is.
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

/// Reads a closure. One that is taken has paths, sorted, each once, all below its store directory.
pub fn read_closure(source: &ClosureSource) -> Result<Closure, ClosureError> {
    let closure = read(source, None).inspect_err(|error| drop(error.to_string()))?;
    assert!(!closure.paths.is_empty());
    assert!(closure.paths.is_sorted_by(|left, right| left.path < right.path));
    assert!(closure.paths.iter().all(|planned| !planned.path.base_name().contains('/')));
    Ok(closure)
}

/// A store path with a NAR hash, as a plan has it.
pub fn planned_path() -> PlannedPath {
    let path = StorePath::from_base_name(BASE_NAME).expect("a store path");
    PlannedPath { path, nar_hash: Some([7; 32]), nar_size_bytes: None }
}

/// A plan of that path.
pub fn plan() -> ImagePlan {
    ImagePlan { store_dir: "/nix/store".into(), format: ImageSettings::default().into(), paths: vec![planned_path()] }
}

/// An empty cache.
pub fn open_cache(scratch: &Scratch) -> Cache {
    Cache::open(scratch.path()).expect("a cache")
}

/// The one entry below a directory of the cache: a target stores a right one first, to learn where it lies.
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
