//! The result of lowering a machine for one hypervisor: the command, what must exist before it runs, and how to control
//! it afterwards. Plain data: the pure part creates it, `run` executes it, and `explain --json` prints it.

mod control;
mod files;
mod needs;
mod saved;

pub use control::{
    BalloonDevice, Console, ControlProtocol, ControlSocket, ForcedStop, GracefulStep, GuestNotification, HttpRequest,
    NotificationSocket, Shutdown, VsockEnd, VsockHostEnd,
};
pub use files::{FileUsage, LOCK_ENDING, MachineFile, RECORD_ENDING};
pub use needs::{
    Access, BridgeNeed, ClosureView, ComposedInitrd, DeviceNode, FileNeed, KvmUse, MacvtapNeed, Needs, OnExit,
    PassedDevice, ProbedFormat, Reader, SideProcess, SideProcessKind, StoreDiskNeed, TapNeed, VIEW, VolumeCreation,
    VolumeNeed, seal_of,
};
pub use saved::{
    COMPLETE, INCOMPLETE, REFUSED, SAVED_DIRECTORY, SAVED_FILE, SAVED_MEMORY, STAMP, configuration_of,
    crosvm_directory, suspended_directory,
};

use crate::path::HostPath;
use crate::spec::Hypervisor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the JSON document of a [`Launch`].
pub const LAUNCH_VERSION: u32 = 1;

/// The first file descriptor that a hypervisor inherits: above those that shells and service managers use.
pub const FIRST_PASSED_DESCRIPTOR: i32 = 100;

/// A machine that is ready to be started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Launch {
    /// [`LAUNCH_VERSION`].
    pub version: u32,
    /// The machine's name.
    pub name: String,
    /// The hypervisor.
    pub hypervisor: Hypervisor,
    /// The hypervisor's program: a path, or a name without a slash to search for in `$PATH`.
    pub program: HostPath,
    /// The process name, argv\[0\].
    pub process_name: String,
    /// The arguments after argv\[0\].
    pub arguments: Vec<String>,
    /// Environment variables to set.
    pub environment: BTreeMap<String, String>,
    /// The working directory, to which all relative paths here refer; absolute.
    pub working_directory: HostPath,
    /// The user to become before the start, if the launcher runs as root.
    pub user: Option<String>,
    /// Files to write before the start.
    pub files: Vec<FileToWrite>,
    /// What must exist, or be created, before the start.
    pub needs: Needs,
    /// The disks: the store disk, then the volumes.
    pub disks: Vec<GuestDisk>,
    /// The socket on which the hypervisor receives requests.
    pub control: Option<ControlSocket>,
    /// How to stop the machine.
    pub shutdown: Shutdown,
    /// The guest's console.
    pub console: Console,
    /// The guest's vsock device.
    pub vsock: Option<VsockEnd>,
    /// How the guest reports that it has booted.
    pub notification: Option<GuestNotification>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonDevice>,
    /// The configuration that the hypervisor's API is expected to return, if it has such an API.
    pub expected_configuration: Option<serde_json::Value>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// A file to write before the start, such as firecracker's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileToWrite {
    /// Where to write it.
    pub path: HostPath,
    /// The whole text of the file.
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
    /// Whether it is read-only for the guest.
    pub read_only: bool,
    /// The serial number that the guest sees, if it can be set.
    pub serial: Option<String>,
    /// The guest's mount point.
    pub mount_point: Option<String>,
}
