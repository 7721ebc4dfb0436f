//! Reads tables that consist of metadata blocks as if they were contiguous bytes.
//!
//! A table is divided into pieces of 8 KiB. Each is stored compressed or uncompressed after a two-byte length. A
//! reference consists of the position of a stored piece and an offset in the decompressed piece. This module records
//! where each piece begins, so a place in a table is a single number: the position in the decompressed table. That
//! takes four bytes of memory per piece, and detects references that do not point to the beginning of a piece.
//!
//! All pieces except the last must be full: the kernel does not require this, but unsquashfs does, and all tools write
//! full pieces.

use super::codec::Decoder;
use super::error::{ImageError, Part};
use super::lru_cache::LruCache;
use super::source::ImageSource;
use super::superblock::{TakeLe, read_at};
use crate::squashfs::format::{METADATA_BLOCK_BYTES, METADATA_PLAIN};
use std::sync::{Arc, Mutex, PoisonError};

/// Maximum number of pieces of a table: 8 GiB of inodes, about sixty million files. It bounds the memory for malicious
/// images.
const MAX_PIECES: u64 = 1 << 20;
/// Number of decompressed pieces that are cached for each table.
const PIECES_CACHED: usize = 64;
/// Decompressed length of a piece in bytes.
const PIECE_BYTES: u64 = METADATA_BLOCK_BYTES as u64;

/// The bytes of an image and their decoder, shared by all tables.
#[derive(Debug)]
pub(crate) struct Storage {
    /// The file or device that contains the image.
    pub(crate) source: Box<dyn ImageSource>,
    /// Decompresses the pieces.
    pub(crate) decoder: Decoder,
}

/// A metadata table, and where its pieces are.
#[derive(Debug)]
pub(crate) struct MetadataTable {
    storage: Arc<Storage>,
    part: Part,
    start: u64,
    end: u64,
    /// Where each piece begins, from the start of the table.
    pieces: Vec<u32>,
    plain_pieces: u64,
    length: u64,
    cache: Mutex<LruCache>,
}

impl MetadataTable {
    /// Finds the pieces between two positions of the image. It decompresses only the last one.
    pub(crate) fn scan(storage: &Arc<Storage>, part: Part, start: u64, end: u64) -> Result<Self, ImageError> {
        let damaged = |reason: String| Err(ImageError::damaged(part, reason));
        if end < start {
            return damaged(format!("it begins at byte {start} and ends at byte {end}"));
        }
        let mut table = Self {
            storage: Arc::clone(storage),
            part,
            start,
            end,
            pieces: Vec::new(),
            plain_pieces: 0,
            length: 0,
            cache: Mutex::new(LruCache::new(PIECES_CACHED)),
        };
        let mut at = start;
        while at < end {
            if table.pieces.len() as u64 == MAX_PIECES {
                let reason = "too many metadata blocks".to_owned();
                return Err(ImageError::Limit { part, reason, limit: MAX_PIECES });
            }
            let Ok(relative) = u32::try_from(at - start) else {
                return damaged("it is longer than 4 GiB, which no reference can reach".to_owned());
            };
            let (stored_bytes, plain) = table.head(at)?;
            if stored_bytes == 0 || stored_bytes > PIECE_BYTES || stored_bytes + 2 > end - at {
                return damaged(format!("the metadata block at byte {at} says it has {stored_bytes} bytes"));
            }
            table.pieces.push(relative);
            table.plain_pieces += u64::from(plain);
            at += 2 + stored_bytes;
        }
        if let Some(last) = table.pieces.len().checked_sub(1) {
            table.length = last as u64 * PIECE_BYTES + table.piece(last)?.len() as u64;
        }
        Ok(table)
    }

    /// Opens a table whose pieces are listed in an index.
    ///
    /// The pieces end at `end`, and the index is at `index_at`; `length` is the length of the decompressed table.
    /// Also returns the position after the index.
    pub(crate) fn indexed(
        storage: &Arc<Storage>,
        part: Part,
        end: u64,
        index_at: u64,
        length: u64,
    ) -> Result<(Self, u64), ImageError> {
        let damaged = |reason: String| Err(ImageError::damaged(part, reason));
        let count = length.div_ceil(PIECE_BYTES);
        if count > MAX_PIECES {
            let reason = format!("{length} bytes of table");
            return Err(ImageError::Limit { part, reason, limit: MAX_PIECES * PIECE_BYTES });
        }
        let index_bytes = count * 8;
        let room = storage.source.length_bytes().saturating_sub(index_at);
        if index_bytes > room {
            return damaged(format!(
                "its index needs {index_bytes} bytes at byte {index_at}, but the image has only {room} there"
            ));
        }
        let mut index = vec![0; usize::try_from(index_bytes).unwrap_or(usize::MAX)];
        read_at(storage.source.as_ref(), &mut index, index_at)?;
        let mut rest = &index[..];
        let positions: Vec<u64> = std::iter::from_fn(|| rest.take_u64()).collect();
        let start = positions.first().copied().unwrap_or(end);
        let table = Self::scan(storage, part, start, end)?;
        let places = table.pieces.iter().map(|piece| start + u64::from(*piece));
        if !places.eq(positions.iter().copied()) {
            return damaged(format!("its index at byte {index_at} does not list its metadata blocks"));
        }
        if table.length != length {
            return damaged(format!("it has {} bytes where {length} are needed", table.length));
        }
        Ok((table, index_at + index_bytes))
    }

    /// Returns the stored length of the piece at a position of the image, and whether it is uncompressed.
    fn head(&self, at: u64) -> Result<(u64, bool), ImageError> {
        let mut head = [0; 2];
        read_at(self.storage.source.as_ref(), &mut head, at)?;
        let word = u16::from_le_bytes(head);
        Ok((u64::from(word & !METADATA_PLAIN), word & METADATA_PLAIN != 0))
    }

    /// Returns the name of the table.
    pub(crate) fn part(&self) -> Part {
        self.part
    }

    /// Returns where the table begins in the image.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Returns where its last piece ends in the image.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Returns the length of the decompressed table in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Returns the number of pieces.
    pub(crate) fn pieces(&self) -> u64 {
        self.pieces.len() as u64
    }

    /// Returns the number of pieces that are stored uncompressed.
    pub(crate) fn plain_pieces(&self) -> u64 {
        self.plain_pieces
    }

    /// Converts a reference to a place in the decompressed table.
    pub(crate) fn place(&self, piece_start: u32, offset: u16) -> Result<u64, ImageError> {
        let Ok(index) = self.pieces.binary_search(&piece_start) else {
            return Err(ImageError::damaged(
                self.part,
                format!("no metadata block begins at its byte {piece_start}, but something refers to it"),
            ));
        };
        let place = index as u64 * PIECE_BYTES + u64::from(offset);
        if u64::from(offset) >= PIECE_BYTES || place >= self.length {
            return Err(ImageError::damaged(
                self.part,
                format!("something refers to byte {offset} of its metadata block at {piece_start}"),
            ));
        }
        Ok(place)
    }

    /// Converts a place to a reference: where its piece is stored, from the start of the table, and the offset in the
    /// piece.
    pub(crate) fn stored_place(&self, place: u64) -> Option<(u32, u16)> {
        let index = usize::try_from(place / PIECE_BYTES).ok()?;
        Some((*self.pieces.get(index)?, u16::try_from(place % PIECE_BYTES).ok()?))
    }

    /// Returns a cursor at a place.
    pub(crate) fn cursor(&self, place: u64) -> Cursor<'_> {
        Cursor { table: self, place, piece: None }
    }

    /// Returns a decompressed piece.
    fn piece(&self, index: usize) -> Result<Arc<Vec<u8>>, ImageError> {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        if let Some(piece) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(number) {
            return Ok(piece);
        }
        let Some(relative) = self.pieces.get(index) else {
            return Err(ImageError::damaged(self.part, "it ends in the middle of an entry"));
        };
        let at = self.start + u64::from(*relative);
        let (stored_bytes, plain) = self.head(at)?;
        let mut stored = vec![0; usize::try_from(stored_bytes).unwrap_or_default().min(METADATA_BLOCK_BYTES)];
        read_at(self.storage.source.as_ref(), &mut stored, at + 2)?;
        let piece = if plain {
            stored
        } else {
            let mut piece = vec![0; METADATA_BLOCK_BYTES];
            let length = self.storage.decoder.decode(self.part, &stored, &mut piece)?;
            piece.truncate(length);
            piece
        };
        let last = index + 1 == self.pieces.len();
        if piece.is_empty() || (!last && piece.len() != METADATA_BLOCK_BYTES) {
            return Err(ImageError::damaged(
                self.part,
                format!("the metadata block at byte {at} has {} bytes, not {METADATA_BLOCK_BYTES}", piece.len()),
            ));
        }
        let piece = Arc::new(piece);
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(number, &piece);
        Ok(piece)
    }
}

/// Reads a table from a place onwards.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    table: &'a MetadataTable,
    place: u64,
    piece: Option<(usize, Arc<Vec<u8>>)>,
}

impl Cursor<'_> {
    /// Returns the place of the next byte.
    pub(crate) fn place(&self) -> u64 {
        self.place
    }

    /// Skips a number of bytes.
    pub(crate) fn skip(&mut self, bytes: u64) -> Result<(), ImageError> {
        match self.place.checked_add(bytes).filter(|place| *place <= self.table.length) {
            Some(place) => {
                self.place = place;
                Ok(())
            }
            None => Err(ImageError::damaged(self.table.part, "it ends in the middle of an entry")),
        }
    }

    /// Fills a buffer.
    pub(crate) fn read(&mut self, mut buffer: &mut [u8]) -> Result<(), ImageError> {
        while !buffer.is_empty() {
            let index = usize::try_from(self.place / PIECE_BYTES).unwrap_or(usize::MAX);
            let offset = usize::try_from(self.place % PIECE_BYTES).unwrap_or_default();
            let piece = match &self.piece {
                Some((kept, piece)) if *kept == index => piece,
                _ => &self.piece.insert((index, self.table.piece(index)?)).1,
            };
            let rest = piece.get(offset..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            if count == 0 {
                return Err(ImageError::damaged(self.table.part, "it ends in the middle of an entry"));
            }
            let (front, back) = buffer.split_at_mut(count);
            front.copy_from_slice(&rest[..count]);
            buffer = back;
            self.place += count as u64;
        }
        Ok(())
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], ImageError> {
        let mut bytes = [0; LENGTH];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads two bytes.
    pub(crate) fn u16(&mut self) -> Result<u16, ImageError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Reads four bytes.
    pub(crate) fn u32(&mut self) -> Result<u32, ImageError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads eight bytes.
    pub(crate) fn u64(&mut self) -> Result<u64, ImageError> {
        self.array().map(u64::from_le_bytes)
    }
}
