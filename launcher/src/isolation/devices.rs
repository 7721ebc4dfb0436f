//! The devices of a machine: the nodes whose numbers the kernel assigns dynamically, and the rules of its unit, which
//! may open exactly the devices in its root directory.

use super::IsolationError;
use super::tree::{Entry, Tree};
use crate::launch::{Launch, Needs};
use crate::spec::DeviceBus;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The devices that the unit template allows for every machine. None of them gives access to what
/// belongs to other machines or users.
pub(super) const TEMPLATE_DEVICES: [&str; 4] = ["/dev/kvm", "/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"];
/// The directory in which systemd keeps settings that apply until the next boot.
const UNIT_CONTROL_DIRECTORY: &str = "/run/systemd/system.control";

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

/// Returns the nodes that a hypervisor opens instead with iommufd, if its arguments name that: one for each PCI device, and
/// the node of iommufd itself (kernel documentation, driver-api/vfio.rst).
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

/// Makes systemd allow the unit these devices until the next boot, and no others. Does nothing for a machine that needs
/// only the devices of the template.
///
/// # Errors
/// Returns [`IsolationError::DeviceRules`].
pub fn allow_devices(tree: &Tree, unit: &str) -> Result<(), IsolationError> {
    let failed = |reason: String| IsolationError::DeviceRules(reason);
    let other_paths = devices_outside_template(tree);
    let earlier_rules = Path::new(UNIT_CONTROL_DIRECTORY).join(format!("{unit}.d/50-DeviceAllow.conf"));
    if other_paths.is_empty() && !earlier_rules.exists() {
        return Ok(());
    }
    let of_template = TEMPLATE_DEVICES.into_iter().filter(|path| Path::new(path).exists()).map(str::to_owned);
    let allowed = of_template.chain(["char-pts".to_owned()]).chain(other_paths);
    let mut command = Command::new("systemctl");
    // An empty assignment clears the list.
    command.args(["set-property", "--runtime", unit, "DeviceAllow="]);
    command.args(allowed.map(|device| format!("DeviceAllow={device} rw")));
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Returns the devices that the template does not allow.
pub(super) fn devices_outside_template(tree: &Tree) -> Vec<String> {
    let is_device = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.file_type().is_char_device() || metadata.file_type().is_block_device())
    };
    let of_entry = |entry: &Entry| match entry {
        Entry::Device(path) if is_device(path) => Some(path.display().to_string()),
        Entry::Host(bound) if bound.path.starts_with("/dev/bus/usb") => Some("char-usb_device".to_owned()),
        // A device among the paths that the spec does not name.
        Entry::Host(bound) if is_device(&bound.path) => Some(bound.path.display().to_string()),
        _ => None,
    };
    tree.entries.iter().filter_map(of_entry).filter(|device| !TEMPLATE_DEVICES.contains(&device.as_str())).collect()
}
