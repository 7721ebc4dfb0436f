//! The root hash of a sealed store disk. It is known only at the start, because the host may build the image. The guest
//! receives it as a kernel parameter, and checks every block that it reads against it.

use crate::facts::StoreSeal;
use crate::launch::seal_of;
use crate::path::HostPath;
use nix::fcntl::OFlag;
use program::place::Place;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// Length of the blocks of data and tree in bytes.
const BLOCK_BYTES: usize = 4096;
/// Number of hashes in a block of the tree.
const HASHES_PER_BLOCK: u64 = 128;
/// The most bytes that are read of the document. It has about 400.
const MAX_DOCUMENT_BYTES: u64 = 64 << 10;
/// The first bytes of the superblock.
const SIGNATURE: &[u8] = b"verity\0\0";

/// Why the root hash of a sealed store disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There is no document beside the image.
    #[error(
        "there is no {document}; build the image with `microvm-image build --verity`, or the plan with `microvm-image plan --verity`"
    )]
    NoDocument {
        /// The document.
        document: HostPath,
    },
    /// A file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// The document is not one that the image builder writes.
    #[error("{document}: {reason}")]
    Document {
        /// The document.
        document: HostPath,
        /// Why it failed, as it follows a colon.
        reason: String,
    },
    /// The document belongs to another image, or the hash tree was changed.
    #[error(
        "{document} does not belong to {image}: {reason}; build the image again with `microvm-image build --verity`"
    )]
    OtherImage {
        /// The document.
        document: HostPath,
        /// The image.
        image: HostPath,
        /// What differs, as a clause.
        reason: &'static str,
    },
}

/// Version 1 of `IMAGE.verity.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    version: u32,
    root_hash: String,
    hash_offset_bytes: u64,
    block_size_bytes: u64,
    algorithm: String,
    salt: String,
}

/// Reads the document beside an image, and checks that the image ends with the hash tree that has this root. The other
/// blocks of the tree, and the data, are checked by the guest.
///
/// # Errors
/// Returns [`SealError`].
pub fn read(image: &HostPath, working_directory: &HostPath) -> Result<StoreSeal, SealError> {
    let image = image.below(working_directory);
    let path = seal_of(&image);
    let document = parse(&path, &read_document(&path)?)?;
    let read = |source| SealError::Read { path: image.clone(), source };
    let file = open(&image).map_err(read)?;
    if let Some(reason) = difference(&document, file).map_err(read)? {
        return Err(SealError::OtherImage { document: path, image, reason });
    }
    Ok(StoreSeal { root_hash: document.root_hash, hash_offset_bytes: document.hash_offset_bytes })
}

/// Root must not be made to read its own files for a machine's user, because the guest receives what is in them.
fn open(path: &HostPath) -> io::Result<File> {
    Place::of(path.as_path()).and_then(|place| place.open(OFlag::O_RDONLY))
}

fn read_document(path: &HostPath) -> Result<String, SealError> {
    let opened = open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SealError::NoDocument { document: path.clone() },
        _ => SealError::Read { path: path.clone(), source },
    })?;
    let mut text = String::new();
    let read = opened.take(MAX_DOCUMENT_BYTES).read_to_string(&mut text);
    read.map_err(|source| SealError::Read { path: path.clone(), source })?;
    Ok(text)
}

fn parse(path: &HostPath, text: &str) -> Result<Document, SealError> {
    let wrong = |reason: String| SealError::Document { document: path.clone(), reason };
    let document: Document = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let is_hash = document.root_hash.len() == 64 && bytes_of(&document.root_hash).is_some();
    if document.version != 1 {
        return Err(wrong(format!("has version {}; this launcher supports version 1", document.version)));
    }
    if document.algorithm != "sha256" || document.block_size_bytes != BLOCK_BYTES as u64 || !is_hash {
        return Err(wrong("must have a SHA-256 hash in hexadecimal digits, and blocks of 4096 bytes".to_owned()));
    }
    if document.hash_offset_bytes == 0 || !document.hash_offset_bytes.is_multiple_of(BLOCK_BYTES as u64) {
        return Err(wrong("hashOffsetBytes must be a multiple of 4096, and not 0".to_owned()));
    }
    Ok(document)
}

/// Returns why the document does not describe the image, if so. The superblock is `struct verity_sb` in
/// lib/verity/verity.c of cryptsetup.
fn difference(document: &Document, mut file: File) -> io::Result<Option<&'static str>> {
    let bytes = file.seek(SeekFrom::End(0))?;
    let data_blocks = document.hash_offset_bytes / BLOCK_BYTES as u64;
    if document.hash_offset_bytes.checked_add(tree_bytes(data_blocks)) != Some(bytes) {
        return Ok(Some("the image has a different length"));
    }
    let block_at = |position: u64| {
        let mut block = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut block, position).map(|()| block)
    };
    let superblock = block_at(document.hash_offset_bytes)?;
    let Some(salt) = bytes_of(&document.salt).filter(|salt| salt.len() <= 256) else {
        return Ok(Some("its salt is invalid"));
    };
    if superblock != written_superblock(&superblock, data_blocks, &salt) {
        return Ok(Some("the image has no superblock of dm-verity with these values"));
    }
    let highest = if data_blocks == 1 { 0 } else { document.hash_offset_bytes + BLOCK_BYTES as u64 };
    let hash = Sha256::new_with_prefix(&salt).chain_update(block_at(highest)?).finalize();
    let is_root = bytes_of(&document.root_hash).is_some_and(|root| root == hash[..]);
    Ok((!is_root).then_some("the root hash differs"))
}

/// Returns the superblock that an image with this salt must have. The UUID is that of `found`.
fn written_superblock(found: &[u8], data_blocks: u64, salt: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend(1_u32.to_le_bytes()); // version
    bytes.extend(1_u32.to_le_bytes()); // hash_type: salt before the data
    bytes.extend(found.iter().skip(16).take(16)); // uuid
    bytes.extend(b"sha256");
    bytes.resize(64, 0);
    bytes.extend([BLOCK_BYTES as u32; 2].into_iter().flat_map(u32::to_le_bytes)); // of data, of the tree
    bytes.extend(data_blocks.to_le_bytes());
    bytes.extend((salt.len() as u16).to_le_bytes());
    bytes.resize(88, 0);
    bytes.extend(salt);
    bytes.resize(BLOCK_BYTES, 0);
    bytes
}

/// Returns the length of superblock and tree in bytes.
fn tree_bytes(data_blocks: u64) -> u64 {
    let mut blocks = 1;
    let mut level = data_blocks;
    while level > 1 {
        level = level.div_ceil(HASHES_PER_BLOCK);
        blocks += level;
    }
    blocks * BLOCK_BYTES as u64
}

/// Returns the bytes that hexadecimal digits stand for.
fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const HASH: &str = "90cad976de3076fe4429874b9a59eb750c58df5241143c8198bdb7e315ee8513";

    fn refusal(document: &str, image: &[u8]) -> String {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("store.img"), image).unwrap();
        fs::write(directory.path().join("store.img.verity.json"), document).unwrap();
        let working = HostPath::new(directory.path().to_str().unwrap());
        read(&"store.img".into(), &working).unwrap_err().to_string()
    }

    fn document(root_hash: &str, offset: u64, salt: &str) -> String {
        format!(
            r#"{{"version": 1, "rootHash": "{root_hash}", "hashOffsetBytes": {offset}, "blockSizeBytes": 4096, "algorithm": "sha256", "salt": "{salt}"}}"#
        )
    }

    #[test]
    fn a_document_that_is_damaged_or_of_another_image_is_refused() {
        let one_block = vec![0; 2 * BLOCK_BYTES];
        for (document, image, expected) in [
            ("{".to_owned(), &[][..], "EOF while parsing"),
            (document("12", 4096, ""), &[], "must have a SHA-256 hash"),
            (document(&HASH.replace('9', "x"), 4096, ""), &[], "must have a SHA-256 hash"),
            (document(&format!("{HASH} x=y"), 4096, ""), &[], "must have a SHA-256 hash"),
            (document(HASH, 4097, ""), &[], "must be a multiple of 4096"),
            (document(HASH, 0, ""), &[], "must be a multiple of 4096"),
            (document(HASH, u64::MAX - 4095, ""), &[], "a different length"),
            (document(HASH, 4096, ""), &[], "a different length"),
            (document(HASH, 4096, "é"), &one_block, "its salt is invalid"),
            (document(HASH, 4096, &"00".repeat(257)), &one_block, "its salt is invalid"),
            (document(HASH, 4096, "00"), &one_block, "no superblock"),
            (document(HASH, 4096, "00").replace("\"version\": 1", "\"version\": 2"), &[], "has version 2"),
        ] {
            let refused = refusal(&document, image);
            assert!(refused.contains(expected), "{document}: {refused}");
        }
        let superblock = written_superblock(&[0; 32], 1, &[0]);
        let image = [vec![0; BLOCK_BYTES], superblock].concat();
        assert!(refusal(&document(HASH, 4096, "00"), &image).contains("the root hash differs"));
    }
}
