//! Collects the problems of an image: all are counted, and the first ones are reported.

use crate::bounded_findings::BoundedFindings;
use crate::image::{ImageError, ImagePath};
use serde::{Serialize, Serializer};
use std::fmt;

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The image contradicts the format or itself.
    Damaged,
    /// An inode without a directory entry.
    Unreachable,
    /// A link count that differs from the number of names.
    Links,
    /// A directory's index or parent is wrong.
    Directory,
    /// The export table does not refer to the inode.
    Export,
    /// Blocks or tables overlap, or have gaps that are not allowed.
    Layout,
    /// The hash tree of dm-verity is not that of the image.
    Verity,
    /// The bytes after the file system are not zero.
    Padding,
    /// A file is in the store, but not in the image.
    Missing,
    /// A file is in the image, but not in the store.
    Extra,
    /// Another type than in the store.
    Type,
    /// Another mode than Nix uses.
    Mode,
    /// A wrong owner or group. They must be 0; the group of the root directory must be that of Nix's build users.
    Owner,
    /// A modification time other than 1.
    Time,
    /// Extended attributes, which store paths do not have.
    Xattrs,
    /// Another length than in the store.
    Size,
    /// Another symlink target than in the store.
    Target,
    /// Other bytes than in the store.
    Content,
    /// Another NAR hash than in the closure's source.
    NarHash,
    /// The store itself cannot be read.
    Store,
}

/// Something that is wrong with an image.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The path in the image that it belongs to; `None` if it belongs to the image as a whole.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub path: Option<ImagePath>,
    /// What is wrong.
    pub kind: ProblemKind,
    /// A description, as the end of a sentence that begins with the path.
    pub detail: String,
}

fn as_text<S: Serializer>(path: &Option<ImagePath>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.collect_str(path),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(formatter, "{path}: {}", self.detail),
            None => formatter.write_str(&self.detail),
        }
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} {self}", self.kind)
    }
}

/// Collects problems from many threads. If there are too many, those with the first paths are kept.
#[derive(Debug)]
pub(super) struct Problems(BoundedFindings<Problem>);

impl Problems {
    /// Creates a collection that keeps the first `limit` problems.
    pub(super) fn new(limit: usize) -> Self {
        Self(BoundedFindings::new(limit))
    }

    /// Adds a problem that belongs to a path.
    pub(super) fn at(&self, path: &[u8], kind: ProblemKind, detail: impl Into<String>) {
        self.add(Problem { path: Some(ImagePath(path.to_vec())), kind, detail: detail.into() });
    }

    /// Adds a problem that belongs to the image as a whole.
    pub(super) fn general(&self, kind: ProblemKind, detail: impl Into<String>) {
        self.add(Problem { path: None, kind, detail: detail.into() });
    }

    /// Adds damage, with the path in the error.
    pub(super) fn damage(&self, error: ImageError) {
        match error {
            ImageError::At { path, source } => {
                self.add(Problem { path: Some(path), kind: ProblemKind::Damaged, detail: source.chain() });
            }
            error => self.general(ProblemKind::Damaged, error.chain()),
        }
    }

    fn add(&self, problem: Problem) {
        self.0.add(problem);
    }

    /// Returns the problems that were kept, in order, and the number of all problems.
    pub(super) fn finish(self) -> (Vec<Problem>, u64) {
        self.0.finish()
    }
}
