//! Compares packs with the store, for paths without a NAR hash, and for users who do not trust the cache.

use super::source::InputPath;
use super::whole_path::WholePath;
use super::{BuildError, CacheTrust};
use crate::image::codec::Workspace as Decoder;
use crate::pack::Pack;
use crate::pack::layout::Piece;
use crate::segment::RANGE_BYTES;
use crate::settings::ImageSettings;
use crate::squashfs::format::BLOCK_PLAIN;
use std::sync::atomic::{AtomicBool, Ordering};

/// Returns whether the listed store path has the content that a pack describes. With
/// [`CacheTrust::VerifyAgainstStore`] it also checks that the blocks of the pack have this content.
///
/// # Errors
/// The store path cannot be read, or it changed while it was read.
pub(super) fn matches_store(
    pack: &Pack,
    store_path: &InputPath,
    settings: &ImageSettings,
    trust: CacheTrust,
    cancel: &AtomicBool,
) -> Result<bool, BuildError> {
    if pack.tree() != store_path.tree() {
        return Ok(false);
    }
    let mut files = WholePath::new(store_path, cancel);
    let mut hashes = pack.range_hashes().iter();
    for node in 0..store_path.tree().len() {
        let (size_bytes, mut hasher, mut is_same) = (store_path.file_length(node), blake3::Hasher::new(), true);
        files.read(node, |offset, piece| {
            hasher.update(piece);
            let end = offset + piece.len() as u64;
            if end == size_bytes || end.is_multiple_of(RANGE_BYTES) {
                is_same &= hashes.next() == Some(hasher.finalize().as_bytes());
                hasher.reset();
            }
        })?;
        if !is_same {
            return Ok(false);
        }
    }
    match trust {
        CacheTrust::Checksums => Ok(true),
        CacheTrust::VerifyAgainstStore => blocks_match(pack, store_path, settings, cancel),
    }
}

fn blocks_match(
    pack: &Pack,
    store_path: &InputPath,
    settings: &ImageSettings,
    cancel: &AtomicBool,
) -> Result<bool, BuildError> {
    let (mut decoder, mut content, mut stored) = (Decoder::default(), Vec::new(), Vec::new());
    let mut decoded = vec![0; settings.block_size_bytes() as usize];
    for (piece, segment) in pack.layout().pieces.iter().zip(pack.segments()) {
        if cancel.load(Ordering::Relaxed) {
            return Err(BuildError::Interrupted);
        }
        content.resize(piece.input_bytes() as usize, 0);
        match piece {
            Piece::Range { node, range, .. } => store_path.read(*node, *range, &mut content)?,
            Piece::Fragment(files) => {
                for small in files {
                    let start = small.offset as usize;
                    store_path.read(small.node, 0, &mut content[start..start + small.size_bytes as usize])?;
                }
            }
        }
        stored.resize(segment.bytes as usize, 0);
        if pack.read(segment.at, &mut stored).is_err() {
            return Ok(false);
        }
        let mut rest = &stored[..];
        for (word, block) in pack.words(segment).iter().zip(content.chunks(settings.block_size_bytes() as usize)) {
            let Some((bytes, remaining)) = rest.split_at_checked((word & !BLOCK_PLAIN) as usize) else {
                return Ok(false);
            };
            rest = remaining;
            let same = if *word == 0 {
                block.iter().all(|byte| *byte == 0)
            } else if word & BLOCK_PLAIN != 0 {
                bytes == block
            } else {
                let length = decoder.decode(settings.compression(), bytes, &mut decoded);
                length.is_ok_and(|length| decoded[..length] == *block)
            };
            if !same {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
