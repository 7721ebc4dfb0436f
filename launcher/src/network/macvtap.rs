//! Macvtap interfaces: created on a lower interface of the host, and opened for the hypervisor once per queue.

use super::netlink::{self, Link, NewMacvtap};
use super::tap::{InterfaceState, down};
use super::{NetworkError, Rights};
use crate::launch::MacvtapNeed;
use crate::spec::MacvtapMode;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open as open_node};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, Uid, faccessat, fchown};
use program::user::user_name;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long udev may take to create the device node.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// Creates the macvtap for that user if it is missing, and brings it up.
///
/// # Errors
/// Returns [`NetworkError`]. If this user is not permitted to create it, the error contains the commands to run.
pub fn make_ready(macvtap: &MacvtapNeed, owner: Uid) -> Result<InterfaceState, NetworkError> {
    let failed = |source: io::Error| NetworkError::Kernel { name: macvtap.name.clone(), source };
    let (link, state) = match find(macvtap)? {
        Some(link) => (link, InterfaceState::Present),
        None => {
            create(macvtap, owner)?;
            let link = find(macvtap)?.ok_or_else(|| NetworkError::Vanished(macvtap.name.clone()))?;
            (link, InterfaceState::Created)
        }
    };
    if !link.is_up {
        netlink::bring_up(link.index).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => down(&macvtap.name),
            _ => failed(source),
        })?;
    }
    let node = wait_for_node(macvtap, link.index)?;
    if state == InterfaceState::Created {
        // By descriptor, because udev may remove the node, and another interface may get its number.
        let opened = open_node(&node, OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        opened.and_then(|node| fchown(node, Some(owner), None)).map_err(|errno| failed(errno.into()))?;
    }
    Ok(state)
}

/// Removes the macvtap. A missing one is not an error.
///
/// # Errors
/// Returns [`NetworkError`].
pub fn remove(macvtap: &MacvtapNeed) -> Result<(), NetworkError> {
    let Some(link) = find(macvtap)? else { return Ok(()) };
    netlink::delete(link.index).map_err(|source| NetworkError::Kernel { name: macvtap.name.clone(), source })
}

/// Checks the macvtap, or that it could be created, without changing anything.
///
/// # Errors
/// Returns [`NetworkError`] if it is of another kind or its node cannot be opened, or if it is missing or down and this
/// process may not change that.
pub fn inspect(macvtap: &MacvtapNeed, owner: Uid, rights: Rights) -> Result<(), NetworkError> {
    let Some(link) = find(macvtap)? else {
        if rights == Rights::Use {
            return Err(NetworkError::Missing { name: macvtap.name.clone(), remedy: commands(macvtap, owner) });
        }
        return new_macvtap(macvtap).map(drop);
    };
    if !link.is_up && rights == Rights::Use {
        return Err(down(&macvtap.name));
    }
    let path = node_path(link.index);
    if !path.exists() {
        return Err(NetworkError::NoNode { name: macvtap.name.clone(), path });
    }
    // Not opened, because that would take packets from a machine that uses it.
    faccessat(AT_FDCWD, &path, AccessFlags::R_OK | AccessFlags::W_OK, AtFlags::AT_EACCESS)
        .map_err(|errno| NetworkError::Node { path, source: errno.into() })
}

/// Opens the macvtap once for each descriptor that the hypervisor expects.
///
/// # Errors
/// Returns [`NetworkError`].
pub fn open(macvtap: &MacvtapNeed) -> Result<Vec<OwnedFd>, NetworkError> {
    let link = find(macvtap)?.ok_or_else(|| NetworkError::Vanished(macvtap.name.clone()))?;
    let node = node_path(link.index);
    let open_once = |_: &i32| {
        let opened = OpenOptions::new().read(true).write(true).open(&node);
        opened.map(OwnedFd::from).map_err(|source| NetworkError::Node { path: node.clone(), source })
    };
    macvtap.descriptors.iter().map(open_once).collect()
}

/// Returns the commands that create the macvtap, for a user who is permitted to run them.
pub fn commands(macvtap: &MacvtapNeed, owner: Uid) -> String {
    let MacvtapNeed { name, link, mode, mac, .. } = macvtap;
    format!(
        "sudo ip link add link {link} name {name} address {mac} type macvtap mode {} && sudo ip link set {name} up && \
         sudo chown {} /dev/tap$(cat /sys/class/net/{name}/ifindex)",
        mode.as_str(),
        user_name(owner)
    )
}

fn find(macvtap: &MacvtapNeed) -> Result<Option<Link>, NetworkError> {
    let found =
        netlink::find(&macvtap.name).map_err(|source| NetworkError::Kernel { name: macvtap.name.clone(), source })?;
    match found {
        Some(link) if link.kind != "macvtap" => {
            Err(NetworkError::OtherKind { name: macvtap.name.clone(), kind: link.kind, wanted: "a macvtap interface" })
        }
        found => Ok(found),
    }
}

fn create(macvtap: &MacvtapNeed, owner: Uid) -> Result<(), NetworkError> {
    netlink::create_macvtap(&new_macvtap(macvtap)?).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            NetworkError::Missing { name: macvtap.name.clone(), remedy: commands(macvtap, owner) }
        }
        _ => NetworkError::Kernel { name: macvtap.name.clone(), source },
    })
}

fn new_macvtap(macvtap: &MacvtapNeed) -> Result<NewMacvtap<'_>, NetworkError> {
    let lower = netlink::find(&macvtap.link)
        .map_err(|source| NetworkError::Kernel { name: macvtap.link.clone(), source })?
        .ok_or_else(|| NetworkError::NoLink { name: macvtap.name.clone(), link: macvtap.link.clone() })?;
    let mac = parse_mac(&macvtap.mac).ok_or_else(|| NetworkError::BadMac(macvtap.mac.clone()))?;
    Ok(NewMacvtap { name: &macvtap.name, link: lower.index, mode: mode_bit(macvtap.mode), mac })
}

fn node_path(index: i32) -> PathBuf {
    PathBuf::from(format!("/dev/tap{index}"))
}

fn wait_for_node(macvtap: &MacvtapNeed, index: i32) -> Result<PathBuf, NetworkError> {
    let path = node_path(index);
    let end = Instant::now() + NODE_TIMEOUT;
    while !path.exists() {
        if Instant::now() > end {
            return Err(NetworkError::NoNode { name: macvtap.name.clone(), path });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(path)
}

/// `enum macvlan_mode` in linux/if_link.h.
fn mode_bit(mode: MacvtapMode) -> u32 {
    match mode {
        MacvtapMode::Private => 1,
        MacvtapMode::Vepa => 2,
        MacvtapMode::Bridge => 4,
        MacvtapMode::Passthru => 8,
        MacvtapMode::Source => 16,
    }
}

pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_create_the_macvtap_and_give_it_to_its_owner() {
        let macvtap = MacvtapNeed {
            name: "web0".to_owned(),
            link: "eth0".to_owned(),
            mode: MacvtapMode::Bridge,
            mac: "02:00:00:00:00:01".to_owned(),
            owner: None,
            descriptors: vec![100],
        };
        assert_eq!(
            commands(&macvtap, Uid::from_raw(0)),
            "sudo ip link add link eth0 name web0 address 02:00:00:00:00:01 type macvtap mode bridge && \
             sudo ip link set web0 up && sudo chown root /dev/tap$(cat /sys/class/net/web0/ifindex)"
        );
        assert_eq!(parse_mac("02:00:00:00:00:ff"), Some([2, 0, 0, 0, 0, 255]));
        assert_eq!(parse_mac("02:00"), None);
    }
}
