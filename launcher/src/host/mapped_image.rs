//! Whether a guest can map an image as persistent memory.

use nix::fcntl::OFlag;
use program::place::Place;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use volume_maker::file_system;

/// Where the superblock of an EROFS is, and the fields that are checked: `struct erofs_super_block` in fs/erofs/erofs_fs.h
/// of Linux.
const SUPERBLOCK: u64 = 1024;
const BLOCK_SIZE_BITS: u64 = SUPERBLOCK + 12;
const BLOCKS: u64 = SUPERBLOCK + 36;
/// The size of a page as an exponent. A guest can map an EROFS only if its blocks have this size.
const PAGE_SIZE_BITS: u8 = 12;

/// Returns why a guest cannot map the image, if it cannot. An unreadable image is reported elsewhere.
pub(super) fn unsupported(image: &Path) -> Option<String> {
    let file = Place::of(image).and_then(|place| place.open(OFlag::O_RDONLY)).ok()?;
    let reason = reason(&file).ok()??;
    Some(format!("{} {reason}; build it with `microvm-image build --format erofs --dax`", image.display()))
}

fn reason(mut image: &File) -> io::Result<Option<String>> {
    let needed = "but only an EROFS can be persistent memory";
    match file_system(image)? {
        Some(found) if found.fs_type == "erofs" => {}
        Some(found) => return Ok(Some(format!("contains {}, {needed}", found.fs_type))),
        None => return Ok(Some(format!("contains no known file system, {needed}"))),
    }
    let (mut bits, mut blocks) = ([0; 1], [0; 4]);
    image.read_exact_at(&mut bits, BLOCK_SIZE_BITS)?;
    image.read_exact_at(&mut blocks, BLOCKS)?;
    if bits != [PAGE_SIZE_BITS] {
        return Ok(Some("is an EROFS whose blocks do not have 4096 bytes".to_owned()));
    }
    let (length, expected) = (image.seek(SeekFrom::End(0))?, u64::from(u32::from_le_bytes(blocks)) << PAGE_SIZE_BITS);
    Ok((length < expected).then(|| format!("is truncated: it has {length} bytes, and its EROFS has {expected}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn refusal(content: &[u8]) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("store.img");
        fs::write(&image, content).unwrap();
        let found = unsupported(&image)?;
        let remedy = "; build it with `microvm-image build --format erofs --dax`";
        Some(found.strip_prefix(&format!("{} ", image.display())).unwrap().strip_suffix(remedy).unwrap().to_owned())
    }

    fn erofs(bits: u8, blocks: u32, length: usize) -> Vec<u8> {
        let mut image = vec![0; length];
        image[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        image[1036] = bits;
        image[1060..1064].copy_from_slice(&blocks.to_le_bytes());
        image
    }

    #[test]
    fn an_image_that_no_guest_can_map_is_refused() {
        let squashfs = [b"hsqs".as_slice(), &[0; 4092]].concat();
        let needed = "but only an EROFS can be persistent memory";
        assert_eq!(refusal(&squashfs), Some(format!("contains squashfs, {needed}")));
        assert_eq!(refusal(&[0; 4096]), Some(format!("contains no known file system, {needed}")));
        assert_eq!(refusal(b""), Some(format!("contains no known file system, {needed}")));
        let blocks = refusal(&erofs(9, 2, 8192)).unwrap();
        assert_eq!(blocks, "is an EROFS whose blocks do not have 4096 bytes");
        let truncated = refusal(&erofs(12, 3, 8192)).unwrap();
        assert_eq!(truncated, "is truncated: it has 8192 bytes, and its EROFS has 12288");
        assert_eq!(refusal(&erofs(12, 2, 8192)), None);
    }
}
