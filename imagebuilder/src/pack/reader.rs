//! Opens packs and checks them, because another user can have made them.

use super::block_hashes::PackIdentity;
use super::layout::{Layout, Piece, begin_of};
use super::{
    FOOTER_BYTES, MAGIC, MAX_INDEX_BYTES, contents, file_name, segment_checksum, settings_name, settings_of_name,
};
use crate::open_files::{OpenFilePermit, OpenFiles};
use crate::plan::PlannedPath;
use crate::segment::{ContentHash, file_content, range_count};
use crate::settings::ImageSettings;
use crate::squashfs::format::BLOCK_PLAIN;
use crate::store_path::StorePath;
use crate::tree::Tree;
use std::cell::RefCell;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// Number of bytes at the end of a pack that are read at once: a whole small pack, or the index of most others.
const TAIL_BYTES: usize = 32 << 10;
/// Maximum number of bytes of small packs that one build keeps in memory. The files of further ones stay open.
const MAX_MEMORY_BYTES: u64 = 32 << 20;

/// A pack that cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not a valid pack of the requested store path.
    #[error("it is not a valid pack of this store path: {reason}")]
    Damaged {
        /// The problem.
        reason: &'static str,
    },
    /// The process cannot keep more files open.
    #[error("cannot open more packs: this process has reached its limit of open files")]
    TooManyOpen,
}

/// An open file that may be a pack, and its attributes, which are read only once.
#[derive(Debug)]
pub struct PackFile {
    file: File,
    metadata: Metadata,
}

impl PackFile {
    /// Reads the attributes of a file.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { file, metadata })
    }

    /// Returns the attributes.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the file without the attributes.
    pub fn into_file(self) -> File {
        self.file
    }
}

thread_local! {
    /// The end of a pack. Allocating and zeroing a new buffer for each pack takes a seventh of the time of opening
    /// thousands of small ones.
    static TAIL: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Opens the packs of one build, which have the same settings and share limits.
#[derive(Debug)]
pub struct PackOpener {
    settings: ImageSettings,
    settings_name: String,
    files: OpenFiles,
    memory_bytes: AtomicU64,
}

impl PackOpener {
    /// Creates an opener of packs that were made with `settings`; `files` limits how many of them stay open.
    pub fn new(settings: &ImageSettings, files: OpenFiles) -> Self {
        Self::with_name(*settings, settings_name(settings), files)
    }

    fn with_name(settings: ImageSettings, settings_name: String, files: OpenFiles) -> Self {
        Self { settings, settings_name, files, memory_bytes: AtomicU64::new(MAX_MEMORY_BYTES) }
    }

    fn take_memory(&self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        self.memory_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Opens the pack of a store path, from any file that can be read at any position: one of a cache, or a descriptor
    /// that another process sent. Everything that the file says about itself is checked before it is used. A small file
    /// is read completely and closed, as long as the limits allow it.
    ///
    /// # Errors
    /// The file cannot be read, is not such a pack, or exceeds the limits.
    pub fn open(&self, file: PackFile, path: &PlannedPath) -> Result<Pack, OpenError> {
        let matches = |head: &Head<'_>| {
            if head.base_name != path.path.base_name() {
                return Err(damaged("it belongs to another store path"));
            }
            // Without a hash, only a comparison with the store shows whether the pack is correct, and any pack of the
            // path can be.
            if path.nar_hash.is_some() && head.nar_hash != path.nar_hash {
                return Err(damaged("it belongs to a store path with another NAR hash"));
            }
            Ok(())
        };
        let pack = self.open_if(file, &matches)?;
        if path.nar_size_bytes.is_some_and(|size| size != pack.tree.nar_size_bytes()) {
            return Err(damaged("its contents have another NAR size"));
        }
        Ok(pack)
    }

    /// Opens the pack of any store path.
    ///
    /// # Errors
    /// The file cannot be read, is not a pack with these settings, or exceeds the limits.
    pub fn open_any(&self, file: PackFile) -> Result<Pack, OpenError> {
        self.open_if(file, &|_| Ok(()))
    }

    /// Opens a pack whose head `expected` accepts.
    fn open_if(
        &self,
        PackFile { file, metadata }: PackFile,
        expected: &dyn Fn(&Head<'_>) -> Result<(), OpenError>,
    ) -> Result<Pack, OpenError> {
        let length = metadata.len();
        if !metadata.is_file() || length < FOOTER_BYTES as u64 {
            return Err(damaged("it is too short, or not a regular file"));
        }
        let mut buffer = TAIL.take();
        buffer.resize(TAIL_BYTES, 0);
        let tail_at = length.saturating_sub(TAIL_BYTES as u64);
        let tail = &mut buffer[..usize::try_from(length - tail_at).unwrap_or(TAIL_BYTES)];
        read_at(&file, tail, tail_at)?;
        let footer_at = tail.len() - FOOTER_BYTES;
        let (magic, rest) = tail[footer_at..].split_at(MAGIC.len());
        let (index_bytes, sum) = rest.split_at(8);
        if magic != MAGIC {
            return Err(damaged("it has no footer"));
        }
        let index_bytes = u64::from_le_bytes(index_bytes.try_into().unwrap_or_default());
        let index_at = (length - FOOTER_BYTES as u64).checked_sub(index_bytes);
        let Some(index_at) = index_at.filter(|_| index_bytes <= MAX_INDEX_BYTES) else {
            return Err(damaged("its index is longer than the file"));
        };
        let long_index;
        let index = if index_at >= tail_at {
            let start = usize::try_from(index_at - tail_at).unwrap_or(footer_at);
            &tail[start..footer_at]
        } else {
            let mut bytes = vec![0; usize::try_from(index_bytes).unwrap_or(0)];
            read_at(&file, &mut bytes, index_at)?;
            long_index = bytes;
            &long_index[..]
        };
        if blake3::hash(index).as_bytes() != sum {
            return Err(damaged("the checksum of its index is wrong"));
        }
        let mut pack = self.decode_index(index, expected)?;
        pack.identity = PackIdentity { index: sum.try_into().unwrap_or_default(), segments_bytes: index_at };
        if pack.segments.last().map_or(0, |last| last.at + u64::from(last.bytes)) != index_at {
            return Err(damaged("its segments do not end where its index begins"));
        }
        pack.stored = if tail_at == 0 && self.take_memory(index_at) {
            Stored::Memory(tail[..usize::try_from(index_at).unwrap_or(0)].into())
        } else {
            Stored::File { file, _permit: self.files.permit().ok_or(OpenError::TooManyOpen)? }
        };
        TAIL.set(buffer);
        Ok(pack)
    }

    /// Decodes an index whose checksum is correct. Anyone who can write packs can forge checksums, so every number is
    /// checked.
    fn decode_index(
        &self,
        index: &[u8],
        expected: &dyn Fn(&Head<'_>) -> Result<(), OpenError>,
    ) -> Result<Pack, OpenError> {
        let mut rest = index;
        let short = || damaged("its index is truncated");
        let head = Head::take(&mut rest).ok_or_else(short)?;
        if head.settings != self.settings_name {
            return Err(damaged("it was made with different settings"));
        }
        expected(&head)?;
        let contents_bytes = take(&mut rest, 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let contents_bytes = contents_bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(short)?;
        let contents = take(&mut rest, contents_bytes).ok_or_else(short)?;
        let contents = contents::decode(contents).ok_or(damaged("its contents cannot be those of a store path"))?;
        let layout = Layout::new(&contents.tree, &contents.range_hashes, &self.settings);
        let mut ranges = 0;
        let first_ranges = contents.tree.file_sizes().iter().map(|size| {
            let first = ranges;
            ranges += u32::try_from(range_count(*size)).unwrap_or(u32::MAX);
            first
        });
        let first_ranges = first_ranges.collect();
        let mut pack = Pack {
            stored: Stored::Memory(Box::default()),
            identity: PackIdentity { index: [0; 32], segments_bytes: 0 },
            tree: contents.tree,
            range_hashes: contents.range_hashes,
            first_ranges,
            layout,
            segments: Vec::new(),
            words: Vec::new(),
        };
        pack.segments.reserve_exact(pack.layout.pieces.len());
        let mut end = 0;
        for (number, piece) in pack.layout.pieces.iter().enumerate() {
            let file_bytes = match piece {
                Piece::Range { file, range: 0, .. } => pack.tree.file_sizes()[*file as usize],
                Piece::Range { .. } | Piece::Fragment(_) => 0,
            };
            let at = begin_of(end, number, pack.layout.input_bytes, file_bytes);
            let first_word = pack.words.len();
            let bytes = take_words(&mut rest, piece, self.settings.block_size_bytes(), &mut pack.words)
                .ok_or(damaged("it has blocks that no image can contain"))?;
            let checksum = take(&mut rest, 16).and_then(|sum| sum.try_into().ok()).ok_or_else(short)?;
            let words = first_word..pack.words.len();
            pack.segments.push(StoredSegment { at, bytes, checksum: u128::from_le_bytes(checksum), words });
            end = at + u64::from(bytes);
        }
        if rest.is_empty() { Ok(pack) } else { Err(damaged("its index is too long")) }
    }
}

const fn damaged(reason: &'static str) -> OpenError {
    OpenError::Damaged { reason }
}

/// An open pack. Its index has been checked; its segments are checked when they are read.
#[derive(Debug)]
pub struct Pack {
    stored: Stored,
    identity: PackIdentity,
    tree: Tree,
    range_hashes: Vec<ContentHash>,
    /// For each file, the number of its first range.
    first_ranges: Vec<u32>,
    layout: Layout,
    segments: Vec<StoredSegment>,
    words: Vec<u32>,
}

/// The bytes of the segments.
#[derive(Debug)]
enum Stored {
    File {
        file: File,
        _permit: OpenFilePermit,
    },
    /// The bytes of a small pack, which was read as a whole, so that thousands of files need not stay open.
    Memory(Box<[u8]>),
}

/// A segment of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSegment {
    /// Position of its stored bytes in the pack.
    pub at: u64,
    /// Number of stored bytes.
    pub bytes: u32,
    /// [`segment_checksum`] of them.
    pub checksum: u128,
    words: Range<usize>,
}

impl Pack {
    /// Returns what distinguishes this pack from all others.
    pub fn identity(&self) -> &PackIdentity {
        &self.identity
    }

    /// Returns the files of the store path.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Returns the hashes of the ranges of all regular files, one file after the other.
    pub fn range_hashes(&self) -> &[ContentHash] {
        &self.range_hashes
    }

    /// Returns the hash of a file's content, by the number of the file.
    pub fn content(&self, file: u32) -> ContentHash {
        let first = self.first_ranges[file as usize] as usize;
        let count = range_count(self.tree.file_sizes()[file as usize]);
        file_content(&self.range_hashes[first..first + count])
    }

    /// Returns the hash of a range of a file, by the number of the file.
    pub fn range_hash(&self, file: u32, range: usize) -> ContentHash {
        self.range_hashes[self.first_ranges[file as usize] as usize + range]
    }

    /// Returns the layout, which describes the content of the segments.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the segments, one for each piece of the layout.
    pub fn segments(&self) -> &[StoredSegment] {
        &self.segments
    }

    /// Returns the size words of a segment's blocks.
    pub fn words(&self, segment: &StoredSegment) -> &[u32] {
        &self.words[segment.words.clone()]
    }

    /// Returns the file, unless the pack is small and was read as a whole.
    pub fn file(&self) -> Option<&File> {
        match &self.stored {
            Stored::File { file, .. } => Some(file),
            Stored::Memory(_) => None,
        }
    }

    /// Closes the file. Stored bytes can no longer be read.
    pub fn close(&mut self) {
        if self.file().is_some() {
            self.stored = Stored::Memory(Box::default());
        }
    }

    /// Reads stored bytes without checking them; [`Self::is_intact`] does.
    ///
    /// # Errors
    /// They cannot be read. If the pack has become shorter, the error is of the kind `UnexpectedEof`.
    pub fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        match &self.stored {
            Stored::File { file, .. } => file.read_exact_at(out, at),
            Stored::Memory(bytes) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX);
                let found = bytes.get(start..).and_then(|bytes| bytes.get(..out.len()));
                out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// Returns whether these are the stored bytes of a segment.
    pub fn is_intact(segment: &StoredSegment, stored: &[u8]) -> bool {
        stored.len() == segment.bytes as usize && segment_checksum(stored) == segment.checksum
    }

    /// Reads all segments, and the zeros between them. Returns false if something is damaged.
    ///
    /// # Errors
    /// The pack cannot be read.
    pub fn check_segments(&self) -> io::Result<bool> {
        let (mut buffer, mut end) = (Vec::new(), 0);
        for segment in &self.segments {
            let Some(gap) = segment.at.checked_sub(end).and_then(|gap| usize::try_from(gap).ok()) else {
                return Ok(false);
            };
            buffer.resize(gap + segment.bytes as usize, 0);
            match self.read(end, &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                other => other?,
            }
            let (zeros, stored) = buffer.split_at(gap);
            if zeros.iter().any(|byte| *byte != 0) || !Self::is_intact(segment, stored) {
                return Ok(false);
            }
            end = segment.at + u64::from(segment.bytes);
        }
        Ok(true)
    }
}

/// Reads bytes at a position. A file that has become shorter counts as damaged, not as unreadable.
fn read_at(file: &File, out: &mut [u8], at: u64) -> Result<(), OpenError> {
    file.read_exact_at(out, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is shorter than it was"),
        _ => OpenError::Io(error),
    })
}

/// The description of a pack at the beginning of its index.
struct Head<'a> {
    base_name: &'a str,
    nar_hash: Option<[u8; 32]>,
    settings: &'a str,
}

impl<'a> Head<'a> {
    fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let base_name = take_text(rest)?;
        let nar_hash = match take(rest, 1)? {
            [0] => None,
            _ => Some(take(rest, 32)?.try_into().ok()?),
        };
        Some(Self { base_name, nar_hash, settings: take_text(rest)? })
    }
}

/// Opens a file that has the path `settings`/`name` in a cache; `None` if it is not the pack of this path.
///
/// # Errors
/// It cannot be read.
pub fn open_named(file: PackFile, settings: &str, name: &str) -> io::Result<Option<Pack>> {
    let Some(parsed) = settings_of_name(settings) else { return Ok(None) };
    let expected = |head: &Head<'_>| {
        let path = StorePath::from_base_name(head.base_name)
            .map_err(|_| damaged("its base name is not that of a store path"))?;
        let planned = PlannedPath { path, nar_hash: head.nar_hash, nar_size_bytes: None };
        if file_name(&planned) == name { Ok(()) } else { Err(damaged("it has the name of another pack")) }
    };
    let opener = PackOpener::with_name(parsed, settings.to_owned(), OpenFiles::new(1));
    match opener.open_if(file, &expected) {
        Ok(pack) => Ok(Some(pack)),
        Err(OpenError::Damaged { .. } | OpenError::TooManyOpen) => Ok(None),
        Err(OpenError::Io(error)) => Err(error),
    }
}

/// Reads the size words of a segment and returns the number of its stored bytes; `None` if they are not valid for its
/// content.
fn take_words(rest: &mut &[u8], piece: &Piece, block_bytes: u32, words: &mut Vec<u32>) -> Option<u32> {
    let mut input_left = piece.input_bytes();
    let mut stored_bytes = 0_u32;
    while input_left > 0 {
        let block = input_left.min(block_bytes);
        input_left -= block;
        let word = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
        let length = word & !BLOCK_PLAIN;
        let fits = match (piece, word) {
            (Piece::Range { .. }, 0) => true,
            _ if word & BLOCK_PLAIN != 0 => length == block,
            _ => length > 0 && length < block,
        };
        if !fits {
            return None;
        }
        stored_bytes += length;
        words.push(word);
    }
    Some(stored_bytes)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, remaining) = rest.split_at_checked(length)?;
    *rest = remaining;
    Some(taken)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = take(rest, 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes)?;
    std::str::from_utf8(take(rest, usize::from(length))?).ok()
}
