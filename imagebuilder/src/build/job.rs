//! What a worker thread does: reading, hashing, compressing, copying, writing.

use super::BuildError;
use super::buffers::SpareBuffers;
use super::new_pack::{NewPack, PackKeeper};
use super::output::ImageFile;
use super::source::Member;
use super::transfer::{CopyJob, WriteJob};
use crate::cache::CacheError;
use crate::encode::Encoder;
use crate::pack::{NewSegment, PackHead};
use crate::segment::{Batch, ContentHash, RANGE_BYTES, SegmentKind, encode_segment};
use crate::settings::ImageSettings;
use crate::tree::NodeId;
use std::sync::Arc;

/// A piece of work.
#[derive(Debug)]
pub(super) enum Job {
    /// Reads and hashes small files of one store path.
    ReadFiles {
        /// Number of the store path.
        member: usize,
        /// The files.
        nodes: Vec<NodeId>,
    },
    /// Reads a range of a file, and does `then` with it.
    ReadRange {
        /// Which range.
        range: RangeRef,
        /// What to do.
        then: Then,
    },
    /// Reads a range of a file, which must have this hash still, and makes its segment.
    EncodeRange {
        /// Which range.
        range: RangeRef,
        /// The hash.
        content: ContentHash,
    },
    /// Makes the segment of bytes that have been read.
    Encode {
        /// How it is cut.
        kind: SegmentKind,
        /// The content.
        bytes: Vec<u8>,
    },
    /// Writes segments into the image and into packs.
    Write(WriteJob),
    /// Copies segments from packs into the image.
    Copy(CopyJob),
    /// Completes a pack and keeps it.
    Keep(Box<KeepJob>),
}

/// A pack whose segments are written.
#[derive(Debug)]
pub(super) struct KeepJob {
    /// Number of the store path.
    pub(super) member: usize,
    /// The pack.
    pub(super) pack: Arc<NewPack>,
    /// Where its segments end.
    pub(super) end: u64,
    /// Its segments.
    pub(super) segments: Vec<NewSegment>,
    /// Hashes of the ranges of all files of the store path.
    pub(super) range_hashes: Vec<ContentHash>,
    /// Segments that the image has, but that are not in the pack yet.
    pub(super) from_image: Vec<FromImage>,
}

/// Stored bytes that are copied from the image to a pack.
#[derive(Clone, Copy, Debug)]
pub(super) struct FromImage {
    /// Where they are in the image.
    pub(super) image_at: u64,
    /// Where they go in the pack.
    pub(super) pack_at: u64,
    /// How many.
    pub(super) bytes: u32,
}

/// A range of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct RangeRef {
    /// Number of the store path.
    pub(super) member: usize,
    /// The file.
    pub(super) node: NodeId,
    /// Number of the range.
    pub(super) range: usize,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// What to do with a range that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Make its segment: no other file of the image can be equal.
    Encode,
    /// Hand the bytes over: whether another file is equal is not known yet.
    Keep,
    /// Only hash it: the file is too large to be kept.
    Hash,
}

/// What a job gives.
#[derive(Debug)]
pub(super) enum Product {
    /// Of [`Job::ReadFiles`]: the contents one after the other, and their hashes.
    Files {
        /// The contents.
        bytes: Vec<u8>,
        /// The hashes.
        hashes: Vec<ContentHash>,
    },
    /// Of [`Then::Encode`]: the segment of the range, and its hash unless nobody needs it.
    Range {
        /// The hash.
        content: Option<ContentHash>,
        /// The segment.
        batch: Batch,
    },
    /// Of [`Job::Encode`] and [`Job::EncodeRange`].
    Segment(Batch),
    /// Of [`Then::Keep`].
    Kept {
        /// The hash.
        content: ContentHash,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Of [`Then::Hash`].
    Hashed {
        /// The hash.
        content: ContentHash,
    },
    /// Of [`Job::Write`].
    Written {
        /// Bytes of content that are held no longer.
        held_bytes: u64,
        /// The store paths whose packs were written to, once for each segment.
        members: Vec<usize>,
    },
    /// Of [`Job::Copy`].
    Copied {
        /// Bytes of content.
        input_bytes: u64,
        /// Bytes in the image.
        stored_bytes: u64,
        /// Store paths whose packs are damaged.
        damaged: Vec<usize>,
    },
    /// Of [`Job::Keep`].
    Done,
}

/// What all workers share.
pub(super) struct WorkerInputs<'a> {
    /// The store paths, in the order of their data.
    pub(super) members: &'a [Member],
    /// Codec and block sizes.
    pub(super) settings: &'a ImageSettings,
    /// The image; `None` when only packs are made.
    pub(super) image: Option<&'a ImageFile<'a>>,
    /// Where new packs go; `None` when none are made.
    pub(super) keeper: Option<&'a dyn PackKeeper>,
    /// Buffers for segments.
    pub(super) buffers: &'a SpareBuffers,
    /// Takes what went wrong with new packs: none of it stops a build.
    pub(super) cache_troubles: &'a (dyn Fn(CacheError) + Sync),
}

/// One worker: its codec and its buffer.
pub(super) struct Worker<'a> {
    pub(super) inputs: &'a WorkerInputs<'a>,
    encoder: Encoder,
    pub(super) buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    /// Sets the codec up.
    pub(super) fn new(inputs: &'a WorkerInputs<'a>) -> Result<Self, BuildError> {
        Ok(Self { inputs, encoder: Encoder::new(inputs.settings)?, buffer: Vec::new() })
    }

    /// Does a piece of work.
    pub(super) fn run(&mut self, job: Job) -> Result<Product, BuildError> {
        match job {
            Job::ReadFiles { member, nodes } => self.read_files(member, &nodes),
            Job::ReadRange { range, then } => self.read_range(range, then),
            Job::EncodeRange { range, content } => self.encode_range(range, &content),
            Job::Encode { kind, bytes } => {
                let batch = self.encode(kind, &bytes)?;
                self.inputs.buffers.give(bytes);
                Ok(Product::Segment(batch))
            }
            Job::Write(job) => self.write(job),
            Job::Copy(job) => self.copy(job),
            Job::Keep(job) => {
                self.keep(&job);
                Ok(Product::Done)
            }
        }
    }

    fn read_files(&self, member: usize, nodes: &[NodeId]) -> Result<Product, BuildError> {
        let member = &self.inputs.members[member];
        let lengths: Vec<usize> =
            nodes.iter().map(|node| usize::try_from(member.file_length(*node)).unwrap_or(usize::MAX)).collect();
        let mut bytes = self.inputs.buffers.take_filled(lengths.iter().sum());
        let mut hashes = Vec::with_capacity(nodes.len());
        let mut rest = &mut bytes[..];
        for (node, length) in nodes.iter().zip(lengths) {
            let (content, behind) = rest.split_at_mut(length);
            member.read(*node, 0, content)?;
            hashes.push(*blake3::hash(content).as_bytes());
            rest = behind;
        }
        Ok(Product::Files { bytes, hashes })
    }

    fn read_range(&mut self, range: RangeRef, then: Then) -> Result<Product, BuildError> {
        let mut buffer = match then {
            // These bytes are handed over.
            Then::Keep => self.inputs.buffers.take_filled(range.length),
            Then::Encode | Then::Hash => self.take_buffer(RANGE_BYTES as usize),
        };
        let bytes = &mut buffer[..range.length];
        self.inputs.members[range.member].read(range.node, range.range, bytes)?;
        let needs_hash = then != Then::Encode || self.inputs.keeper.is_some();
        let content = needs_hash.then(|| *blake3::hash(bytes).as_bytes());
        let product = match (then, content) {
            (Then::Keep, Some(content)) => return Ok(Product::Kept { content, bytes: buffer }),
            (Then::Hash, Some(content)) => Product::Hashed { content },
            (_, content) => Product::Range { content, batch: self.encode(SegmentKind::File, bytes)? },
        };
        self.buffer = buffer;
        Ok(product)
    }

    fn encode_range(&mut self, range: RangeRef, content: &ContentHash) -> Result<Product, BuildError> {
        let mut buffer = self.take_buffer(RANGE_BYTES as usize);
        let bytes = &mut buffer[..range.length];
        let member = &self.inputs.members[range.member];
        member.read(range.node, range.range, bytes)?;
        if blake3::hash(bytes).as_bytes() != content {
            return Err(BuildError::Changed { path: member.path_of(range.node) });
        }
        let batch = self.encode(SegmentKind::File, bytes)?;
        self.buffer = buffer;
        Ok(Product::Segment(batch))
    }

    /// A buffer of at least `length` bytes. It is put back afterwards: zeroing a new one each time would cost as much as
    /// copying the content does.
    pub(super) fn take_buffer(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        buffer
    }

    /// Compresses a segment.
    fn encode(&mut self, kind: SegmentKind, content: &[u8]) -> Result<Batch, BuildError> {
        // Room for all of it, even if nothing shrinks.
        let buffer = self.inputs.buffers.take(content.len() + content.len() / 128 + 1024);
        let block_size_bytes = self.inputs.settings.block_size_bytes();
        let mut batch = Batch::new(buffer);
        let mut segment = encode_segment(&mut self.encoder, kind, content, block_size_bytes, &mut batch)?;
        if self.inputs.keeper.is_some() {
            segment.checksum = crate::pack::segment_checksum(batch.stored(&segment));
        }
        batch.push(segment);
        Ok(batch)
    }

    /// Completes a pack. What goes wrong costs the next build time, and is no error of this one.
    fn keep(&self, job: &KeepJob) {
        let Some(keeper) = self.inputs.keeper else { return };
        let member = &self.inputs.members[job.member];
        let head = PackHead {
            path: &member.planned,
            settings: self.inputs.settings,
            tree: member.tree(),
            range_hashes: &job.range_hashes,
        };
        let image = self.inputs.image.map(ImageFile::file);
        let kept = job.pack.complete(job, &head, image).and_then(|()| keeper.keep(&member.planned, &job.pack));
        if let Err(error) = kept {
            (self.inputs.cache_troubles)(error);
        }
    }
}
