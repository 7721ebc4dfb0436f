//! What must exist, or be created, before a hypervisor starts.

use crate::path::HostPath;
use crate::spec::{DeviceBus, ImageType, MacvtapMode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What must exist, or be created, before a hypervisor starts, in the order of creation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Needs {
    /// Whether the hypervisor uses KVM.
    pub kvm: KvmUse,
    /// Commands to run first; each is a program and its arguments.
    pub pre_start: Vec<Vec<String>>,
    /// Files and directories that must exist.
    pub present: Vec<FileNeed>,
    /// Device nodes that must open for reading and writing.
    pub device_nodes: Vec<DeviceNode>,
    /// Directories to create if they are missing.
    pub directories: Vec<HostPath>,
    /// The store disk, if its image must be built from a plan.
    pub store_disk: Option<StoreDiskNeed>,
    /// The store disk's image, if it is sealed. Its root hash is read at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_image: Option<HostPath>,
    /// The store disk's image, if the guest maps it as persistent memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped_image: Option<HostPath>,
    /// The volumes, in order.
    pub volumes: Vec<VolumeNeed>,
    /// Disks whose format the hypervisor detects from their content, which must match the spec.
    #[serde(default)]
    pub probed_formats: Vec<ProbedFormat>,
    /// Sockets left over from an earlier run, which would make the hypervisor fail.
    pub sockets_to_remove: Vec<HostPath>,
    /// Tap interfaces, which are created if they are missing and root starts the machine.
    pub taps: Vec<TapNeed>,
    /// Macvtap interfaces, which are created if they are missing and root starts the machine.
    pub macvtaps: Vec<MacvtapNeed>,
    /// Bridges that qemu's helper adds a tap to.
    pub bridges: Vec<BridgeNeed>,
    /// Devices of the host that must be free for the guest.
    pub devices: Vec<PassedDevice>,
    /// Processes to run beside the hypervisor. The socket of each one must exist before the hypervisor starts.
    pub processes: Vec<SideProcess>,
    /// The initrd, if it is composed at the start.
    pub initrd: Option<ComposedInitrd>,
    /// A program whose one line of output, split at spaces, is appended to the arguments.
    pub extra_args_script: Option<HostPath>,
    /// The directory on which hugetlbfs must be mounted.
    #[serde(default)]
    pub hugetlbfs: Option<HostPath>,
    /// The memory in MiB that consists of huge pages of the host.
    pub huge_pages_mib: u64,
}

/// Returns the path `IMAGE.verity.json` of the document that `microvm-image build --verity` writes.
pub fn seal_of(image: &HostPath) -> HostPath {
    HostPath::new(format!("{image}.verity.json"))
}

impl Needs {
    /// Returns the sockets on which no process may listen before the start: all except those of processes beside the
    /// hypervisor, which a service of the host may have started already.
    pub fn sockets_to_clear(&self) -> impl Iterator<Item = &HostPath> {
        let is_served = |socket: &HostPath| self.processes.iter().any(|process| process.socket == *socket);
        self.sockets_to_remove.iter().filter(move |socket| !is_served(socket))
    }
}

/// Whether a hypervisor uses KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KvmUse {
    /// It requires KVM.
    #[default]
    Required,
    /// It emulates the machine.
    NotUsed,
}

/// A file or directory that must exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileNeed {
    /// The path.
    pub path: HostPath,
    /// The option of the spec that requires it, such as `kernel`.
    pub option: String,
    /// How it is used.
    pub access: Access,
    /// The process that uses it.
    #[serde(default)]
    pub reader: Reader,
}

/// The process that uses a file or directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reader {
    /// The hypervisor, as the machine's user.
    #[default]
    Hypervisor,
    /// The launcher, or a process beside the hypervisor that runs as the launcher's user.
    Launcher,
}

/// How a file or directory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// The file is read.
    Read,
    /// The file is read and written.
    ReadWrite,
    /// The program is run.
    Execute,
    /// The directory is read.
    #[serde(alias = "enter")]
    ReadDirectory,
    /// The directory is read and written.
    #[serde(alias = "enterWrite")]
    WriteDirectory,
}

/// A device node that must open for reading and writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// The path.
    pub path: HostPath,
    /// The option of the spec that requires it.
    pub option: String,
    /// The command that provides it, such as `modprobe vhost_vsock`.
    pub remedy: String,
}

/// A store disk that is built from a plan before the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoreDiskNeed {
    /// The plan file, which `microvm-image plan` wrote.
    pub plan: HostPath,
    /// The image to build.
    pub image: HostPath,
    /// The image builder.
    pub builder: HostPath,
    /// Its cache directory; null means its default.
    pub cache: Option<HostPath>,
}

/// A volume that must exist or be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeNeed {
    /// The image.
    pub image: HostPath,
    /// The file system that it must have, or that is created.
    pub fs_type: String,
    /// The label that it must have, or that is set.
    pub label: Option<String>,
    /// How it is used.
    pub access: Access,
    /// The image's format.
    #[serde(default)]
    pub image_type: ImageType,
    /// The guest's mount point; null if the guest does not mount it, in which case its content is not checked.
    #[serde(default)]
    pub mount_point: Option<String>,
    /// How to create it if it is missing; null if it must exist.
    pub creation: Option<VolumeCreation>,
}

/// A disk whose format the hypervisor detects from its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbedFormat {
    /// The option of the spec that it comes from, such as `volumes[0]`.
    pub option: String,
    /// The image.
    pub image: HostPath,
    /// Its format in the spec.
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
    /// The user who can open it; null means the user who starts the machine.
    pub owner: Option<String>,
    /// Whether it must have been created with `multi_queue`, which must match the hypervisor's request exactly.
    pub multi_queue: bool,
    /// Whether to create it with `vnet_hdr`.
    pub vnet_hdr: bool,
    /// The number of queue pairs that the hypervisor opens.
    pub queue_pairs: u32,
}

/// A macvtap interface, which the hypervisor inherits as open file descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MacvtapNeed {
    /// Its name.
    pub name: String,
    /// The lower interface on the host.
    pub link: String,
    /// Which interfaces can communicate.
    pub mode: MacvtapMode,
    /// Its MAC address, which is also the guest's.
    pub mac: String,
    /// The user who can open it; null means the user who starts the machine.
    pub owner: Option<String>,
    /// The descriptor numbers under which the hypervisor expects `/dev/tapIFINDEX`, which is opened once for each.
    pub descriptors: Vec<i32>,
}

/// A bridge that qemu's helper adds a tap to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BridgeNeed {
    /// The bridge.
    pub bridge: String,
    /// The helper, if the spec names one.
    pub helper: Option<HostPath>,
    /// The tap that the host adds to the bridge instead, where the helper cannot gain its privileges.
    #[serde(default)]
    pub tap: String,
}

/// A device of the host that is passed through to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PassedDevice {
    /// The bus that the device is attached to.
    pub bus: DeviceBus,
    /// Its address on the bus.
    pub path: String,
}

/// A process beside the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SideProcess {
    /// What the process does for the machine.
    pub kind: SideProcessKind,
    /// What it serves: the share's tag, the interface's id, or the machine's name.
    pub name: String,
    /// The program: a path, or a name to search for in `$PATH`.
    pub program: HostPath,
    /// Its arguments, without the program and without the option that names the socket.
    pub arguments: Vec<String>,
    /// The socket that it creates and that the hypervisor connects to.
    pub socket: HostPath,
    /// The store paths that it shows to the guest, if it serves a closure-only share. It then runs in a mount namespace with
    /// these paths only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<ClosureView>,
    /// What to do when it ends while the hypervisor runs.
    #[serde(rename = "afterEnd", default)]
    pub on_exit: OnExit,
}

impl SideProcess {
    /// Returns what messages call the process.
    pub fn description(&self) -> String {
        match self.kind {
            SideProcessKind::Virtiofsd => format!("the virtiofs daemon of share `{}`", self.name),
            SideProcessKind::Passt => format!("passt for interface `{}`", self.name),
            SideProcessKind::ShareView => format!("the view of share `{}`", self.name),
            SideProcessKind::StoreDisk => format!("the server of the store disk of `{}`", self.name),
            SideProcessKind::CrosvmGpu => format!("the graphics card of `{}`", self.name),
        }
    }

    /// Returns the arguments of the command that is run. A process with a view is run by the launcher's `serve-view`, which
    /// makes the view.
    pub fn all_arguments(&self) -> Vec<String> {
        let Some(view) = &self.view else { return self.arguments.clone() };
        let options = [("--source", &view.source), ("--closure", &view.closure), ("--control", &view.control)];
        let options = options.into_iter().flat_map(|(option, path)| [option.to_owned(), path.to_string()]);
        let served = (self.kind != SideProcessKind::ShareView).then(|| ["--".to_owned(), self.program.to_string()]);
        let served = served.into_iter().flatten().chain(self.arguments.iter().cloned());
        std::iter::once("serve-view".to_owned()).chain(options).chain(served).collect()
    }
}

/// Where the view of a closure-only share is mounted, in the namespace of the process that serves it. Every system has this
/// directory, only root can replace it, and no program that serves shares needs its content.
pub const VIEW: &str = "/sys/kernel";

/// The part of a store that a closure-only share shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClosureView {
    /// The directory with all store paths.
    pub source: HostPath,
    /// The list of the store paths to show, one per line.
    pub closure: HostPath,
    /// The socket at which further paths are added.
    pub control: HostPath,
    /// The descriptor of the view that the hypervisor inherits, if it serves the share itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<i32>,
}

/// What to do when a side process ends while the hypervisor runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnExit {
    /// Start it again: the hypervisor connects again, or has no use for it any more.
    #[default]
    #[serde(rename = "startAgain")]
    Restart,
    /// Report it: this hypervisor never connects again.
    Report,
}

/// The kind of a process beside the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SideProcessKind {
    /// The daemon of a virtiofs share.
    Virtiofsd,
    /// passt: user networking for a hypervisor that has none.
    Passt,
    /// crosvm's graphics card, which runs as a separate process.
    CrosvmGpu,
    /// The store disk, read from the host's store.
    StoreDisk,
    /// The view of a closure-only share that the hypervisor serves.
    ShareView,
}

/// An initrd that is composed at the start: the machine's own, followed by an archive with the credentials. It exists
/// in memory only; the hypervisor inherits its descriptor and opens it as `/proc/self/fd/N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComposedInitrd {
    /// The machine's own initrd.
    pub base: HostPath,
    /// The directory in the archive, without a leading slash.
    pub directory: String,
    /// The files in that directory, mode 0400, owner root: name to file on the host.
    pub credentials: BTreeMap<String, HostPath>,
    /// The descriptor number under which the hypervisor expects it.
    pub descriptor: i32,
    /// The directory of a file system in memory in which it is a file without a name, which landlock can have a rule for;
    /// null is memory without a file system.
    #[serde(default)]
    pub memory_directory: Option<HostPath>,
}
