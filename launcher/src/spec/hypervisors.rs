//! The hypervisors, and the sections of the spec that apply to only one of them.

use super::MachineSpec;
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
    /// All hypervisors, in the order in which tables list them.
    pub const ALL: [Hypervisor; 5] =
        [Self::Qemu, Self::CloudHypervisor, Self::Firecracker, Self::Crosvm, Self::Kvmtool];

    /// Returns the name used in the machine spec and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
            Self::Crosvm => "crosvm",
            Self::Kvmtool => "kvmtool",
        }
    }

    /// Returns the hypervisor with this name.
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
    /// Returns the kernel's name for it, which the machine spec uses too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// Settings for qemu only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QemuSection {
    /// The program; null means `qemu-system-ARCHITECTURE` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// The machine model; null means `microvm` if it supports all devices, otherwise `q35`.
    #[serde(default)]
    pub machine: Option<String>,
    /// Options of the machine model. They replace the default options.
    #[serde(default)]
    pub machine_opts: Option<BTreeMap<String, String>>,
    /// How the guest's instructions are executed.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// Whether the guest has a serial console on the terminal.
    #[serde(default = "super::default_true")]
    pub serial_console: bool,
    /// PCI Express root ports, which allow devices to be plugged in later.
    #[serde(default)]
    pub pcie_root_ports: Vec<PcieRootPort>,
    /// The program that adds a tap interface to a bridge; null means qemu's own helper.
    #[serde(default)]
    pub bridge_helper: Option<HostPath>,
    /// Additional arguments.
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

/// How the guest's instructions are executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// With KVM if it is usable, otherwise emulated, with a warning.
    #[default]
    Auto,
    /// With KVM.
    Kvm,
    /// Emulated by qemu (TCG).
    Tcg,
}

/// A PCI Express root port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PcieRootPort {
    /// The port's identifier, which devices use as their `bus`.
    pub id: String,
    /// The port's bus.
    #[serde(default)]
    pub bus: Option<String>,
    /// Its chassis number.
    #[serde(default)]
    pub chassis: Option<u32>,
    /// Its slot number.
    #[serde(default)]
    pub slot: Option<String>,
    /// The port's address on the parent bus.
    #[serde(default)]
    pub addr: Option<String>,
}

/// Settings for cloud-hypervisor only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloudHypervisorSection {
    /// The program; null means `cloud-hypervisor` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// SMBIOS strings of type 11. Every user of the host can read them in the process list.
    #[serde(default, rename = "platformOEMStrings")]
    pub platform_oem_strings: Vec<String>,
    /// Additional arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// Settings for firecracker only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FirecrackerSection {
    /// The program; null means `firecracker` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// A CPU template: firecracker's `cpu-config` object.
    #[serde(default)]
    pub cpu: Option<serde_json::Map<String, serde_json::Value>>,
    /// How disks are read and written.
    #[serde(default)]
    pub drive_io_engine: DriveIoEngine,
    /// Additional configuration, merged into firecracker's JSON document. List elements are merged by their ids.
    #[serde(default)]
    pub extra_config: serde_json::Map<String, serde_json::Value>,
    /// Additional arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// How firecracker reads and writes disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DriveIoEngine {
    /// With io_uring; requires Linux 5.10.51 or later.
    #[default]
    Async,
    /// With ordinary system calls.
    Sync,
}

/// Settings for crosvm only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CrosvmSection {
    /// The program; null means `crosvm` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// The empty directory that jailed devices use as their root; null means `/var/empty`.
    #[serde(default)]
    pub pivot_root: Option<HostPath>,
    /// Additional arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// Settings for kvmtool only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KvmtoolSection {
    /// The program; null means `lkvm` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// Additional arguments.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// The sections that apply to only one hypervisor each.
#[derive(Clone, Debug, PartialEq)]
pub struct HypervisorSections {
    /// Options that only qemu has.
    pub qemu: QemuSection,
    /// Options that only cloud-hypervisor has.
    pub cloud_hypervisor: CloudHypervisorSection,
    /// Options that only firecracker has.
    pub firecracker: FirecrackerSection,
    /// Options that only crosvm has.
    pub crosvm: CrosvmSection,
    /// Options that only kvmtool has.
    pub kvmtool: KvmtoolSection,
}

impl HypervisorSections {
    /// Returns the sections of a machine.
    pub fn of(spec: &MachineSpec) -> Self {
        Self {
            qemu: spec.qemu.clone(),
            cloud_hypervisor: spec.cloud_hypervisor.clone(),
            firecracker: spec.firecracker.clone(),
            crosvm: spec.crosvm.clone(),
            kvmtool: spec.kvmtool.clone(),
        }
    }

    /// Returns the name of the option with the extra arguments of that hypervisor, and the arguments.
    pub fn extra_args(&self, hypervisor: Hypervisor) -> (&'static str, &[String]) {
        match hypervisor {
            Hypervisor::Qemu => ("qemu.extraArgs", &self.qemu.extra_args),
            Hypervisor::CloudHypervisor => ("cloudHypervisor.extraArgs", &self.cloud_hypervisor.extra_args),
            Hypervisor::Firecracker => ("firecracker.extraArgs", &self.firecracker.extra_args),
            Hypervisor::Crosvm => ("crosvm.extraArgs", &self.crosvm.extra_args),
            Hypervisor::Kvmtool => ("kvmtool.extraArgs", &self.kvmtool.extra_args),
        }
    }

    /// Returns the user's arguments for a hypervisor, to change them.
    pub fn extra_args_mut(&mut self, hypervisor: Hypervisor) -> &mut Vec<String> {
        match hypervisor {
            Hypervisor::Qemu => &mut self.qemu.extra_args,
            Hypervisor::CloudHypervisor => &mut self.cloud_hypervisor.extra_args,
            Hypervisor::Firecracker => &mut self.firecracker.extra_args,
            Hypervisor::Crosvm => &mut self.crosvm.extra_args,
            Hypervisor::Kvmtool => &mut self.kvmtool.extra_args,
        }
    }

    /// Returns the configured program of a hypervisor; none for the default one.
    pub fn program(&self, hypervisor: Hypervisor) -> Option<&HostPath> {
        let program = match hypervisor {
            Hypervisor::Qemu => &self.qemu.program,
            Hypervisor::CloudHypervisor => &self.cloud_hypervisor.program,
            Hypervisor::Firecracker => &self.firecracker.program,
            Hypervisor::Crosvm => &self.crosvm.program,
            Hypervisor::Kvmtool => &self.kvmtool.program,
        };
        program.as_ref()
    }

    /// Returns the names of all options that are paths, with their values.
    pub fn paths(&self) -> [(&'static str, &Option<HostPath>); 7] {
        [
            ("qemu.program", &self.qemu.program),
            ("qemu.bridgeHelper", &self.qemu.bridge_helper),
            ("cloudHypervisor.program", &self.cloud_hypervisor.program),
            ("firecracker.program", &self.firecracker.program),
            ("crosvm.program", &self.crosvm.program),
            ("crosvm.pivotRoot", &self.crosvm.pivot_root),
            ("kvmtool.program", &self.kvmtool.program),
        ]
    }
}

/// Settings of the virtiofs daemons.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtiofsdSection {
    /// The program; null means `virtiofsd` from the search path.
    #[serde(default)]
    pub program: Option<HostPath>,
    /// When the daemon uses file handles, which keep the number of open files low; never for a share with a closure.
    #[serde(default)]
    pub inode_file_handles: InodeFileHandles,
    /// Number of threads of each daemon; null means one per CPU of the host.
    #[serde(default)]
    pub thread_pool_size: Option<u32>,
    /// The group of the daemons' sockets.
    #[serde(default)]
    pub group: Option<String>,
    /// Additional arguments for every daemon.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// When the virtiofs daemon uses file handles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InodeFileHandles {
    /// Never.
    Never,
    /// If the file system supports them.
    #[default]
    Prefer,
    /// Always; the share fails if the file system does not support them.
    Mandatory,
}

impl InodeFileHandles {
    /// Returns the value as written in the machine spec and in the daemon's option.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Prefer => "prefer",
            Self::Mandatory => "mandatory",
        }
    }
}
