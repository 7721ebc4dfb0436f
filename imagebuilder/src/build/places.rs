//! The location of every file's content in the image. It is filled in while blocks are written.

use super::source::InputPath;
use crate::segment::ContentHash;
use crate::squashfs::format::{BLOCK_PLAIN, FragmentEntry};
use crate::squashfs::tables::{Contents, Location};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The location of one file's content.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The file is empty.
    Empty,
    /// The same location as that of another file.
    SameAs(usize),
    /// The file is in a fragment block.
    Fragment { index: u32, offset: u32 },
    /// The file has its own blocks.
    Blocks { start: u64, first_word: usize, words: usize, hole_bytes: u64 },
}

/// Whether the content of a file is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occurrence {
    /// No earlier file has it.
    First,
    /// An earlier file has it.
    Duplicate,
}

/// The locations of all files.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<Place>,
    words: Vec<u32>,
    fragments: Vec<FragmentEntry>,
    first_files: Vec<usize>,
    /// With the hasher of the standard library: in a forged pack, all hashes can begin alike.
    by_content: HashMap<ContentHash, usize>,
    /// Number of blocks in the image, including fragment blocks, without holes.
    pub(super) blocks: u64,
}

impl Places {
    /// Creates locations in which all files are empty.
    pub(super) fn new(store_paths: &[InputPath]) -> Self {
        let files = store_paths.iter().map(|store_path| store_path.tree().file_sizes().len()).sum();
        Self {
            places: vec![Place::Empty; files],
            words: Vec::new(),
            fragments: Vec::new(),
            first_files: store_paths.iter().map(|store_path| store_path.first_file).collect(),
            by_content: HashMap::with_capacity(files),
            blocks: 0,
        }
    }

    /// Records the hash of a file's content. If an earlier file has the same content, the file gets the same location.
    pub(super) fn record_content(&mut self, file: usize, content: ContentHash) -> Occurrence {
        match self.by_content.entry(content) {
            Entry::Vacant(vacant) => {
                vacant.insert(file);
                Occurrence::First
            }
            Entry::Occupied(first) => {
                self.places[file] = Place::SameAs(*first.get());
                Occurrence::Duplicate
            }
        }
    }

    /// Returns the first file with the same content as a file.
    pub(super) fn first_with_content_of(&self, mut file: usize) -> usize {
        while let Place::SameAs(first) = self.places[file] {
            file = first;
        }
        file
    }

    /// Gives a file the location of an earlier file.
    pub(super) fn share(&mut self, file: usize, with: usize) {
        self.places[file] = Place::SameAs(with);
    }

    /// Adds a fragment block and returns its number.
    pub(super) fn new_fragment(&mut self) -> u32 {
        self.fragments.push(FragmentEntry { start: 0, word: 0 });
        // Each fragment block is a segment, and no disk is large enough for four billion segments.
        u32::try_from(self.fragments.len() - 1).unwrap_or(u32::MAX)
    }

    /// Records that a file is in a fragment block.
    pub(super) fn put_in_fragment(&mut self, file: usize, index: u32, offset: u32) {
        self.places[file] = Place::Fragment { index, offset };
    }

    /// Returns the fragment block that contains a file; `None` if the file has the location of an earlier file.
    pub(super) fn fragment_of(&self, file: usize) -> Option<u32> {
        match self.places[file] {
            Place::Fragment { index, .. } => Some(index),
            Place::Empty | Place::SameAs(_) | Place::Blocks { .. } => None,
        }
    }

    /// Records that a fragment block is written at `start`.
    pub(super) fn wrote_fragment(&mut self, index: u32, start: u64, word: u32) {
        self.fragments[index as usize] = FragmentEntry { start, word };
        self.blocks += 1;
    }

    /// Records that the next blocks of a file are written at `start`. Their content has `input_bytes` bytes.
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

    /// Returns the fragment table.
    pub(super) fn fragments(&self) -> &[FragmentEntry] {
        &self.fragments
    }

    /// Returns whether all blocks in the image are stored uncompressed.
    pub(super) fn all_plain(&self) -> bool {
        let fragments = self.fragments.iter().map(|fragment| fragment.word);
        self.words.iter().copied().chain(fragments).all(|word| word == 0 || word & BLOCK_PLAIN != 0)
    }
}

impl Contents for Places {
    fn locate(&self, store_path: usize, file: u32) -> Location<'_> {
        match self.places[self.first_with_content_of(self.first_files[store_path] + file as usize)] {
            Place::Empty | Place::SameAs(_) => Location::Empty,
            Place::Fragment { index, offset } => Location::Fragment { index, offset },
            Place::Blocks { start, first_word, words, hole_bytes } => {
                Location::Blocks { start, words: &self.words[first_word..first_word + words], hole_bytes }
            }
        }
    }
}
