//! Compares the bytes of files in the image with those in the store.

use super::problem::{ProblemKind, Problems};
use super::store::Comparison;
use crate::image::{FileInode, FilePart, FileTree, ImageError, Piece};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use thiserror::Error;

/// Number of bytes of a hole to compare at a time.
const HOLE_BYTES: usize = 64 * 1024;

#[derive(Debug, Error)]
enum CompareError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot read it in the store: {0}")]
    Store(#[from] io::Error),
}

/// The position of the first byte that differs.
struct Difference {
    at: u64,
}

/// Compares one part of a file and reports differences.
pub(super) fn compare(image: &dyn FileTree, mut comparison: Comparison<'_>, buffer: &mut Vec<u8>, problems: &Problems) {
    let result = compare_part(&mut comparison, buffer);
    match result {
        Ok(None) => {}
        Ok(Some(difference)) => {
            let detail = format!("differs from the store at byte {}{}", difference.at, digests(image, &comparison));
            problems.at(&comparison.path, ProblemKind::Content, detail);
        }
        Err(CompareError::Image(error)) => problems.damage(error.at(&comparison.path)),
        Err(error @ CompareError::Store(_)) => {
            problems.at(&comparison.path, ProblemKind::Store, error.to_string());
        }
    }
}

fn compare_part(comparison: &mut Comparison<'_>, buffer: &mut Vec<u8>) -> Result<Option<Difference>, CompareError> {
    let mut file = File::open(&comparison.store_path)?;
    let FilePart { offset, content } = &mut comparison.part;
    file.seek(SeekFrom::Start(*offset))?;
    let mut stream = StoreStream { file, at: *offset, buffer };
    while let Some(piece) = content.next_piece()? {
        let difference = match piece {
            Piece::Data(bytes) => stream.compare(bytes)?,
            Piece::Hole(length) => stream.compare_hole(length)?,
        };
        if difference.is_some() {
            return Ok(difference);
        }
    }
    Ok(None)
}

/// The content of a file in the store, read as far as it has been compared.
struct StoreStream<'b> {
    file: File,
    at: u64,
    buffer: &'b mut Vec<u8>,
}

impl StoreStream<'_> {
    fn compare(&mut self, bytes: &[u8]) -> Result<Option<Difference>, CompareError> {
        self.buffer.resize(bytes.len(), 0);
        self.file.read_exact(self.buffer)?;
        if self.buffer == bytes {
            self.at += bytes.len() as u64;
            return Ok(None);
        }
        let equal = self.buffer.iter().zip(bytes).take_while(|(store, image)| store == image).count();
        Ok(Some(Difference { at: self.at + equal as u64 }))
    }

    fn compare_hole(&mut self, mut length: u64) -> Result<Option<Difference>, CompareError> {
        static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
        while length > 0 {
            let count = usize::try_from(length).unwrap_or(HOLE_BYTES).min(HOLE_BYTES);
            let difference = self.compare(&ZEROS[..count])?;
            if difference.is_some() {
                return Ok(difference);
            }
            length -= count as u64;
        }
        Ok(None)
    }
}

/// Formats the BLAKE3 of the whole file on both sides for the message; empty if one of them cannot be read.
fn digests(image: &dyn FileTree, comparison: &Comparison<'_>) -> String {
    let store = File::open(&comparison.store_path).and_then(|file| {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file)?;
        Ok(hasher.finalize())
    });
    match (content_blake3(image, &comparison.file), store) {
        (Ok(image), Ok(store)) => format!(" (BLAKE3 {image} in the image, {store} in the store)"),
        _ => String::new(),
    }
}

/// Computes the BLAKE3-256 of a file in an image.
fn content_blake3(image: &dyn FileTree, file: &FileInode) -> Result<blake3::Hash, ImageError> {
    static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    let mut hasher = blake3::Hasher::new();
    let mut content = image.content(file);
    while let Some(piece) = content.next_piece()? {
        match piece {
            Piece::Data(bytes) => {
                hasher.update(bytes);
            }
            Piece::Hole(mut length) => {
                while length > 0 {
                    let count = usize::try_from(length).unwrap_or(HOLE_BYTES).min(HOLE_BYTES);
                    hasher.update(&ZEROS[..count]);
                    length -= count as u64;
                }
            }
        }
    }
    Ok(hasher.finalize())
}
