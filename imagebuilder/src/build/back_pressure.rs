//! Limits how far workers run ahead. Content that is read, being compressed or waiting to be written is counted, and no
//! job is submitted while the count exceeds a limit.

use super::job::{Job, JobOutput};
use super::job_queue::{JobId, JobQueue};
use super::read_ahead::AHEAD_BYTES;
use super::steps::Step;
use crate::segment::Batch;
use std::collections::{HashMap, VecDeque};

/// Maximum number of bytes of content in memory that are read ahead, being compressed or waiting to be written.
const HELD_BYTES_FIXED: u64 = 8 << 20;
const HELD_BYTES_PER_JOB: u64 = 8 << 20;
/// Minimum number of bytes that one job reads ahead.
const READ_AHEAD_BYTES: u64 = 4 << 20;
/// Maximum number of slots that wait to be placed.
const MAX_SLOTS: usize = 256;

/// A part of the image whose position is not known yet, because the length of an earlier part is unknown.
#[derive(Debug)]
pub(super) struct Slot {
    /// Number of its store path.
    pub(super) store_path: usize,
    /// Number of bytes of its content in memory.
    pub(super) held_bytes: u64,
    /// What is placed next.
    pub(super) content: SlotContent,
}

/// The content of a slot.
#[derive(Debug)]
pub(super) enum SlotContent {
    /// A segment and its destination.
    Segment(Target, SegmentState),
    /// Segments of a pack: for each its number and the number of bytes of its content that are new in the image.
    Packed(Vec<(usize, u64)>),
    /// Content that is already in the image, as the content of this file. It is only needed for the pack of the store
    /// path. `None` if no pack is made, or for a fragment block.
    LeftOut(Option<usize>),
    /// The end of a store path that was listed.
    EndOfPath,
}

/// The destination of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// The next blocks of a file with `size_bytes` bytes.
    File {
        /// Number of the file in the image.
        file: usize,
        /// Length of the file in bytes.
        size_bytes: u64,
        /// Whether these are the first blocks of the file.
        is_first: bool,
    },
    /// A fragment block with this number. The second field is the number of bytes that are new in the image.
    Fragment(u32, u64),
    /// A fragment block of files that are already in the image; it is only written to the pack.
    PackOnly,
}

/// The state of a segment.
#[derive(Debug)]
pub(super) enum SegmentState {
    /// Its job has not been submitted yet.
    Waiting(Job),
    /// Its job is in the queue or running.
    Running,
    /// It can be written.
    Ready(Batch),
}

/// The steps and slots that have been started and not been placed yet.
pub(super) struct Backlog<'a> {
    queue: &'a JobQueue,
    /// The next step whose job will be submitted.
    next_step: usize,
    job_outputs: HashMap<usize, JobOutput>,
    slots: VecDeque<Slot>,
    /// Number of the first slot.
    first_slot: u64,
    /// Numbers of the slots whose jobs have not been submitted yet.
    waiting: VecDeque<u64>,
    running_jobs: usize,
    held_bytes: u64,
    held_bytes_max: u64,
    /// The next step whose files have not been read ahead.
    next_ahead: usize,
    /// Length of the files that are read ahead for jobs that have not been submitted yet.
    ahead_bytes: u64,
}

impl<'a> Backlog<'a> {
    /// Creates an empty backlog.
    pub(super) fn new(queue: &'a JobQueue, threads: usize) -> Self {
        Self {
            queue,
            next_step: 0,
            job_outputs: HashMap::new(),
            slots: VecDeque::new(),
            first_slot: 0,
            waiting: VecDeque::new(),
            running_jobs: 0,
            held_bytes: 0,
            held_bytes_max: HELD_BYTES_FIXED + HELD_BYTES_PER_JOB * threads as u64,
            next_ahead: 0,
            ahead_bytes: 0,
        }
    }

    /// Returns whether workers have jobs.
    pub(super) fn is_busy(&self) -> bool {
        self.running_jobs > 0
    }

    /// Returns whether everything that was started has been placed.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Returns whether more steps may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.slots.len() < MAX_SLOTS
    }

    /// Submits jobs while the limit allows the memory that they will use. Jobs of slots come first, because they are
    /// written first.
    pub(super) fn submit_jobs(&mut self, steps: &[Step]) {
        while let Some(number) = self.waiting.front().copied() {
            let first = number == self.first_slot;
            let room = self.held_bytes < self.held_bytes_max || first || self.running_jobs == 0;
            let Some(slot) = self.slot(number).filter(|_| room) else { break };
            let SlotContent::Segment(_, state) = &mut slot.content else { break };
            let SegmentState::Waiting(job) = std::mem::replace(state, SegmentState::Running) else { break };
            // Bytes that have already been read for it are already counted.
            if let Job::EncodeRange { range, .. } = &job {
                slot.held_bytes = range.length as u64;
                self.held_bytes += range.length as u64;
            }
            self.waiting.pop_front();
            self.submit(JobId::Slot(number), job);
        }
        while let Some(step) = steps.get(self.next_step) {
            let Some((job, bytes)) = step.job() else {
                self.next_step += 1;
                continue;
            };
            if self.held_bytes >= self.held_bytes_max && self.running_jobs > 0 {
                break;
            }
            self.held_bytes += bytes;
            self.submit(JobId::Step(self.next_step), job);
            if self.next_step < self.next_ahead {
                self.ahead_bytes -= bytes;
            }
            self.next_step += 1;
        }
        self.read_ahead(steps);
    }

    /// Keeps the kernel reading ahead of the jobs that have been submitted.
    fn read_ahead(&mut self, steps: &[Step]) {
        if self.ahead_bytes + READ_AHEAD_BYTES > AHEAD_BYTES {
            return;
        }
        self.next_ahead = self.next_ahead.max(self.next_step);
        let mut jobs = Vec::new();
        while let Some(step) = steps.get(self.next_ahead).filter(|_| self.ahead_bytes < AHEAD_BYTES) {
            if let Some(files) = step.files_ahead() {
                self.ahead_bytes += files.bytes();
                jobs.push(files);
            }
            self.next_ahead += 1;
        }
        if !jobs.is_empty() {
            self.submit(JobId::Background, Job::ReadAhead(jobs));
        }
    }

    /// Submits a job immediately.
    pub(super) fn submit(&mut self, id: JobId, job: Job) {
        self.running_jobs += 1;
        self.queue.submit(id, job);
    }

    /// Records that a job has ended.
    pub(super) fn finished(&mut self) {
        self.running_jobs -= 1;
    }

    /// Stores the output of a step until the step is taken.
    pub(super) fn store_output(&mut self, step: usize, job_output: JobOutput) {
        self.job_outputs.insert(step, job_output);
    }

    /// Returns whether a step can be taken.
    pub(super) fn is_ready(&self, number: usize, step: &Step) -> bool {
        step.job().is_none() || self.job_outputs.contains_key(&number)
    }

    /// Returns the output of a step that is being taken.
    pub(super) fn take_output(&mut self, number: usize) -> Option<JobOutput> {
        self.next_step = self.next_step.max(number + 1);
        self.job_outputs.remove(&number)
    }

    /// Subtracts content that is no longer in memory.
    pub(super) fn release(&mut self, bytes: u64) {
        self.held_bytes -= bytes;
    }

    /// Counts content that another owner keeps in memory too.
    pub(super) fn hold(&mut self, bytes: u64) {
        self.held_bytes += bytes;
    }

    /// Adds a slot after the others.
    pub(super) fn push(&mut self, slot: Slot) {
        if let SlotContent::Segment(_, SegmentState::Waiting(_)) = slot.content {
            self.waiting.push_back(self.first_slot + self.slots.len() as u64);
        }
        self.slots.push_back(slot);
    }

    /// Stores the segment that a worker has made for a slot.
    pub(super) fn fill(&mut self, number: u64, batch: Batch) {
        if let Some(Slot { content: SlotContent::Segment(_, state), .. }) = self.slot(number) {
            *state = SegmentState::Ready(batch);
        }
    }

    /// Removes and returns the first slot, if it can be placed.
    pub(super) fn pop_ready(&mut self) -> Option<Slot> {
        let is_ready = match &self.slots.front()?.content {
            SlotContent::Segment(_, state) => matches!(state, SegmentState::Ready(_)),
            SlotContent::Packed(_) | SlotContent::LeftOut(_) | SlotContent::EndOfPath => true,
        };
        let slot = is_ready.then(|| self.slots.pop_front())??;
        self.first_slot += 1;
        Some(slot)
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let index = usize::try_from(number.checked_sub(self.first_slot)?).ok()?;
        self.slots.get_mut(index)
    }
}
