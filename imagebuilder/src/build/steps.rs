//! The order of an image's data: every file once, in small steps that can be read ahead.

use super::job::{Job, RangeRef, Then};
use super::source::{Knowledge, Member, range_length};
use crate::cache::manifest::range_count;
use crate::tree::{Entry, NodeId};
use std::collections::{HashMap, HashSet};

/// Small files are read in batches of at most so many bytes and files: enough to make handing over cheap.
const BATCH_BYTES: u64 = 512 << 10;
const BATCH_FILES: usize = 256;

/// A file and its number among all files of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileRef {
    /// Number of its store path, in the order of the data.
    pub(super) member: usize,
    /// Its node there.
    pub(super) node: NodeId,
    /// Its number among all files of the image.
    pub(super) file: usize,
    /// Its length in bytes.
    pub(super) size_bytes: u64,
}

/// The next files of the image.
#[derive(Debug)]
pub(super) enum Step {
    /// Files that share fragment blocks, of one store path, in a row; they have to be read.
    ReadSmall(Vec<FileRef>),
    /// The same, of a store path whose hashes are known.
    KnownSmall(Vec<FileRef>),
    /// One range of a large file that has to be read.
    ReadRange {
        /// The file.
        file: FileRef,
        /// The range.
        range: RangeRef,
        /// What becomes of it.
        then: Then,
    },
    /// A large file all of whose hashes are known by now.
    KnownLarge(FileRef),
    /// A file that is a hard link of an earlier one.
    Linked {
        /// The file.
        file: FileRef,
        /// Number of the earlier file.
        to: usize,
    },
    /// The store path is complete.
    EndOfMember,
}

impl Step {
    /// The job that has to be done before the step can be taken, and the bytes it will hold.
    pub(super) fn job(&self) -> Option<(Job, u64)> {
        match self {
            Self::ReadSmall(files) => {
                let first = files.first()?;
                let nodes = files.iter().map(|file| file.node).collect();
                let bytes = files.iter().map(|file| file.size_bytes).sum();
                Some((Job::ReadFiles { member: first.member, nodes }, bytes))
            }
            Self::ReadRange { range, then, .. } => {
                Some((Job::ReadRange { range: *range, then: *then }, range.length as u64))
            }
            Self::KnownSmall(_) | Self::KnownLarge(_) | Self::Linked { .. } | Self::EndOfMember => None,
        }
    }
}

/// Cuts the image's data into steps. Files under `small_limit_bytes` share fragment blocks.
pub(super) fn steps(members: &[Member], small_limit_bytes: u64) -> Vec<Step> {
    let sizes = RepeatedSizes::of(members, small_limit_bytes);
    let mut first_links = HashMap::new();
    let mut steps = Vec::new();
    for (number, member) in members.iter().enumerate() {
        let mut batch = Batch { known: matches!(member.knowledge, Knowledge::Cached { .. }), ..Batch::default() };
        let tree = member.tree();
        for node in 0..tree.len() {
            let Entry::File { file, size_bytes, .. } = tree.entry(node) else { continue };
            if size_bytes == 0 {
                continue;
            }
            let in_image = member.first_file + file as usize;
            let reference = FileRef { member: number, node, file: in_image, size_bytes };
            if let Knowledge::Listed(listing) = &member.knowledge
                && let Some(identity) = listing.linked.get(&file)
            {
                let first = *first_links.entry(*identity).or_insert(reference);
                // A link with another length is a file that changed while it was listed: reading it tells.
                if first.file != in_image && first.size_bytes == size_bytes {
                    batch.end(&mut steps);
                    steps.push(Step::Linked { file: reference, to: first.file });
                    continue;
                }
            }
            if size_bytes < small_limit_bytes {
                batch.add(reference, &mut steps);
            } else {
                batch.end(&mut steps);
                large(member, reference, &sizes, &mut steps);
            }
        }
        batch.end(&mut steps);
        steps.push(Step::EndOfMember);
    }
    steps
}

fn large(member: &Member, file: FileRef, sizes: &RepeatedSizes, steps: &mut Vec<Step>) {
    if matches!(member.knowledge, Knowledge::Cached { .. }) {
        steps.push(Step::KnownLarge(file));
        return;
    }
    let ranges = range_count(file.size_bytes);
    let then = match (sizes.is_repeated(file.size_bytes), ranges) {
        (false, _) => Then::Encode,
        (true, 1) => Then::Keep,
        (true, _) => Then::Hash,
    };
    for number in 0..ranges {
        let length = range_length(file.size_bytes, number);
        let range = RangeRef { member: file.member, node: file.node, range: number, length };
        steps.push(Step::ReadRange { file, range, then });
    }
    if then == Then::Hash {
        steps.push(Step::KnownLarge(file));
    }
}

/// Small files that are waiting to become a step.
#[derive(Default)]
struct Batch {
    known: bool,
    files: Vec<FileRef>,
    bytes: u64,
}

impl Batch {
    fn add(&mut self, file: FileRef, steps: &mut Vec<Step>) {
        self.bytes += file.size_bytes;
        self.files.push(file);
        if self.bytes >= BATCH_BYTES || self.files.len() >= BATCH_FILES {
            self.end(steps);
        }
    }

    fn end(&mut self, steps: &mut Vec<Step>) {
        self.bytes = 0;
        let files = std::mem::take(&mut self.files);
        if !files.is_empty() {
            steps.push(if self.known { Step::KnownSmall(files) } else { Step::ReadSmall(files) });
        }
    }
}

/// Sizes that several large files have: only those can be equal to another file.
struct RepeatedSizes(HashSet<u64>);

impl RepeatedSizes {
    fn of(members: &[Member], small_limit_bytes: u64) -> Self {
        let mut seen = HashSet::new();
        let mut repeated = HashSet::new();
        let mut links = HashSet::new();
        for member in members {
            for (size, file) in member.tree().file_sizes().iter().zip(0u32..) {
                let link = match &member.knowledge {
                    Knowledge::Listed(listing) => listing.linked.get(&file),
                    Knowledge::Cached { .. } => None,
                };
                // Links of one file are never read twice, so their size does not count twice.
                let first = link.is_none_or(|identity| links.insert((*identity, *size)));
                if *size >= small_limit_bytes && first && !seen.insert(*size) {
                    repeated.insert(*size);
                }
            }
        }
        Self(repeated)
    }

    fn is_repeated(&self, size_bytes: u64) -> bool {
        self.0.contains(&size_bytes)
    }
}
