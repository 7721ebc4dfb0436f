//! The machine spec: what the user wrote, independent of the hypervisor.
//!
//! The NixOS module writes it as JSON. Fields that also exist in microvm.nix have the same names. Every object refuses
//! unknown fields; [`parse`] suggests the nearest known one. Only types are checked here; `validate` checks the rest
//! and returns another type.

mod devices;
mod graphics;
mod hypervisors;
mod network;
pub mod parse;
pub mod schema;
mod storage;
mod usb;

pub use devices::{Device, DeviceBus, QemuDevice, Vsock};
pub use graphics::{Graphics, GraphicsBackend, VulkanProtocol};
pub use hypervisors::{
    Accelerator, Architecture, CloudHypervisorSection, CrosvmSection, DriveIoEngine, FirecrackerSection, Hypervisor,
    HypervisorSections, InodeFileHandles, KvmtoolSection, PcieRootPort, QemuSection, VirtiofsdSection,
};
pub use network::{ForwardFrom, ForwardPort, Interface, InterfaceType, Macvtap, MacvtapMode, PortEnd, Protocol, Tap};
pub use storage::{Cache, ImageType, SecurityModel, Share, ShareProtocol, StoreDisk, StoreTransport, Volume};
pub use usb::UsbAddress;

use crate::path::HostPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the machine spec that this program reads and writes.
pub const SPEC_VERSION: u32 = 1;

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineSpec {
    /// Version of this format; 1.
    pub version: u32,
    /// The machine's name. Its sockets and state files are named after it, and commands such as `microvm stop NAME`
    /// refer to the machine by it.
    pub name: String,
    /// The hypervisor; `--hypervisor` overrides it.
    #[serde(default)]
    pub hypervisor: Hypervisor,

    /// The guest's architecture; null means the host's. Only qemu can emulate another architecture.
    #[serde(default)]
    pub architecture: Option<Architecture>,
    /// Number of virtual CPUs.
    #[serde(default = "default_vcpus")]
    pub vcpu: u32,
    /// The CPU model to emulate; null means the host's. On x86, a named model still runs under KVM.
    #[serde(default)]
    pub cpu: Option<String>,
    /// Memory in MiB.
    #[serde(default = "default_memory_mib", rename = "mem")]
    pub mem_mib: u64,
    /// Whether to back the guest's memory with huge pages of the host.
    #[serde(default)]
    pub hugepage_mem: bool,
    /// Memory in MiB that can be added to the running machine with virtio-mem, on top of `mem`.
    #[serde(default, rename = "hotplugMem")]
    pub hotplug_mem_mib: u64,
    /// How much of `hotplugMem` to add at start, in MiB; null means all of it.
    #[serde(default, rename = "hotpluggedMem")]
    pub hotplugged_mem_mib: Option<u64>,
    /// Whether to add a balloon device, with which the host can reclaim memory.
    #[serde(default)]
    pub balloon: bool,
    /// Size of the balloon at start in MiB.
    #[serde(default, rename = "initialBalloonMem")]
    pub initial_balloon_mem_mib: u64,
    /// Whether the balloon shrinks when the guest runs out of memory.
    #[serde(default = "default_true", rename = "deflateOnOOM")]
    pub deflate_on_oom: bool,

    /// The kernel image: a bzImage, or an uncompressed ELF for hypervisors that load one.
    pub kernel: HostPath,
    /// The same kernel as an uncompressed ELF (vmlinux), preferred by the hypervisors that load one.
    #[serde(default)]
    pub vmlinux: Option<HostPath>,
    /// The initrd.
    #[serde(default)]
    pub initrd: Option<HostPath>,
    /// Kernel parameters. The launcher adds those that the hypervisor's console requires.
    #[serde(default)]
    pub kernel_params: Vec<String>,
    /// The machine ID as a UUID. It is passed as the SMBIOS system UUID if the hypervisor supports that, otherwise as a
    /// kernel parameter.
    #[serde(default)]
    pub machine_id: Option<String>,

    /// The read-only disk with the system closure, always `/dev/vda`; null if a share provides `/nix/store`.
    #[serde(default)]
    pub store_disk: Option<StoreDisk>,
    /// Where the guest stores the writable layer over `/nix/store`: on a volume or share that is mounted there,
    /// otherwise on a tmpfs.
    #[serde(default)]
    pub writable_store_overlay: Option<String>,
    /// Additional disks, in the order of their drive letters.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Host directories that the guest mounts.
    #[serde(default)]
    pub shares: Vec<Share>,

    /// Network interfaces, in the order in which the guest finds them.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Ports forwarded between the host and the interface of type `user`.
    #[serde(default)]
    pub forward_ports: Vec<ForwardPort>,
    /// Sockets between host and guest that do not use a network.
    #[serde(default)]
    pub vsock: Vsock,

    /// Host devices to pass through to the guest.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Whether to add a virtio entropy device.
    #[serde(default = "default_true")]
    pub rng: bool,
    /// The graphics device.
    #[serde(default)]
    pub graphics: Graphics,
    /// Credentials for the guest's systemd: maps each name to a file on the host. qemu passes them by fw_cfg, which
    /// systemd reads. For the other hypervisors the launcher adds them to the initrd as `/microvm-credentials/NAME`,
    /// and
    /// stage 1 moves them to `/run/credentials/@initrd/NAME`.
    #[serde(default)]
    pub credential_files: BTreeMap<String, HostPath>,

    /// The hypervisor's control socket; null means `NAME.sock` in the state directory.
    #[serde(default)]
    pub socket: Option<HostPath>,
    /// A socket that serves the console with scrollback; null means the terminal of `microvm run`.
    #[serde(default)]
    pub console_socket: Option<HostPath>,
    /// The user that runs the hypervisor when the launcher is started as root.
    #[serde(default)]
    pub user: Option<String>,
    /// Commands to run before the hypervisor starts, in order. Each is a list of the program and its arguments.
    #[serde(default)]
    pub pre_start: Vec<Vec<String>>,
    /// A program that is run at every start and prints one line of additional hypervisor arguments. They are
    /// checked and merged like `extraArgs`.
    #[serde(default)]
    pub extra_args_script: Option<HostPath>,
    /// Whether the process is shown as `microvm@NAME` in process lists.
    #[serde(default = "default_true")]
    pub pretty_procnames: bool,

    /// Settings for qemu only.
    #[serde(default)]
    pub qemu: QemuSection,
    /// Settings for cloud-hypervisor only.
    #[serde(default)]
    pub cloud_hypervisor: CloudHypervisorSection,
    /// Settings for firecracker only.
    #[serde(default)]
    pub firecracker: FirecrackerSection,
    /// Settings for crosvm only.
    #[serde(default)]
    pub crosvm: CrosvmSection,
    /// Settings for kvmtool only.
    #[serde(default)]
    pub kvmtool: KvmtoolSection,
    /// Settings of the virtiofs daemons.
    #[serde(default)]
    pub virtiofsd: VirtiofsdSection,
}

fn default_vcpus() -> u32 {
    1
}

fn default_memory_mib() -> u64 {
    512
}

pub(crate) fn default_true() -> bool {
    true
}
