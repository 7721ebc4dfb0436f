//! Passed-through devices and vsock, as written in the spec.

use crate::path::HostPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A host device that is passed through to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// The device's bus.
    pub bus: DeviceBus,
    /// For pci: the address, such as `0000:01:00.0`. For usb: `vendorid=0xabcd,productid=0x0123`.
    pub path: String,
    /// Settings for qemu only.
    #[serde(default)]
    pub qemu: QemuDevice,
}

/// The bus of a passed-through device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceBus {
    /// PCI, through VFIO.
    Pci,
    /// USB.
    Usb,
}

impl DeviceBus {
    /// Returns the value as written in the machine spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Usb => "usb",
        }
    }
}

/// How qemu attaches a passed-through device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QemuDevice {
    /// The device's identifier.
    #[serde(default)]
    pub id: Option<String>,
    /// The guest's bus to which the device is attached.
    #[serde(default)]
    pub bus: Option<String>,
    /// Additional device properties in qemu's syntax, passed unchanged.
    #[serde(default)]
    pub device_extra_args: Option<String>,
}

/// Sockets between host and guest that do not use a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context ID (CID), 3 or more; null means no vsock device.
    #[serde(default)]
    pub cid: Option<u32>,
    /// cloud-hypervisor and firecracker only: the Unix socket on the host; null means `NAME.vsock` in the state
    /// directory.
    #[serde(default)]
    pub socket: Option<HostPath>,
    /// Whether the guest's systemd reports over vsock that it has finished booting.
    #[serde(default)]
    pub notify: bool,
}
