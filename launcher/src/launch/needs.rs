//! What must be there, or be made, before a hypervisor starts.

use crate::path::HostPath;
use crate::spec::{DeviceBus, ImageType, MacvtapMode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What must be there, or be made, before a hypervisor starts, in the order of making it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Needs {
    /// Whether the hypervisor uses KVM.
    pub kvm: KvmUse,
    /// Commands to run first, each a program and its arguments.
    pub pre_start: Vec<Vec<String>>,
    /// Files and directories that must be there.
    pub present: Vec<Presence>,
    /// Device nodes that must open for reading and writing.
    pub device_nodes: Vec<DeviceNode>,
    /// Directories to make if they are not there.
    pub directories: Vec<HostPath>,
    /// The store disk, if its image is yet to be made from a plan.
    pub store_disk: Option<StoreDiskNeed>,
    /// The volumes in their order.
    pub volumes: Vec<VolumeNeed>,
    /// Disks whose format the hypervisor finds out by their content: that must be the format that the spec says.
    pub guessed_formats: Vec<GuessedFormat>,
    /// Sockets left over from an earlier run, which would make the hypervisor fail.
    pub sockets_to_remove: Vec<HostPath>,
    /// Tap interfaces.
    pub taps: Vec<TapNeed>,
    /// Macvtap interfaces.
    pub macvtaps: Vec<MacvtapNeed>,
    /// Bridges that qemu's helper joins.
    pub bridges: Vec<BridgeNeed>,
    /// Devices of the host that must be free for the guest.
    pub devices: Vec<PassedDevice>,
    /// Processes to start beside the hypervisor; each one's socket must be there before it starts.
    pub processes: Vec<SideProcess>,
    /// The initrd, if it is put together at start.
    pub initrd: Option<ComposedInitrd>,
    /// A program whose one line of output, split at spaces, is appended to the arguments.
    pub extra_args_script: Option<HostPath>,
    /// The directory where the file system of huge pages must be mounted.
    #[serde(default)]
    pub hugetlbfs: Option<HostPath>,
    /// Huge pages of the host in MiB that the memory takes up.
    pub huge_pages_mib: u64,
}

impl Needs {
    /// The sockets that must not be served before the start: all but those of processes beside the hypervisor, which
    /// the host's own service may have started already.
    pub fn sockets_to_clear(&self) -> impl Iterator<Item = &HostPath> {
        let is_served_beside = |socket: &HostPath| self.processes.iter().any(|process| process.socket == *socket);
        self.sockets_to_remove.iter().filter(move |socket| !is_served_beside(socket))
    }
}

/// Whether a hypervisor uses KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KvmUse {
    /// It cannot run without.
    #[default]
    Required,
    /// It emulates.
    NotUsed,
}

/// A file or directory that must be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Presence {
    /// Where.
    pub path: HostPath,
    /// The option of the spec that asks for it, such as `kernel`.
    pub option: String,
    /// What is done with it.
    pub access: Access,
    /// Who does it.
    #[serde(default)]
    pub reader: Reader,
}

/// Who looks at a file or directory, if the machine has a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reader {
    /// The hypervisor, with the rights of the machine's user.
    #[default]
    Hypervisor,
    /// The launcher or a process beside the hypervisor, with the launcher's rights.
    Launcher,
}

/// What is done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// A file is read.
    Read,
    /// A file is read and written.
    ReadWrite,
    /// A program is run.
    Execute,
    /// A directory is entered.
    Enter,
    /// A directory is entered and written to.
    EnterWrite,
}

/// A device node that must open for reading and writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// Where.
    pub path: HostPath,
    /// The option of the spec that asks for it.
    pub option: String,
    /// What brings it, such as `modprobe vhost_vsock`.
    pub remedy: String,
}

/// A store disk that is made from a plan before the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreDiskNeed {
    /// The plan.
    pub plan: HostPath,
    /// Where the image is made.
    pub image: HostPath,
    /// The image builder.
    pub builder: HostPath,
    /// Its cache; null is its own default.
    pub cache: Option<HostPath>,
}

/// A volume that must be there, or be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeNeed {
    /// The image.
    pub image: HostPath,
    /// The file system that it has or gets.
    pub fs_type: String,
    /// The label that it has or gets.
    pub label: Option<String>,
    /// What is done with it.
    pub access: Access,
    /// The image's format.
    #[serde(default)]
    pub image_type: ImageType,
    /// Where the guest mounts it; null is nowhere, and then what it holds is the user's own affair.
    #[serde(default)]
    pub mount_point: Option<String>,
    /// How to create it if it is not there; null is not to.
    pub creation: Option<VolumeCreation>,
}

/// A disk whose format the hypervisor finds out by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuessedFormat {
    /// The option of the spec that it comes from, such as `volumes[0]`.
    pub option: String,
    /// The image.
    pub image: HostPath,
    /// Its format by the spec.
    pub image_type: ImageType,
}

/// How a volume is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeCreation {
    /// Its size in MiB.
    pub size_mib: u64,
    /// Further arguments for mkfs.
    pub mkfs_extra_args: Vec<String>,
}

/// A tap interface that the hypervisor opens by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TapNeed {
    /// Its name.
    pub name: String,
    /// The user who may open it; null is the one who starts the machine.
    pub owner: Option<String>,
    /// Whether it must have been created with `multi_queue`: it must agree with what the hypervisor asks for exactly.
    pub multi_queue: bool,
    /// Whether to create it with `vnet_hdr`.
    pub vnet_hdr: bool,
    /// Queue pairs that the hypervisor opens.
    pub queue_pairs: u32,
}

/// A macvtap interface, handed over as open file descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MacvtapNeed {
    /// Its name.
    pub name: String,
    /// The host's interface that it hangs on.
    pub link: String,
    /// Who may talk with whom.
    pub mode: MacvtapMode,
    /// Its MAC address, which the guest has too.
    pub mac: String,
    /// The user who may open it; null is the one who starts the machine.
    pub owner: Option<String>,
    /// The numbers under which the hypervisor expects `/dev/tapIFINDEX`, opened once for each.
    pub descriptors: Vec<i32>,
}

/// A bridge that qemu's helper puts a tap into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BridgeNeed {
    /// The bridge.
    pub bridge: String,
    /// The helper, if the spec names one.
    pub helper: Option<HostPath>,
    /// The tap that the host puts into the bridge instead, where the helper could not get its rights.
    #[serde(default)]
    pub tap: String,
}

/// A device of the host that the guest gets for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PassedDevice {
    /// Its bus.
    pub bus: DeviceBus,
    /// Its address on the bus.
    pub path: String,
}

/// A process beside the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SideProcess {
    /// What it is.
    pub kind: SideProcessKind,
    /// What it serves: the share's tag, the interface's id, or the machine's name.
    pub name: String,
    /// The program: a path, or a name to be found on the search path.
    pub program: HostPath,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The socket that it makes and the hypervisor connects to.
    pub socket: HostPath,
}

/// What a side process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SideProcessKind {
    /// The daemon of a virtiofs share.
    Virtiofsd,
    /// User networking for a hypervisor that has none.
    Passt,
    /// A graphics card for a hypervisor that has none.
    CrosvmGpu,
}

/// An initrd that is put together at start: the machine's own, followed by an archive with the credentials. It exists
/// only in memory, under a file descriptor that the hypervisor is given as `/proc/self/fd/N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComposedInitrd {
    /// The machine's own initrd.
    pub base: HostPath,
    /// The directory in the archive, without a leading slash.
    pub directory: String,
    /// The files in that directory, mode 0400, owner root: name to file on the host.
    pub credentials: BTreeMap<String, HostPath>,
    /// The number under which the hypervisor expects it.
    pub descriptor: i32,
}
