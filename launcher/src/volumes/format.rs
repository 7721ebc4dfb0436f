//! Refusing a disk whose content looks like another format than the machine spec gives.
//!
//! crosvm, kvmtool and cloud-hypervisor detect the format of an image from its content; crosvm and kvmtool have no
//! option that sets it. A guest that writes the header of another format to its own raw disk could then choose which
//! files the hypervisor opens at the next start, because such a header can name other files.

use super::VolumeError;
use crate::launch::ProbedFormat;
use crate::path::HostPath;
use crate::spec::{Hypervisor, ImageType};
use nix::fcntl::OFlag;
use program::place::Place;
use std::fs::File;
use std::io;
use volume_maker::{FormatKind, image_format};

/// Refuses a disk if the hypervisor would detect another format than the machine spec gives. Checked at every start,
/// because the guest may have written to the disk since the last one.
///
/// # Errors
/// Returns [`VolumeError::Format`], or [`VolumeError::File`] if the image cannot be read.
pub fn check_format(
    disk: &ProbedFormat,
    working_directory: &HostPath,
    hypervisor: Hypervisor,
) -> Result<(), VolumeError> {
    let path = disk.image.below(working_directory);
    let image = Place::of(path.as_path()).and_then(|place| place.open(OFlag::O_RDONLY));
    let describe = image.and_then(|image| describe(&image));
    let (found, image_type) = describe.map_err(|source| VolumeError::File { path: path.clone(), source })?;
    if image_type == Some(disk.image_type) {
        return Ok(());
    }
    Err(VolumeError::Format {
        option: disk.option.clone(),
        path,
        found: found.to_owned(),
        wanted: disk.image_type.as_str(),
        hypervisor: hypervisor.to_string(),
    })
}

/// Returns the name and the `imageType` of the format that an image looks like.
pub(super) fn describe(image: &File) -> io::Result<(&'static str, Option<ImageType>)> {
    let Some(found) = image_format(image)? else { return Ok(("a raw image", Some(ImageType::Raw))) };
    let image_type = found.kind.map(|kind| match kind {
        FormatKind::Qcow2 => ImageType::Qcow2,
        FormatKind::Vhd => ImageType::Vhd,
        FormatKind::Vhdx => ImageType::Vhdx,
    });
    Ok((found.name, image_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn check(directory: &Path, content: &[u8], image_type: ImageType) -> Result<(), String> {
        std::fs::write(directory.join("disk.img"), content).unwrap();
        let disk = ProbedFormat { option: "volumes[0]".to_owned(), image: "disk.img".into(), image_type };
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
        for skippable in 0x184d_2a50_u32..=0x184d_2a5f {
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
