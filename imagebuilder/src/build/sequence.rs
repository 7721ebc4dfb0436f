//! Takes the steps in their order, decides what is stored and where, and writes segments in that order.
//!
//! Workers may finish in any order; everything that settles a byte of the image is decided here, by one thread, step
//! after step. So the image is the same whatever the threads and the cache do.

use super::BuildError;
use super::buffers::SpareBuffers;
use super::job::{Job, KnownSegment, Product, RangeRef, Then};
use super::output::ImageFile;
use super::places::{Novelty, Places};
use super::source::{Knowledge, Member, range_length, total_ranges};
use super::steps::{FileRef, Step, steps};
use super::tally::Tally;
use super::workers::{Counter, Delivery, Ticket};
use crate::cache::manifest::range_count;
use crate::progress::Progress;
use crate::segment::{Batch, ContentHash, Origin, Segment, SegmentKey, SegmentKind, file_content, fragment_content};
use crate::settings::ImageSettings;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Content that may be held in memory: read ahead, being compressed, or waiting to be written.
const HELD_BYTES_FIXED: u64 = 8 << 20;
const HELD_BYTES_PER_JOB: u64 = 8 << 20;
/// Slots that may wait to be written; it bounds the memory of builds that only copy from the cache.
const SLOTS_MAX: usize = 256;
/// Known segments of one store path are asked for together up to so much content and so many of them: enough to make
/// handing over cheap, little enough that all workers have something to do.
const KNOWN_BATCH_BYTES: usize = 2 << 20;
const KNOWN_BATCH_SEGMENTS: usize = 64;
/// How soon an interrupt is noticed while nothing else happens.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// What the data of an image came to.
#[derive(Debug)]
pub(super) struct Sequenced {
    /// Where everything is.
    pub(super) places: Places,
    /// Hashes of the ranges of all files, by file; empty where nobody needed them.
    pub(super) range_hashes: RangeHashes,
    /// The counts for the report.
    pub(super) tally: Tally,
}

/// Hashes of the ranges of every file of the image.
#[derive(Debug)]
pub(super) struct RangeHashes {
    hashes: Vec<ContentHash>,
    first: Vec<usize>,
}

impl RangeHashes {
    fn new(members: &[Member]) -> Self {
        let mut first = Vec::new();
        let mut ranges = 0;
        for member in members {
            for size in member.tree().file_sizes() {
                first.push(ranges);
                ranges += range_count(*size);
            }
        }
        let mut hashes = Vec::with_capacity(ranges);
        for member in members {
            match &member.knowledge {
                Knowledge::Cached { range_hashes, .. } => hashes.extend_from_slice(range_hashes),
                Knowledge::Listed(listing) => hashes.resize(hashes.len() + total_ranges(&listing.tree), [0; 32]),
            }
        }
        first.push(ranges);
        Self { hashes, first }
    }

    /// The hashes of a file.
    fn of(&self, file: usize) -> &[ContentHash] {
        &self.hashes[self.first[file]..self.first[file + 1]]
    }

    /// The hashes of all files of a store path.
    pub(super) fn of_member(&self, member: &Member) -> &[ContentHash] {
        let files = member.tree().file_sizes().len();
        &self.hashes[self.first[member.first_file]..self.first[member.first_file + files]]
    }

    fn set(&mut self, file: usize, range: usize, hash: ContentHash) {
        let index = self.first[file] + range;
        self.hashes[index] = hash;
    }

    fn copy(&mut self, from: usize, to: usize) {
        let (start, end, target) = (self.first[from], self.first[from + 1], self.first[to]);
        self.hashes.copy_within(start..end, target);
    }
}

/// Where a segment goes.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// It is the next run of blocks of a file.
    File(usize),
    /// It is a fragment block.
    Fragment(u32),
}

/// Segments of one store path on their way into the image.
#[derive(Debug)]
struct Slot {
    /// Where each of them goes.
    targets: Vec<Target>,
    member: usize,
    /// Bytes of content it holds in memory.
    held_bytes: u64,
    state: SlotState,
}

#[derive(Debug)]
enum SlotState {
    /// Nobody has been asked for it.
    Waiting(Job),
    /// A worker makes or finds them.
    Underway,
    /// They can be written.
    Ready(Batch),
}

/// The fragment block that is being filled.
#[derive(Debug, Default)]
struct OpenFragment {
    /// Number in the image, once a file is in it.
    index: Option<u32>,
    /// The files in it.
    files: Vec<(FileRef, ContentHash)>,
    /// Their contents, of listed store paths.
    bytes: Vec<u8>,
    /// Length of the contents.
    length: u32,
    /// Length it would have if no earlier store path held any of its files. What is stored together is decided by
    /// this, so that it depends on the store path alone and a change elsewhere never moves it.
    own_length: u64,
    /// Small contents this store path has had so far.
    met: HashSet<ContentHash>,
}

/// Runs all steps: `counter` takes jobs, `deliveries` brings their products.
pub(super) struct Sequencer<'a, 'o> {
    members: &'a [Member],
    settings: &'a ImageSettings,
    output: &'a mut ImageFile<'o>,
    progress: &'a mut dyn Progress,
    cancel: &'a AtomicBool,
    counter: &'a Counter,
    buffers: &'a SpareBuffers,
    steps: Vec<Step>,
    /// Next step to ask a worker for.
    next_asked: usize,
    /// Next step to take.
    next_taken: usize,
    products: HashMap<usize, Product>,
    slots: VecDeque<Slot>,
    /// Number of the first slot.
    first_slot: u64,
    /// Slots that nobody has been asked for, by number.
    waiting: VecDeque<u64>,
    underway: usize,
    held_bytes: u64,
    held_bytes_max: u64,
    fragment: OpenFragment,
    done: Sequenced,
}

/// What a sequence works with.
pub(super) struct Surroundings<'a> {
    /// The store paths, in the order of the data.
    pub(super) members: &'a [Member],
    /// Codec and block sizes.
    pub(super) settings: &'a ImageSettings,
    /// Number of worker threads.
    pub(super) threads: usize,
    /// Becomes true when the build is to stop.
    pub(super) cancel: &'a AtomicBool,
    /// Takes the buffers of segments that have been written.
    pub(super) buffers: &'a SpareBuffers,
}

impl<'a, 'o> Sequencer<'a, 'o> {
    /// Before the first step.
    pub(super) fn new(
        around: &Surroundings<'a>,
        output: &'a mut ImageFile<'o>,
        progress: &'a mut dyn Progress,
        counter: &'a Counter,
    ) -> Self {
        let members = around.members;
        Self {
            members,
            settings: around.settings,
            output,
            progress,
            cancel: around.cancel,
            counter,
            buffers: around.buffers,
            steps: steps(members, u64::from(around.settings.fragment_block_size_bytes())),
            next_asked: 0,
            next_taken: 0,
            products: HashMap::new(),
            slots: VecDeque::new(),
            first_slot: 0,
            waiting: VecDeque::new(),
            underway: 0,
            held_bytes: 0,
            held_bytes_max: HELD_BYTES_FIXED + HELD_BYTES_PER_JOB * around.threads as u64,
            fragment: OpenFragment::default(),
            done: Sequenced {
                places: Places::new(members),
                range_hashes: RangeHashes::new(members),
                tally: Tally::new(members.len()),
            },
        }
    }

    /// Takes all steps and writes all segments.
    pub(super) fn run(mut self, deliveries: &Receiver<Delivery>) -> Result<Sequenced, BuildError> {
        loop {
            self.take_steps()?;
            self.gather_ready()?;
            // Workers are asked before the writing, so that they have something to do meanwhile.
            self.ask();
            if self.next_taken == self.steps.len() && self.slots.is_empty() {
                self.output.write_gathered(self.buffers)?;
                return Ok(self.done);
            }
            if self.output.has_gathered_enough() {
                self.output.write_gathered(self.buffers)?;
            } else if self.underway > 0 {
                // Nothing can be underway only while steps wait for room among the slots, and gathering made some.
                self.receive(deliveries)?;
            }
        }
    }

    fn receive(&mut self, deliveries: &Receiver<Delivery>) -> Result<(), BuildError> {
        let mut delivery = loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(BuildError::Interrupted);
            }
            match deliveries.recv_timeout(CANCEL_INTERVAL) {
                Ok(delivery) => break delivery,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(BuildError::WorkerPanicked),
            }
        };
        loop {
            let (ticket, product) = delivery;
            let product = product?;
            self.underway -= 1;
            match (ticket, product) {
                (Ticket::Step(step), product) => {
                    self.products.insert(step, product);
                }
                (Ticket::Slot(number), Product::Segments(batch)) => {
                    if let Some(slot) = self.slot(number) {
                        slot.state = SlotState::Ready(batch);
                    }
                }
                (Ticket::Slot(_), _) => return Err(BuildError::Defect { what: "a segment's job gave something else" }),
            }
            match deliveries.try_recv() {
                Ok(next) => delivery = next,
                Err(_) => return Ok(()),
            }
        }
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let index = usize::try_from(number.checked_sub(self.first_slot)?).ok()?;
        self.slots.get_mut(index)
    }

    /// Hands in jobs while there is room for what they will hold: first those of slots, for they are written first.
    fn ask(&mut self) {
        while let Some(number) = self.waiting.front().copied() {
            let first = number == self.first_slot;
            let room = self.held_bytes < self.held_bytes_max || first || self.underway == 0;
            let Some(slot) = self.slot(number).filter(|_| room) else { break };
            let SlotState::Waiting(job) = std::mem::replace(&mut slot.state, SlotState::Underway) else { break };
            self.waiting.pop_front();
            let held = self.reserve_for_slot(number, &job);
            self.held_bytes += held;
            self.underway += 1;
            self.counter.submit(Ticket::Slot(number), job);
        }
        while let Some(step) = self.steps.get(self.next_asked) {
            let Some((job, bytes)) = step.job() else {
                self.next_asked += 1;
                continue;
            };
            if self.held_bytes >= self.held_bytes_max && self.underway > 0 {
                break;
            }
            self.held_bytes += bytes;
            self.underway += 1;
            self.counter.submit(Ticket::Step(self.next_asked), job);
            self.next_asked += 1;
        }
    }

    /// Bytes a slot's job adds to those held: bytes that were read for it are counted already.
    fn reserve_for_slot(&mut self, number: u64, job: &Job) -> u64 {
        let held = match job {
            Job::Known { segments, .. } => segments.iter().map(|segment| segment.length() as u64).sum(),
            Job::Bytes { .. } | Job::ReadFiles { .. } | Job::ReadRange { .. } => 0,
        };
        if let Some(slot) = self.slot(number) {
            slot.held_bytes += held;
        }
        held
    }

    fn gather_ready(&mut self) -> Result<(), BuildError> {
        while let Some(Slot { state: SlotState::Ready(_), .. }) = self.slots.front()
            && !self.output.has_gathered_enough()
        {
            let Some(slot) = self.slots.pop_front() else { break };
            self.first_slot += 1;
            self.held_bytes -= slot.held_bytes;
            let SlotState::Ready(batch) = slot.state else { break };
            let mut start = self.output.position();
            for (target, segment) in slot.targets.iter().zip(batch.segments()) {
                self.place(*target, segment, start)?;
                self.done.tally.wrote(slot.member, u64::from(segment.input_bytes), segment.origin);
                start += segment.stored.len() as u64;
            }
            self.output.gather(batch);
        }
        Ok(())
    }

    /// Notes where a segment is in the image.
    fn place(&mut self, target: Target, segment: &Segment, start: u64) -> Result<(), BuildError> {
        match (target, segment.words.first()) {
            (Target::Fragment(index), Some(word)) => self.done.places.wrote_fragment(index, start, *word),
            (Target::Fragment(_), None) => return Err(BuildError::Defect { what: "a fragment block has no block" }),
            (Target::File(file), _) => {
                let block_bytes = self.settings.block_size_bytes();
                self.done.places.wrote_blocks(file, start, &segment.words, segment.input_bytes, block_bytes);
            }
        }
        let input_bytes = u64::from(segment.input_bytes);
        let cached = if segment.origin == Origin::Cached { input_bytes } else { 0 };
        self.progress.advance(input_bytes, cached, segment.stored.len() as u64);
        Ok(())
    }

    fn take_steps(&mut self) -> Result<(), BuildError> {
        while self.slots.len() < SLOTS_MAX {
            let number = self.next_taken;
            let Some(step) = self.steps.get_mut(number) else { break };
            if step.job().is_some() && !self.products.contains_key(&number) {
                break;
            }
            // A step is taken once; what is left in its place is never looked at.
            let step = std::mem::replace(step, Step::EndOfMember);
            let product = self.products.remove(&number);
            self.next_taken += 1;
            self.next_asked = self.next_asked.max(self.next_taken);
            self.take(step, product)?;
        }
        Ok(())
    }

    fn take(&mut self, step: Step, product: Option<Product>) -> Result<(), BuildError> {
        match (step, product) {
            (Step::ReadSmall(files), Some(Product::Files { bytes, hashes })) => {
                self.held_bytes -= bytes.len() as u64;
                let mut rest = &bytes[..];
                for (file, hash) in files.into_iter().zip(hashes) {
                    let content;
                    (content, rest) = rest.split_at(usize::try_from(file.size_bytes).unwrap_or(rest.len()));
                    self.done.range_hashes.set(file.file, 0, hash);
                    self.take_small(file, hash, content);
                }
                self.buffers.give(bytes);
            }
            (Step::KnownSmall(files), None) => {
                for file in files {
                    let hash = file_content(self.done.range_hashes.of(file.file));
                    self.take_small(file, hash, &[]);
                }
            }
            (Step::ReadRange { file, range, then }, Some(product)) => self.take_range(file, range, then, product),
            (Step::KnownLarge(file), None) => self.take_known_large(file),
            (Step::Linked { file, to }, None) => {
                self.done.range_hashes.copy(to, file.file);
                if file.size_bytes < u64::from(self.settings.fragment_block_size_bytes()) {
                    let hash = file_content(self.done.range_hashes.of(file.file));
                    self.take_small(file, hash, &[]);
                } else {
                    self.done.places.share(file.file, to);
                    self.count_duplicate(file);
                }
            }
            (Step::EndOfMember, None) => {
                self.end_fragment();
                self.fragment = OpenFragment::default();
            }
            _ => return Err(BuildError::Defect { what: "a step was taken with the product of another" }),
        }
        Ok(())
    }

    fn count_duplicate(&mut self, file: FileRef) {
        self.done.tally.duplicate(file.size_bytes);
        self.progress.advance(file.size_bytes, 0, 0);
    }

    /// A file that goes into a fragment block, unless it is in one already. `content` is empty when only its hash is
    /// known.
    fn take_small(&mut self, file: FileRef, hash: ContentHash, content: &[u8]) {
        let novelty = self.done.places.meet(file.file, file.member, hash);
        self.reserve_in_fragment(file, hash, novelty);
        if novelty != Novelty::New {
            self.count_duplicate(file);
            return;
        }
        let index = *self.fragment.index.get_or_insert_with(|| self.done.places.new_fragment());
        self.done.places.put_in_fragment(file.file, index, self.fragment.length);
        // Small files are shorter than a fragment block.
        self.fragment.length += u32::try_from(file.size_bytes).unwrap_or(u32::MAX);
        self.fragment.files.push((file, hash));
        if !content.is_empty() && self.fragment.bytes.capacity() == 0 {
            self.fragment.bytes = self.buffers.take_empty(self.settings.fragment_block_size_bytes() as usize);
        }
        self.fragment.bytes.extend_from_slice(content);
    }

    /// Counts a small file towards the fragment block of its store path, and ends the block when it is full.
    fn reserve_in_fragment(&mut self, file: FileRef, hash: ContentHash, novelty: Novelty) {
        if !self.fragment.met.insert(hash) || novelty == Novelty::OfSameMember {
            return;
        }
        if self.fragment.own_length + file.size_bytes > u64::from(self.settings.fragment_block_size_bytes()) {
            self.end_fragment();
        }
        self.fragment.own_length += file.size_bytes;
    }

    fn end_fragment(&mut self) {
        let met = std::mem::take(&mut self.fragment.met);
        let fragment = std::mem::replace(&mut self.fragment, OpenFragment { met, ..OpenFragment::default() });
        let (Some(index), Some((first, _))) = (fragment.index, fragment.files.first()) else { return };
        let member = first.member;
        match &self.members[member].knowledge {
            Knowledge::Listed(_) => {
                let contents: Vec<_> = fragment.files.iter().map(|(file, hash)| (*hash, small_length(file))).collect();
                let key = SegmentKey { kind: SegmentKind::Fragment, content: fragment_content(&contents) };
                let held_bytes = u64::from(fragment.length);
                self.held_bytes += held_bytes;
                let job = Job::Bytes { key, bytes: fragment.bytes };
                self.push_waiting(Target::Fragment(index), member, job, held_bytes);
            }
            Knowledge::Cached { .. } => {
                let files = fragment.files.iter().map(|(file, hash)| (file.node, *hash, small_length(file))).collect();
                self.push_known(Target::Fragment(index), member, KnownSegment::Fragment(files));
            }
        }
    }

    fn take_range(&mut self, file: FileRef, range: RangeRef, then: Then, product: Product) {
        let length = range.length as u64;
        match (then, product) {
            (_, Product::Encoded { content, batch }) => {
                if let Some(content) = content {
                    self.done.range_hashes.set(file.file, range.range, content);
                    if range.range + 1 == range_count(file.size_bytes) {
                        // No other file of the image has this length, so this only names the content.
                        let hash = file_content(self.done.range_hashes.of(file.file));
                        self.done.places.meet(file.file, file.member, hash);
                    }
                }
                let targets = vec![Target::File(file.file)];
                let state = SlotState::Ready(batch);
                self.slots.push_back(Slot { targets, member: file.member, held_bytes: length, state });
            }
            (_, Product::Kept { content, bytes }) => {
                self.done.range_hashes.set(file.file, range.range, content);
                if self.done.places.meet(file.file, file.member, content) == Novelty::New {
                    let key = SegmentKey { kind: SegmentKind::File, content };
                    self.push_waiting(Target::File(file.file), file.member, Job::Bytes { key, bytes }, length);
                } else {
                    self.held_bytes -= length;
                    self.buffers.give(bytes);
                    self.count_duplicate(file);
                }
            }
            (_, Product::Hashed { content }) => {
                self.held_bytes -= length;
                self.done.range_hashes.set(file.file, range.range, content);
            }
            (_, Product::Files { .. } | Product::Segments(_)) => {}
        }
    }

    fn take_known_large(&mut self, file: FileRef) {
        let hashes = self.done.range_hashes.of(file.file).to_vec();
        if self.done.places.meet(file.file, file.member, file_content(&hashes)) != Novelty::New {
            self.count_duplicate(file);
            return;
        }
        for (number, content) in hashes.into_iter().enumerate() {
            let length = range_length(file.size_bytes, number);
            let range = RangeRef { member: file.member, node: file.node, range: number, length };
            self.push_known(Target::File(file.file), file.member, KnownSegment::Range(range, content));
        }
    }

    /// Asks for a known segment, together with those before it while they are few and still wait.
    fn push_known(&mut self, target: Target, member: usize, segment: KnownSegment) {
        if let Some(Slot { targets, member: same, state: SlotState::Waiting(Job::Known { segments, .. }), .. }) =
            self.slots.back_mut()
            && *same == member
            && segments.len() < KNOWN_BATCH_SEGMENTS
            && segments.iter().map(KnownSegment::length).sum::<usize>() + segment.length() <= KNOWN_BATCH_BYTES
        {
            targets.push(target);
            segments.push(segment);
        } else {
            self.push_waiting(target, member, Job::Known { member, segments: vec![segment] }, 0);
        }
    }

    fn push_waiting(&mut self, target: Target, member: usize, job: Job, held_bytes: u64) {
        self.waiting.push_back(self.first_slot + self.slots.len() as u64);
        self.slots.push_back(Slot { targets: vec![target], member, held_bytes, state: SlotState::Waiting(job) });
    }
}

/// Small files are shorter than a fragment block.
fn small_length(file: &FileRef) -> u32 {
    u32::try_from(file.size_bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::job::Product;
    use super::super::workers::{Counter, Ticket};
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_product_of_another_job_is_called_a_defect_and_not_a_thread_that_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut output = ImageFile::create(&directory.path().join("image"), &|_| false).unwrap();
        let (settings, cancel, buffers) = (ImageSettings::default(), AtomicBool::new(false), SpareBuffers::default());
        let around = Surroundings { members: &[], settings: &settings, threads: 1, cancel: &cancel, buffers: &buffers };
        let (counter, mut progress) = (Counter::default(), Silent);
        let mut sequencer = Sequencer::new(&around, &mut output, &mut progress, &counter);
        sequencer.underway = 1;
        let (sender, receiver) = std::sync::mpsc::channel();
        sender.send((Ticket::Slot(0), Ok(Product::Hashed { content: [0; 32] }))).unwrap();
        let error = sequencer.receive(&receiver).unwrap_err();
        assert_eq!(error.to_string(), "a segment's job gave something else; this is a defect of microvm-image");
        drop(sender);
        assert!(matches!(sequencer.receive(&receiver).unwrap_err(), BuildError::WorkerPanicked));
    }
}
