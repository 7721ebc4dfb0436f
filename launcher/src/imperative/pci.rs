//! Detaching PCI devices from the host's drivers, so that machines can use them: kernel documentation,
//! driver-api/vfio.rst.

use super::ImperativeError;
use ::nix::fcntl::{AtFlags, OFlag, open};
use ::nix::sys::stat::Mode;
use ::nix::unistd::fchownat;
use program::user::Identity;
use std::fs;
use std::path::{Path, PathBuf};

/// The driver for devices that are passed to machines.
const DRIVER: &str = "vfio-pci";

/// The directories in which the kernel exposes PCI devices and their groups.
#[derive(Clone, Debug)]
pub struct PciBus {
    sysfs: PathBuf,
    groups: PathBuf,
}

impl Default for PciBus {
    fn default() -> Self {
        Self { sysfs: "/sys/bus/pci".into(), groups: "/dev/vfio".into() }
    }
}

impl PciBus {
    /// Uses the given directories, for tests.
    pub fn at(sysfs: impl Into<PathBuf>, groups: impl Into<PathBuf>) -> Self {
        Self { sysfs: sysfs.into(), groups: groups.into() }
    }

    /// Binds the device to `vfio-pci`, and makes the user the owner of its group's node. A device that is already bound
    /// stays bound.
    ///
    /// # Errors
    /// Fails if a file of the kernel is missing, because the device, an IOMMU or `vfio-pci` is missing, or if this
    /// process is not root.
    pub fn bind_to_vfio(&self, address: &str, owner: Option<&Identity>) -> Result<(), ImperativeError> {
        let device = self.sysfs.join("devices").join(address);
        let driver = device.join("driver");
        let bound = fs::read_link(&driver).ok();
        if bound.as_deref().and_then(Path::file_name).is_none_or(|name| name != DRIVER) {
            write(&device.join("driver_override"), DRIVER)?;
            if bound.is_some() {
                write(&driver.join("unbind"), address)?;
            }
            write(&self.sysfs.join("drivers_probe"), address)?;
        }
        let link = device.join("iommu_group");
        let group = fs::read_link(&link).map_err(ImperativeError::file(&link))?;
        let Some(owner) = owner else { return Ok(()) };
        let file = self.groups.join(group.file_name().unwrap_or_default());
        // Not opened for reading or writing, because the kernel allows a group to be open only once, and the machine
        // needs it.
        let node = open(&file, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let given =
            node.and_then(|node| fchownat(node, "", Some(owner.user()), Some(owner.group()), AtFlags::AT_EMPTY_PATH));
        given.map_err(|errno| ImperativeError::file(&file)(errno.into()))
    }
}

fn write(path: &Path, text: &str) -> Result<(), ImperativeError> {
    // Not created if it is missing: the kernel provides these files.
    let file = fs::OpenOptions::new().write(true).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes())).map_err(ImperativeError::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_device_is_bound_to_vfio_pci_unless_it_already_is() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let device = root.join("devices/0000:01:00.0");
        fs::create_dir_all(root.join("drivers/nic")).unwrap();
        fs::create_dir_all(root.join("drivers/vfio-pci")).unwrap();
        fs::create_dir_all(&device).unwrap();
        let bus = PciBus::at(root, root.join("groups"));
        assert!(bus.bind_to_vfio("0000:01:00.0", None).unwrap_err().to_string().contains("driver_override"));
        for file in ["devices/0000:01:00.0/driver_override", "drivers/nic/unbind", "drivers_probe"] {
            fs::write(root.join(file), "").unwrap();
        }
        symlink("../../drivers/nic", device.join("driver")).unwrap();
        symlink("../../groups/7", device.join("iommu_group")).unwrap();
        bus.bind_to_vfio("0000:01:00.0", None).unwrap();
        let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
        assert_eq!(read("devices/0000:01:00.0/driver_override"), "vfio-pci");
        assert_eq!(read("drivers/nic/unbind"), "0000:01:00.0");
        assert_eq!(read("drivers_probe"), "0000:01:00.0");

        fs::remove_file(device.join("driver")).unwrap();
        symlink("../../drivers/vfio-pci", device.join("driver")).unwrap();
        fs::write(root.join("drivers_probe"), "").unwrap();
        bus.bind_to_vfio("0000:01:00.0", None).unwrap();
        assert_eq!(read("drivers_probe"), "");
    }
}
