//! The host's network interfaces of a machine. They are created through netlink and ioctl if this user is permitted to;
//! otherwise the error contains the commands to run.

mod announce;
pub mod macvtap;
pub mod netlink;
pub mod tap;

pub use announce::announce;

use crate::launch::{BridgeNeed, Needs, TapNeed};
use nix::unistd::{Uid, geteuid};
use program::user::{Identity, NoSuchUser};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

pub use tap::InterfaceState;

/// Why a network interface is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// It does not exist, and this user is not permitted to create it.
    #[error("network interface {name} does not exist, and only root can create it; run: {remedy}")]
    Missing {
        /// The interface.
        name: String,
        /// The commands that create it.
        remedy: String,
    },
    /// It is down, and this user is not permitted to bring it up.
    #[error("network interface {name} is down; run: {remedy}")]
    Down {
        /// The interface.
        name: String,
        /// The command that brings it up.
        remedy: String,
    },
    /// An interface of this name exists, but it is of another kind.
    #[error("network interface {name} is {kind}, but the machine needs {wanted} of that name; give it another `id`")]
    OtherKind {
        /// The interface.
        name: String,
        /// What the existing interface is, as it follows "is".
        kind: String,
        /// The required kind.
        wanted: &'static str,
    },
    /// A tap has the wrong number of queues.
    #[error(
        "tap {name} was created {}, which the hypervisor does not support with this number of CPUs; run: {remedy}",
        if *multi_queue { "without multi_queue" } else { "with multi_queue" }
    )]
    TapQueues {
        /// The tap.
        name: String,
        /// Whether it must be multi_queue.
        multi_queue: bool,
        /// The commands that recreate it.
        remedy: String,
    },
    /// A tap belongs to another user.
    #[error("tap {name} belongs to {found}, but {wanted} must open it; run: {remedy}")]
    TapOwner {
        /// The tap.
        name: String,
        /// The name of its owner; empty if it has none.
        found: String,
        /// The user who must own it.
        wanted: String,
        /// The commands that recreate it.
        remedy: String,
    },
    /// A tap is not persistent: it belongs to a process that has it open.
    #[error("tap {0} belongs to a process that has it open: another machine has the same interface id")]
    TapInUse(String),
    /// The tun driver is not loaded.
    #[error("/dev/net/tun does not exist; run: sudo modprobe tun")]
    NoTun,
    /// The lower interface of a macvtap does not exist.
    #[error("macvtap {name} needs the interface {link}, which does not exist on this host")]
    NoLink {
        /// The macvtap.
        name: String,
        /// Its lower interface.
        link: String,
    },
    /// The device node of a macvtap did not appear.
    #[error("macvtap {name} has no device node {path}: is udev running?")]
    NoNode {
        /// The macvtap.
        name: String,
        /// The node of the macvtap, `/dev/tapN`.
        path: PathBuf,
    },
    /// The device node of a macvtap cannot be opened.
    #[error("{path}: {source}; the user who runs the machine must own it")]
    Node {
        /// The node of the macvtap, `/dev/tapN`.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A bridge does not exist.
    #[error("bridge {name} does not exist; run: sudo ip link add {name} type bridge && sudo ip link set {name} up")]
    NoBridge {
        /// The bridge.
        name: String,
    },
    /// A MAC address is invalid.
    #[error("`{0}` is not a MAC address")]
    BadMac(String),
    /// An interface disappeared during the setup.
    #[error("network interface {0} disappeared while it was being set up")]
    Vanished(String),
    /// The kernel refused a request.
    #[error("network interface {name}: {source}")]
    Kernel {
        /// The interface.
        name: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The owner's name is unknown.
    #[error(transparent)]
    NoSuchUser(#[from] NoSuchUser),
}

/// A network interface that a launcher has created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreatedInterface {
    /// The name of the interface.
    pub name: String,
    /// Its index, which distinguishes it from a later interface of the same name.
    pub index: i32,
}

/// Interfaces that were created for a machine. They are removed when this is dropped.
#[derive(Debug, Default)]
pub struct CreatedInterfaces(Vec<CreatedInterface>);

impl CreatedInterfaces {
    /// Returns the interfaces.
    pub fn interfaces(&self) -> &[CreatedInterface] {
        &self.0
    }

    fn add(&mut self, name: &str) -> Result<(), NetworkError> {
        let found = netlink::find(name).map_err(|source| NetworkError::Kernel { name: name.to_owned(), source })?;
        let link = found.ok_or_else(|| NetworkError::Vanished(name.to_owned()))?;
        self.0.push(CreatedInterface { name: name.to_owned(), index: link.index });
        Ok(())
    }
}

impl Drop for CreatedInterfaces {
    fn drop(&mut self) {
        remove_made(&self.0);
    }
}

/// Removes interfaces that were created for a machine that has ended. Ignores interfaces that no longer exist or have
/// been replaced by another one of the same name.
pub fn remove_made(interfaces: &[CreatedInterface]) {
    for made in interfaces {
        if let Ok(Some(link)) = netlink::find(&made.name)
            && link.index == made.index
        {
            // Succeeds for the user who created it. If it fails, `microvm tap down` reports why.
            let _ = netlink::delete(link.index);
        }
    }
}

/// Creates the missing interfaces and checks the existing ones.
///
/// # Errors
/// Returns the first [`NetworkError`]; the interfaces created so far are then removed.
pub fn make_ready(needs: &Needs) -> Result<CreatedInterfaces, NetworkError> {
    let mut created = CreatedInterfaces::default();
    for tap in &needs.taps {
        if tap::make_ready(tap, owner_id(tap.owner.as_deref())?)? == InterfaceState::Created {
            created.add(&tap.name)?;
        }
    }
    for macvtap in &needs.macvtaps {
        if macvtap::make_ready(macvtap, owner_id(macvtap.owner.as_deref())?)? == InterfaceState::Created {
            created.add(&macvtap.name)?;
        }
    }
    for bridge in &needs.bridges {
        find_bridge(bridge)?;
    }
    Ok(created)
}

/// Returns everything that is wrong with the host's interfaces, without changing anything. A missing interface is no
/// problem if this process is permitted to create it.
pub fn inspect(needs: &Needs) -> Vec<NetworkError> {
    let mut problems = Vec::new();
    let rights = if can_configure() { Rights::Configure } else { Rights::Use };
    for tap in &needs.taps {
        let found = owner_id(tap.owner.as_deref()).and_then(|owner| tap::inspect(tap, owner, rights));
        problems.extend(found.err());
    }
    for macvtap in &needs.macvtaps {
        let found = owner_id(macvtap.owner.as_deref()).and_then(|owner| macvtap::inspect(macvtap, owner, rights));
        problems.extend(found.err());
    }
    problems.extend(needs.bridges.iter().filter_map(|bridge| find_bridge(bridge).err()));
    problems
}

/// What this process may do with network interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Create them and bring them up.
    Configure,
    /// Open existing ones.
    Use,
}

/// The bit of the capability to configure networks: linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;

/// Whether this process has the capability to configure networks: proc(5), /proc/PID/status.
fn can_configure() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set >> CAP_NET_ADMIN & 1 == 1)
}

/// Returns the user id of an interface's owner. Without a name, it is the user who runs the launcher.
pub fn owner_id(name: Option<&str>) -> Result<Uid, NetworkError> {
    Ok(match name {
        Some(name) => Identity::of(name)?.user(),
        None => geteuid(),
    })
}

/// Creates the tap of an interface of type `bridge` for that user, and adds it to the bridge.
///
/// # Errors
/// Returns [`NetworkError`].
pub fn make_bridge_tap(bridge: &BridgeNeed, owner: Uid) -> Result<(), NetworkError> {
    find_bridge(bridge)?;
    let need = bridge_tap(bridge);
    tap::make_ready(&need, owner)?;
    let failed = |source| NetworkError::Kernel { name: need.name.clone(), source };
    let index = |name: &str| {
        let found = netlink::find(name).map_err(failed)?;
        found.map(|link| link.index).ok_or_else(|| NetworkError::Vanished(name.to_owned()))
    };
    netlink::join(index(&need.name)?, index(&bridge.bridge)?).map_err(failed)
}

/// Removes that tap. A missing tap is not an error.
///
/// # Errors
/// Returns [`NetworkError`].
pub fn remove_bridge_tap(bridge: &BridgeNeed) -> Result<(), NetworkError> {
    tap::remove(&bridge_tap(bridge))
}

fn bridge_tap(bridge: &BridgeNeed) -> TapNeed {
    TapNeed { name: bridge.tap.clone(), owner: None, multi_queue: false, vnet_hdr: true, queue_pairs: 1 }
}

fn find_bridge(bridge: &BridgeNeed) -> Result<(), NetworkError> {
    let name = &bridge.bridge;
    let found = netlink::find(name).map_err(|source| NetworkError::Kernel { name: name.clone(), source })?;
    match found {
        None => Err(NetworkError::NoBridge { name: name.clone() }),
        Some(link) if link.kind != "bridge" => {
            Err(NetworkError::OtherKind { name: name.clone(), kind: link.kind, wanted: "a bridge" })
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
