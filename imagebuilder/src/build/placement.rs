//! Assigns positions in the image and in new packs to the segments, one after the other, and submits jobs that write
//! them.

use super::BuildError;
use super::back_pressure::{Backlog, SegmentState, Slot, SlotContent, Target};
use super::job::{FromImage, Job, KeepJob};
use super::job_queue::JobId;
use super::new_pack::NewPack;
use super::packed_ranges::{self, PackedRange};
use super::places::Places;
use super::range_hashes::RangeHashes;
use super::sequence::SequenceInputs;
use super::transfer::{CopyJob, WriteJob, WritePart};
use crate::pack::layout::{Piece, begin_of};
use crate::pack::{NewSegment, Pack};
use crate::segment::{Batch, Segment, range_count};
use std::collections::HashMap;
use std::sync::Arc;

/// The positions of the next segments.
pub(super) struct Placement<'a> {
    inputs: &'a SequenceInputs<'a>,
    /// Position of the next byte in the image.
    pub(super) end: u64,
    /// The store path whose segments are being placed, the number of segments so far, and the length of its content.
    current: Current,
    writes: WriteJob,
    copies: CopyJob,
    /// The packs that are not complete yet, by store path.
    packs: HashMap<usize, PackInProgress>,
    /// The segments of large files in the image, for the packs of other store paths with the same files.
    stored: HashMap<usize, Vec<StoredRange>>,
    /// Packs that need content from the image, so they are completed last.
    last: Vec<KeepJob>,
    /// The ranges of the image that have the bytes of packs.
    pub(super) packed_ranges: Vec<PackedRange>,
}

/// The length of content that was not copied from the pack of its store path and is new in the image, and its stored
/// length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Placed {
    pub(super) input_bytes: u64,
    pub(super) stored_bytes: u64,
    /// Whether it was taken from the pack of an earlier version instead of being compressed.
    pub(super) is_known: bool,
}

#[derive(Default)]
struct Current {
    store_path: Option<usize>,
    pieces: usize,
    input_bytes: u64,
}

#[derive(Clone)]
struct StoredRange {
    image_at: u64,
    bytes: u32,
    segment: NewSegment,
}

struct PackInProgress {
    pack: Arc<NewPack>,
    end: u64,
    segments: Vec<NewSegment>,
    from_image: Vec<FromImage>,
    /// Number of segments that workers are writing.
    writing: usize,
    is_complete: bool,
}

impl PackInProgress {
    /// Returns the position of the next segment.
    fn begin(&mut self, current: &Current, file_bytes: u64, bytes: u32) -> u64 {
        let begin = begin_of(self.end, current.pieces, current.input_bytes, file_bytes);
        self.end = begin + u64::from(bytes);
        begin
    }
}

impl<'a> Placement<'a> {
    /// Creates a placement that begins after the first `start` bytes of the image.
    pub(super) fn new(inputs: &'a SequenceInputs<'a>) -> Self {
        Self {
            inputs,
            end: inputs.start,
            current: Current::default(),
            writes: WriteJob::default(),
            copies: CopyJob::default(),
            packs: HashMap::new(),
            stored: HashMap::new(),
            last: Vec::new(),
            packed_ranges: Vec::new(),
        }
    }

    /// Places the next slot, and returns how much was compressed for it.
    pub(super) fn place(
        &mut self,
        slot: Slot,
        backlog: &mut Backlog<'_>,
        places: &mut Places,
        hashes: &RangeHashes,
    ) -> Result<Placed, BuildError> {
        let mut placed = Placed::default();
        if self.current.store_path != Some(slot.store_path) {
            let input_bytes = self.inputs.store_paths[slot.store_path].input_bytes();
            self.current = Current { store_path: Some(slot.store_path), pieces: 0, input_bytes };
            self.begin_pack(slot.store_path);
        }
        match slot.content {
            SlotContent::Segment(target, SegmentState::Ready(batch)) => {
                let Some(segment) = batch.segments().first().cloned() else {
                    return Err(BuildError::Defect { what: "a job made no segment" });
                };
                let counted_bytes = match target {
                    Target::File { .. } => u64::from(segment.input_bytes),
                    Target::Fragment(_, bytes) => bytes,
                    Target::PackOnly => 0,
                };
                let (stored_bytes, is_known) = (segment.stored.len() as u64, batch.is_known());
                placed = Placed { input_bytes: counted_bytes, stored_bytes, is_known };
                self.place_segment(slot.store_path, target, (segment, batch), places, slot.held_bytes);
                if self.writes.is_full() {
                    self.flush(backlog);
                }
            }
            SlotContent::Segment(..) => {
                return Err(BuildError::Defect { what: "a segment was placed before it was made" });
            }
            SlotContent::Packed(numbers) => {
                if let Some(pack) = self.inputs.store_paths[slot.store_path].pack() {
                    self.place_packed(slot.store_path, pack, &numbers, backlog, places);
                }
            }
            SlotContent::LeftOut(file) => self.leave_out(slot.store_path, file)?,
            SlotContent::EndOfPath => {
                if let Some(pack) = self.packs.get_mut(&slot.store_path) {
                    pack.is_complete = true;
                }
                self.keep_if_whole(slot.store_path, backlog, hashes);
            }
        }
        Ok(placed)
    }

    fn begin_pack(&mut self, store_path: usize) {
        let listed = self.inputs.store_paths[store_path].listing().is_some();
        let Some(keeper) = self.inputs.keeper.filter(|_| listed) else { return };
        match keeper.create() {
            Ok(Some(file)) => {
                let pack = Arc::new(NewPack::new(file, &self.inputs.store_paths[store_path].planned));
                let (segments, from_image) = (Vec::new(), Vec::new());
                let made = PackInProgress { pack, end: 0, segments, from_image, writing: 0, is_complete: false };
                self.packs.insert(store_path, made);
            }
            Ok(None) => {}
            Err(error) => (self.inputs.report_cache_error)(error),
        }
    }

    fn place_segment(
        &mut self,
        store_path: usize,
        target: Target,
        (segment, batch): (Segment, Batch),
        places: &mut Places,
        held_bytes: u64,
    ) {
        let stored_bytes = u32::try_from(segment.stored.len()).unwrap_or(u32::MAX);
        let file_bytes = match target {
            Target::File { size_bytes, is_first: true, .. } => size_bytes,
            Target::File { .. } | Target::Fragment(..) | Target::PackOnly => 0,
        };
        let in_image = !matches!(target, Target::PackOnly);
        let image_at = in_image.then(|| self.begin_in_image(file_bytes, stored_bytes));
        let new = NewSegment { words: segment.words, checksum: segment.checksum };
        match (target, image_at) {
            (Target::File { file, .. }, Some(at)) => {
                places.wrote_blocks(file, at, &new.words, segment.input_bytes, self.inputs.settings.block_size_bytes());
                self.remember(file, at, stored_bytes, &new);
            }
            (Target::Fragment(index, _), Some(at)) => {
                places.wrote_fragment(index, at, new.words.first().copied().unwrap_or_default());
            }
            _ => {}
        }
        let pack = self.packs.get_mut(&store_path).map(|pack| {
            let at = pack.begin(&self.current, file_bytes, stored_bytes);
            pack.segments.push(new);
            pack.writing += 1;
            (pack.pack.clone(), at)
        });
        if let (Some(image_at), Some((_, pack_at))) = (image_at, &pack) {
            let segment = (store_path, self.current.pieces);
            packed_ranges::add(&mut self.packed_ranges, segment, (*pack_at, image_at), stored_bytes.into());
        }
        self.current.pieces += 1;
        self.writes.push(WritePart { batch, store_path, image_at, pack }, held_bytes);
    }

    /// Returns the position of the next segment in the image.
    fn begin_in_image(&mut self, file_bytes: u64, stored_bytes: u32) -> u64 {
        let begin = begin_of(self.end, self.current.pieces, self.current.input_bytes, file_bytes);
        self.end = begin + u64::from(stored_bytes);
        if let Some(image) = self.inputs.image {
            image.allocate(self.end);
        }
        begin
    }

    /// Records the position of a segment, which packs of other store paths may need.
    fn remember(&mut self, file: usize, image_at: u64, bytes: u32, segment: &NewSegment) {
        if self.inputs.keeper.is_some() {
            let range = StoredRange { image_at, bytes, segment: segment.clone() };
            self.stored.entry(file).or_default().push(range);
        }
    }

    fn place_packed(
        &mut self,
        store_path: usize,
        pack: &Pack,
        numbers: &[(usize, u64)],
        backlog: &mut Backlog<'_>,
        places: &mut Places,
    ) {
        let first_file = self.inputs.store_paths[store_path].first_file;
        let block_bytes = self.inputs.settings.block_size_bytes();
        for &(number, counted_bytes) in numbers {
            let (piece, segment) = (&pack.layout().pieces[number], &pack.segments()[number]);
            let words = pack.words(segment);
            self.current.pieces = number;
            let file_bytes = match piece {
                Piece::Range { file, range: 0, .. } => pack.tree().file_sizes()[*file as usize],
                Piece::Range { .. } | Piece::Fragment(_) => 0,
            };
            let at = self.begin_in_image(file_bytes, segment.bytes);
            match piece {
                Piece::Range { file, length, .. } => {
                    let file = first_file + *file as usize;
                    places.wrote_blocks(file, at, words, *length, block_bytes);
                    if self.inputs.keeper.is_some() {
                        let new = NewSegment { words: words.to_vec(), checksum: segment.checksum };
                        self.remember(file, at, segment.bytes, &new);
                    }
                }
                Piece::Fragment(files) => {
                    let new = files.iter().find_map(|small| places.fragment_of(first_file + small.file as usize));
                    if let Some(index) = new {
                        places.wrote_fragment(index, at, words.first().copied().unwrap_or_default());
                    }
                }
            }
            if !self.writes.is_empty() || self.copies.is_full() || !self.copies.contains(at) {
                self.flush(backlog);
            }
            self.copies.push((store_path, pack), number, at, counted_bytes);
            packed_ranges::add(&mut self.packed_ranges, (store_path, number), (segment.at, at), segment.bytes.into());
        }
    }

    /// Skips a part of the store path that is already in the image as the content of `file`.
    fn leave_out(&mut self, store_path: usize, file: Option<usize>) -> Result<(), BuildError> {
        if let (Some(file), Some(pack)) = (file, self.packs.get_mut(&store_path)) {
            let stored = self
                .stored
                .get(&file)
                .ok_or(BuildError::Defect { what: "the content of a skipped file is missing" })?;
            for (number, range) in stored.iter().enumerate() {
                let file_bytes = if number == 0 { self.inputs.file_bytes(file) } else { 0 };
                let pack_at = pack.begin(&self.current, file_bytes, range.bytes);
                pack.segments.push(range.segment.clone());
                pack.from_image.push(FromImage { image_at: range.image_at, pack_at, bytes: range.bytes });
                self.current.pieces += 1;
            }
        } else {
            self.current.pieces += file.map_or(1, |file| range_count(self.inputs.file_bytes(file)));
        }
        Ok(())
    }

    /// Submits jobs for the gathered segments.
    pub(super) fn flush(&mut self, backlog: &mut Backlog<'_>) {
        if !self.writes.is_empty() {
            backlog.submit(JobId::Background, Job::Write(std::mem::take(&mut self.writes)));
        }
        if !self.copies.is_empty() {
            backlog.submit(JobId::Background, Job::Copy(std::mem::take(&mut self.copies)));
        }
    }

    /// Records that segments have been written: one for each entry in `store_paths`.
    pub(super) fn wrote(&mut self, store_paths: &[usize], backlog: &mut Backlog<'_>, hashes: &RangeHashes) {
        for store_path in store_paths {
            if let Some(pack) = self.packs.get_mut(store_path) {
                pack.writing -= 1;
            }
            self.keep_if_whole(*store_path, backlog, hashes);
        }
    }

    fn keep_if_whole(&mut self, store_path: usize, backlog: &mut Backlog<'_>, hashes: &RangeHashes) {
        if self.packs.get(&store_path).is_none_or(|pack| !pack.is_complete || pack.writing > 0) {
            return;
        }
        let Some(pack) = self.packs.remove(&store_path) else { return };
        let range_hashes = hashes.of_path(&self.inputs.store_paths[store_path]).to_vec();
        let PackInProgress { pack, end, segments, from_image, .. } = pack;
        let job = KeepJob { store_path, pack, end, segments, range_hashes, from_image };
        if job.from_image.is_empty() {
            backlog.submit(JobId::Background, Job::Keep(Box::new(job)));
        } else {
            self.last.push(job);
        }
    }

    /// Completes the packs that need content from the image, after everything is in the image. Returns false if there
    /// are none.
    pub(super) fn make_last_packs(&mut self, backlog: &mut Backlog<'_>) -> bool {
        let last = std::mem::take(&mut self.last);
        let any = !last.is_empty();
        for job in last {
            backlog.submit(JobId::Background, Job::Keep(Box::new(job)));
        }
        any
    }
}
