//! Where the content of every file is in the image, filled in as the blocks are written.

use super::source::Member;
use crate::segment::ContentHash;
use crate::squashfs::format::{BLOCK_PLAIN, FragmentEntry};
use crate::squashfs::tables::{Contents, Location};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

/// Place of one file.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// It has no content.
    Empty,
    /// Where that file is.
    SameAs(usize),
    /// In a fragment block.
    Fragment { index: u32, offset: u32 },
    /// In blocks of its own.
    Blocks { start: u64, first_word: usize, words: usize, hole_bytes: u64 },
}

/// What the content of a file turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Novelty {
    /// No earlier file has it.
    New,
    /// An earlier file has it.
    Known,
}

/// The places of all files.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<Place>,
    words: Vec<u32>,
    fragments: Vec<FragmentEntry>,
    first_files: Vec<usize>,
    by_content: HashMap<ContentHash, usize, BuildHasherDefault<Uniform>>,
    /// Blocks in the image, those of fragments included and holes not.
    pub(super) blocks: u64,
}

impl Places {
    /// All files empty.
    pub(super) fn new(members: &[Member]) -> Self {
        let files = members.iter().map(|member| member.tree().file_sizes().len()).sum();
        Self {
            places: vec![Place::Empty; files],
            words: Vec::new(),
            fragments: Vec::new(),
            first_files: members.iter().map(|member| member.first_file).collect(),
            by_content: HashMap::default(),
            blocks: 0,
        }
    }

    /// Notes the content of a file; unless it is new the file shares the place of the first file that has it.
    pub(super) fn meet(&mut self, file: usize, content: ContentHash) -> Novelty {
        match self.by_content.entry(content) {
            Entry::Vacant(vacant) => {
                vacant.insert(file);
                Novelty::New
            }
            Entry::Occupied(first) => {
                self.places[file] = Place::SameAs(*first.get());
                Novelty::Known
            }
        }
    }

    /// The first file with the content of a file.
    pub(super) fn first_with_content_of(&self, mut file: usize) -> usize {
        while let Place::SameAs(first) = self.places[file] {
            file = first;
        }
        file
    }

    /// The file has the place of an earlier file.
    pub(super) fn share(&mut self, file: usize, with: usize) {
        self.places[file] = Place::SameAs(with);
    }

    /// A new fragment block's number.
    pub(super) fn new_fragment(&mut self) -> u32 {
        self.fragments.push(FragmentEntry { start: 0, word: 0 });
        // Each takes a segment of its own; four billion of them do not fit any disk.
        u32::try_from(self.fragments.len() - 1).unwrap_or(u32::MAX)
    }

    /// The file is in a fragment block.
    pub(super) fn put_in_fragment(&mut self, file: usize, index: u32, offset: u32) {
        self.places[file] = Place::Fragment { index, offset };
    }

    /// The fragment block a file is in, unless it shares the place of an earlier file.
    pub(super) fn fragment_of(&self, file: usize) -> Option<u32> {
        match self.places[file] {
            Place::Fragment { index, .. } => Some(index),
            Place::Empty | Place::SameAs(_) | Place::Blocks { .. } => None,
        }
    }

    /// The fragment block is written at `start`.
    pub(super) fn wrote_fragment(&mut self, index: u32, start: u64, word: u32) {
        self.fragments[index as usize] = FragmentEntry { start, word };
        self.blocks += 1;
    }

    /// The next blocks of the file are written at `start`; their input was `input_bytes` long.
    pub(super) fn wrote_blocks(&mut self, file: usize, start: u64, words: &[u32], input_bytes: u32, block_bytes: u32) {
        if let Place::Empty = self.places[file] {
            self.places[file] = Place::Blocks { start, first_word: self.words.len(), words: 0, hole_bytes: 0 };
        }
        self.words.extend_from_slice(words);
        if let Place::Blocks { words: count, hole_bytes, .. } = &mut self.places[file] {
            *count += words.len();
            let mut rest = input_bytes;
            for word in words {
                let length = rest.min(block_bytes);
                rest -= length;
                if *word == 0 {
                    *hole_bytes += u64::from(length);
                } else {
                    self.blocks += 1;
                }
            }
        }
    }

    /// The fragment table.
    pub(super) fn fragments(&self) -> &[FragmentEntry] {
        &self.fragments
    }

    /// Whether every block in the image is stored plain.
    pub(super) fn all_plain(&self) -> bool {
        let fragments = self.fragments.iter().map(|fragment| fragment.word);
        self.words.iter().copied().chain(fragments).all(|word| word == 0 || word & BLOCK_PLAIN != 0)
    }
}

impl Contents for Places {
    fn locate(&self, member: usize, file: u32) -> Location<'_> {
        match self.places[self.first_with_content_of(self.first_files[member] + file as usize)] {
            Place::Empty | Place::SameAs(_) => Location::Empty,
            Place::Fragment { index, offset } => Location::Fragment { index, offset },
            Place::Blocks { start, first_word, words, hole_bytes } => {
                Location::Blocks { start, words: &self.words[first_word..first_word + words], hole_bytes }
            }
        }
    }
}

/// Content hashes are uniform already: eight of their bytes are as good a hash as any.
#[derive(Debug, Default)]
struct Uniform(u64);

impl Hasher for Uniform {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Arrays also feed their length: eight bytes that add nothing but do no harm.
        if let Some(eight) = bytes.first_chunk() {
            self.0 ^= u64::from_le_bytes(*eight);
        }
    }
}
