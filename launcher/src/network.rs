//! The host's network interfaces of a machine: found or made with netlink and ioctl, as far as the rights go; else the
//! error says exactly what to run.

pub mod macvtap;
pub mod netlink;
pub mod tap;

use crate::child::{Identity, NoSuchUser};
use crate::launch::{BridgeNeed, Needs, TapNeed};
use nix::unistd::{Uid, User, geteuid};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

pub use tap::InterfaceState;

/// Why a network interface is not ready.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// It is not there, and making it takes rights that this user has not.
    #[error("network interface {name} does not exist, and only root can create it; run: {remedy}")]
    Missing {
        /// The interface.
        name: String,
        /// The commands that make it.
        remedy: String,
    },
    /// It is down, and bringing it up takes rights that this user has not.
    #[error("network interface {name} is down; run: {remedy}")]
    Down {
        /// The interface.
        name: String,
        /// The command that brings it up.
        remedy: String,
    },
    /// It is something else.
    #[error("network interface {name} is {kind}, but the machine needs {wanted} of that name; give it another `id`")]
    OtherKind {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A tap has the wrong number of queues.
    #[error(
        "tap {name} was made {}, which the hypervisor does not support with this number of CPUs; run: {remedy}",
        if *multi_queue { "without multi_queue" } else { "with multi_queue" }
    )]
    TapQueues {
        /// The tap.
        name: String,
        /// Whether it should be multi_queue.
        multi_queue: bool,
        /// The commands that make it again.
        remedy: String,
    },
    /// A tap is another user's.
    #[error("tap {name} belongs to {found}, but {wanted} must open it; run: {remedy}")]
    TapOwner {
        /// The tap.
        name: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
        /// The commands that make it again.
        remedy: String,
    },
    /// A tap is the temporary one of another process.
    #[error("tap {0} belongs to a process that has it open: another machine has the same interface id")]
    TapInUse(String),
    /// The driver is not there.
    #[error("/dev/net/tun is not there; run: sudo modprobe tun")]
    NoTun,
    /// What a macvtap is to hang on is not there.
    #[error("macvtap {name} needs the interface {link}, which does not exist on this host")]
    NoLink {
        /// The macvtap.
        name: String,
        /// What it is to hang on.
        link: String,
    },
    /// The device node of a macvtap did not appear.
    #[error("macvtap {name} has no device node {path}: does udev run?")]
    NoNode {
        /// The macvtap.
        name: String,
        /// The node.
        path: PathBuf,
    },
    /// The device node of a macvtap cannot be opened.
    #[error("{path}: {source}; its owner must be who runs the machine")]
    Node {
        /// The node.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A bridge is not there.
    #[error("bridge {name} is not there; run: sudo ip link add {name} type bridge && sudo ip link set {name} up")]
    NoBridge {
        /// The bridge.
        name: String,
    },
    /// No MAC address.
    #[error("`{0}` is no MAC address")]
    BadMac(String),
    /// It was there a moment ago.
    #[error("network interface {0} vanished while it was being set up")]
    Vanished(String),
    /// The kernel refused.
    #[error("network interface {name}: {source}")]
    Kernel {
        /// The interface.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The owner is unknown.
    #[error(transparent)]
    NoSuchUser(#[from] NoSuchUser),
}

/// A network interface that a launcher has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MadeInterface {
    /// Its name.
    pub name: String,
    /// Its number, which distinguishes it from one of the same name that was made later.
    pub index: i32,
}

/// Interfaces that were made for a machine; removed when this is dropped.
#[derive(Debug, Default)]
pub struct CreatedInterfaces(Vec<MadeInterface>);

impl CreatedInterfaces {
    /// Those that were made.
    pub fn made(&self) -> &[MadeInterface] {
        &self.0
    }

    fn add(&mut self, name: &str) -> Result<(), NetworkError> {
        let found = netlink::find(name).map_err(|source| NetworkError::Kernel { name: name.to_owned(), source })?;
        let link = found.ok_or_else(|| NetworkError::Vanished(name.to_owned()))?;
        self.0.push(MadeInterface { name: name.to_owned(), index: link.index });
        Ok(())
    }
}

impl Drop for CreatedInterfaces {
    fn drop(&mut self) {
        remove_made(&self.0);
    }
}

/// Removes interfaces that were made for a machine that has ended. One that is no longer there, or that somebody has replaced,
/// is left alone.
pub fn remove_made(interfaces: &[MadeInterface]) {
    for made in interfaces {
        if let Ok(Some(link)) = netlink::find(&made.name)
            && link.index == made.index
        {
            // Who made it may remove it. If not, `microvm tap down` reports why.
            let _ = netlink::delete(link.index);
        }
    }
}

/// Makes sure that all interfaces are there.
///
/// # Errors
/// [`NetworkError`] of the first one that is not; those made before are removed again.
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

/// Everything that is wrong with the host's interfaces, changing nothing.
pub fn inspect(needs: &Needs) -> Vec<NetworkError> {
    let mut problems = Vec::new();
    for tap in &needs.taps {
        let found = owner_id(tap.owner.as_deref()).and_then(|owner| tap::inspect(tap, owner));
        problems.extend(found.err());
    }
    for macvtap in &needs.macvtaps {
        let found = owner_id(macvtap.owner.as_deref()).and_then(|owner| macvtap::inspect(macvtap, owner));
        problems.extend(found.err());
    }
    problems.extend(needs.bridges.iter().filter_map(|bridge| find_bridge(bridge).err()));
    problems
}

/// The id of an interface's owner; without a name it is who runs the launcher.
pub fn owner_id(name: Option<&str>) -> Result<Uid, NetworkError> {
    Ok(match name {
        Some(name) => Identity::of(name)?.user(),
        None => geteuid(),
    })
}

/// Makes the tap of an interface of type `bridge` for that user, and puts it into the bridge.
///
/// # Errors
/// [`NetworkError`].
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

/// Removes that tap; it need not be there.
///
/// # Errors
/// [`NetworkError`].
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

/// The user's name, or the number of one that has none.
fn user_name(user: Uid) -> String {
    User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests;
