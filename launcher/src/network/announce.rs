//! Announcing that a guest is now on this host: the switches of the network learn from a frame with the guest's MAC address
//! where to send what is for it. qemu does this itself when it has received a machine.

use super::netlink::{self, Link};
use super::{NetworkError, macvtap::parse_mac};
use crate::validate::{CheckedInterface, InterfaceKind};
use nix::libc::{AF_PACKET, sockaddr_ll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
use std::io;
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::Duration;

/// RARP, which every switch forwards and no guest acts on (RFC 903). qemu announces with the same frame.
const ETHERTYPE_RARP: u16 = 0x8035;
const FRAME_BYTES: usize = 60;
const BROADCAST: [u8; 6] = [0xff; 6];
/// A frame can be lost while a port of a bridge comes up.
const REPETITIONS: u32 = 3;
const INTERVAL: Duration = Duration::from_millis(50);

/// Announces the MAC addresses of a machine's interfaces: on the bridge of a tap, and on the lower link of a macvtap. An
/// interface without either is routed, and has nothing to announce.
///
/// # Errors
/// Returns [`NetworkError::Kernel`], without the right to send such frames.
pub fn announce(interfaces: &[CheckedInterface]) -> Result<(), NetworkError> {
    for repetition in 0..REPETITIONS {
        if repetition > 0 {
            sleep(INTERVAL);
        }
        for interface in interfaces {
            let failed = |source| NetworkError::Kernel { name: interface.id.clone(), source };
            let (Some(mac), Some(link)) = (parse_mac(&interface.mac), uplink(interface).map_err(failed)?) else {
                continue;
            };
            send(link, mac).map_err(failed)?;
        }
    }
    Ok(())
}

/// Returns the index of the interface that carries the machine's frames to the network.
fn uplink(interface: &CheckedInterface) -> io::Result<Option<i32>> {
    let index = |link: Link| link.index;
    Ok(match &interface.kind {
        InterfaceKind::User => None,
        InterfaceKind::Tap { .. } => netlink::find(&interface.id)?.and_then(|link| link.bridge),
        InterfaceKind::Bridge { bridge } => netlink::find(bridge)?.map(index),
        InterfaceKind::Macvtap { link, .. } => netlink::find(link)?.map(index),
    })
}

fn frame(mac: [u8; 6]) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&BROADCAST);
    put(&mac);
    put(&ETHERTYPE_RARP.to_be_bytes());
    // Ethernet and IPv4, with the lengths of their addresses; operation 3 asks for the address of the sender.
    put(&[0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in ["sender", "target"] {
        put(&mac);
        put(&[0; 4]);
    }
    frame
}

fn send(link: i32, mac: [u8; 6]) -> io::Result<()> {
    let packets = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let address = request::address(sockaddr_ll {
        sll_family: AF_PACKET as u16,
        sll_protocol: ETHERTYPE_RARP.to_be(),
        sll_ifindex: link,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff; 8],
    });
    let address = address.ok_or(io::ErrorKind::InvalidInput)?;
    sendto(packets.as_raw_fd(), &frame(mac), &address, MsgFlags::empty())?;
    Ok(())
}

/// The address of a packet socket, which nix only receives.
#[expect(unsafe_code, reason = "nix has no safe constructor of this address")]
mod request {
    use nix::libc::{sockaddr_ll, socklen_t};
    use nix::sys::socket::{LinkAddr, SockaddrLike};

    pub(super) fn address(raw: sockaddr_ll) -> Option<LinkAddr> {
        let length = socklen_t::try_from(size_of::<sockaddr_ll>()).ok()?;
        // SAFETY: the pointer is to a whole `sockaddr_ll`, which the call copies.
        unsafe { LinkAddr::from_raw(std::ptr::from_ref(&raw).cast(), Some(length)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_has_the_guests_address_and_is_a_broadcast() {
        let frame = frame([2, 0, 0, 0, 0, 0x50]);
        let expected = "ffffffffffff0200000000508035000108000604000302000000005000000000020000000050000000000000";
        let printed: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(printed.starts_with(&expected[..84]), "{printed}");
        assert_eq!(printed.trim_end_matches('0'), expected.trim_end_matches('0'));
    }
}
