//! Are the planned store paths there and readable? Asked before any work, of all paths at once.

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
pub struct AbsentPath {
    /// The store path.
    pub path: StorePath,
    /// Why it cannot be read: most often that it does not exist.
    pub source: io::Error,
}

/// The store paths of a plan that cannot be read: all of them, at least one.
#[derive(Debug)]
pub struct AbsentPaths {
    /// The directory they were looked for in.
    pub store_dir: PathBuf,
    /// The paths and what is wrong with each.
    pub absent: Vec<AbsentPath>,
    /// How many paths the plan has.
    pub planned: usize,
}

impl std::error::Error for AbsentPaths {}

impl fmt::Display for AbsentPaths {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (absent, planned) = (self.absent.len(), self.planned);
        write!(formatter, "{absent} of {planned} store paths cannot be read in {}:", self.store_dir.display())?;
        self.absent.iter().try_for_each(|path| write!(formatter, "\n  {path}"))
    }
}

/// Looks whether each store path of the plan is there and may be read: two system calls a path.
///
/// # Errors
/// All the paths that are not.
pub fn check(plan: &ImagePlan) -> Result<(), AbsentPaths> {
    let absent: Vec<AbsentPath> = plan
        .paths
        .iter()
        .filter_map(|planned| {
            let source = look_at(&plan.store_dir.join(planned.path.base_name())).err()?;
            Some(AbsentPath { path: planned.path.clone(), source })
        })
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    Err(AbsentPaths { store_dir: plan.store_dir.clone(), absent, planned: plan.paths.len() })
}

fn look_at(path: &std::path::Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    let needed = match (kind.is_symlink(), kind.is_dir()) {
        // A symbolic link is stored as it is; where it leads does not matter.
        (true, _) => return Ok(()),
        (false, true) => AccessFlags::R_OK | AccessFlags::X_OK,
        (false, false) => AccessFlags::R_OK,
    };
    Ok(access(path, needed)?)
}
