//! Detecting the format of a disk image from its first and last bytes, as hypervisors do.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// The number of bytes to read from the start.
const START_BYTES: usize = 4096;
/// The length of the footer of a fixed VHD. Early versions of Virtual PC wrote it one byte short.
const FOOTER_BYTES: u64 = 512;
const VHD_COOKIE: &[u8] = b"conectix";

/// A format of disk images that is not raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFormat {
    /// Its name for the user, with an article.
    pub name: &'static str,
    /// Which one it is, if a machine can use it.
    pub kind: Option<FormatKind>,
}

/// A format that a machine can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatKind {
    /// qcow2.
    Qcow2,
    /// VHD, also known as VPC.
    Vhd,
    /// VHDX.
    Vhdx,
}

/// Magic bytes at the start, the format's name for the user, and its kind. Sources: docs/interop/qcow2.rst and
/// block/vmdk.c of qemu; the VHD and VHDX specifications; disk/src/{composite,android_sparse}.rs of crosvm.
const STARTS: [(&[u8], &str, Option<FormatKind>); 9] = [
    (b"QFI\xfb\0\0\0\x01", "a qcow image of version 1", None),
    (b"QFI\xfb", "a qcow2 image", Some(FormatKind::Qcow2)),
    (VHD_COOKIE, "a VHD image", Some(FormatKind::Vhd)),
    (b"vhdxfile", "a VHDX image", Some(FormatKind::Vhdx)),
    (b"KDMV", "a VMDK image", None),
    (b"COWD", "a VMDK image", None),
    (b"# Disk DescriptorFile", "a VMDK descriptor", None),
    (b"composite_disk\x1d", "a composite disk of crosvm", None),
    (b"\x3a\xff\x26\xed", "a sparse image of Android", None),
];
/// The magic of a zstd frame (RFC 8878): crosvm reads compressed images.
const ZSTD_FRAME: u32 = 0xfd2f_b528;
/// The magics of skippable frames, with which a seekable zstd file may start.
const ZSTD_SKIPPABLE: std::ops::RangeInclusive<u32> = 0x184d_2a50..=0x184d_2a5f;

/// Returns the format that an image looks like; none for a raw image.
///
/// # Errors
/// Fails if the image cannot be read.
pub fn image_format(mut image: &File) -> io::Result<Option<ImageFormat>> {
    let mut start = vec![0; START_BYTES];
    let mut filled = 0;
    while filled < start.len() {
        match image.read_at(&mut start[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    start.truncate(filled);
    if let Some(found) = by_start(&start) {
        return Ok(Some(found));
    }
    // The metadata of a block device does not contain its length.
    let length = image.seek(SeekFrom::End(0))?;
    for footer_bytes in [FOOTER_BYTES, FOOTER_BYTES - 1] {
        let mut cookie = [0; VHD_COOKIE.len()];
        let Some(at) = length.checked_sub(footer_bytes) else { continue };
        image.read_exact_at(&mut cookie, at)?;
        if cookie == *VHD_COOKIE {
            return Ok(Some(ImageFormat { name: "a VHD image (at its end)", kind: Some(FormatKind::Vhd) }));
        }
    }
    Ok(None)
}

/// Returns the format whose magic bytes these are.
pub(crate) fn by_start(start: &[u8]) -> Option<ImageFormat> {
    if let Some((_, name, kind)) = STARTS.iter().find(|(magic, _, _)| start.starts_with(magic)) {
        return Some(ImageFormat { name, kind: *kind });
    }
    let word = u32::from_le_bytes(start.get(..4)?.try_into().ok()?);
    let is_zstd = word == ZSTD_FRAME || ZSTD_SKIPPABLE.contains(&word);
    is_zstd.then_some(ImageFormat { name: "an image compressed with zstd", kind: None })
}
