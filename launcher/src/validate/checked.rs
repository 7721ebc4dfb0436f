//! A machine spec after validation: defaults are filled in, disks are in guest order, and options do not contradict
//! each other.

use crate::capability::Use;
use crate::launch::StoreDiskNeed;
use crate::path::HostPath;
use crate::spec::{
    Architecture, Device, ForwardPort, Hypervisor, HypervisorSections, ImageType, MacvtapMode, Share, VirtiofsdSection,
    VulkanProtocol,
};
use std::collections::BTreeMap;

/// A valid machine spec. Only [`super::check`] creates one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CheckedSpec {
    /// The name. It is a valid file name, not hidden, and cannot be mistaken for an option.
    pub name: String,
    /// The hypervisor that the spec names.
    pub hypervisor: Hypervisor,
    /// The guest's architecture, if it differs from the host's.
    pub architecture: Option<Architecture>,
    /// The number of virtual CPUs; at least one.
    pub vcpu: u32,
    /// The CPU model to emulate.
    pub cpu: Option<String>,
    /// The memory at the start, and what can be added or taken away later.
    pub memory: Memory,
    /// The kernel, the initrd and the kernel parameters.
    pub kernel: Kernel,
    /// The machine id: a lower-case UUID with dashes.
    pub machine_id: Option<String>,
    /// How the store disk's image is built, if it is built from a plan.
    pub store_disk: Option<StoreDiskNeed>,
    /// The store disk's image, if it is sealed.
    pub sealed_image: Option<HostPath>,
    /// All disks in guest order: the store disk, then the volumes.
    pub disks: Vec<Disk>,
    /// The volumes, in the order of the spec.
    pub volumes: Vec<CheckedVolume>,
    /// The shared directories, in the order of the spec.
    pub shares: Vec<CheckedShare>,
    /// The guest's directory for the writable layer over the store.
    pub writable_store_overlay: Option<String>,
    /// The network interfaces.
    pub interfaces: Vec<CheckedInterface>,
    /// The forwarded ports. If there are any, there is an interface of type `user`.
    pub forward_ports: Vec<ForwardPort>,
    /// The vsock device.
    pub vsock: Option<CheckedVsock>,
    /// The passed-through devices.
    pub devices: Vec<Device>,
    /// Whether there is an entropy source.
    pub rng: bool,
    /// The screen; `None` for a machine without one.
    pub graphics: Option<CheckedGraphics>,
    /// The credentials, by name.
    pub credential_files: BTreeMap<String, HostPath>,
    /// The control socket, for hypervisors that let it be chosen.
    pub control_socket: HostPath,
    /// The socket that serves the console.
    pub console_socket: Option<HostPath>,
    /// The user who runs the hypervisor.
    pub user: Option<String>,
    /// Commands to run before the start; each has a program.
    pub pre_start: Vec<Vec<String>>,
    /// A program whose output is added to the user's arguments for the hypervisor.
    pub extra_args_script: Option<HostPath>,
    /// The name of the process, if it differs from the program's name.
    pub process_name: Option<String>,
    /// Options that only one hypervisor has.
    pub sections: HypervisorSections,
    /// Options of the virtiofs daemons.
    pub virtiofsd: VirtiofsdSection,
    /// The options that use features which not every hypervisor supports.
    pub uses: Vec<Use>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The memory of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The memory at the start, in MiB; at least one.
    pub mem_mib: u64,
    /// Whether it consists of huge pages.
    pub huge_pages: bool,
    /// Whether it is shared with another process: a virtiofs daemon accesses the guest's memory.
    pub shared: bool,
    /// Memory that can be plugged in.
    pub hotplug: Option<HotplugMemory>,
    /// The device by which the guest returns memory to the host.
    pub balloon: Option<Balloon>,
}

/// Memory that can be plugged into the running machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotplugMemory {
    /// How much can be plugged in, in MiB; at least one.
    pub max_mib: u64,
    /// The amount at the start, in MiB; at most `max_mib`.
    pub initial_mib: u64,
}

/// The device by which the guest returns memory to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balloon {
    /// Its size at the start, in MiB; less than the memory.
    pub initial_mib: u64,
    /// Whether it shrinks when the guest runs out of memory.
    pub deflate_on_oom: bool,
}

/// The files and parameters for booting.
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

/// A disk. Disks are in guest order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The option of the spec that describes it: `storeDisk`, `volumes[0]`.
    pub option: String,
    /// Whether it is the store disk or a volume.
    pub role: DiskRole,
    /// The guest's device name, from its position: `/dev/vda`.
    pub device: String,
    /// The file or block device with the content of the disk.
    pub image: HostPath,
    /// The format of the image.
    pub image_type: ImageType,
    /// Whether it is read-only for the guest.
    pub read_only: bool,
    /// Whether to bypass the host's page cache.
    pub direct: bool,
    /// Its serial number, at most 20 printable bytes.
    pub serial: Option<String>,
    /// The guest's mount point.
    pub mount_point: Option<String>,
    /// What brings it to the guest.
    pub backend: DiskBackend,
}

/// What brings a disk to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskBackend {
    /// The hypervisor reads and writes the image.
    Image,
    /// A process beside the hypervisor serves it: the image builder, which reads the store.
    Live(LiveStore),
    /// The hypervisor maps the image into the guest's memory.
    Pmem,
}

/// A store disk without an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveStore {
    /// The image builder.
    pub builder: HostPath,
    /// The socket that it makes.
    pub socket: HostPath,
}

/// The purpose of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskRole {
    /// The system closure.
    Store,
    /// A disk of the machine's own, from `volumes`.
    Volume,
}

/// The properties of a volume that are not in its [`Disk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedVolume {
    /// Its file system type.
    pub fs_type: String,
    /// Its label, which is valid for the file system.
    pub label: Option<String>,
    /// Its size in MiB if the launcher creates it.
    pub creation_size_mib: Option<u64>,
    /// Further arguments for mkfs.
    pub mkfs_extra_args: Vec<String>,
}

/// A share and its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedShare {
    /// The share in the spec.
    pub share: Share,
    /// The socket of its daemon; unused except with virtiofs.
    pub socket: HostPath,
    /// The socket at which store paths are added; unused without a closure.
    pub control: HostPath,
    /// Whether the writable layer over the store is on this share, which requires extended attributes in the namespace
    /// `trusted`.
    pub holds_overlay: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedInterface {
    /// The name of the host's interface; for user networking, only qemu's name for it.
    pub id: String,
    /// Its MAC address in lower case.
    pub mac: String,
    /// How it is connected.
    pub kind: InterfaceKind,
}

/// How a network interface is connected, with the required settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceKind {
    /// Through sockets of a user process.
    User,
    /// A tap of the host.
    Tap {
        /// Whether vhost-net moves the packets.
        vhost: bool,
    },
    /// A macvtap of the host.
    Macvtap {
        /// The lower interface on the host.
        link: String,
        /// Which interfaces can communicate.
        mode: MacvtapMode,
    },
    /// A tap that qemu's helper adds to a bridge.
    Bridge {
        /// The name of the host's bridge.
        bridge: String,
    },
}

/// The guest's screen, and how it is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedGraphics {
    /// Where qemu shows it.
    pub view: View,
    /// Whether the host's OpenGL renders, if the spec sets it.
    pub gl: Option<bool>,
    /// The protocol for the host's Vulkan, and the size of its window in qemu's syntax. If it is set, OpenGL is not
    /// turned off.
    pub vulkan: Option<(VulkanProtocol, String)>,
    /// The socket of the rendering process.
    pub socket: HostPath,
    /// The program of that process, if it is not the hypervisor's.
    pub program: Option<HostPath>,
}

/// Where qemu shows a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// In a window on the desktop.
    Window,
    /// In no window: the guest has a screen, but nothing shows it.
    Headless,
}

/// A vsock device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedVsock {
    /// The guest's address; at least 3.
    pub cid: u32,
    /// The host's end, for hypervisors where it is a Unix socket.
    pub socket: HostPath,
    /// The port on which the guest reports that it has booted, if the spec asks for it.
    pub notify_port: Option<u32>,
}

/// Returns the guest's device name of the disk with this index: `/dev/vda`, ..., `/dev/vdz`, `/dev/vdaa`, numbered as
/// Linux does (`sd_format_disk_name` in drivers/scsi/sd.c, also used by virtio_blk).
pub(crate) fn device_name(index: usize) -> String {
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
    fn device_names_continue_with_two_letters_after_z() {
        let names: Vec<_> = [0, 1, 25, 26, 51, 52, 701, 702].into_iter().map(device_name).collect();
        let expected =
            ["vda", "vdb", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa"].map(|name| format!("/dev/{name}"));
        assert_eq!(names, expected);
    }
}
