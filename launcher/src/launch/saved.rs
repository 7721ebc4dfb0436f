//! The names of the files of a suspended machine.

use crate::path::HostPath;

/// The file that describes what was saved, and from which machine.
pub const STAMP: &str = "stamp.json";
/// The file of a hypervisor that saves a machine in one file, and firecracker's file of the devices.
pub const SAVED_FILE: &str = "state";
/// firecracker's file of the memory.
pub const SAVED_MEMORY: &str = "memory";
/// crosvm's directory, which crosvm itself creates.
pub const SAVED_DIRECTORY: &str = "snapshot";
/// The directory of a suspended machine.
pub const COMPLETE: &str = "complete";
/// The directory of a machine that is being suspended.
pub const INCOMPLETE: &str = "incomplete";

/// The directory of a machine that was suspended when the host shut down, and had changed at its next start.
pub const REFUSED: &str = "refused";

/// Returns the file with the configuration of a machine of firecracker, relative to the machine's state directory.
pub fn configuration_of(machine: &str) -> HostPath {
    HostPath::new(format!("{machine}-firecracker.json"))
}

/// Returns the directory that contains a machine's suspended state, relative to the machine's state directory.
pub fn suspended_directory(machine: &str) -> HostPath {
    HostPath::new(format!("{machine}.suspended"))
}

/// Returns the directory of crosvm's files in the directory of a suspended machine.
pub fn crosvm_directory(directory: &HostPath) -> HostPath {
    HostPath::from(SAVED_DIRECTORY).below(directory)
}
