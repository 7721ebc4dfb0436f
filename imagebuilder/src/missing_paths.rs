//! Checks that all planned store paths exist and are readable, before any work is done.

use crate::plan::ImagePlan;
use crate::store_path::StorePath;
use nix::unistd::{AccessFlags, access};
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// A store path that cannot be read.
#[derive(Debug, Error)]
#[error("{path}: {source}")]
pub struct MissingPath {
    /// The store path.
    pub path: StorePath,
    /// The error of the system; usually the path does not exist.
    pub source: io::Error,
}

/// All store paths of a plan that cannot be read, at least one.
#[derive(Debug)]
pub struct MissingPaths {
    /// The directory that should contain them.
    pub store_dir: PathBuf,
    /// The paths, each with its error.
    pub absent: Vec<MissingPath>,
    /// Number of all paths in the plan.
    pub planned: usize,
}

impl std::error::Error for MissingPaths {}

impl fmt::Display for MissingPaths {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (absent, planned) = (self.absent.len(), self.planned);
        write!(formatter, "{absent} of {planned} store paths cannot be read in {}:", self.store_dir.display())?;
        self.absent.iter().try_for_each(|path| write!(formatter, "\n  {path}"))
    }
}

/// Checks that each store path of the plan exists and can be read, with two system calls per path.
///
/// # Errors
/// Some paths cannot be read; the error lists all of them.
pub fn check(plan: &ImagePlan) -> Result<(), MissingPaths> {
    let absent: Vec<MissingPath> = plan
        .paths
        .iter()
        .filter_map(|planned| {
            let source = check_path(&plan.store_dir.join(planned.path.base_name())).err()?;
            Some(MissingPath { path: planned.path.clone(), source })
        })
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    Err(MissingPaths { store_dir: plan.store_dir.clone(), absent, planned: plan.paths.len() })
}

fn check_path(path: &std::path::Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    let needed = match (kind.is_symlink(), kind.is_dir()) {
        // A symbolic link is stored as a link; its target does not matter.
        (true, _) => return Ok(()),
        (false, true) => AccessFlags::R_OK | AccessFlags::X_OK,
        (false, false) => AccessFlags::R_OK,
    };
    Ok(access(path, needed)?)
}
