//! Extracts the files of an image into a directory.
//!
//! Nothing is ever written outside that directory, even if the image is malicious: names are checked when listings are read,
//! everything is created relative to open directories, and no symbolic link is followed. Each file
//! appears complete or not at all. Owners, setuid and setgid bits and extended attributes are not extracted.

mod plan;
mod second_pass;
mod target;
mod write;

use crate::image::{Image, ImageError, ImagePath, Inode, InodeSet, InodeType};
use nix::errno::Errno;
use plan::Planned;
use rayon::prelude::*;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use target::TargetDirectory;
use thiserror::Error;
use write::{Making, WriteJob};

/// Files handed to a thread at once: neighbours mostly share a fragment block.
const BATCH: usize = 32;

/// What to do with devices, pipes and sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialFiles {
    /// Extract nothing when there is one.
    Refuse,
    /// Leave them out.
    Skip,
}

/// What is extracted, and where to.
#[derive(Clone, Copy, Debug)]
pub struct ExtractOptions<'a> {
    /// The path in the image: a directory and all below it, or a single file. The root's content goes right into the
    /// output directory, anything else under its own name.
    pub path: &'a [u8],
    /// The directory to fill. It must be empty, or is created.
    pub output: &'a Path,
    /// What to do with devices, pipes and sockets.
    pub special_files: SpecialFiles,
    /// Threads, at least 1.
    pub jobs: usize,
}

/// What was extracted. Serialised it is version 1 of the `extract --json` document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtractReport {
    /// Version of this document's form.
    pub version: u32,
    /// Directories, the output directory not counted.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Names made as links to a file that was there already.
    pub hard_links: u64,
    /// Devices, pipes and sockets left out.
    pub special_files_skipped: u64,
    /// Setuid and setgid bits left out: without the owner they would give rights to another.
    pub set_id_bits_dropped: u64,
}

/// Why something was not extracted.
#[derive(Debug, Error)]
pub enum ExtractError {
    /// The image is damaged, or has nothing at the path.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is something in the output directory.
    #[error("{} is not empty", .path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The image contains something that only root can create.
    #[error("{path} is a {}{}: devices, pipes and sockets are not extracted", .kind.name(), further(*.others))]
    SpecialFile {
        /// The first of them.
        path: ImagePath,
        /// What it is.
        kind: InodeType,
        /// How many more there are.
        others: u64,
    },
    /// Something cannot be created or written.
    #[error("cannot {action} {}", .path.display())]
    Write {
        /// The operation.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// More hard links than fit into bounded memory.
    #[error("{path}: too many files with hard links; extract a part of the image at a time")]
    TooManyLinks {
        /// Where it became too many.
        path: ImagePath,
    },
    /// Stopped by the caller.
    #[error("interrupted")]
    Interrupted,
    /// No thread can be started.
    #[error("cannot start {jobs} threads")]
    Threads {
        /// The requested number.
        jobs: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
}

fn further(others: u64) -> String {
    if others == 0 { String::new() } else { format!(", and there are {others} more such files") }
}

/// Converts the error of a system call to [`ExtractError::Write`].
fn write_error(action: &'static str, path: PathBuf) -> impl FnOnce(Errno) -> ExtractError {
    move |errno| ExtractError::Write { action, path, source: errno.into() }
}

/// Extracts a path of an image.
///
/// The tree is walked once before anything is made, so damaged tables and special files are found before. When `cancel`
/// turns true the extraction ends.
///
/// # Errors
/// The image is damaged, the output directory is not empty, or something cannot be written. A directory that was made is
/// removed then; what was extracted into one that was there stays, its files whole.
pub fn extract(image: &Image, options: ExtractOptions<'_>, cancel: &AtomicBool) -> Result<ExtractReport, ExtractError> {
    let jobs = options.jobs.max(1);
    let threads = crate::threads::pool(jobs);
    let threads = threads.map_err(|source| ExtractError::Threads { jobs, source })?;
    let planned = Planned::look(image, options)?;
    let target = TargetDirectory::create(options.output, planned.parent_bytes)?;
    let written = threads.install(|| write_tree(image, options, &target, cancel));
    let finished = written.and_then(|()| second_pass::finish(image, options, &target, cancel));
    let hard_links = finished.inspect_err(|_| target.discard())?;
    Ok(ExtractReport { hard_links, ..planned.report })
}

/// Makes directories and symbolic links one after the other, and the files with all threads.
fn write_tree(
    image: &Image,
    options: ExtractOptions<'_>,
    target: &TargetDirectory,
    cancel: &AtomicBool,
) -> Result<(), ExtractError> {
    let mut making = Making::new(image, options, target)?;
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

/// Inodes with several names, so that the first name gets the content and the others become links.
#[derive(Debug)]
struct Linked {
    met: InodeSet,
}

impl Linked {
    fn new(image: &Image) -> Self {
        Self { met: InodeSet::new(image.superblock().inodes) }
    }

    /// True when the inode has several names and this is not the first that was met.
    fn is_later_name(&mut self, inode: &Inode) -> bool {
        let several = inode.links > 1 && inode.inode_type() != InodeType::Directory;
        several && !self.met.insert(inode.number)
    }
}
