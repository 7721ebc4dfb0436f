//! The jobs of worker threads: reading, hashing, compressing, copying, writing.

use super::BuildError;
use super::buffers::BufferPool;
use super::nar_check::{self, NarHashMismatch};
use super::new_pack::{NewPack, PackKeeper};
use super::output::ImageFile;
use super::read_ahead::{FilesAhead, read_ahead};
use super::source::InputPath;
use super::transfer::{CopyJob, WriteJob};
use super::work_times::{Work, WorkTimes};
use crate::cache::CacheError;
use crate::encode::Encoder;
use crate::pack::block_hashes::PackIdentity;
use crate::pack::{NewSegment, PackHead};
use crate::segment::{Batch, ContentHash, RANGE_BYTES, SegmentKind, encode_segment};
use crate::settings::ImageSettings;
use crate::tree::NodeId;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A job for a worker.
#[derive(Debug)]
pub(super) enum Job {
    /// Reads and hashes small files of one store path.
    ReadFiles {
        /// Number of the store path.
        store_path: usize,
        /// The files, as nodes of the store path's tree, and whether their hashes are needed.
        nodes: Vec<(NodeId, bool)>,
    },
    /// Reads a range of a file, and processes it as `then` says.
    ReadRange {
        range: RangeRef,
        /// What to do with it.
        action: RangeAction,
    },
    /// Reads a range of a file, checks that it still has this hash, and makes its segment.
    EncodeRange { range: RangeRef, content: ContentHash },
    /// Makes a segment from bytes that have already been read.
    Encode {
        /// Number of the store path.
        store_path: usize,
        /// The kind of the segment.
        kind: SegmentKind,
        /// The hash of the content: that of a range, or [`fragment_content`](crate::pack::layout::fragment_content).
        content: ContentHash,
        bytes: Vec<u8>,
    },
    /// Writes segments to the image and to packs.
    Write(WriteJob),
    /// Copies segments from packs to the image.
    Copy(CopyJob),
    /// Completes a pack and adds it to the cache.
    Keep(Box<KeepJob>),
    /// Asks the kernel to read the files of later jobs.
    ReadAhead(Vec<FilesAhead>),
}

/// A pack whose segments have been written.
#[derive(Debug)]
pub(super) struct KeepJob {
    /// Number of the store path.
    pub(super) store_path: usize,
    /// The pack to complete.
    pub(super) pack: Arc<NewPack>,
    /// Position after its last segment.
    pub(super) end: u64,
    /// Its segments, in the order of its content.
    pub(super) segments: Vec<NewSegment>,
    /// Hashes of the ranges of all files of the store path.
    pub(super) range_hashes: Vec<ContentHash>,
    /// Segments that must be copied from the image to the pack.
    pub(super) from_image: Vec<FromImage>,
}

/// Stored bytes to copy from the image to a pack.
#[derive(Clone, Copy, Debug)]
pub(super) struct FromImage {
    /// Position in the image.
    pub(super) image_at: u64,
    /// Position in the pack.
    pub(super) pack_at: u64,
    /// Number of bytes.
    pub(super) bytes: u32,
}

/// A range of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct RangeRef {
    /// Number of the store path.
    pub(super) store_path: usize,
    /// The file.
    pub(super) node: NodeId,
    /// Number of the range.
    pub(super) range: usize,
    /// Its length in bytes.
    pub(super) length: usize,
}

/// How to process a range that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeAction {
    /// Make its segment, because no other file of the image can be equal.
    Encode,
    /// Return the bytes, because it is not known yet whether another file is equal.
    Keep,
    /// Only hash it, because the file is too large to keep it in memory.
    Hash,
}

/// The output of a job.
#[derive(Debug)]
pub(super) enum JobOutput {
    /// The output of [`Job::ReadFiles`]: the contents, one after the other, and their hashes.
    Files {
        /// The contents of the files, one after the other.
        bytes: Vec<u8>,
        /// The hash of each content, in the same order, if it is needed.
        hashes: Vec<Option<ContentHash>>,
    },
    /// The output of [`RangeAction::Encode`]: the segment of the range, and its hash if it is needed.
    Range {
        /// The hash of the range, if it was computed.
        content: Option<ContentHash>,
        batch: Batch,
    },
    /// The output of [`Job::Encode`] and [`Job::EncodeRange`].
    Segment(Batch),
    /// The output of [`RangeAction::Keep`].
    Kept { content: ContentHash, bytes: Vec<u8> },
    /// The output of [`RangeAction::Hash`].
    Hashed { content: ContentHash },
    /// The output of [`Job::Write`].
    Written {
        /// Number of bytes of content that are no longer in memory.
        held_bytes: u64,
        /// The store paths whose packs were written to, once per segment.
        store_paths: Vec<usize>,
    },
    /// The output of [`Job::Copy`].
    Copied {
        /// Number of bytes of content.
        input_bytes: u64,
        /// Number of stored bytes in the image.
        stored_bytes: u64,
        /// Store paths whose packs are damaged.
        damaged: Vec<usize>,
    },
    /// The output of [`Job::Keep`].
    Completed(Completed),
    /// The output of [`Job::ReadAhead`].
    ReadAhead,
}

/// The end of a pack.
#[derive(Debug)]
pub(super) enum Completed {
    /// It is complete, and was given to its keeper.
    Pack {
        /// Number of the store path.
        store_path: usize,
        identity: PackIdentity,
    },
    /// It could not be written.
    Failed,
    /// The store path does not have its NAR hash.
    NarHashMismatch(NarHashMismatch),
}

/// The inputs that all workers share.
pub(super) struct WorkerInputs<'a> {
    /// The store paths, in the order of their data.
    pub(super) store_paths: &'a [InputPath],
    /// Codec and block sizes.
    pub(super) settings: &'a ImageSettings,
    /// The image; `None` if only packs are made.
    pub(super) image: Option<&'a ImageFile<'a>>,
    /// The receiver of new packs; `None` if no packs are made.
    pub(super) keeper: Option<&'a dyn PackKeeper>,
    /// Buffers for segments.
    pub(super) buffers: &'a BufferPool,
    /// Receives problems with new packs, which never end a build.
    pub(super) report_cache_error: &'a (dyn Fn(CacheError) + Sync),
    /// Becomes true when the build must stop.
    pub(super) cancel: &'a AtomicBool,
    /// Receives the times of all work.
    pub(super) times: &'a WorkTimes,
}

/// A worker, with its codec and its buffer.
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

    /// Runs a job.
    pub(super) fn run(&mut self, job: Job) -> Result<JobOutput, BuildError> {
        match job {
            Job::ReadFiles { store_path, nodes } => {
                self.inputs.times.measure(Work::Read, Some(store_path), || self.read_files(store_path, &nodes))
            }
            Job::ReadRange { range, action } => self.read_range(range, action),
            Job::EncodeRange { range, content } => self.encode_range(range, &content),
            Job::Encode { store_path, kind, content, bytes } => {
                let batch = self.make_segment(store_path, kind, Some(&content), &bytes)?;
                self.inputs.buffers.give(bytes);
                Ok(JobOutput::Segment(batch))
            }
            Job::Write(job) => self.inputs.times.measure(Work::Write, None, || self.write(job)),
            Job::Copy(job) => self.inputs.times.measure(Work::Copy, None, || self.copy(job)),
            Job::Keep(job) => self.keep(&job).map(JobOutput::Completed),
            Job::ReadAhead(jobs) => {
                for files in jobs {
                    let store_path = &self.inputs.store_paths[files.store_path];
                    self.inputs.times.measure(Work::Read, Some(files.store_path), || {
                        read_ahead(files.ranges, |node| store_path.open(None, node).ok());
                    });
                }
                Ok(JobOutput::ReadAhead)
            }
        }
    }

    fn read_files(&self, store_path: usize, nodes: &[(NodeId, bool)]) -> Result<JobOutput, BuildError> {
        let store_path = &self.inputs.store_paths[store_path];
        let length = |node| usize::try_from(store_path.file_length(node)).unwrap_or(usize::MAX);
        let lengths: Vec<usize> = nodes.iter().map(|(node, _)| length(*node)).collect();
        let mut bytes = self.inputs.buffers.take_filled(lengths.iter().sum());
        let mut hashes = Vec::with_capacity(nodes.len());
        let mut rest = &mut bytes[..];
        let mut lengths = lengths.into_iter();
        let tree = store_path.tree();
        for files in nodes.chunk_by(|(one, _), (next, _)| tree.parent(*one) == tree.parent(*next)) {
            let directory = store_path.directory_of(files.first().map(|(node, _)| *node), files.len());
            for ((node, is_hashed), length) in files.iter().zip(lengths.by_ref()) {
                let (content, remaining) = rest.split_at_mut(length);
                store_path.read_whole(directory.as_ref(), *node, content)?;
                hashes.push(is_hashed.then(|| *blake3::hash(content).as_bytes()));
                rest = remaining;
            }
        }
        Ok(JobOutput::Files { bytes, hashes })
    }

    fn read_range(&mut self, range: RangeRef, action: RangeAction) -> Result<JobOutput, BuildError> {
        let mut buffer = match action {
            // These bytes are returned in the output.
            RangeAction::Keep => self.inputs.buffers.take_filled(range.length),
            RangeAction::Encode | RangeAction::Hash => self.take_buffer(RANGE_BYTES as usize),
        };
        let bytes = &mut buffer[..range.length];
        let needs_hash = action != RangeAction::Encode || self.inputs.keeper.is_some();
        let content = self.inputs.times.measure(Work::Read, Some(range.store_path), || {
            self.inputs.store_paths[range.store_path].read(range.node, range.range, bytes)?;
            Ok::<_, BuildError>(needs_hash.then(|| *blake3::hash(bytes).as_bytes()))
        })?;
        let job_output = match (action, content) {
            (RangeAction::Keep, Some(content)) => return Ok(JobOutput::Kept { content, bytes: buffer }),
            (RangeAction::Hash, Some(content)) => JobOutput::Hashed { content },
            (_, content) => {
                let batch = self.make_segment(range.store_path, SegmentKind::File, content.as_ref(), bytes)?;
                JobOutput::Range { content, batch }
            }
        };
        self.buffer = buffer;
        Ok(job_output)
    }

    fn encode_range(&mut self, range: RangeRef, content: &ContentHash) -> Result<JobOutput, BuildError> {
        let mut buffer = self.take_buffer(RANGE_BYTES as usize);
        let bytes = &mut buffer[..range.length];
        let store_path = &self.inputs.store_paths[range.store_path];
        let is_same = self.inputs.times.measure(Work::Read, Some(range.store_path), || {
            store_path.read(range.node, range.range, bytes)?;
            Ok::<_, BuildError>(blake3::hash(bytes).as_bytes() == content)
        })?;
        if !is_same {
            return Err(BuildError::Changed { path: store_path.path_of(range.node) });
        }
        let batch = self.make_segment(range.store_path, SegmentKind::File, Some(content), bytes)?;
        self.buffer = buffer;
        Ok(JobOutput::Segment(batch))
    }

    /// Takes the buffer, with at least `length` bytes. The caller puts it back, because zeroing a new one each time
    /// would take as long as copying the content.
    pub(super) fn take_buffer(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        buffer
    }

    /// Takes a segment from the earlier version of its store path, or compresses it.
    fn make_segment(
        &mut self,
        store_path: usize,
        kind: SegmentKind,
        content: Option<&ContentHash>,
        bytes: &[u8],
    ) -> Result<Batch, BuildError> {
        let earlier = self.inputs.store_paths[store_path].earlier.as_ref().zip(content);
        let known = earlier.and_then(|(earlier, content)| {
            earlier.segment(kind, content, |length| self.inputs.buffers.take_empty(length))
        });
        let times = self.inputs.times;
        known.map_or_else(|| times.measure(Work::Compress, Some(store_path), || self.encode(kind, bytes)), Ok)
    }

    /// Compresses a segment.
    fn encode(&mut self, kind: SegmentKind, content: &[u8]) -> Result<Batch, BuildError> {
        // Enough capacity even if no block becomes shorter.
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

    /// Completes a pack, unless its store path does not have its NAR hash. A failure to write the pack is not an error
    /// of this build; it only makes the next build slower.
    fn keep(&mut self, job: &KeepJob) -> Result<Completed, BuildError> {
        let Some(keeper) = self.inputs.keeper.filter(|_| job.pack.is_intact()) else { return Ok(Completed::Failed) };
        let store_path = &self.inputs.store_paths[job.store_path];
        let other_content = self
            .inputs
            .times
            .measure(Work::Check, Some(job.store_path), || nar_check::check(store_path, self.inputs.cancel))?;
        if let Some(other_content) = other_content {
            return Ok(Completed::NarHashMismatch(other_content));
        }
        let head = PackHead {
            path: &store_path.planned,
            settings: self.inputs.settings,
            tree: store_path.tree(),
            range_hashes: &job.range_hashes,
        };
        let image = self.inputs.image.map(ImageFile::file);
        let identity = job.pack.complete(job, &head, image);
        let kept = identity.and_then(|identity| {
            let Some(identity) = identity else { return Ok(Completed::Failed) };
            keeper.keep(&store_path.planned, &job.pack)?;
            let is_kept = job.pack.is_intact();
            Ok(if is_kept { Completed::Pack { store_path: job.store_path, identity } } else { Completed::Failed })
        });
        Ok(kept.unwrap_or_else(|error| {
            (self.inputs.report_cache_error)(error);
            Completed::Failed
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::new_pack::SinglePack;
    use crate::plan::PlannedPath;
    use crate::store_path::StorePath;
    use program::unnamed_file::UnnamedFile;

    #[test]
    fn without_a_pack_a_large_file_is_hashed_only_if_another_may_be_equal() {
        let directory = tempfile::tempdir().unwrap();
        let location = directory.path().join("path");
        std::fs::write(&location, vec![7; 300_000]).unwrap();
        let path = StorePath::from_base_name("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-path").unwrap();
        let planned = PlannedPath { path, nar_hash: None, nar_size_bytes: None };
        let store_paths = [super::super::scan::list(&planned, location).unwrap()];
        let keeper = SinglePack::new(UnnamedFile::create_sibling(&directory.path().join("pack")).unwrap());
        let (buffers, times, cancel) = (BufferPool::default(), WorkTimes::new(&store_paths), AtomicBool::new(false));
        let is_hashed = |keeper, action| {
            let inputs = WorkerInputs {
                store_paths: &store_paths,
                settings: &ImageSettings::default(),
                image: None,
                keeper,
                buffers: &buffers,
                report_cache_error: &|_| {},
                cancel: &cancel,
                times: &times,
            };
            let range = RangeRef { store_path: 0, node: 0, range: 0, length: 300_000 };
            match Worker::new(&inputs).unwrap().run(Job::ReadRange { range, action }).unwrap() {
                JobOutput::Range { content, .. } => content.is_some(),
                _ => true,
            }
        };
        assert!(!is_hashed(None, RangeAction::Encode));
        assert!(is_hashed(None, RangeAction::Keep) && is_hashed(None, RangeAction::Hash));
        assert!(is_hashed(Some(&keeper as &dyn PackKeeper), RangeAction::Encode));
    }
}
