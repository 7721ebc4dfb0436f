//! Detecting the format of a disk image from its first and last bytes, as hypervisors do.
//!
//! crosvm, kvmtool and cloud-hypervisor detect the format of an image from its content; crosvm and kvmtool have no
//! option that sets it. A guest that writes the header of another format to its own raw disk could then choose which
//! files the hypervisor opens at the next start, because such a header can name other files.

use super::VolumeError;
use crate::launch::GuessedFormat;
use crate::path::HostPath;
use crate::spec::{Hypervisor, ImageType};
use nix::fcntl::OFlag;
use program::place::Place;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// The number of bytes to read from the start.
const START_BYTES: usize = 4096;
/// The length of the footer of a fixed VHD. Early versions of Virtual PC wrote it one byte short.
const FOOTER_BYTES: u64 = 512;
const VHD_COOKIE: &[u8] = b"conectix";

/// Magic bytes at the start, the format's name for the user, and its `imageType` in the machine spec, if it has one.
/// Sources: docs/interop/qcow2.rst and block/vmdk.c of qemu; the VHD and VHDX specifications;
/// disk/src/{composite,android_sparse}.rs of crosvm.
const STARTS: [(&[u8], &str, Option<ImageType>); 9] = [
    (b"QFI\xfb\0\0\0\x01", "a qcow image of version 1", None),
    (b"QFI\xfb", "a qcow2 image", Some(ImageType::Qcow2)),
    (VHD_COOKIE, "a VHD image", Some(ImageType::Vhd)),
    (b"vhdxfile", "a VHDX image", Some(ImageType::Vhdx)),
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

struct Found {
    name: &'static str,
    image_type: Option<ImageType>,
}

/// Refuses a disk if the hypervisor would detect another format than the machine spec gives. Checked at every start,
/// because the guest may have written to the disk since the last one.
///
/// # Errors
/// Returns [`VolumeError::Format`], or [`VolumeError::File`] if the image cannot be read.
pub fn check_format(
    disk: &GuessedFormat,
    working_directory: &HostPath,
    hypervisor: Hypervisor,
) -> Result<(), VolumeError> {
    let path = disk.image.below(working_directory);
    let found = Place::of(path.as_path()).and_then(|place| place.open(OFlag::O_RDONLY)).and_then(|image| look(&image));
    let found = found.map_err(|source| VolumeError::File { path: path.clone(), source })?;
    let image_type = match &found {
        None => Some(ImageType::Raw),
        Some(found) => found.image_type,
    };
    if image_type == Some(disk.image_type) {
        return Ok(());
    }
    Err(VolumeError::Format {
        option: disk.option.clone(),
        path,
        found: found.map_or("a raw image", |found| found.name).to_owned(),
        wanted: disk.image_type.as_str(),
        hypervisor: hypervisor.to_string(),
    })
}

/// Returns the name and the `imageType` of the format that an image looks like.
pub(super) fn described(image: &File) -> io::Result<(&'static str, Option<ImageType>)> {
    Ok(look(image)?.map_or(("a raw image", Some(ImageType::Raw)), |found| (found.name, found.image_type)))
}

/// Returns the name of the format whose magic bytes these are.
pub(super) fn name_by_start(start: &[u8]) -> Option<&'static str> {
    by_start(start).map(|found| found.name)
}

fn look(mut image: &File) -> io::Result<Option<Found>> {
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
            return Ok(Some(Found { name: "a VHD image (at its end)", image_type: Some(ImageType::Vhd) }));
        }
    }
    Ok(None)
}

fn by_start(start: &[u8]) -> Option<Found> {
    if let Some((_, name, image_type)) = STARTS.iter().find(|(magic, _, _)| start.starts_with(magic)) {
        return Some(Found { name, image_type: *image_type });
    }
    let word = u32::from_le_bytes(start.get(..4)?.try_into().ok()?);
    let is_zstd = word == ZSTD_FRAME || ZSTD_SKIPPABLE.contains(&word);
    is_zstd.then_some(Found { name: "an image compressed with zstd", image_type: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn check(directory: &Path, content: &[u8], image_type: ImageType) -> Result<(), String> {
        std::fs::write(directory.join("disk.img"), content).unwrap();
        let disk = GuessedFormat { option: "volumes[0]".to_owned(), image: "disk.img".into(), image_type };
        let directory = HostPath::new(directory.to_str().unwrap());
        check_format(&disk, &directory, Hypervisor::Crosvm).map_err(|error| error.to_string())
    }

    fn sector(start: &[u8]) -> Vec<u8> {
        let mut content = vec![0; 8192];
        content[..start.len()].copy_from_slice(start);
        content
    }

    #[test]
    fn a_raw_disk_with_the_header_of_another_format_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let headers: [&[u8]; 12] = [
            b"QFI\xfb\0\0\0\x01",
            b"QFI\xfb\0\0\0\x02",
            b"QFI\xfb\0\0\0\x03",
            b"QFI\xfb\0\0\0\x63",
            b"conectix",
            b"vhdxfile",
            b"KDMV\x01",
            b"COWD",
            b"# Disk DescriptorFile\nversion=1\n",
            b"composite_disk\x1d",
            &0xed26_ff3a_u32.to_le_bytes(),
            &0xfd2f_b528_u32.to_le_bytes(),
        ];
        for header in headers {
            let error = check(directory.path(), &sector(header), ImageType::Raw).unwrap_err();
            assert!(error.contains("disk.img looks like a"), "{error}");
            assert!(error.contains("the machine spec says raw: crosvm detects the format by the content"), "{error}");
            // Also if the disk contains only the header.
            check(directory.path(), header, ImageType::Raw).unwrap_err();
        }
        for skippable in ZSTD_SKIPPABLE {
            check(directory.path(), &sector(&skippable.to_le_bytes()), ImageType::Raw).unwrap_err();
        }
    }

    #[test]
    fn a_raw_disk_that_ends_like_a_fixed_vhd_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for footer_bytes in [512, 511] {
            let mut content = vec![0; 8192];
            let at = content.len() - footer_bytes;
            content[at..at + 8].copy_from_slice(b"conectix");
            let error = check(directory.path(), &content, ImageType::Raw).unwrap_err();
            assert!(error.contains("VHD image (at its end)"), "{error}");
            check(directory.path(), &content, ImageType::Vhd).unwrap();
        }
    }

    #[test]
    fn a_raw_disk_and_the_declared_format_are_accepted() {
        let directory = tempfile::tempdir().unwrap();
        check(directory.path(), &sector(b""), ImageType::Raw).unwrap();
        check(directory.path(), b"", ImageType::Raw).unwrap();
        check(directory.path(), &sector(b"XFSB"), ImageType::Raw).unwrap();
        check(directory.path(), &sector(b"QFI\xfb\0\0\0\x03"), ImageType::Qcow2).unwrap();
        let error = check(directory.path(), &sector(b""), ImageType::Qcow2).unwrap_err();
        assert!(error.contains("looks like a raw image, but the machine spec says qcow2"), "{error}");
        check(directory.path(), &sector(b"QFI\xfb\0\0\0\x01"), ImageType::Qcow2).unwrap_err();
    }
}
