//! Device nodes whose numbers the kernel gives out.

use crate::launch::Needs;
use crate::spec::DeviceBus;
use std::fs;
use std::path::{Path, PathBuf};

/// The nodes of macvtap interfaces, which are there once the interfaces are.
pub(super) fn of_macvtaps(needs: &Needs) -> impl Iterator<Item = PathBuf> {
    needs.macvtaps.iter().filter_map(|need| {
        let index = fs::read_to_string(Path::new("/sys/class/net").join(&need.name).join("ifindex")).ok()?;
        Some(PathBuf::from(format!("/dev/tap{}", index.trim())))
    })
}

/// The nodes of the VFIO groups of PCI devices, and that of VFIO itself.
pub(super) fn of_pci(needs: &Needs) -> impl Iterator<Item = PathBuf> {
    let devices = needs.devices.iter().filter(|device| device.bus == DeviceBus::Pci);
    devices.flat_map(|device| {
        let group = fs::read_link(Path::new("/sys/bus/pci/devices").join(&device.path).join("iommu_group")).ok();
        let node = group.and_then(|group| Some(Path::new("/dev/vfio").join(group.file_name()?)));
        node.into_iter().chain([PathBuf::from("/dev/vfio/vfio")])
    })
}
