//! Keeping the machines of a host apart: a user for each, a state directory in which that user cannot change what root
//! runs, and a root directory that holds nothing but what the machine's spec names.
//!
//! Root does all of this, in the units around `microvm@`. It follows no link of a machine's user: what is in a state
//! directory is reached through descriptors, and only links that root owns say which runner is started.

mod contents;
mod device_rules;
mod devices;
mod directory;
mod locks;
mod mounts;
mod tree;

pub use device_rules::allow_devices;
pub use directory::{FIRST_USER_ID_VARIABLE, FLAKE, StateDirectory, TOPLEVEL, UserIds};
pub use mounts::{make, make_volumes, remove};
pub use tree::{Entry, PathOnHost, Tree, Wanted};

use std::io;
use std::path::{Path, PathBuf};

/// Who ran all machines before each had a user of its own.
pub const FORMER_USER: &str = "microvm";

/// Whether this process runs in a unit of the host module, which says so in `$MICROVM_CONFINED`.
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
        /// Why.
        source: io::Error,
    },
    /// What root would run or read is not root's.
    #[error("{}: {reason}; remove it, then make it again with `microvm update` or by switching to the host's configuration", path.display())]
    NotTrusted {
        /// The file.
        path: PathBuf,
        /// Why it is not trusted.
        reason: String,
    },
    /// The service manager does not limit the machine to its devices.
    #[error("systemctl set-property does not allow the machine its devices: {0}")]
    DeviceRules(String),
    /// All user ids are taken.
    #[error("all {0} user ids for machines are taken")]
    NoFreeId(u32),
    /// The first user id is not a number.
    #[error("{FIRST_USER_ID_VARIABLE} must be a number from 1000 to 4000000000, but is `{0}`")]
    BadFirstId(String),
    /// The state directory is not prepared.
    #[error("{}: has no user id yet; its unit microvm-set-booted@ gives it one", .0.display())]
    NoUserId(PathBuf),
    /// A volume outside of the state directory cannot be made.
    #[error(transparent)]
    Volume(#[from] crate::volumes::VolumeError),
    /// A path that cannot be given to the machine.
    #[error("{option}: {}: {reason}", path.display())]
    Path {
        /// The option of the spec.
        option: String,
        /// The path.
        path: PathBuf,
        /// Why.
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
