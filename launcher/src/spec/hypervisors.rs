//! The hypervisors, and the sections of the spec that only one of them understands.

use crate::path::HostPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The hypervisors that a machine can run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    /// QEMU.
    #[default]
    Qemu,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
    /// crosvm.
    Crosvm,
    /// kvmtool, whose program is called `lkvm`.
    Kvmtool,
}

impl Hypervisor {
    /// All of them, in the order of every table.
    pub const ALL: [Hypervisor; 5] =
        [Self::Qemu, Self::CloudHypervisor, Self::Firecracker, Self::Crosvm, Self::Kvmtool];

    /// The word in the machine spec and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
            Self::Crosvm => "crosvm",
            Self::Kvmtool => "kvmtool",
        }
    }

    /// The hypervisor of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hypervisor| hypervisor.as_str() == name)
    }
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// A processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Architecture {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Architecture {
    /// The kernel's word for it, in the machine spec too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// What only qemu understands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QemuSection {
    /// The program; null is the one of the machine's architecture from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// The machine model; null chooses between `microvm` and `q35`.
    #[serde(default)]
    pub machine: Option<String>,
    /// Options of the machine model, instead of the chosen ones.
    #[serde(default)]
    pub machine_opts: Option<BTreeMap<String, String>>,
    /// Who runs the guest's instructions; `auto` is KVM where it is usable.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// Whether the guest has a serial console on the terminal.
    #[serde(default = "super::yes")]
    pub serial_console: bool,
    /// PCI Express root ports, into which devices can be plugged later.
    #[serde(default)]
    pub pcie_root_ports: Vec<PcieRootPort>,
    /// The program that puts a tap into a bridge; null is qemu's own.
    #[serde(default)]
    pub bridge_helper: Option<HostPath>,
    /// Further arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

impl Default for QemuSection {
    fn default() -> Self {
        Self {
            program: None,
            machine: None,
            machine_opts: None,
            accelerator: Accelerator::Auto,
            serial_console: true,
            pcie_root_ports: Vec::new(),
            bridge_helper: None,
            extra_args: Vec::new(),
        }
    }
}

/// Who runs the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where it is usable, else emulation, with a warning.
    #[default]
    Auto,
    /// The kernel's KVM.
    Kvm,
    /// Emulation.
    Tcg,
}

/// A PCI Express root port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PcieRootPort {
    /// Its identifier, which a device names as its bus.
    pub id: String,
    /// The bus it sits on.
    #[serde(default)]
    pub bus: Option<String>,
    /// Its chassis number.
    #[serde(default)]
    pub chassis: Option<u32>,
    /// Its slot number.
    #[serde(default)]
    pub slot: Option<String>,
    /// Its address on the parent bus.
    #[serde(default)]
    pub addr: Option<String>,
}

/// What only cloud-hypervisor understands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloudHypervisorSection {
    /// The program; null is `cloud-hypervisor` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// SMBIOS strings of type 11; every user of the host can read them in the process list.
    #[serde(default, rename = "platformOEMStrings")]
    pub platform_oem_strings: Vec<String>,
    /// Further arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// What only firecracker understands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FirecrackerSection {
    /// The program; null is `firecracker` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// A CPU template: firecracker's `cpu-config` object.
    #[serde(default)]
    pub cpu: Option<serde_json::Map<String, serde_json::Value>>,
    /// How disks are read and written; null is io_uring.
    #[serde(default)]
    pub drive_io_engine: DriveIoEngine,
    /// Further configuration, merged into firecracker's document. List elements are merged by id.
    #[serde(default)]
    pub extra_config: serde_json::Map<String, serde_json::Value>,
    /// Further arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// How firecracker reads and writes disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DriveIoEngine {
    /// With io_uring; needs Linux 5.10.51.
    #[default]
    Async,
    /// With ordinary system calls.
    Sync,
}

/// What only crosvm understands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CrosvmSection {
    /// The program; null is `crosvm` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// The empty directory in which its devices are jailed; null is crosvm's `/var/empty`.
    #[serde(default)]
    pub pivot_root: Option<HostPath>,
    /// Further arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// What only kvmtool understands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KvmtoolSection {
    /// The program; null is `lkvm` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// Further arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// How the virtiofs daemons are run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtiofsdSection {
    /// The program; null is `virtiofsd` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// When the daemon refers to files by handles, which keeps its number of open files low.
    #[serde(default)]
    pub inode_file_handles: InodeFileHandles,
    /// Threads of each daemon; null is one per CPU of the host.
    #[serde(default)]
    pub thread_pool_size: Option<u32>,
    /// The group of the daemons' sockets.
    #[serde(default)]
    pub group: Option<String>,
    /// Further arguments for every daemon.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// When the virtiofs daemon refers to files by handles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InodeFileHandles {
    /// Never.
    Never,
    /// Where it can.
    #[default]
    Prefer,
    /// Always; where it cannot, the share fails.
    Mandatory,
}

impl InodeFileHandles {
    /// The word in the machine spec and in the daemon's option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Prefer => "prefer",
            Self::Mandatory => "mandatory",
        }
    }
}
