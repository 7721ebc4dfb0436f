//! Extracts the files of an image into a directory.
//!
//! Nothing is ever written outside that directory, even if the image is malicious: names are checked when listings are
//! read, everything is created relative to open directories, and no symbolic link is followed. Each file appears
//! complete or not at all. Owners, setuid and setgid bits and extended attributes are not extracted.

mod plan;
mod second_pass;
mod target;
mod write;

use crate::image::{FileTree, ImageError, ImagePath, Inode, InodeType};
use nix::errno::Errno;
use plan::ExtractPlan;
use program::plural::counted;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use target::TargetDirectory;
use thiserror::Error;
use write::{TreeWriter, WriteJob};

/// Number of files given to a thread at once: adjacent files often share a fragment block.
const BATCH: usize = 32;

/// What to do with devices, pipes and sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialFiles {
    /// Refuse the image if it contains one.
    Refuse,
    /// They are not created, and counted as skipped.
    Skip,
}

/// What to extract, and where to.
#[derive(Clone, Copy, Debug)]
pub struct ExtractOptions<'a> {
    /// The path in the image: a directory and everything below it, or a single file. The content of the root is
    /// extracted directly into the output directory, everything else under its last name.
    pub path: &'a [u8],
    /// The output directory. It must be empty; it is created if it does not exist.
    pub output: &'a Path,
    /// What to do with devices, pipes and sockets.
    pub special_files: SpecialFiles,
    /// Threads, at least 1.
    pub jobs: usize,
}

/// What was extracted. Its serialised form is version 1 of the `extract --json` document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtractReport {
    /// Version of this document's format.
    pub version: u32,
    /// Directories, without the output directory.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Names that were created as links to a file extracted earlier.
    pub hard_links: u64,
    /// Devices, pipes and sockets that were skipped.
    pub special_files_skipped: u64,
    /// Setuid and setgid bits that were removed: they would give the rights of the wrong user, because owners are not
    /// preserved.
    pub set_id_bits_dropped: u64,
}

/// An extraction failed.
#[derive(Debug, Error)]
pub enum ExtractError {
    /// The image is damaged, or has nothing at the path.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The output directory is not empty.
    #[error("{} is not empty", .path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The image contains something that only root can create.
    #[error("{path} is a {}{}: devices, pipes and sockets are not extracted", .kind.name(), others_text(*.others))]
    SpecialFile {
        /// The first of them.
        path: ImagePath,
        /// Its type.
        kind: InodeType,
        /// The number of other special files.
        others: u64,
    },
    /// Something cannot be created or written.
    #[error("cannot {action} {}", .path.display())]
    Write {
        /// The operation that failed, as it follows "cannot".
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// There are more hard links than the memory limit allows.
    #[error("{path}: too many files with hard links; extract a part of the image at a time")]
    TooManyLinks {
        /// The file at which the limit was exceeded.
        path: ImagePath,
    },
    /// The caller cancelled the extraction.
    #[error("interrupted")]
    Interrupted,
    /// No thread can be started.
    #[error("cannot start {}", counted(*jobs, "thread"))]
    Threads {
        /// The requested number.
        jobs: usize,
        /// The error of the thread pool.
        source: rayon::ThreadPoolBuildError,
    },
}

fn others_text(others: u64) -> String {
    match others {
        0 => String::new(),
        1 => ", and there is one more such file".to_owned(),
        _ => format!(", and there are {others} more such files"),
    }
}

/// Converts the error of a system call to [`ExtractError::Write`].
fn write_error(action: &'static str, path: PathBuf) -> impl FnOnce(Errno) -> ExtractError {
    move |errno| ExtractError::Write { action, path, source: errno.into() }
}

/// Extracts a path of an image.
///
/// The tree is walked once before anything is created, so that damaged tables and special files are found first. The
/// extraction ends when `cancel` becomes true.
///
/// # Errors
/// The image is damaged, the output directory is not empty, or something cannot be written. An output directory that
/// was created is then removed. One that existed keeps the files extracted so far, each of them complete.
pub fn extract(
    image: &dyn FileTree,
    options: ExtractOptions<'_>,
    cancel: &AtomicBool,
) -> Result<ExtractReport, ExtractError> {
    let jobs = options.jobs.max(1);
    let threads = crate::threads::pool(jobs);
    let threads = threads.map_err(|source| ExtractError::Threads { jobs, source })?;
    let planned = ExtractPlan::new(image, options)?;
    let target = TargetDirectory::create(options.output, planned.parent_bytes)?;
    let written = threads.install(|| write_tree(image, options, &target, cancel));
    let finished = written.and_then(|()| second_pass::finish(image, options, &target, cancel));
    let hard_links = finished.inspect_err(|_| target.discard())?;
    Ok(ExtractReport { hard_links, ..planned.report })
}

/// Creates directories and symbolic links one after the other, and files with all threads.
fn write_tree(
    image: &dyn FileTree,
    options: ExtractOptions<'_>,
    target: &TargetDirectory,
    cancel: &AtomicBool,
) -> Result<(), ExtractError> {
    let mut making = TreeWriter::new(image, options, target)?;
    let batches = std::iter::from_fn(|| {
        if cancel.load(Ordering::Relaxed) {
            return Some(Err(ExtractError::Interrupted));
        }
        let batch: Result<Vec<WriteJob>, ExtractError> = making.by_ref().take(BATCH).collect();
        match batch {
            Ok(batch) if batch.is_empty() => None,
            batch => Some(batch),
        }
    });
    let first_error = Mutex::new(None);
    let result = batches.par_bridge().try_for_each(|batch| {
        let written = batch.and_then(|batch| {
            batch.iter().try_for_each(|job| {
                if cancel.load(Ordering::Relaxed) {
                    return Err(ExtractError::Interrupted);
                }
                job.write(image)
            })
        });
        written.map_err(|error| {
            first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        })
    });
    match (result, first_error.into_inner().unwrap_or_else(PoisonError::into_inner)) {
        (Err(()), Some(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Inodes with several names: the content is written under the first name, and the others become links to it.
#[derive(Debug, Default)]
struct Linked {
    met: HashSet<u32>,
}

impl Linked {
    /// Returns true if the inode has several names and was visited before under another one.
    fn is_later_name(&mut self, inode: &Inode) -> bool {
        let several = inode.links > 1 && inode.inode_type() != InodeType::Directory;
        several && !self.met.insert(inode.number)
    }
}
