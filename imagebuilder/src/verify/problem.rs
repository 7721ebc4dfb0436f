//! The problems of an image: all are counted, and the first ones are reported.

use crate::first_of::FirstOf;
use crate::image::{ImageError, ImagePath};
use serde::{Serialize, Serializer};
use std::fmt;

/// The sort of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The image contradicts the format or itself.
    Damaged,
    /// An inode that no name leads to.
    Unreachable,
    /// A link count that is not the number of names.
    Links,
    /// A directory's index or parent is wrong.
    Directory,
    /// The export table points elsewhere.
    Export,
    /// Blocks or tables overlap, or do not touch where they must.
    Layout,
    /// The bytes behind the file system are not zero.
    Padding,
    /// The store has it, the image has not.
    Missing,
    /// The image has it, the store has not.
    Extra,
    /// A file where the store has a directory, and the like.
    Type,
    /// Another mode than Nix gives.
    Mode,
    /// Another owner or group than it should have: 0, and for the root directory the group of Nix' build users.
    Owner,
    /// A modification time other than 1.
    Time,
    /// Extended attributes, which no store path has.
    Xattrs,
    /// Another length than in the store.
    Size,
    /// Another symlink target than in the store.
    Target,
    /// Other bytes than in the store.
    Content,
    /// Another NAR hash than the closure's source says.
    NarHash,
    /// The store itself cannot be read.
    Store,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The path in the image it belongs to.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub path: Option<ImagePath>,
    /// Its sort.
    pub kind: ProblemKind,
    /// What is wrong, in plain English.
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

/// Collects problems from many threads. Of too many, those with the first paths are kept.
#[derive(Debug)]
pub(super) struct Problems(FirstOf<Problem>);

impl Problems {
    /// Keeps the first `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self(FirstOf::new(limit))
    }

    /// Adds one that belongs to a path.
    pub(super) fn at(&self, path: &[u8], kind: ProblemKind, detail: impl Into<String>) {
        self.add(Problem { path: Some(ImagePath(path.to_vec())), kind, detail: detail.into() });
    }

    /// Adds one that belongs to the image as a whole.
    pub(super) fn general(&self, kind: ProblemKind, detail: impl Into<String>) {
        self.add(Problem { path: None, kind, detail: detail.into() });
    }

    /// Adds damage, under the path that the error names.
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

    /// Those kept, in order, and how many there were.
    pub(super) fn finish(self) -> (Vec<Problem>, u64) {
        self.0.finish()
    }
}
