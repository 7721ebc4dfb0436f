//! How far workers may run ahead: what is read, being compressed or waiting to be written is counted, and no job is handed
//! out while the count is over a limit.

use super::job::{Job, Product};
use super::job_queue::{JobId, JobQueue};
use super::steps::Step;
use crate::segment::Batch;
use std::collections::{HashMap, VecDeque};

/// Content that may be held in memory: read ahead, being compressed, or waiting to be written.
const HELD_BYTES_FIXED: u64 = 8 << 20;
const HELD_BYTES_PER_JOB: u64 = 8 << 20;
/// Slots that may wait to be placed.
const SLOTS_MAX: usize = 256;

/// A part of the image whose place is not settled yet, because what comes before it has no length yet.
#[derive(Debug)]
pub(super) struct Slot {
    /// Number of its store path.
    pub(super) member: usize,
    /// Bytes of content it holds in memory.
    pub(super) held_bytes: u64,
    /// What it is.
    pub(super) content: SlotContent,
}

/// What is in a slot.
#[derive(Debug)]
pub(super) enum SlotContent {
    /// A segment, and where it goes.
    Segment(Target, SegmentState),
    /// Segments of a pack: their numbers, and the bytes of their content that are new to the image.
    Packed(Vec<(usize, u64)>),
    /// Content that the image has already, as that file: for the pack of the store path only. `None` when no pack is made,
    /// or for a fragment block.
    LeftOut(Option<usize>),
    /// A store path that was listed is complete.
    EndOfMember,
}

/// Where a segment goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// It is the next run of blocks of a file of `size_bytes`.
    File {
        /// Number of the file in the image.
        file: usize,
        /// Length of the file in bytes.
        size_bytes: u64,
        /// Whether the file begins with it.
        is_first: bool,
    },
    /// It is a fragment block, so many bytes of which are new to the image.
    Fragment(u32, u64),
    /// It is a fragment block of files that the image has already: for the pack only.
    PackOnly,
}

/// How far a segment is.
#[derive(Debug)]
pub(super) enum SegmentState {
    /// Nobody has been asked for it.
    Waiting(Job),
    /// A worker makes it.
    Underway,
    /// It can be written.
    Ready(Batch),
}

/// What was asked for and has not been placed.
pub(super) struct Backlog<'a> {
    queue: &'a JobQueue,
    /// Next step to ask a worker for.
    next_asked: usize,
    products: HashMap<usize, Product>,
    slots: VecDeque<Slot>,
    /// Number of the first slot.
    first_slot: u64,
    /// Slots that nobody has been asked for, by number.
    waiting: VecDeque<u64>,
    underway: usize,
    held_bytes: u64,
    held_bytes_max: u64,
}

impl<'a> Backlog<'a> {
    /// Nothing asked for.
    pub(super) fn new(queue: &'a JobQueue, threads: usize) -> Self {
        Self {
            queue,
            next_asked: 0,
            products: HashMap::new(),
            slots: VecDeque::new(),
            first_slot: 0,
            waiting: VecDeque::new(),
            underway: 0,
            held_bytes: 0,
            held_bytes_max: HELD_BYTES_FIXED + HELD_BYTES_PER_JOB * threads as u64,
        }
    }

    /// Whether workers have jobs.
    pub(super) fn is_busy(&self) -> bool {
        self.underway > 0
    }

    /// Whether all that was asked for has been placed.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether more steps may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.slots.len() < SLOTS_MAX
    }

    /// Hands in jobs while there is room for what they will hold: first those of slots, for they are written first.
    pub(super) fn ask(&mut self, steps: &[Step]) {
        while let Some(number) = self.waiting.front().copied() {
            let first = number == self.first_slot;
            let room = self.held_bytes < self.held_bytes_max || first || self.underway == 0;
            let Some(slot) = self.slot(number).filter(|_| room) else { break };
            let SlotContent::Segment(_, state) = &mut slot.content else { break };
            let SegmentState::Waiting(job) = std::mem::replace(state, SegmentState::Underway) else { break };
            // Bytes that were read for it are counted already.
            if let Job::EncodeRange { range, .. } = &job {
                slot.held_bytes = range.length as u64;
                self.held_bytes += range.length as u64;
            }
            self.waiting.pop_front();
            self.submit(JobId::Slot(number), job);
        }
        while let Some(step) = steps.get(self.next_asked) {
            let Some((job, bytes)) = step.job() else {
                self.next_asked += 1;
                continue;
            };
            if self.held_bytes >= self.held_bytes_max && self.underway > 0 {
                break;
            }
            self.held_bytes += bytes;
            self.submit(JobId::Step(self.next_asked), job);
            self.next_asked += 1;
        }
    }

    /// Hands in a job at once.
    pub(super) fn submit(&mut self, id: JobId, job: Job) {
        self.underway += 1;
        self.queue.submit(id, job);
    }

    /// A job is done.
    pub(super) fn finished(&mut self) {
        self.underway -= 1;
    }

    /// Keeps the product of a step until the step is taken.
    pub(super) fn keep_product(&mut self, step: usize, product: Product) {
        self.products.insert(step, product);
    }

    /// Whether a step can be taken.
    pub(super) fn is_ready(&self, number: usize, step: &Step) -> bool {
        step.job().is_none() || self.products.contains_key(&number)
    }

    /// The product of a step that is being taken.
    pub(super) fn take_product(&mut self, number: usize) -> Option<Product> {
        self.next_asked = self.next_asked.max(number + 1);
        self.products.remove(&number)
    }

    /// Content is held no longer.
    pub(super) fn release(&mut self, bytes: u64) {
        self.held_bytes -= bytes;
    }

    /// Content is held by somebody else as well.
    pub(super) fn hold(&mut self, bytes: u64) {
        self.held_bytes += bytes;
    }

    /// Adds a slot behind the others.
    pub(super) fn push(&mut self, slot: Slot) {
        if let SlotContent::Segment(_, SegmentState::Waiting(_)) = slot.content {
            self.waiting.push_back(self.first_slot + self.slots.len() as u64);
        }
        self.slots.push_back(slot);
    }

    /// A worker has made the segment of a slot.
    pub(super) fn fill(&mut self, number: u64, batch: Batch) {
        if let Some(Slot { content: SlotContent::Segment(_, state), .. }) = self.slot(number) {
            *state = SegmentState::Ready(batch);
        }
    }

    /// The first slot, if it can be placed.
    pub(super) fn pop_ready(&mut self) -> Option<Slot> {
        let is_ready = match &self.slots.front()?.content {
            SlotContent::Segment(_, state) => matches!(state, SegmentState::Ready(_)),
            SlotContent::Packed(_) | SlotContent::LeftOut(_) | SlotContent::EndOfMember => true,
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
