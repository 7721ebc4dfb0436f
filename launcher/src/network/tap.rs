//! Tap interfaces: created with the flags that the hypervisor needs, or described as commands for root.

use super::netlink::{self, Link, Tun};
use super::{NetworkError, Rights};
use crate::launch::TapNeed;
use nix::libc::{IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, c_int, c_short};
use nix::unistd::Uid;
use program::user::user_name;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// Whether an interface was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceState {
    /// It already existed with the required properties.
    Present,
    /// It was created.
    Created,
}

/// Creates the tap for that user if it is missing, checks it, and brings it up.
///
/// # Errors
/// Returns [`NetworkError`]. If this user is not permitted to create it, the error contains the commands to run.
pub fn make_ready(tap: &TapNeed, owner: Uid) -> Result<InterfaceState, NetworkError> {
    match find(tap)? {
        Some(link) => {
            check(tap, &link, owner)?;
            if !link.is_up {
                bring_up(tap, link.index, owner)?;
            }
            Ok(InterfaceState::Present)
        }
        None => {
            create(tap, owner)?;
            let link = find(tap)?.ok_or_else(|| NetworkError::Vanished(tap.name.clone()))?;
            bring_up(tap, link.index, owner)?;
            Ok(InterfaceState::Created)
        }
    }
}

/// Gives an existing tap to another user.
///
/// # Errors
/// Returns [`NetworkError`].
pub fn set_owner(tap: &TapNeed, owner: Uid) -> Result<(), NetworkError> {
    create(tap, owner)
}

/// Removes the tap. A missing tap is not an error.
///
/// # Errors
/// Returns [`NetworkError`].
pub fn remove(tap: &TapNeed) -> Result<(), NetworkError> {
    let Some(link) = find(tap)? else { return Ok(()) };
    if link.kind != "tun" {
        return Err(NetworkError::OtherKind { name: tap.name.clone(), kind: link.kind, wanted: "a tap interface" });
    }
    netlink::delete(link.index).map_err(|source| NetworkError::Kernel { name: tap.name.clone(), source })
}

/// Checks the tap without changing anything.
///
/// # Errors
/// Returns [`NetworkError`] if it is unsuitable, or if it is missing or down and this process may not change that.
pub fn inspect(tap: &TapNeed, owner: Uid, rights: Rights) -> Result<(), NetworkError> {
    match find(tap)? {
        Some(link) => {
            check(tap, &link, owner)?;
            if link.is_up || rights == Rights::Configure { Ok(()) } else { Err(down(&tap.name)) }
        }
        None if rights == Rights::Configure => Ok(()),
        None => Err(NetworkError::Missing { name: tap.name.clone(), remedy: commands(tap, owner) }),
    }
}

fn find(tap: &TapNeed) -> Result<Option<Link>, NetworkError> {
    netlink::find(&tap.name).map_err(|source| NetworkError::Kernel { name: tap.name.clone(), source })
}

fn check(tap: &TapNeed, link: &Link, owner: Uid) -> Result<(), NetworkError> {
    let Some(Tun { is_tap: true, owner: owned_by, multi_queue, persistent, .. }) = link.tun else {
        let kind = if link.kind.is_empty() { "a device".to_owned() } else { link.kind.clone() };
        return Err(NetworkError::OtherKind { name: tap.name.clone(), kind, wanted: "a tap interface" });
    };
    let recreate = || format!("sudo ip link delete {} && {}", tap.name, commands(tap, owner));
    if multi_queue != tap.multi_queue {
        return Err(NetworkError::TapQueues {
            name: tap.name.clone(),
            multi_queue: tap.multi_queue,
            remedy: recreate(),
        });
    }
    let is_ours = owner.is_root() || owned_by.is_none_or(|id| id == owner.as_raw());
    if !is_ours {
        let found = owned_by.map(|id| user_name(Uid::from_raw(id))).unwrap_or_default();
        return Err(NetworkError::TapOwner {
            name: tap.name.clone(),
            found,
            wanted: user_name(owner),
            remedy: recreate(),
        });
    }
    if !persistent {
        // It belongs to a process that has it open, and is removed with that process.
        return Err(NetworkError::TapInUse(tap.name.clone()));
    }
    Ok(())
}

fn create(tap: &TapNeed, owner: Uid) -> Result<(), NetworkError> {
    let made = open_control().and_then(|file| configure(&file, tap, owner));
    made.map_err(|source| denied_or_failed(tap, owner, source))
}

fn bring_up(tap: &TapNeed, index: i32, owner: Uid) -> Result<(), NetworkError> {
    netlink::bring_up(index).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => down(&tap.name),
        _ => denied_or_failed(tap, owner, source),
    })
}

pub(super) fn down(name: &str) -> NetworkError {
    NetworkError::Down { name: name.to_owned(), remedy: format!("sudo ip link set {name} up") }
}

fn denied_or_failed(tap: &TapNeed, owner: Uid, source: io::Error) -> NetworkError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            NetworkError::Missing { name: tap.name.clone(), remedy: commands(tap, owner) }
        }
        io::ErrorKind::NotFound => NetworkError::NoTun,
        _ => NetworkError::Kernel { name: tap.name.clone(), source },
    }
}

/// Returns the commands that create the tap, for a user who is permitted to run them.
pub fn commands(tap: &TapNeed, owner: Uid) -> String {
    let name = &tap.name;
    let multi_queue = if tap.multi_queue { " multi_queue" } else { "" };
    let vnet_hdr = if tap.vnet_hdr { " vnet_hdr" } else { "" };
    format!(
        "sudo ip tuntap add {name} mode tap user {}{multi_queue}{vnet_hdr} && sudo ip link set {name} up",
        user_name(owner)
    )
}

fn open_control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun")
}

fn configure(file: &File, tap: &TapNeed, owner: Uid) -> io::Result<()> {
    let mut flags = IFF_TAP | IFF_NO_PI;
    if tap.multi_queue {
        flags |= IFF_MULTI_QUEUE;
    }
    if tap.vnet_hdr {
        flags |= IFF_VNET_HDR;
    }
    let flags = c_short::try_from(flags).map_err(io::Error::other)?;
    let owner = c_int::try_from(owner.as_raw()).map_err(io::Error::other)?;
    request::attach(file.as_raw_fd(), &tap.name, flags)?;
    request::set_owner(file.as_raw_fd(), owner)?;
    request::set_persistent(file.as_raw_fd())
}

/// The ioctl requests of linux/if_tun.h.
#[expect(unsafe_code, reason = "no crate wraps the ioctls of the tun driver")]
mod request {
    use nix::libc::{__c_anonymous_ifr_ifru, c_char, c_int, c_short, ifreq};
    use std::io;

    const TUNSETIFF: u64 = 0x4004_54ca;
    const TUNSETPERSIST: u64 = 0x4004_54cb;
    const TUNSETOWNER: u64 = 0x4004_54cc;

    nix::ioctl_write_ptr_bad!(tun_set_interface, TUNSETIFF, ifreq);
    nix::ioctl_write_int_bad!(tun_set_persistent, TUNSETPERSIST);
    nix::ioctl_write_int_bad!(tun_set_owner, TUNSETOWNER);

    /// Creates or opens the interface of that name.
    pub(super) fn attach(descriptor: c_int, name: &str, flags: c_short) -> io::Result<()> {
        let mut ifr_name = [0; 16];
        // The last byte stays zero, as the terminator.
        for (to, from) in ifr_name.iter_mut().take(15).zip(name.bytes()) {
            *to = from as c_char;
        }
        let request = ifreq { ifr_name, ifr_ifru: __c_anonymous_ifr_ifru { ifru_flags: flags } };
        // SAFETY: the kernel reads and writes one `ifreq`, which lives until the call returns.
        unsafe { tun_set_interface(descriptor, &request) }?;
        Ok(())
    }

    /// Lets a user open the interface.
    pub(super) fn set_owner(descriptor: c_int, owner: c_int) -> io::Result<()> {
        // SAFETY: the argument is a number, not a pointer.
        unsafe { tun_set_owner(descriptor, owner) }?;
        Ok(())
    }

    /// Keeps the interface when the descriptor is closed.
    pub(super) fn set_persistent(descriptor: c_int) -> io::Result<()> {
        // SAFETY: the argument is a number, not a pointer.
        unsafe { tun_set_persistent(descriptor, 1) }?;
        Ok(())
    }
}
