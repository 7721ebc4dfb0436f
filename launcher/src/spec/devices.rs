//! Passed-through devices and vsock as the user writes them.

use crate::path::HostPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A device of the host that the guest gets for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// The bus it sits on.
    pub bus: DeviceBus,
    /// pci: its address, `0000:01:00.0`; usb: `vendorid=0xabcd,productid=0x0123`.
    pub path: String,
    /// What only qemu understands.
    #[serde(default)]
    pub qemu: QemuDevice,
}

/// The bus of a passed-through device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceBus {
    /// PCI, by VFIO.
    Pci,
    /// USB.
    Usb,
}

impl DeviceBus {
    /// The word in the machine spec.
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
    /// The bus it is attached to.
    #[serde(default)]
    pub bus: Option<String>,
    /// Further properties in qemu's own syntax, passed on as they are.
    #[serde(default)]
    pub device_extra_args: Option<String>,
}

/// Sockets between host and guest that need no network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address, 3 or more; null is no vsock.
    #[serde(default)]
    pub cid: Option<u32>,
    /// cloud-hypervisor and firecracker: the host's end, a unix socket; null is `NAME.vsock` in the state directory.
    #[serde(default)]
    pub socket: Option<HostPath>,
    /// Whether the guest's systemd reports over vsock that it has booted.
    #[serde(default)]
    pub notify: bool,
}
