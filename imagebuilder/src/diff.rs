//! The differences between two images: names, types, modes, owners, sizes, targets, content.

use crate::bounded_findings::BoundedFindings;
use crate::image::{Escaped, FileContent, FileTree, ImageError, ImagePath, Inode, InodeKind, Node, Nodes, Piece};
use program::plural::counted;
use rayon::prelude::*;
use serde::{Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::iter::Peekable;
use thiserror::Error;

/// Files handed to a thread at once.
const BATCH: usize = 32;

/// How two images are compared.
#[derive(Clone, Copy, Debug)]
pub struct DiffOptions {
    /// Threads, at least 1.
    pub jobs: usize,
    /// How many differences to report; all are counted.
    pub max_differences: usize,
}

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only the first image has it. Nodes below it are not reported.
    Removed,
    /// Only the second image has it. Nodes below it are not reported.
    Added,
    /// Both have it, and it differs.
    Changed,
}

/// A path that is not the same in both images.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The path in the images.
    #[serde(serialize_with = "as_text")]
    pub path: ImagePath,
    /// Whether the path was added, removed or changed.
    pub change: Change,
    /// A description of the difference; empty for names that only one image has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

fn as_text<S: Serializer>(path: &ImagePath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.change {
            Change::Removed => write!(formatter, "- {}", self.path),
            Change::Added => write!(formatter, "+ {}", self.path),
            Change::Changed => write!(formatter, "~ {}: {}", self.path, self.detail),
        }
    }
}

/// All differences. Its serialised form is version 1 of the `diff --json` document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiffReport {
    /// Version of this document's format.
    pub version: u32,
    /// How many differences there are.
    pub difference_count: u64,
    /// The first differences, in the order of their paths.
    pub differences: Vec<Difference>,
}

/// Two images cannot be compared.
#[derive(Debug, Error)]
pub enum DiffError {
    /// The first image is damaged.
    #[error("the first image")]
    First(#[source] ImageError),
    /// The second image is damaged.
    #[error("the second image")]
    Second(#[source] ImageError),
    /// No thread can be started.
    #[error("cannot start {}", counted(*jobs, "thread"))]
    Threads {
        /// The requested number.
        jobs: usize,
        /// The error of the thread pool.
        source: rayon::ThreadPoolBuildError,
    },
}

/// Compares two images. Their codecs and block sizes may differ.
///
/// # Errors
/// One of them is damaged.
pub fn diff(first: &dyn FileTree, second: &dyn FileTree, options: DiffOptions) -> Result<DiffReport, DiffError> {
    let jobs = options.jobs.max(1);
    let threads = crate::threads::pool(jobs);
    let threads = threads.map_err(|source| DiffError::Threads { jobs, source })?;
    let found = BoundedFindings::new(options.max_differences);
    let mut pairs = Pairs {
        first: first.walk().map_err(DiffError::First)?.peekable(),
        second: second.walk().map_err(DiffError::Second)?.peekable(),
        found: &found,
    };
    let batches = std::iter::from_fn(|| {
        let batch: Result<Vec<_>, DiffError> = pairs.by_ref().take(BATCH).collect();
        match batch {
            Ok(batch) if batch.is_empty() => None,
            batch => Some(batch),
        }
    });
    let compare_batch = |batch: Result<Vec<(Node, Node)>, DiffError>| {
        batch?.iter().try_for_each(|(a, b)| compare_contents(first, second, (a, b), &found))
    };
    threads.install(|| batches.par_bridge().try_for_each(compare_batch))?;
    drop(pairs);
    let (differences, difference_count) = found.finish();
    Ok(DiffReport { version: 1, difference_count, differences })
}

fn changed(found: &BoundedFindings<Difference>, path: &[u8], detail: String) {
    found.add(Difference { path: ImagePath(path.to_vec()), change: Change::Changed, detail });
}

/// Walks both images together. Reports differences in names and inodes, and yields the files whose content must be
/// compared.
struct Pairs<'a> {
    first: Peekable<Nodes<'a>>,
    second: Peekable<Nodes<'a>>,
    found: &'a BoundedFindings<Difference>,
}

/// Compares two paths by the order of walks: parents first, the names in a directory by their bytes.
fn walk_order(a: &[u8], b: &[u8]) -> Ordering {
    a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/'))
}

/// Skips a node and everything below it.
fn take_subtree(walk: &mut Peekable<Nodes<'_>>) -> Result<Option<Node>, ImageError> {
    let Some(top) = walk.next().transpose()? else { return Ok(None) };
    while walk.next_if(|node| node.as_ref().is_ok_and(|node| node.depth > top.depth)).is_some() {}
    Ok(Some(top))
}

impl Pairs<'_> {
    fn only_one(&self, top: Option<Node>, change: Change) {
        if let Some(top) = top {
            self.found.add(Difference { path: ImagePath(top.path), change, detail: String::new() });
        }
    }

    /// Advances both walks by one name. Returns `None` at the end.
    fn advance(&mut self) -> Result<Option<Advance>, DiffError> {
        let order = match (self.first.peek(), self.second.peek()) {
            (None, None) => return Ok(None),
            (Some(Ok(a)), Some(Ok(b))) => walk_order(&a.path, &b.path),
            (Some(Err(_)), _) | (Some(_), None) => Ordering::Less,
            (_, Some(Err(_))) | (None, Some(_)) => Ordering::Greater,
        };
        match order {
            Ordering::Less => {
                let top = take_subtree(&mut self.first).map_err(DiffError::First)?;
                self.only_one(top, Change::Removed);
            }
            Ordering::Greater => {
                let top = take_subtree(&mut self.second).map_err(DiffError::Second)?;
                self.only_one(top, Change::Added);
            }
            Ordering::Equal => return self.pair().map(Some),
        }
        Ok(Some(Advance::Complete))
    }

    fn pair(&mut self) -> Result<Advance, DiffError> {
        let a = self.first.next().transpose().map_err(DiffError::First)?;
        let b = self.second.next().transpose().map_err(DiffError::Second)?;
        let (Some(a), Some(b)) = (a, b) else { return Ok(Advance::Complete) };
        let details = inode_differences(&a.inode, &b.inode);
        if !details.is_empty() {
            changed(self.found, &a.path, details.join(", "));
        }
        match (&a.inode.kind, &b.inode.kind) {
            (InodeKind::File(file), InodeKind::File(other)) if file.size_bytes == other.size_bytes => {
                Ok(Advance::CompareContent(Box::new((a, b))))
            }
            _ => Ok(Advance::Complete),
        }
    }
}

/// What remains to be done for a name.
enum Advance {
    /// Nothing: its differences are reported.
    Complete,
    /// Both images have a file of the same size.
    CompareContent(Box<(Node, Node)>),
}

impl Iterator for Pairs<'_> {
    type Item = Result<(Node, Node), DiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.advance().transpose()? {
                Ok(Advance::Complete) => {}
                Ok(Advance::CompareContent(pair)) => return Some(Ok(*pair)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn inode_differences(a: &Inode, b: &Inode) -> Vec<String> {
    let mut details = Vec::new();
    let mut differ = |what: &str, a: String, b: String| {
        if a != b {
            details.push(format!("{what} {a} became {b}"));
        }
    };
    differ("type", a.inode_type().name().to_owned(), b.inode_type().name().to_owned());
    differ("mode", format!("{:04o}", a.mode), format!("{:04o}", b.mode));
    let owner = |inode: &Inode| format!("{}:{}", inode.user_id, inode.group_id);
    differ("owner", owner(a), owner(b));
    differ("time", a.modified_at.to_string(), b.modified_at.to_string());
    match (&a.kind, &b.kind) {
        (InodeKind::File(a), InodeKind::File(b)) => {
            differ("size", a.size_bytes.to_string(), b.size_bytes.to_string());
        }
        (InodeKind::Symlink(a), InodeKind::Symlink(b)) => {
            differ("target", Escaped(a).to_string(), Escaped(b).to_string());
        }
        _ => {}
    }
    details
}

fn compare_contents(
    first: &dyn FileTree,
    second: &dyn FileTree,
    (a, b): (&Node, &Node),
    found: &BoundedFindings<Difference>,
) -> Result<(), DiffError> {
    let (InodeKind::File(file), InodeKind::File(other)) = (&a.inode.kind, &b.inode.kind) else { return Ok(()) };
    let mut left = ContentStream::new(first.content(file));
    let mut right = ContentStream::new(second.content(other));
    let mut at = 0;
    while at < file.size_bytes {
        left.fill().map_err(|error| DiffError::First(error.at(&a.path)))?;
        right.fill().map_err(|error| DiffError::Second(error.at(&b.path)))?;
        let count = left.left.min(right.left);
        if count == 0 {
            break;
        }
        if let Some(equal) = left.first_difference(&right, count) {
            changed(found, &a.path, format!("content differs at byte {}", at + equal));
            return Ok(());
        }
        left.take(count);
        right.take(count);
        at += count;
    }
    Ok(())
}

/// A file's content in pieces of any length; holes stay holes.
struct ContentStream<'a> {
    reader: Box<dyn FileContent + 'a>,
    /// The current piece; empty for a hole.
    bytes: Vec<u8>,
    taken: usize,
    /// Bytes left of the current piece.
    left: u64,
}

impl<'a> ContentStream<'a> {
    fn new(reader: Box<dyn FileContent + 'a>) -> Self {
        Self { reader, bytes: Vec::new(), taken: 0, left: 0 }
    }

    fn fill(&mut self) -> Result<(), ImageError> {
        while self.left == 0 {
            self.bytes.clear();
            self.taken = 0;
            match self.reader.next_piece()? {
                None => return Ok(()),
                Some(Piece::Hole(length)) => self.left = length,
                Some(Piece::Data(bytes)) => {
                    self.bytes.extend_from_slice(bytes);
                    self.left = bytes.len() as u64;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, count: u64) {
        self.left -= count;
        self.taken += usize::try_from(count).unwrap_or_default();
    }

    /// Returns the next bytes of the current piece; `None` for a hole.
    fn ahead(&self, count: u64) -> Option<&[u8]> {
        let count = usize::try_from(count).ok()?;
        self.bytes.get(self.taken..).filter(|_| !self.bytes.is_empty())?.get(..count)
    }

    /// Returns the index of the first difference in the next `count` bytes of two streams.
    fn first_difference(&self, other: &Self, count: u64) -> Option<u64> {
        let position = match (self.ahead(count), other.ahead(count)) {
            (None, None) => None,
            (Some(bytes), None) | (None, Some(bytes)) => bytes.iter().position(|byte| *byte != 0),
            (Some(a), Some(b)) if a == b => None,
            (Some(a), Some(b)) => a.iter().zip(b).position(|(a, b)| a != b),
        };
        position.map(|position| position as u64)
    }
}
