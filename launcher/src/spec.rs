//! What the user wants: a machine, in terms that fit every hypervisor.
//!
//! The JSON document is what the NixOS module writes. Its field names are those of microvm.nix where that has them.
//! Every object refuses unknown fields; [`parse`] names the nearest known one. Nothing here is checked beyond its
//! type: that is `validate`'s work, whose result is another type.

mod devices;
mod graphics;
mod hypervisors;
mod network;
pub mod parse;
pub mod schema;
mod storage;

pub use devices::{Device, DeviceBus, QemuDevice, Vsock};
pub use graphics::{Graphics, GraphicsBackend, VulkanProtocol};
pub use hypervisors::{
    Accelerator, Architecture, CloudHypervisorSection, CrosvmSection, DriveIoEngine, FirecrackerSection, Hypervisor,
    InodeFileHandles, KvmtoolSection, PcieRootPort, QemuSection, VirtiofsdSection,
};
pub use network::{ForwardFrom, ForwardPort, Interface, InterfaceType, Macvtap, MacvtapMode, PortEnd, Protocol, Tap};
pub use storage::{Cache, ImageType, SecurityModel, Share, ShareProtocol, StoreDisk, Volume};

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
    /// The machine's name: names its sockets and its state, and is what `microvm stop NAME` takes.
    pub name: String,
    /// The hypervisor that runs it, unless `--hypervisor` names another.
    #[serde(default)]
    pub hypervisor: Hypervisor,

    /// The guest's architecture; null is the host's. Another than the host's is emulated, by qemu.
    #[serde(default)]
    pub architecture: Option<Architecture>,
    /// Number of virtual CPUs.
    #[serde(default = "one_vcpu")]
    pub vcpu: u32,
    /// The CPU model to emulate; null is the host's. KVM runs it where it can: on x86.
    #[serde(default)]
    pub cpu: Option<String>,
    /// Memory in MiB.
    #[serde(default = "default_memory_mib", rename = "mem")]
    pub mem_mib: u64,
    /// Whether the memory is backed by huge pages of the host.
    #[serde(default)]
    pub hugepage_mem: bool,
    /// Most memory in MiB that can be plugged into the running machine with virtio-mem, on top of `mem`.
    #[serde(default, rename = "hotplugMem")]
    pub hotplug_mem_mib: u64,
    /// How much of `hotplugMem` in MiB is plugged at start; null is all of it.
    #[serde(default, rename = "hotpluggedMem")]
    pub hotplugged_mem_mib: Option<u64>,
    /// Whether there is a balloon, by which the host can take memory back.
    #[serde(default)]
    pub balloon: bool,
    /// Size of the balloon at start in MiB.
    #[serde(default, rename = "initialBalloonMem")]
    pub initial_balloon_mem_mib: u64,
    /// Whether the balloon gives its memory back when the guest runs out of it.
    #[serde(default = "yes", rename = "deflateOnOOM")]
    pub deflate_on_oom: bool,

    /// The kernel image: a bzImage, or an uncompressed ELF where the hypervisor loads that.
    pub kernel: HostPath,
    /// The same kernel as an uncompressed ELF (vmlinux), preferred by the hypervisors that load one.
    #[serde(default)]
    pub vmlinux: Option<HostPath>,
    /// The initrd.
    #[serde(default)]
    pub initrd: Option<HostPath>,
    /// Kernel parameters; what the hypervisor needs for its console is added.
    #[serde(default)]
    pub kernel_params: Vec<String>,
    /// The machine's id as a UUID: the SMBIOS system UUID where the hypervisor has one, else a kernel parameter.
    #[serde(default)]
    pub machine_id: Option<String>,

    /// The read-only disk with the system closure, always `/dev/vda`; null when a share brings `/nix/store`.
    #[serde(default)]
    pub store_disk: Option<StoreDisk>,
    /// Where the guest keeps the writable layer over `/nix/store`: the mount point of a volume or share, or a tmpfs.
    #[serde(default)]
    pub writable_store_overlay: Option<String>,
    /// Further disks, in the order of their letters.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Directories of the host that the guest mounts.
    #[serde(default)]
    pub shares: Vec<Share>,

    /// Network interfaces, in the order in which the guest sees them.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Ports forwarded between the host and the interface of type `user`.
    #[serde(default)]
    pub forward_ports: Vec<ForwardPort>,
    /// Sockets between host and guest that need no network.
    #[serde(default)]
    pub vsock: Vsock,

    /// Devices of the host that the guest gets for itself.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Whether there is a virtio entropy source.
    #[serde(default = "yes")]
    pub rng: bool,
    /// A screen.
    #[serde(default)]
    pub graphics: Graphics,
    /// Secrets for the guest's systemd: credential name to file on the host. qemu hands them over by fw_cfg, where
    /// systemd looks by itself; the others in the initrd as `/microvm-credentials/NAME`, which its stage 1 moves to
    /// `/run/credentials/@initrd/NAME`.
    #[serde(default)]
    pub credential_files: BTreeMap<String, HostPath>,

    /// The hypervisor's control socket; null is `NAME.sock` in the state directory.
    #[serde(default)]
    pub socket: Option<HostPath>,
    /// A socket on which the console is served with scrollback; null is the terminal of `microvm run`.
    #[serde(default)]
    pub console_socket: Option<HostPath>,
    /// The user to switch to when started as root.
    #[serde(default)]
    pub user: Option<String>,
    /// Commands to run before the hypervisor, in order, each a program and its arguments.
    #[serde(default)]
    pub pre_start: Vec<Vec<String>>,
    /// A program that prints one line of further hypervisor arguments at every start.
    #[serde(default)]
    pub extra_args_script: Option<HostPath>,
    /// Whether the process is called `microvm@NAME` in process lists.
    #[serde(default = "yes")]
    pub pretty_procnames: bool,

    /// What only qemu understands.
    #[serde(default)]
    pub qemu: QemuSection,
    /// What only cloud-hypervisor understands.
    #[serde(default)]
    pub cloud_hypervisor: CloudHypervisorSection,
    /// What only firecracker understands.
    #[serde(default)]
    pub firecracker: FirecrackerSection,
    /// What only crosvm understands.
    #[serde(default)]
    pub crosvm: CrosvmSection,
    /// What only kvmtool understands.
    #[serde(default)]
    pub kvmtool: KvmtoolSection,
    /// How the virtiofs daemons of the shares are run.
    #[serde(default)]
    pub virtiofsd: VirtiofsdSection,
}

fn one_vcpu() -> u32 {
    1
}

fn default_memory_mib() -> u64 {
    512
}

pub(crate) fn yes() -> bool {
    true
}
