//! Checks that all planned store paths exist and are readable, before any work is done.

use crate::plan::ImagePlan;
use crate::store_path::StorePath;
use crate::threads::map_for_disk;
use program::plural::counted;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, open, statat};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
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
        write!(
            formatter,
            "{absent} of {} cannot be read in {}:",
            counted(planned, "store path"),
            self.store_dir.display()
        )?;
        self.absent.iter().try_for_each(|path| write!(formatter, "\n  {path}"))
    }
}

/// Checks that each store path of the plan exists and can be read, with `threads` threads or more, because they may wait
/// for the disk. It takes one system call per path if everyone can read the path, as in a Nix store.
///
/// # Errors
/// Some paths cannot be read; the error lists all of them.
pub fn check(plan: &ImagePlan, threads: usize) -> Result<(), MissingPaths> {
    // Names relative to an open directory take the kernel half the time of whole paths. If it cannot be opened, the
    // whole paths give the error.
    let store = open(&plan.store_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
    let results = map_for_disk(threads, &plan.paths, |planned| match &store {
        Some(store) => check_path(store.as_fd(), Path::new(planned.path.base_name())),
        None => check_path(CWD, &plan.store_dir.join(planned.path.base_name())),
    });
    let absent: Vec<MissingPath> = plan
        .paths
        .iter()
        .zip(results)
        .filter_map(|(planned, result)| Some(MissingPath { path: planned.path.clone(), source: result.err()? }))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    Err(MissingPaths { store_dir: plan.store_dir.clone(), absent, planned: plan.paths.len() })
}

fn check_path(directory: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let mode = statat(directory, path, AtFlags::SYMLINK_NOFOLLOW)?.st_mode;
    let (everyone, needed) = match FileType::from_raw_mode(mode) {
        // A symbolic link is stored as a link; its target does not matter.
        FileType::Symlink => return Ok(()),
        FileType::Directory => (0o555, Access::READ_OK | Access::EXEC_OK),
        _ => (0o444, Access::READ_OK),
    };
    // This is the case in every Nix store.
    if mode & everyone == everyone {
        return Ok(());
    }
    Ok(accessat(directory, path, needed, AtFlags::empty())?)
}
