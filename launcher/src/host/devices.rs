//! The devices of the host that are passed to a guest: whether they exist, belong to VFIO, and can be opened by the user who
//! runs the hypervisor.

use crate::isolation::{iommufd_nodes, vfio_group_nodes};
use crate::launch::{Launch, PassedDevice};
use crate::spec::{DeviceBus, UsbAddress};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Drivers other than VFIO's that the kernel accepts in a group that is passed to a guest: drivers/vfio/group.c and the drivers with
/// `driver_managed_dma` of the kernel.
const DRIVERS_WITHOUT_DMA: [&str; 3] = ["pci-stub", "pcieport", "xen-pciback"];

/// The class of USB hubs: USB specification 2.0, section 11.23.1.
const USB_CLASS_HUB: u32 = 9;

/// Where the host's devices are.
#[derive(Clone, Copy)]
pub(super) struct DevicePlaces<'host> {
    /// `/sys`
    pub(super) sysfs: &'host Path,
    /// `/dev`
    pub(super) nodes: &'host Path,
}

impl DevicePlaces<'static> {
    /// Returns those of this host.
    pub(super) fn of_host() -> Self {
        Self { sysfs: Path::new("/sys"), nodes: Path::new("/dev") }
    }
}

impl DevicePlaces<'_> {
    /// Returns what is wrong with the devices of a launch. Call it as the user who runs the hypervisor.
    pub(super) fn problems(&self, launch: &Launch) -> Vec<String> {
        let mut problems = Vec::new();
        for device in &launch.needs.devices {
            match device.bus {
                DeviceBus::Pci => problems.extend(self.pci_problem(device)),
                DeviceBus::Usb => problems.extend(self.usb_problem(device)),
            }
        }
        // A device with a problem has no node to open.
        if problems.is_empty() {
            let iommufd = iommufd_nodes(launch, self.sysfs);
            let nodes =
                if iommufd.is_empty() { vfio_group_nodes(&launch.needs, self.sysfs).collect() } else { iommufd };
            problems.extend(self.unusable(nodes));
        }
        problems
    }

    fn unusable(&self, mut nodes: Vec<PathBuf>) -> Vec<String> {
        nodes.sort();
        nodes.dedup();
        let problem = |node: PathBuf| {
            let error = self.open(&node).err()?;
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => "load the kernel module vfio_pci",
                io::ErrorKind::ResourceBusy => "another machine or program uses this device or one of its IOMMU group",
                _ => "the user who runs the machine must be allowed to read and write it",
            };
            Some(format!("{}: {error}; {remedy}", node.display()))
        };
        nodes.into_iter().filter_map(problem).collect()
    }

    fn open(&self, node: &Path) -> io::Result<()> {
        let path = self.nodes.join(node.strip_prefix("/dev").unwrap_or(node));
        OpenOptions::new().read(true).write(true).open(path).map(drop)
    }

    /// Checks that a PCI device and its IOMMU group are bound to VFIO.
    fn pci_problem(&self, device: &PassedDevice) -> Option<String> {
        let address = &device.path;
        let place = self.sysfs.join("bus/pci/devices").join(address);
        if !place.exists() {
            return Some(format!("there is no PCI device {address} on this host"));
        }
        let driver = driver_of(&place).unwrap_or_else(|| "none".to_owned());
        if !driver.contains("vfio") {
            return Some(format!(
                "PCI device {address} belongs to the driver {driver}, not to vfio-pci; run as root: \
                 echo vfio-pci > {place}/driver_override; echo {address} > {place}/driver/unbind; \
                 echo {address} > /sys/bus/pci/drivers_probe",
                place = place.display()
            ));
        }
        let Ok(others) = fs::read_dir(place.join("iommu_group/devices")) else {
            return Some(format!(
                "PCI device {address} has no IOMMU group; enable the IOMMU in the firmware, and with the kernel parameter \
                 intel_iommu=on or amd_iommu=on"
            ));
        };
        others.flatten().find_map(|other| {
            let driver = driver_of(&other.path())?;
            let is_accepted = driver.contains("vfio") || DRIVERS_WITHOUT_DMA.contains(&driver.as_str());
            let other = other.file_name();
            (!is_accepted).then(|| {
                format!(
                    "PCI device {address} is in one IOMMU group with {other}, which belongs to the driver {driver}; bind \
                     that device to vfio-pci too, or unbind it from its driver",
                    other = other.display()
                )
            })
        })
    }

    /// Checks that the user may open a USB device. A device that is not plugged in is accepted, because qemu attaches it as
    /// soon as it is.
    fn usb_problem(&self, device: &PassedDevice) -> Option<String> {
        let address = UsbAddress::parse(&device.path)?;
        let entries = fs::read_dir(self.sysfs.join("bus/usb/devices")).ok()?;
        let found = entries.flatten().filter_map(|entry| usb_node(&entry.path(), &address));
        // qemu takes the first one that opens.
        let mut problem = None;
        for node in found {
            match self.open(&node) {
                Ok(()) => return None,
                Err(error) => {
                    let place = node.display();
                    let remedy = "the user who runs the machine must be allowed to read and write it";
                    problem = Some(format!("USB device {} is {place}: {error}; {remedy}", device.path));
                }
            }
        }
        problem
    }
}

/// Returns the name of a device's driver.
fn driver_of(device: &Path) -> Option<String> {
    let link = fs::read_link(device.join("driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Returns the node of a USB device in sysfs if it has that address. Hubs do not count, because qemu does not pass them.
fn usb_node(device: &Path, address: &UsbAddress) -> Option<PathBuf> {
    let text = |name: &str| fs::read_to_string(device.join(name)).ok().map(|text| text.trim().to_owned());
    let number = |name: &str, radix: u32| u32::from_str_radix(&text(name)?, radix).ok();
    if number("bDeviceClass", 16) == Some(USB_CLASS_HUB) {
        return None;
    }
    let (bus, own_address) = (number("busnum", 10)?, number("devnum", 10)?);
    let is_it = address.matches(&UsbAddress {
        vendor_id: number("idVendor", 16),
        product_id: number("idProduct", 16),
        bus: Some(bus),
        address: Some(own_address),
        port: text("devpath"),
    });
    is_it.then(|| PathBuf::from(format!("/dev/bus/usb/{bus:03}/{own_address:03}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A host whose devices are files of a directory.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            for (address, group) in [("0000:01:00.0", "7"), ("0000:01:00.1", "7"), ("0000:02:00.0", "8")] {
                let group_path = host.path(&format!("sys/kernel/iommu_groups/{group}"));
                let device = host.path(&format!("sys/bus/pci/devices/{address}"));
                fs::create_dir_all(group_path.join("devices")).unwrap();
                fs::create_dir_all(&device).unwrap();
                symlink(&group_path, device.join("iommu_group")).unwrap();
                symlink(&device, group_path.join("devices").join(address)).unwrap();
            }
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), content).unwrap();
        }

        fn bind(&self, address: &str, driver: &str) {
            let link = self.path(&format!("sys/bus/pci/devices/{address}/driver"));
            let _ = fs::remove_file(&link);
            symlink(format!("/sys/bus/pci/drivers/{driver}"), link).unwrap();
        }

        fn problems(&self, bus: DeviceBus, path: &str, arguments: &[&str]) -> Vec<String> {
            let mut launch = crate::shutdown::tests::launch(self.0.path());
            launch.arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
            launch.needs.devices = vec![PassedDevice { bus, path: path.to_owned() }];
            DevicePlaces { sysfs: &self.path("sys"), nodes: &self.path("dev") }.problems(&launch)
        }
    }

    #[test]
    fn a_pci_device_whose_group_vfio_cannot_open_is_reported() {
        let host = Host::new();
        let reported = |reason: &str| {
            let problems = host.problems(DeviceBus::Pci, "0000:01:00.0", &[]);
            assert!(problems.len() == 1 && problems[0].contains(reason), "no `{reason}`: {problems:?}");
        };
        reported("belongs to the driver none, not to vfio-pci");
        host.bind("0000:01:00.0", "mlx5_vfio_pci");
        host.bind("0000:01:00.1", "snd_hda_intel");
        reported("in one IOMMU group with 0000:01:00.1, which belongs to the driver snd_hda_intel");
        host.bind("0000:01:00.1", "vfio-pci");
        host.write("dev/vfio/vfio", "");
        reported("/dev/vfio/7: No such file or directory (os error 2); load the kernel module vfio_pci");
        // Not even root opens a directory for writing.
        fs::create_dir(host.path("dev/vfio/7")).unwrap();
        reported("/dev/vfio/7: Is a directory (os error 21); the user who runs the machine must be allowed to");
        fs::remove_dir(host.path("dev/vfio/7")).unwrap();
        host.write("dev/vfio/7", "");
        assert_eq!(host.problems(DeviceBus::Pci, "0000:01:00.0", &[]), [""; 0]);
        fs::create_dir_all(host.path("sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio3")).unwrap();
        let problems = host.problems(DeviceBus::Pci, "0000:01:00.0", &["--platform", "iommufd=on"]);
        assert!(problems.len() == 2 && problems[0].starts_with("/dev/iommu: "), "{problems:?}");
        assert!(problems[1].starts_with("/dev/vfio/devices/vfio3: "), "{problems:?}");
        fs::remove_file(host.path("sys/bus/pci/devices/0000:01:00.0/iommu_group")).unwrap();
        reported("has no IOMMU group; enable the IOMMU");
    }

    #[test]
    fn a_usb_device_that_the_user_cannot_open_is_reported_and_one_that_is_not_plugged_in_is_not() {
        let host = Host::new();
        for (name, content) in [
            ("idVendor", "1d6b\n"),
            ("idProduct", "0002\n"),
            ("busnum", "1\n"),
            ("devnum", "12\n"),
            ("devpath", "1.4\n"),
        ] {
            host.write(&format!("sys/bus/usb/devices/1-1.4/{name}"), content);
            // A hub of the same vendor, on the same bus.
            let content = if name == "devnum" { "1\n" } else { content };
            host.write(&format!("sys/bus/usb/devices/usb1/{name}"), content);
        }
        host.write("sys/bus/usb/devices/1-1.4/bDeviceClass", "00\n");
        host.write("sys/bus/usb/devices/usb1/bDeviceClass", "09\n");
        for path in ["vendorid=0x1d6b,productid=2", "hostbus=1,hostaddr=12", "hostport=1.4", "vendorid=0"] {
            let problems = host.problems(DeviceBus::Usb, path, &[]);
            let expected =
                format!("USB device {path} is /dev/bus/usb/001/012: No such file or directory (os error 2); ");
            assert!(problems.len() == 1 && problems[0].starts_with(&expected), "{path}: {problems:?}");
        }
        for path in ["vendorid=0x1d6b,productid=3", "hostbus=2", "hostport=1", "hostbus=1,hostaddr=1"] {
            assert_eq!(host.problems(DeviceBus::Usb, path, &[]), [""; 0], "{path}");
        }
        host.write("dev/bus/usb/001/012", "");
        assert_eq!(host.problems(DeviceBus::Usb, "hostbus=1", &[]), [""; 0]);
    }
}
