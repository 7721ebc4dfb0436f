//! The requests about network interfaces that the launcher sends to the kernel, over rtnetlink(7).

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_VNET_HDR: u16 = 5;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
/// The value of `IFLA_TUN_TYPE` for a tap.
const TUN_TYPE_TAP: u8 = 2;

const IFF_UP: u32 = 1;
const HEADER_BYTES: usize = 16;
const LINK_MESSAGE_BYTES: usize = 16;
const MAX_REPLY_BYTES: usize = 64 << 10;

/// A network interface as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number: `ifindex` in netdevice(7).
    pub index: i32,
    /// Whether it is up.
    pub is_up: bool,
    /// Its kind: `tun`, `macvtap`, `bridge`...; empty for a hardware device.
    pub kind: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The index of its lower interface.
    pub link: Option<i32>,
    /// The index of the bridge that it is in.
    pub bridge: Option<i32>,
    /// The properties of a tun or tap.
    pub tun: Option<Tun>,
    /// The mode of a macvtap: one bit of `MACVLAN_MODE_*`.
    pub macvlan_mode: Option<u32>,
}

/// The properties of a tun or tap interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tun {
    /// Whether it is a tap.
    pub is_tap: bool,
    /// The user who can open it.
    pub owner: Option<u32>,
    /// Whether it was created with `multi_queue`.
    pub multi_queue: bool,
    /// Whether it was created with `vnet_hdr`.
    pub vnet_hdr: bool,
    /// Whether it stays when the process that has opened it ends.
    pub persistent: bool,
}

/// A macvtap interface to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMacvtap<'spec> {
    /// The name of the new interface.
    pub name: &'spec str,
    /// The index of its lower interface.
    pub link: i32,
    /// Its mode: one bit of `MACVLAN_MODE_*`.
    pub mode: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// Returns the interface of that name in this network namespace, or `None` if it does not exist.
///
/// # Errors
/// Fails if the kernel refuses the request.
pub fn find(name: &str) -> io::Result<Option<Link>> {
    let mut request = Request::new(RTM_GETLINK, NLM_F_REQUEST, LinkMessage::default());
    request.attribute(IFLA_IFNAME, &zero_terminated(name));
    match request.answer() {
        Ok(answer) => Ok(parse_link(&answer)),
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Brings an interface up.
///
/// # Errors
/// Fails if the kernel refuses the request.
pub fn bring_up(index: i32) -> io::Result<()> {
    let message = LinkMessage { index, flags: IFF_UP, change: IFF_UP };
    Request::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, message).answer().map(|_| ())
}

/// Adds an interface to a bridge.
///
/// # Errors
/// Fails if the kernel refuses the request.
pub fn join(index: i32, bridge: i32) -> io::Result<()> {
    let message = LinkMessage { index, ..LinkMessage::default() };
    let mut request = Request::new(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, message);
    request.attribute(IFLA_MASTER, &bridge.to_ne_bytes());
    request.answer().map(|_| ())
}

/// Deletes an interface.
///
/// # Errors
/// Fails if the kernel refuses the request.
pub fn delete(index: i32) -> io::Result<()> {
    let message = LinkMessage { index, ..LinkMessage::default() };
    Request::new(RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, message).answer().map(|_| ())
}

/// Creates a macvtap interface.
///
/// # Errors
/// Fails if the kernel refuses the request.
pub fn create_macvtap(macvtap: &NewMacvtap<'_>) -> io::Result<()> {
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let mut request = Request::new(RTM_NEWLINK, flags, LinkMessage::default());
    request.attribute(IFLA_IFNAME, &zero_terminated(macvtap.name));
    request.attribute(IFLA_LINK, &macvtap.link.to_ne_bytes());
    request.attribute(IFLA_ADDRESS, &macvtap.mac);
    let mut information = attribute(IFLA_INFO_KIND, b"macvtap");
    information.extend(attribute(IFLA_INFO_DATA, &attribute(IFLA_MACVLAN_MODE, &macvtap.mode.to_ne_bytes())));
    request.attribute(IFLA_LINKINFO, &information);
    request.answer().map(|_| ())
}

/// `struct ifinfomsg` without the fields that are always zero.
#[derive(Default)]
struct LinkMessage {
    index: i32,
    flags: u32,
    change: u32,
}

struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, message: LinkMessage) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([0; 4]);
        bytes.extend(message.index.to_ne_bytes());
        bytes.extend(message.flags.to_ne_bytes());
        bytes.extend(message.change.to_ne_bytes());
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(attribute(kind, value));
    }

    /// Sends the request and returns the payload of the response, which is empty for an acknowledgement.
    fn answer(mut self) -> io::Result<Vec<u8>> {
        let length = u32::try_from(self.0.len()).map_err(|_| Errno::EMSGSIZE)?;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let socket = open()?;
        send(socket.as_raw_fd(), &self.0, MsgFlags::empty())?;
        let mut buffer = vec![0; MAX_REPLY_BYTES];
        let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        buffer.truncate(count);
        if count < HEADER_BYTES + 4 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        if u16::from_ne_bytes([buffer[4], buffer[5]]) == NLMSG_ERROR {
            let code = read_i32(&buffer[HEADER_BYTES..]).unwrap_or(0);
            return if code == 0 { Ok(Vec::new()) } else { Err(io::Error::from_raw_os_error(-code)) };
        }
        Ok(buffer.split_off(HEADER_BYTES))
    }
}

fn open() -> io::Result<OwnedFd> {
    let protocol = SockProtocol::NetlinkRoute;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// Encodes a `struct rtattr` with its value, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn zero_terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// Decodes consecutive attributes, up to the first damaged one.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
        // The two highest bits are flags: NLA_F_NESTED, NLA_F_NET_BYTEORDER.
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let Some(value) = bytes.get(4..length) else { break };
        found.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn parse_link(message: &[u8]) -> Option<Link> {
    let mut link = Link { index: read_i32(message.get(4..)?)?, ..Link::default() };
    link.is_up = read_u32(message.get(8..)?)? & IFF_UP != 0;
    for (kind, value) in attributes(message.get(LINK_MESSAGE_BYTES..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
            IFLA_LINK => link.link = read_i32(value),
            IFLA_MASTER => link.bridge = read_i32(value),
            IFLA_LINKINFO => parse_information(value, &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn parse_information(bytes: &[u8], link: &mut Link) {
    for (kind, value) in attributes(bytes) {
        match (kind, link.kind.as_str()) {
            (IFLA_INFO_KIND, _) => link.kind = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            (IFLA_INFO_DATA, "tun") => link.tun = Some(parse_tun(value)),
            (IFLA_INFO_DATA, "macvtap") => {
                let mode = attributes(value).into_iter().find(|(kind, _)| *kind == IFLA_MACVLAN_MODE);
                link.macvlan_mode = mode.and_then(|(_, value)| read_u32(value));
            }
            _ => {}
        }
    }
}

fn parse_tun(bytes: &[u8]) -> Tun {
    let mut tun = Tun::default();
    for (kind, value) in attributes(bytes) {
        let flag = value.first().is_some_and(|byte| *byte != 0);
        match kind {
            IFLA_TUN_OWNER => tun.owner = read_u32(value),
            IFLA_TUN_TYPE => tun.is_tap = value.first() == Some(&TUN_TYPE_TAP),
            IFLA_TUN_VNET_HDR => tun.vnet_hdr = flag,
            IFLA_TUN_PERSIST => tun.persistent = flag,
            IFLA_TUN_MULTI_QUEUE => tun.multi_queue = flag,
            _ => {}
        }
    }
    tun
}

fn read_i32(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn read_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found() {
        let link = find("lo").unwrap().unwrap();
        assert_eq!((link.index, link.kind.as_str(), link.tun), (1, "", None));
        assert_eq!(find("no-such-if").unwrap(), None);
    }

    #[test]
    fn damaged_attributes_end_the_list() {
        let mut bytes = attribute(3, b"tap0\0");
        bytes.extend([200, 0, 1, 0, 9]);
        assert_eq!(attributes(&bytes), [(3, b"tap0\0".as_slice())]);
        assert_eq!(attributes(&[1, 0]), []);
        assert_eq!(parse_link(&[0; 7]), None);
    }
}
