//! Device nodes whose numbers the kernel assigns dynamically.

use crate::launch::Needs;
use crate::spec::DeviceBus;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the nodes of the macvtap interfaces, for interfaces that exist.
pub(super) fn of_macvtaps(needs: &Needs) -> impl Iterator<Item = PathBuf> {
    needs.macvtaps.iter().filter_map(|need| {
        let index = fs::read_to_string(Path::new("/sys/class/net").join(&need.name).join("ifindex")).ok()?;
        Some(PathBuf::from(format!("/dev/tap{}", index.trim())))
    })
}

/// Returns the nodes of the VFIO groups of the PCI devices, and the node of VFIO itself.
pub(super) fn of_pci(needs: &Needs) -> impl Iterator<Item = PathBuf> {
    let devices = needs.devices.iter().filter(|device| device.bus == DeviceBus::Pci);
    devices.flat_map(|device| {
        let group = fs::read_link(Path::new("/sys/bus/pci/devices").join(&device.path).join("iommu_group")).ok();
        let node = group.and_then(|group| Some(Path::new("/dev/vfio").join(group.file_name()?)));
        node.into_iter().chain([PathBuf::from("/dev/vfio/vfio")])
    })
}
