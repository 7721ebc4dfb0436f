//! Takes the steps in order and decides which content is stored, and in which fragment block.
//!
//! Workers can finish in any order. A single thread makes all decisions that affect the bytes of the image here, step
//! by step, so the image does not depend on threads and cache. This thread moves no content; workers do.

use super::back_pressure::{Backlog, SegmentState, Slot, SlotContent, Target};
use super::buffers::BufferPool;
use super::content_counts::ContentCounts;
use super::job::{Completed, Job, JobOutput, RangeAction, RangeRef};
use super::job_queue::{JobId, JobQueue, JobResult};
use super::nar_check::NarHashMismatch;
use super::new_pack::PackKeeper;
use super::output::ImageFile;
use super::packed_ranges::PackedRange;
use super::placement::{Placed, Placement};
use super::places::{Occurrence, Places};
use super::range_hashes::RangeHashes;
use super::source::InputPath;
use super::steps::{FileRef, SmallHashes, Step, steps};
use super::{BuildError, cpu_seconds};
use crate::cache::CacheError;
use crate::pack::block_hashes::PackIdentity;
use crate::pack::layout::{Piece, fragment_hasher};
use crate::progress::Progress;
use crate::report::{PathSeconds, WorkSeconds};
use crate::segment::{ContentHash, SegmentKind, file_content, range_count, range_length};
use crate::settings::ImageSettings;
use nix::sys::resource::UsageWho;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Interval at which cancellation is checked while nothing else happens.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// The result of writing the data of an image.
#[derive(Debug)]
pub(super) struct Sequenced {
    /// The locations of all files.
    pub(super) places: Places,
    /// The counts for the report.
    pub(super) content_counts: ContentCounts,
    /// Processor time of the deciding thread in seconds.
    pub(super) cpu_seconds: f64,
    /// Time of the worker threads.
    pub(super) work_seconds: WorkSeconds,
    /// The store paths that took most of it.
    pub(super) slowest_paths: Vec<PathSeconds>,
    /// Store paths whose packs are damaged. If there are some, the image is not correct.
    pub(super) damaged: BTreeSet<usize>,
    /// Store paths that do not have their NAR hash.
    pub(super) other_content: Vec<NarHashMismatch>,
    /// The ranges of the image that have the bytes of packs.
    pub(super) packed_ranges: Vec<PackedRange>,
    /// The packs that were made, by the number of their store path.
    pub(super) new_packs: HashMap<usize, PackIdentity>,
    /// Length of the image in bytes; `None` if there is no image.
    pub(super) image_bytes: Option<u64>,
    /// Wall time in seconds that the tables took.
    pub(super) tables_seconds: f64,
}

/// Writes everything except the data of an image, from the locations of all files and the end of the data. Returns the
/// length of the image in bytes.
pub(super) type WriteTables<'a> = dyn Fn(&Places, u64) -> Result<u64, BuildError> + 'a;

/// The inputs of a sequencer.
pub(super) struct SequenceInputs<'a> {
    /// The store paths, in the order of the data.
    pub(super) store_paths: &'a [InputPath],
    /// Codec and block sizes.
    pub(super) settings: &'a ImageSettings,
    /// Number of worker threads.
    pub(super) threads: usize,
    /// Becomes true when the build must stop.
    pub(super) cancel: &'a AtomicBool,
    /// Buffers for content.
    pub(super) buffers: &'a BufferPool,
    /// The image; `None` if only packs are made.
    pub(super) image: Option<&'a ImageFile<'a>>,
    /// Position of the data in the image.
    pub(super) start: u64,
    /// Writes the tables of the image.
    pub(super) write_tables: Option<&'a WriteTables<'a>>,
    /// The receiver of new packs; `None` if no packs are made.
    pub(super) keeper: Option<&'a dyn PackKeeper>,
    /// Receives problems with new packs.
    pub(super) report_cache_error: &'a (dyn Fn(CacheError) + Sync),
}

impl SequenceInputs<'_> {
    /// Returns the length of a file in bytes, by its number in the image.
    pub(super) fn file_bytes(&self, file: usize) -> u64 {
        let store_path =
            &self.store_paths[self.store_paths.partition_point(|store_path| store_path.first_file <= file) - 1];
        store_path.tree().file_sizes()[file - store_path.first_file]
    }
}

/// The fragment block that is being filled.
#[derive(Debug, Default)]
struct OpenFragment {
    /// Its number in the image, after the first file that is new in the image was added.
    index: Option<u32>,
    new_bytes: u64,
    /// The contents of its files, one after the other.
    bytes: Vec<u8>,
    /// The hashes of the contents, in the same order.
    contents: Option<Box<blake3::Hasher>>,
}

/// Runs all steps.
pub(super) struct Sequencer<'a> {
    inputs: &'a SequenceInputs<'a>,
    progress: &'a mut dyn Progress,
    steps: Vec<Step>,
    /// The next step to take.
    next: usize,
    backlog: Backlog<'a>,
    placement: Placement<'a>,
    fragment: OpenFragment,
    /// The contents of the store path so far. Which files are stored together depends only on the store path, so that a
    /// change in another one never moves them.
    met: HashSet<ContentHash>,
    range_hashes: RangeHashes,
    done: Sequenced,
}

impl<'a> Sequencer<'a> {
    /// Creates a sequencer before its first step.
    pub(super) fn new(inputs: &'a SequenceInputs<'a>, progress: &'a mut dyn Progress, queue: &'a JobQueue) -> Self {
        let store_paths = inputs.store_paths;
        let small_limit_bytes = u64::from(inputs.settings.fragment_block_size_bytes());
        let small_hashes = if inputs.keeper.is_some() { SmallHashes::All } else { SmallHashes::OfEqualLength };
        Self {
            inputs,
            progress,
            steps: steps(store_paths, small_limit_bytes, small_hashes, inputs.threads),
            next: 0,
            backlog: Backlog::new(queue, inputs.threads),
            placement: Placement::new(inputs),
            fragment: OpenFragment::default(),
            met: HashSet::new(),
            range_hashes: RangeHashes::new(store_paths),
            done: Sequenced {
                places: Places::new(store_paths),
                content_counts: ContentCounts::default(),
                cpu_seconds: 0.0,
                work_seconds: WorkSeconds::default(),
                slowest_paths: Vec::new(),
                damaged: BTreeSet::new(),
                other_content: Vec::new(),
                packed_ranges: Vec::new(),
                new_packs: HashMap::new(),
                image_bytes: None,
                tables_seconds: 0.0,
            },
        }
    }

    /// Takes all steps. At the end, everything is written.
    pub(super) fn run(mut self, results: &Receiver<JobResult>) -> Result<Sequenced, BuildError> {
        // Jobs that compress are submitted before anything is copied, because everything after them in the image waits
        // for them.
        let cpu_before = cpu_seconds(UsageWho::RUSAGE_THREAD);
        self.backlog.submit_jobs(&self.steps);
        loop {
            self.take_steps()?;
            self.backlog.submit_jobs(&self.steps);
            let all_placed = self.next == self.steps.len() && self.backlog.is_empty();
            if all_placed || !self.backlog.is_busy() {
                self.placement.flush(&mut self.backlog);
            }
            if all_placed && self.done.image_bytes.is_none() {
                self.write_tables()?;
            }
            if self.backlog.is_busy() {
                self.receive(results)?;
            } else if all_placed && !self.placement.make_last_packs(&mut self.backlog) {
                self.done.cpu_seconds += cpu_seconds(UsageWho::RUSAGE_THREAD) - cpu_before;
                self.done.packed_ranges = self.placement.packed_ranges;
                return Ok(self.done);
            }
        }
    }

    /// Writes the tables. Now all positions are known, but in a build from packs the workers still have most of the
    /// content to copy.
    fn write_tables(&mut self) -> Result<(), BuildError> {
        let Some(write) = self.inputs.write_tables else { return Ok(()) };
        let (started, cpu_before) = (Instant::now(), cpu_seconds(UsageWho::RUSAGE_THREAD));
        self.done.image_bytes = Some(write(&self.done.places, self.placement.end)?);
        self.done.tables_seconds = started.elapsed().as_secs_f64();
        // Only decisions count.
        self.done.cpu_seconds -= cpu_seconds(UsageWho::RUSAGE_THREAD) - cpu_before;
        Ok(())
    }

    fn receive(&mut self, results: &Receiver<JobResult>) -> Result<(), BuildError> {
        let mut result = loop {
            if self.inputs.cancel.load(Ordering::Relaxed) {
                return Err(BuildError::Interrupted);
            }
            match results.recv_timeout(CANCEL_INTERVAL) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(BuildError::WorkerPanicked),
            }
        };
        loop {
            let (id, job_output) = result;
            let job_output = job_output?;
            self.backlog.finished();
            match (id, job_output) {
                (JobId::Step(step), job_output) => self.backlog.store_output(step, job_output),
                (JobId::Slot(number), JobOutput::Segment(batch)) => self.backlog.fill(number, batch),
                (JobId::Background, JobOutput::Written { held_bytes, store_paths }) => {
                    self.backlog.release(held_bytes);
                    self.placement.wrote(&store_paths, &mut self.backlog, &self.range_hashes);
                }
                (JobId::Background, JobOutput::Copied { input_bytes, stored_bytes, damaged }) => {
                    self.done.damaged.extend(damaged);
                    self.done.content_counts.copied(input_bytes);
                    self.progress.advance(input_bytes, input_bytes, stored_bytes);
                }
                (JobId::Background, JobOutput::Completed(end)) => match end {
                    Completed::Pack { store_path, identity } => _ = self.done.new_packs.insert(store_path, identity),
                    Completed::NarHashMismatch(other) => self.done.other_content.push(other),
                    Completed::Failed => {}
                },
                (JobId::Background, JobOutput::ReadAhead) => {}
                _ => return Err(BuildError::Defect { what: "a job returned the output of another" }),
            }
            match results.try_recv() {
                Ok(next) => result = next,
                Err(_) => return Ok(()),
            }
        }
    }

    /// Takes all steps that can be taken. What can be placed is placed after each of them, so that workers copy the
    /// first packs while the next ones are examined.
    fn take_steps(&mut self) -> Result<(), BuildError> {
        self.place_ready()?;
        while self.backlog.has_room() {
            let number = self.next;
            let Some(step) = self.steps.get_mut(number) else { break };
            if !self.backlog.is_ready(number, step) {
                break;
            }
            // A step is taken only once, so its replacement is never used.
            let step = std::mem::replace(step, Step::EndOfPath(0));
            let job_output = self.backlog.take_output(number);
            self.next += 1;
            self.take(step, job_output)?;
            self.place_ready()?;
        }
        Ok(())
    }

    fn place_ready(&mut self) -> Result<(), BuildError> {
        while let Some(slot) = self.backlog.pop_ready() {
            let store_path = slot.store_path;
            let places = &mut self.done.places;
            let placed = self.placement.place(slot, &mut self.backlog, places, &self.range_hashes)?;
            let Placed { input_bytes, stored_bytes, is_known } = placed;
            if is_known {
                self.done.content_counts.copied(input_bytes);
                self.progress.advance(input_bytes, input_bytes, stored_bytes);
            } else if input_bytes > 0 {
                self.done.content_counts.compressed(store_path, input_bytes);
                self.progress.advance(input_bytes, 0, stored_bytes);
            }
        }
        Ok(())
    }

    fn take(&mut self, step: Step, job_output: Option<JobOutput>) -> Result<(), BuildError> {
        match (step, job_output) {
            (Step::ReadSmall(files), Some(JobOutput::Files { bytes, hashes })) => {
                self.backlog.release(bytes.len() as u64);
                let mut rest = &bytes[..];
                for (file, hash) in files.into_iter().zip(hashes) {
                    let content;
                    (content, rest) = rest.split_at(usize::try_from(file.size_bytes).unwrap_or(rest.len()));
                    if let Some(hash) = hash {
                        self.range_hashes.set(file.file, 0, hash);
                    }
                    self.take_small(file, hash, content);
                }
                self.inputs.buffers.give(bytes);
            }
            (Step::ReadRange { file, range, action }, Some(job_output)) => {
                self.take_range(file, range, action, job_output)?
            }
            (Step::Hashed(file), None) => self.take_hashed(file),
            (Step::Linked { file, to }, None) => self.take_linked(file, to),
            (Step::Packed(store_path), None) => self.take_packed(store_path),
            (Step::EndOfPath(store_path), None) => {
                self.end_fragment(store_path);
                self.met.clear();
                self.push(store_path, SlotContent::EndOfPath, 0);
            }
            _ => return Err(BuildError::Defect { what: "a step was taken with the output of another" }),
        }
        Ok(())
    }

    fn push(&mut self, store_path: usize, content: SlotContent, held_bytes: u64) {
        self.backlog.push(Slot { store_path, held_bytes, content });
    }

    fn count_duplicate(&mut self, file: FileRef) {
        self.done.content_counts.duplicate(file.size_bytes);
        self.progress.advance(file.size_bytes, 0, 0);
    }

    /// Adds a file to a fragment block, unless an earlier file of the same store path has its content. The block
    /// becomes part of the image if at least one of its files is new in the image. A file without a hash differs from
    /// all others.
    fn take_small(&mut self, file: FileRef, hash: Option<ContentHash>, content: &[u8]) {
        let is_repeated = hash.is_some_and(|hash| !self.met.insert(hash));
        let limit_bytes = self.inputs.settings.fragment_block_size_bytes() as usize;
        if !is_repeated && self.fragment.bytes.len() + content.len() > limit_bytes {
            self.end_fragment(file.store_path);
        }
        if hash.is_none_or(|hash| self.done.places.record_content(file.file, hash) == Occurrence::First) {
            let index = *self.fragment.index.get_or_insert_with(|| self.done.places.new_fragment());
            let offset = u32::try_from(self.fragment.bytes.len()).unwrap_or(u32::MAX);
            self.done.places.put_in_fragment(file.file, index, offset);
            self.fragment.new_bytes += file.size_bytes;
        } else {
            self.count_duplicate(file);
        }
        if !is_repeated {
            if self.fragment.bytes.capacity() == 0 {
                self.fragment.bytes = self.inputs.buffers.take_empty(limit_bytes);
            }
            self.fragment.bytes.extend_from_slice(content);
            // The hash of the block is only needed to find it in the pack of an earlier version.
            if let Some(hash) = hash.filter(|_| self.inputs.keeper.is_some()) {
                self.fragment.contents.get_or_insert_with(|| Box::new(fragment_hasher())).update(&hash);
            }
        }
    }

    fn end_fragment(&mut self, store_path: usize) {
        let OpenFragment { index, new_bytes, bytes, contents } = std::mem::take(&mut self.fragment);
        if bytes.is_empty() {
            return;
        }
        let target = match index {
            Some(index) => Target::Fragment(index, new_bytes),
            None if self.inputs.keeper.is_some() => Target::PackOnly,
            None => {
                self.inputs.buffers.give(bytes);
                return self.push(store_path, SlotContent::LeftOut(None), 0);
            }
        };
        let held_bytes = bytes.len() as u64;
        self.backlog.hold(held_bytes);
        let content = *contents.unwrap_or_default().finalize().as_bytes();
        let job = Job::Encode { store_path, kind: SegmentKind::Fragment, content, bytes };
        self.push(store_path, SlotContent::Segment(target, SegmentState::Waiting(job)), held_bytes);
    }

    fn take_range(
        &mut self,
        file: FileRef,
        range: RangeRef,
        action: RangeAction,
        job_output: JobOutput,
    ) -> Result<(), BuildError> {
        let length = range.length as u64;
        match (action, job_output) {
            (RangeAction::Encode, JobOutput::Range { content, batch }) => {
                if let Some(content) = content {
                    self.range_hashes.set(file.file, range.range, content);
                    if range.range + 1 == range_count(file.size_bytes) {
                        // No other file of the image has this content, so this only records its hash.
                        let hash = file_content(self.range_hashes.of(file.file));
                        self.done.places.record_content(file.file, hash);
                        self.met.insert(hash);
                    }
                }
                let content = SlotContent::Segment(target_of(file, range.range), SegmentState::Ready(batch));
                self.push(file.store_path, content, length);
            }
            (RangeAction::Keep, JobOutput::Kept { content, bytes }) => {
                self.range_hashes.set(file.file, range.range, content);
                if self.is_new(file, content) {
                    let (store_path, kind) = (file.store_path, SegmentKind::File);
                    let job = Job::Encode { store_path, kind, content, bytes };
                    let content = SlotContent::Segment(target_of(file, 0), SegmentState::Waiting(job));
                    self.push(file.store_path, content, length);
                } else {
                    self.backlog.release(length);
                    self.inputs.buffers.give(bytes);
                }
            }
            (RangeAction::Hash, JobOutput::Hashed { content }) => {
                self.backlog.release(length);
                self.range_hashes.set(file.file, range.range, content);
            }
            _ => return Err(BuildError::Defect { what: "a range was read for something else" }),
        }
        Ok(())
    }

    fn take_hashed(&mut self, file: FileRef) {
        let hashes = self.range_hashes.of(file.file).to_vec();
        if !self.is_new(file, file_content(&hashes)) {
            return;
        }
        for (number, content) in hashes.into_iter().enumerate() {
            let length = range_length(file.size_bytes, number);
            let range = RangeRef { store_path: file.store_path, node: file.node, range: number, length };
            let state = SegmentState::Waiting(Job::EncodeRange { range, content });
            self.push(file.store_path, SlotContent::Segment(target_of(file, number), state), 0);
        }
    }

    /// Returns whether the content of a large file is new in the image. If it is not, the file is skipped.
    fn is_new(&mut self, file: FileRef, content: ContentHash) -> bool {
        let is_repeated = !self.met.insert(content);
        if self.done.places.record_content(file.file, content) == Occurrence::First {
            return true;
        }
        self.count_duplicate(file);
        if !is_repeated {
            let first = self.done.places.first_with_content_of(file.file);
            self.push(file.store_path, SlotContent::LeftOut(Some(first)), 0);
        }
        false
    }

    fn take_linked(&mut self, file: FileRef, to: usize) {
        self.range_hashes.copy(to, file.file);
        let hash = file_content(self.range_hashes.of(file.file));
        if file.size_bytes < u64::from(self.inputs.settings.fragment_block_size_bytes()) {
            // The earlier file is in the same store path, so the content has already been read.
            return self.take_small(file, Some(hash), &[]);
        }
        let is_of_other_path = to < self.inputs.store_paths[file.store_path].first_file;
        self.done.places.share(file.file, to);
        self.count_duplicate(file);
        // Without packs the hash may be unknown, but it is then not needed.
        if is_of_other_path && (self.inputs.keeper.is_none() || self.met.insert(hash)) {
            let first = self.done.places.first_with_content_of(file.file);
            self.push(file.store_path, SlotContent::LeftOut(Some(first)), 0);
        }
    }

    /// Takes a store path with a pack: copies the segments that have content that is new in the image.
    fn take_packed(&mut self, store_path: usize) {
        let Some(pack) = self.inputs.store_paths[store_path].pack() else { return };
        let first_file = self.inputs.store_paths[store_path].first_file;
        let sizes = pack.tree().file_sizes();
        let mut duplicates = (0, 0);
        let mut duplicate = |size_bytes: u64| duplicates = (duplicates.0 + 1, duplicates.1 + size_bytes);
        let places = &mut self.done.places;
        let mut copied = Vec::new();
        let mut is_file_new = false;
        for (number, piece) in pack.layout().pieces.iter().enumerate() {
            match piece {
                Piece::Range { file, range, length, .. } => {
                    if *range == 0 {
                        is_file_new = places.record_content(first_file + *file as usize, pack.content(*file))
                            == Occurrence::First;
                        if !is_file_new {
                            duplicate(sizes[*file as usize]);
                        }
                    }
                    if is_file_new {
                        copied.push((number, u64::from(*length)));
                    }
                }
                Piece::Fragment(files) => {
                    let (mut index, mut new_bytes) = (None, 0);
                    for small in files {
                        let file = first_file + small.file as usize;
                        if places.record_content(file, pack.content(small.file)) == Occurrence::First {
                            let index = *index.get_or_insert_with(|| places.new_fragment());
                            places.put_in_fragment(file, index, small.offset);
                            new_bytes += u64::from(small.size_bytes);
                        } else {
                            duplicate(u64::from(small.size_bytes));
                        }
                    }
                    if index.is_some() {
                        copied.push((number, new_bytes));
                    }
                }
            }
        }
        for (file, first) in &pack.layout().same_as {
            places.share(first_file + *file as usize, first_file + *first as usize);
            duplicate(sizes[*file as usize]);
        }
        let (files, bytes) = duplicates;
        self.done.content_counts.duplicate_files += files;
        self.done.content_counts.duplicate_bytes += bytes;
        self.progress.advance(bytes, 0, 0);
        self.push(store_path, SlotContent::Packed(copied), 0);
    }
}

fn target_of(file: FileRef, range: usize) -> Target {
    Target::File { file: file.file, size_bytes: file.size_bytes, is_first: range == 0 }
}
