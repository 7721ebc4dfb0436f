//! Features of disk images that a hypervisor does not support although it supports the format.

use super::qcow2::Qcow2;
use crate::hypervisor::{ImageLimits, description};
use crate::launch::VolumeNeed;
use crate::spec::{Hypervisor, ImageType};
use nix::fcntl::OFlag;
use program::place::Place;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Returns why the hypervisor cannot open the image, if it cannot. An unreadable image is reported elsewhere.
pub(super) fn unsupported(hypervisor: Hypervisor, volume: &VolumeNeed) -> Option<String> {
    let limits = description(hypervisor).image_limits?;
    let image = Place::of(volume.image.as_path()).and_then(|place| place.open(OFlag::O_RDONLY)).ok()?;
    let reason = match volume.image_type {
        ImageType::Qcow2 => unsupported_in_qcow2(hypervisor, limits, &Qcow2::read(&image).ok()?),
        ImageType::Vhd => unsupported_in_vhd(hypervisor, &image),
        ImageType::Raw | ImageType::Vhdx => None,
    };
    reason.map(|reason| format!("{} {reason}", volume.image))
}

fn unsupported_in_qcow2(hypervisor: Hypervisor, limits: ImageLimits, image: &Qcow2<'_>) -> Option<String> {
    let convert = "with: qemu-img convert -O qcow2";
    if image.has_backing_file() {
        return Some(format!("has a backing file, which {hypervisor} does not open; merge it {convert}"));
    }
    if image.has_external_data_file() {
        return Some(format!("has an external data file, which {hypervisor} does not open; merge it {convert}"));
    }
    if image.is_encrypted() {
        return Some(format!("is encrypted, and {hypervisor} does not decrypt it; decrypt it {convert}"));
    }
    if image.has_extended_l2_entries() {
        return Some(format!("has extended L2 entries, which {hypervisor} does not support; convert it {convert}"));
    }
    if limits.opens_old_and_compressed_qcow2 {
        return None;
    }
    if image.version() != 3 {
        let version = image.version();
        return Some(format!(
            "is qcow2 of version {version}, and {hypervisor} opens version 3 only; run: qemu-img amend -o compat=1.1"
        ));
    }
    // If the tables cannot be read, the hypervisor reports it.
    image
        .is_compressed()
        .unwrap_or(false)
        .then(|| format!("contains compressed clusters, which {hypervisor} does not read; convert it {convert}"))
}

/// A dynamic VHD has a copy of its footer at the start; an image of fixed size does not.
fn unsupported_in_vhd(hypervisor: Hypervisor, image: &File) -> Option<String> {
    let mut start = [0; 8];
    image.read_exact_at(&mut start, 0).ok()?;
    (start == *b"conectix").then(|| {
        format!(
            "is a dynamic VHD, and {hypervisor} opens those of a fixed size only; convert it with: qemu-img convert -O vpc \
             -o subformat=fixed"
        )
    })
}
