//! Isolating the machines of a host from each other: each machine has its own user, a state directory in which that
//! user cannot change what root runs, and a root directory that contains only what the machine's spec names.
//!
//! Root does all of this, in the units around `microvm@`. It does not follow symbolic links of a machine's user: it
//! reaches the content of a state directory through descriptors, and only symbolic links owned by root select the
//! runner.

mod contents;
mod device_rules;
mod devices;
mod directory;
mod locks;
mod mounts;
mod store_disks;
mod tree;

pub use device_rules::allow_devices;
pub use devices::{iommufd_nodes, vfio_group_nodes};
pub use directory::{FIRST_USER_ID_VARIABLE, FLAKE, StateDirectory, TOPLEVEL, UserIds};
pub use mounts::{make, make_volumes, remove};
pub use store_disks::{ImageLock, STORE_DISKS, StoreDisks};
pub use tree::{Entry, PathOnHost, Tree, TreeInputs};

use std::io;
use std::path::{Path, PathBuf};

/// The user that ran all machines before each machine had its own user.
pub const FORMER_USER: &str = "microvm";

/// Whether this process runs in a unit of the host module, which sets `$MICROVM_CONFINED`.
pub fn is_confined() -> bool {
    std::env::var_os("MICROVM_CONFINED").is_some_and(|value| !value.is_empty())
}

/// Why a machine cannot be isolated.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// A file operation failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file that root would run or read does not belong to root.
    #[error(
        "{}: {reason}; remove it, then recreate it with `microvm update` or by switching to the host's configuration",
        path.display()
    )]
    NotTrusted {
        /// The file.
        path: PathBuf,
        /// Why it is not trusted.
        reason: String,
    },
    /// systemd did not apply the unit's device rules.
    #[error("systemctl set-property cannot give the machine access to its devices: {0}")]
    DeviceRules(String),
    /// No user id is free.
    #[error("all {0} user ids for machines are taken")]
    NoFreeId(u32),
    /// The first user id is not a number in the allowed range.
    #[error("{FIRST_USER_ID_VARIABLE} must be a number from 1000 to 4000000000, but is `{0}`")]
    BadFirstId(String),
    /// The state directory has not been prepared.
    #[error("{}: has no user id yet; the unit microvm-set-booted@ assigns one", .0.display())]
    NoUserId(PathBuf),
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(crate::interruption::Interrupted),
    /// A volume outside the state directory could not be created.
    #[error(transparent)]
    Volume(#[from] crate::volumes::VolumeError),
    /// A path that cannot be made available to the machine.
    #[error("{option}: {}: {reason}", path.display())]
    Path {
        /// The option of the spec.
        option: String,
        /// The path.
        path: PathBuf,
        /// Why it failed, as it follows a colon.
        reason: String,
    },
}

impl IsolationError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    fn errno(path: &Path) -> impl FnOnce(nix::errno::Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::File { path, source: errno.into() }
    }
}

#[cfg(test)]
mod tests;
