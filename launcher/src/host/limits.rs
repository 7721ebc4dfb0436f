//! Kinds of disk images that a hypervisor does not open although it opens others of that format.

use crate::launch::VolumeNeed;
use crate::spec::{Hypervisor, ImageType};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Why the hypervisor does not open the image, if it does not.
pub(super) fn of(hypervisor: Hypervisor, volume: &VolumeNeed) -> Option<String> {
    if !matches!(hypervisor, Hypervisor::CloudHypervisor | Hypervisor::Crosvm) {
        return None;
    }
    let mut start = [0; 16];
    File::open(volume.image.as_path()).ok()?.read_exact_at(&mut start, 0).ok()?;
    let path = &volume.image;
    match volume.image_type {
        // docs/interop/qcow2.rst: the version at 4, where the name of the backing file is at 8.
        ImageType::Qcow2 if start[8..16] != [0; 8] => Some(format!(
            "{path} has a backing file, which {hypervisor} does not open; merge it with: qemu-img convert -O qcow2"
        )),
        ImageType::Qcow2 if hypervisor == Hypervisor::Crosvm && start[4..8] != [0, 0, 0, 3] => Some(format!(
            "{path} is qcow2 of version {}, and crosvm opens version 3 only; run: qemu-img amend -o compat=1.1",
            start[7]
        )),
        // Only the image of a fixed size has no copy of its footer at its start.
        ImageType::Vhd if start.starts_with(b"conectix") => Some(format!(
            "{path} is a dynamic VHD, and {hypervisor} opens those of a fixed size only; convert it with: qemu-img \
             convert -O vpc -o subformat=fixed"
        )),
        _ => None,
    }
}
