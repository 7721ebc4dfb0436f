//! What starting a machine comes to on one hypervisor: the command, what must be there before it, and how to talk to
//! it afterwards. Plain data: made by the pure half, carried out by the other, written to JSON for `explain --json`.

mod control;
mod needs;

pub use control::{
    BalloonDevice, Console, ControlProtocol, ControlSocket, ForcedStop, GracefulStep, GuestNotification, HttpRequest,
    NotificationSocket, Shutdown, VsockEnd, VsockHostEnd,
};
pub use needs::{
    Access, BridgeNeed, ComposedInitrd, DeviceNode, GuessedFormat, KvmUse, MacvtapNeed, Needs, PassedDevice, Presence,
    Reader, SideProcess, SideProcessKind, StoreDiskNeed, TapNeed, VolumeCreation, VolumeNeed,
};

use crate::path::HostPath;
use crate::spec::Hypervisor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the document that a [`Launch`] is written as.
pub const LAUNCH_VERSION: u32 = 1;

/// The first file descriptor that the launcher hands to a hypervisor: above all that a shell or a service manager uses.
pub const FIRST_PASSED_DESCRIPTOR: i32 = 100;

/// A machine, ready to be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Launch {
    /// [`LAUNCH_VERSION`].
    pub version: u32,
    /// The machine's name.
    pub name: String,
    /// The hypervisor.
    pub hypervisor: Hypervisor,
    /// The hypervisor's program: a path, or a name without a slash to be found on the search path.
    pub program: HostPath,
    /// What the process calls itself, argv\[0\].
    pub process_name: String,
    /// The arguments after argv\[0\].
    pub arguments: Vec<String>,
    /// Variables to set in the environment.
    pub environment: BTreeMap<String, String>,
    /// The directory to start it in, to which every relative path here refers; absolute.
    pub working_directory: HostPath,
    /// The user to become before the start when started as root.
    pub user: Option<String>,
    /// Files to write before the start.
    pub files: Vec<FileToWrite>,
    /// What must be there, or be made, before the start.
    pub needs: Needs,
    /// The disks in the order in which the guest sees them.
    pub disks: Vec<GuestDisk>,
    /// The socket on which the hypervisor takes commands.
    pub control: Option<ControlSocket>,
    /// How to stop the machine.
    pub shutdown: Shutdown,
    /// Where the guest's console is.
    pub console: Console,
    /// The guest's vsock device.
    pub vsock: Option<VsockEnd>,
    /// How the guest reports that it has booted.
    pub notification: Option<GuestNotification>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonDevice>,
    /// The configuration as the hypervisor's API is expected to give it back, where it has such an API.
    pub expected_configuration: Option<serde_json::Value>,
    /// What the user should know although the machine starts.
    pub warnings: Vec<String>,
}

/// A file to write before the start, such as firecracker's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileToWrite {
    /// Where.
    pub path: HostPath,
    /// What.
    pub content: String,
}

/// A disk as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuestDisk {
    /// The guest's device, such as `/dev/vda`.
    pub device: String,
    /// The image on the host.
    pub image: HostPath,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// The serial number that the guest sees, if it can be set.
    pub serial: Option<String>,
    /// Where the guest mounts it.
    pub mount_point: Option<String>,
}
