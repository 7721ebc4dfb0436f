//! Writes the index and the footer of a pack.

use super::{FOOTER_BYTES, MAGIC, contents, settings_name};
use crate::little_endian::PutLe;
use crate::plan::PlannedPath;
use crate::segment::ContentHash;
use crate::settings::ImageSettings;
use crate::tree::Tree;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The description of a pack in its index.
#[derive(Clone, Copy, Debug)]
pub struct PackHead<'a> {
    /// The store path.
    pub path: &'a PlannedPath,
    /// Codec and block sizes.
    pub settings: &'a ImageSettings,
    /// The files of the store path, without their content.
    pub tree: &'a Tree,
    /// The hashes of the ranges of all files, one file after the other.
    pub range_hashes: &'a [ContentHash],
}

/// A segment that has been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSegment {
    /// Size words of its blocks.
    pub words: Vec<u32>,
    /// [`super::segment_checksum`] of its stored bytes.
    pub checksum: u128,
}

/// Completes a pack whose segments are written up to `end`: writes the index after them, and then the footer. Returns
/// the BLAKE3 of the index.
///
/// # Errors
/// The file cannot be written.
pub fn write_index(file: &File, end: u64, head: &PackHead<'_>, segments: &[NewSegment]) -> io::Result<ContentHash> {
    let mut index = encode_index(head, segments);
    let (length, sum) = (index.len() as u64, *blake3::hash(&index).as_bytes());
    index.reserve(FOOTER_BYTES);
    index.extend_from_slice(&MAGIC);
    index.put_u64(length);
    index.extend_from_slice(&sum);
    file.write_all_at(&index, end)?;
    Ok(sum)
}

fn encode_index(head: &PackHead<'_>, segments: &[NewSegment]) -> Vec<u8> {
    let mut index = Vec::new();
    put_text(&mut index, head.path.path.base_name());
    match &head.path.nar_hash {
        Some(hash) => {
            index.push(1);
            index.extend_from_slice(hash);
        }
        None => index.push(0),
    }
    put_text(&mut index, &settings_name(head.settings));
    let contents = contents::encode(head.tree, head.range_hashes);
    index.put_u64(contents.len() as u64);
    index.extend_from_slice(&contents);
    for segment in segments {
        for word in &segment.words {
            index.put_u32(*word);
        }
        index.extend_from_slice(&segment.checksum.to_le_bytes());
    }
    index
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // The names of store paths and settings are shorter than 256 bytes.
    out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    out.extend_from_slice(text.as_bytes());
}
