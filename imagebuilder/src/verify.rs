//! Checks whether an image is valid and, given a closure, whether it contains exactly that closure.

mod attributes;
mod blocks;
mod compare;
mod erofs;
mod problem;
mod root;
mod store;
mod tables;
mod tree;
mod verity;

pub use problem::{Problem, ProblemKind};

use crate::closure::Closure;
use crate::erofs::reader::ErofsImage;
use crate::image::{FileTree, Image, ImageError};
use crate::nar::nar_digest;
use crate::plan::PlannedPath;
use crate::squashfs::format::IMAGE_ALIGNMENT_BYTES;
use blocks::Decompress;
use problem::Problems;
use program::plural::counted;
use rayon::ThreadPool;
use rayon::prelude::*;
use serde::Serialize;
use std::fmt::Write;
use thiserror::Error;

/// Number of comparisons given to a thread at once: adjacent files often share a fragment block.
const BATCH: usize = 32;

/// Whether NARs are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NarCheck {
    /// NARs are not hashed.
    Skip,
    /// The NAR of every path with a hash in the closure's source is hashed.
    Compute,
}

/// What to check, and how.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions<'a> {
    /// The closure that the image must contain; `None` checks only the image itself.
    pub closure: Option<&'a Closure>,
    /// Whether NARs are hashed.
    pub nar: NarCheck,
    /// Threads, at least 1.
    pub jobs: usize,
    /// How many problems to report; all are counted.
    pub problems_max: usize,
}

/// The result of the checks. Its serialised form is version 1 of the `verify --json` document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// Version of this document's format.
    pub version: u32,
    /// Whether there are no problems.
    pub ok: bool,
    /// Inodes in the image.
    pub inodes: u64,
    /// Store paths compared with the store.
    pub paths_compared: u64,
    /// Files compared with the store byte by byte. Each part of a large file counts separately.
    pub comparisons: u64,
    /// NARs hashed.
    pub nars_hashed: u64,
    /// Number of all problems.
    pub problem_count: u64,
    /// The first problems, in the order of their paths.
    pub problems: Vec<Problem>,
}

impl VerifyReport {
    /// Returns the report about an image that is too damaged to be opened.
    pub fn of_unreadable(error: ImageError) -> Self {
        let problems = Problems::new(1);
        problems.damage(error);
        let (problems, problem_count) = problems.finish();
        Self {
            version: 1,
            ok: false,
            inodes: 0,
            paths_compared: 0,
            comparisons: 0,
            nars_hashed: 0,
            problem_count,
            problems,
        }
    }
}

/// An image could not be checked at all.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The image cannot be read, or its superblock or tables are too damaged to continue.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No thread can be started.
    #[error("cannot start {}", counted(*jobs, "thread"))]
    Threads {
        /// The requested number.
        jobs: usize,
        /// The error of the thread pool.
        source: rayon::ThreadPoolBuildError,
    },
}

/// Checks an image.
///
/// # Errors
/// The image cannot be checked at all. Problems with an image that can be read are in the report.
pub fn verify(image: &Image, options: VerifyOptions<'_>) -> Result<VerifyReport, VerifyError> {
    verify_with(image, options, |threads, problems| {
        tables::check_layout(image, problems);
        let end = image.superblock().bytes_used.next_multiple_of(IMAGE_ALIGNMENT_BYTES);
        let is_sealed = verity::check(image, end, problems);
        tables::check_padding(image, if is_sealed { 0 } else { tables::MAX_PADDING_BYTES }, problems);
        let inodes = tables::check_inodes(image, problems);
        tree::check_tree(image, &inodes, problems);
        drop(inodes);
        let decompress = if options.closure.is_some() { Decompress::Fragments } else { Decompress::All };
        threads.install(|| blocks::check_blocks(image, decompress, problems));
    })
}

/// Checks an erofs image.
///
/// # Errors
/// The same as those of [`verify`].
pub fn verify_erofs(image: &ErofsImage, options: VerifyOptions<'_>) -> Result<VerifyReport, VerifyError> {
    verify_with(image, options, |_, problems| {
        erofs::check(image, problems);
        if !verity::check(image, image.superblock().bytes(), problems) {
            erofs::check_padding(image, problems);
        }
    })
}

/// Calls `check_format`, which checks what depends on the format, and then compares the image with its closure.
fn verify_with(
    image: &dyn FileTree,
    options: VerifyOptions<'_>,
    check_format: impl FnOnce(&ThreadPool, &Problems),
) -> Result<VerifyReport, VerifyError> {
    let jobs = options.jobs.max(1);
    let threads = crate::threads::pool(jobs);
    let threads = threads.map_err(|source| VerifyError::Threads { jobs, source })?;
    let problems = Problems::new(options.problems_max);
    let mut report = VerifyReport {
        version: 1,
        ok: false,
        inodes: image.inode_count(),
        paths_compared: 0,
        comparisons: 0,
        nars_hashed: 0,
        problem_count: 0,
        problems: Vec::new(),
    };
    check_format(&threads, &problems);
    if let Some(closure) = options.closure {
        report.paths_compared = closure.paths.len() as u64;
        report.comparisons = threads.install(|| compare_with_store(image, closure, &problems))?;
        if options.nar == NarCheck::Compute {
            report.nars_hashed = threads.install(|| check_nars(image, closure, &problems));
        }
    }
    (report.problems, report.problem_count) = problems.finish();
    report.ok = report.problem_count == 0;
    Ok(report)
}

fn compare_with_store(image: &dyn FileTree, closure: &Closure, problems: &Problems) -> Result<u64, ImageError> {
    let mut comparisons = store::StoreComparison::new(image, closure, problems)?;
    let batches = std::iter::from_fn(|| {
        let batch: Vec<_> = comparisons.by_ref().take(BATCH).collect();
        (!batch.is_empty()).then_some(batch)
    });
    let compare_batch = |buffer: &mut Vec<u8>, batch: Vec<store::Comparison<'_>>| {
        let count = batch.len() as u64;
        for comparison in batch {
            compare::compare(image, comparison, buffer, problems);
        }
        count
    };
    Ok(batches.par_bridge().map_init(Vec::new, compare_batch).sum())
}

fn check_nars(image: &dyn FileTree, closure: &Closure, problems: &Problems) -> u64 {
    closure.paths.par_iter().map(|planned| u64::from(check_nar(image, planned, problems))).sum()
}

/// Returns whether the path's NAR hash is known and was compared.
fn check_nar(image: &dyn FileTree, planned: &PlannedPath, problems: &Problems) -> bool {
    let Some(nar_hash) = planned.nar_hash else { return false };
    let path = planned.path.base_name().as_bytes();
    match nar_digest(image, path) {
        Ok(digest)
            if digest.sha256 == nar_hash && planned.nar_size_bytes.is_none_or(|size| size == digest.size_bytes) => {}
        Ok(digest) => {
            let detail = format!(
                "its NAR has the SHA-256 {} and {} bytes, but the closure says {}{}",
                hex(&digest.sha256),
                digest.size_bytes,
                hex(&nar_hash),
                planned.nar_size_bytes.map(|size| format!(" and {size} bytes")).unwrap_or_default()
            );
            problems.at(path, ProblemKind::NarHash, detail);
        }
        // The comparison with the store reports that it is missing.
        Err(ImageError::NotFound { .. }) => {}
        Err(error @ ImageError::At { .. }) => problems.damage(error),
        Err(error) => problems.damage(error.at(path)),
    }
    true
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
