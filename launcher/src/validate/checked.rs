//! A machine spec that has been checked: defaults filled in, disks in guest order, no contradictions left.

use crate::launch::StoreDiskNeed;
use crate::path::HostPath;
use crate::spec::{
    Architecture, CloudHypervisorSection, CrosvmSection, Device, FirecrackerSection, ForwardPort, Hypervisor,
    ImageType, KvmtoolSection, MacvtapMode, QemuSection, Share, VirtiofsdSection, VulkanProtocol,
};
use std::collections::BTreeMap;

/// A machine without contradictions. Only [`super::check`] makes one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CheckedSpec {
    /// Its name: a file name, not hidden, and no option.
    pub name: String,
    /// The hypervisor that the spec names.
    pub hypervisor: Hypervisor,
    /// The guest's architecture, if it is not to be the host's.
    pub architecture: Option<Architecture>,
    /// Virtual CPUs; at least one.
    pub vcpu: u32,
    /// The CPU model to emulate.
    pub cpu: Option<String>,
    /// Memory.
    pub memory: Memory,
    /// Kernel, initrd, parameters.
    pub kernel: Kernel,
    /// The machine id: a lower-case UUID with dashes.
    pub machine_id: Option<String>,
    /// How the store disk's image is made, if it is made from a plan.
    pub store_disk: Option<StoreDiskNeed>,
    /// All disks in guest order: the store disk, then the volumes.
    pub disks: Vec<Disk>,
    /// The volumes in their order.
    pub volumes: Vec<CheckedVolume>,
    /// The shares.
    pub shares: Vec<CheckedShare>,
    /// Where the guest keeps the writable layer over its store.
    pub writable_store_overlay: Option<String>,
    /// The network interfaces.
    pub interfaces: Vec<CheckedInterface>,
    /// Forwarded ports; if there are any, there is an interface of type `user`.
    pub forward_ports: Vec<ForwardPort>,
    /// The vsock device.
    pub vsock: Option<CheckedVsock>,
    /// Passed-through devices.
    pub devices: Vec<Device>,
    /// Whether there is an entropy source.
    pub rng: bool,
    /// The screen.
    pub graphics: Option<CheckedGraphics>,
    /// Credentials by name.
    pub credential_files: BTreeMap<String, HostPath>,
    /// The control socket, where the hypervisor lets that be chosen.
    pub control_socket: HostPath,
    /// The console's socket.
    pub console_socket: Option<HostPath>,
    /// The user to become.
    pub user: Option<String>,
    /// Commands before the start; each has a program.
    pub pre_start: Vec<Vec<String>>,
    /// A program that prints further arguments.
    pub extra_args_script: Option<HostPath>,
    /// What the process is to call itself, if not by its program's name.
    pub process_name: Option<String>,
    /// What only qemu understands.
    pub qemu: QemuSection,
    /// What only cloud-hypervisor understands.
    pub cloud_hypervisor: CloudHypervisorSection,
    /// What only firecracker understands.
    pub firecracker: FirecrackerSection,
    /// What only crosvm understands.
    pub crosvm: CrosvmSection,
    /// What only kvmtool understands.
    pub kvmtool: KvmtoolSection,
    /// How virtiofs daemons are run.
    pub virtiofsd: VirtiofsdSection,
    /// What the user should know although nothing is wrong.
    pub warnings: Vec<String>,
}

/// The memory of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What it has at start in MiB; at least one.
    pub mem_mib: u64,
    /// Whether it is backed by huge pages.
    pub huge_pages: bool,
    /// Whether another process must see it: a virtiofs daemon works in the guest's memory.
    pub shared: bool,
    /// Memory that can be plugged in.
    pub hotplug: Option<HotplugMemory>,
    /// The balloon.
    pub balloon: Option<Balloon>,
}

/// Memory that can be plugged into the running machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotplugMemory {
    /// At most, in MiB; at least one.
    pub most_mib: u64,
    /// At start, in MiB; not more than the most.
    pub initial_mib: u64,
}

/// A balloon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balloon {
    /// Its size at start in MiB; less than the memory.
    pub initial_mib: u64,
    /// Whether it gives memory back when the guest runs out of it.
    pub deflate_on_oom: bool,
}

/// What is booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel image.
    pub image: HostPath,
    /// The same kernel as an uncompressed ELF.
    pub vmlinux: Option<HostPath>,
    /// The initrd.
    pub initrd: Option<HostPath>,
    /// The parameters of the spec.
    pub parameters: Vec<String>,
}

/// A disk, in guest order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The option of the spec it comes from: `storeDisk`, `volumes[0]`.
    pub option: String,
    /// What it is for.
    pub role: DiskRole,
    /// The guest's device, by its place in the order: `/dev/vda`.
    pub device: String,
    /// The image.
    pub image: HostPath,
    /// The image's format.
    pub image_type: ImageType,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether to go past the host's page cache.
    pub direct: bool,
    /// Its serial number, at most 20 printable bytes.
    pub serial: Option<String>,
    /// Where the guest mounts it.
    pub mount_point: Option<String>,
}

/// What a disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskRole {
    /// The system closure.
    Store,
    /// A volume.
    Volume,
}

/// What it takes to have a volume, apart from its [`Disk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedVolume {
    /// Its file system.
    pub fs_type: String,
    /// Its label, which fits the file system.
    pub label: Option<String>,
    /// Its size in MiB if the launcher creates it.
    pub creation_size_mib: Option<u64>,
    /// Further arguments for mkfs.
    pub mkfs_extra_args: Vec<String>,
}

/// A share with its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedShare {
    /// The share as it is written.
    pub share: Share,
    /// The socket of its daemon; meaningful for virtiofs only.
    pub socket: HostPath,
    /// Whether the writable layer over the store lies on it, which needs extended attributes of the trusted kind.
    pub holds_overlay: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedInterface {
    /// Its name.
    pub id: String,
    /// Its MAC address in lower case.
    pub mac: String,
    /// How it reaches the outside.
    pub kind: InterfaceKind,
}

/// How an interface reaches the outside, with what that takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceKind {
    /// Through sockets of a process.
    User,
    /// A tap of the host.
    Tap {
        /// Whether the kernel moves the packets.
        vhost: bool,
    },
    /// A macvtap of the host.
    Macvtap {
        /// The host's interface.
        link: String,
        /// Who may talk with whom.
        mode: MacvtapMode,
    },
    /// A tap that qemu's helper puts into a bridge.
    Bridge {
        /// The bridge.
        bridge: String,
    },
}

/// A screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedGraphics {
    /// Where qemu shows it.
    pub view: View,
    /// Whether the host's OpenGL draws, if that is settled.
    pub gl: Option<bool>,
    /// The protocol for the host's Vulkan, with the size of its window in qemu's words. OpenGL is then not turned off.
    pub vulkan: Option<(VulkanProtocol, String)>,
    /// The socket of the process that draws.
    pub socket: HostPath,
    /// The program of that process, if it is not to be the hypervisor's.
    pub program: Option<HostPath>,
}

/// Where qemu shows a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// In a window of the desktop.
    Window,
    /// Nowhere by itself.
    Headless,
}

/// A vsock device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedVsock {
    /// The guest's address, 3 or more.
    pub cid: u32,
    /// The host's end where that is a unix socket.
    pub socket: HostPath,
    /// The port on which the guest tells that it has booted, if it is to.
    pub notify_port: Option<u32>,
}

/// The guest's device of the disk in that place: `/dev/vda`, ..., `/dev/vdz`, `/dev/vdaa`, as Linux counts
/// (`sd_format_disk_name` in drivers/scsi/sd.c, used by virtio_blk too).
pub(super) fn device_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or(0)));
        rest /= 26;
    }
    format!("/dev/vd{}", letters.iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::device_name;

    #[test]
    fn letters_go_on_after_z() {
        let names: Vec<_> = [0, 1, 25, 26, 51, 52, 701, 702].into_iter().map(device_name).collect();
        let expected =
            ["vda", "vdb", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa"].map(|name| format!("/dev/{name}"));
        assert_eq!(names, expected);
    }
}
