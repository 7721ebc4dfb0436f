//! The device nodes of a machine whose numbers the kernel assigns dynamically.

use crate::launch::{Launch, Needs};
use crate::spec::DeviceBus;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the nodes of the macvtap interfaces, for interfaces that exist.
pub(super) fn of_macvtaps(needs: &Needs, sysfs: &Path) -> impl Iterator<Item = PathBuf> {
    needs.macvtaps.iter().filter_map(move |need| {
        let index = fs::read_to_string(sysfs.join("class/net").join(&need.name).join("ifindex")).ok()?;
        Some(PathBuf::from(format!("/dev/tap{}", index.trim())))
    })
}

/// Returns the nodes of the VFIO groups of the PCI devices, and the node of VFIO itself.
pub fn vfio_group_nodes(needs: &Needs, sysfs: &Path) -> impl Iterator<Item = PathBuf> {
    pci_devices(needs, sysfs).flat_map(|device| {
        let group = fs::read_link(device.join("iommu_group")).ok();
        let node = group.and_then(|group| Some(Path::new("/dev/vfio").join(group.file_name()?)));
        node.into_iter().chain([PathBuf::from("/dev/vfio/vfio")])
    })
}

/// Returns the nodes that a hypervisor opens instead with iommufd, if its arguments name that: one for each PCI device,
/// and the node of iommufd itself (kernel documentation, driver-api/vfio.rst).
pub fn iommufd_nodes(launch: &Launch, sysfs: &Path) -> Vec<PathBuf> {
    if !launch.arguments.iter().any(|argument| argument.contains("iommufd")) {
        return Vec::new();
    }
    let entries = |device: PathBuf| fs::read_dir(device.join("vfio-dev")).into_iter().flatten().flatten();
    let nodes = pci_devices(&launch.needs, sysfs).flat_map(entries);
    let nodes = nodes.map(|entry| Path::new("/dev/vfio/devices").join(entry.file_name()));
    nodes.chain([PathBuf::from("/dev/iommu")]).collect()
}

fn pci_devices(needs: &Needs, sysfs: &Path) -> impl Iterator<Item = PathBuf> {
    let devices = needs.devices.iter().filter(|device| device.bus == DeviceBus::Pci);
    devices.map(move |device| sysfs.join("bus/pci/devices").join(&device.path))
}
