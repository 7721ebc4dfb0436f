//! Validation of interfaces, forwarded ports and vsock.

use super::checked::{CheckedInterface, CheckedVsock, InterfaceKind};
use super::findings::Findings;
use super::names;
use crate::name::check_name;
use crate::path::HostPath;
use crate::spec::{ForwardFrom, Interface, InterfaceType, MachineSpec, MacvtapMode};

/// The lowest address of a guest. The lower ones are the hypervisor, the loopback and the host: vsock(7).
const FIRST_GUEST_CID: u32 = 3;
/// `VMADDR_CID_ANY` in vsock(7), which is not the address of a guest.
const ANY_CID: u32 = u32::MAX;
/// Guests report that they have booted on this port plus their address, so that machines that share the host's AF_VSOCK
/// ports do not conflict. It is above the ports of services.
const FIRST_NOTIFY_PORT: u32 = 1 << 30;

pub(super) fn interfaces(spec: &MachineSpec, findings: &mut Findings) -> Vec<CheckedInterface> {
    let mut interfaces = Vec::new();
    for (index, interface) in spec.interfaces.iter().enumerate() {
        let option = |name: &str| format!("interfaces[{index}].{name}");
        findings.require(option("mac"), names::mac(&interface.mac));
        match interface.interface_type {
            InterfaceType::Tap | InterfaceType::Macvtap => {
                findings.require(option("id"), names::interface_name(&interface.id));
            }
            InterfaceType::User | InterfaceType::Bridge => {
                findings.require(option("id"), check_name(&interface.id));
            }
        }
        if let Some(kind) = check_kind(index, interface, findings) {
            interfaces.push(CheckedInterface {
                id: interface.id.clone(),
                mac: interface.mac.to_ascii_lowercase(),
                kind,
            });
        }
    }
    let named = || spec.interfaces.iter().enumerate();
    let ids = named().map(|(index, interface)| (format!("interfaces[{index}].id"), interface.id.as_str()));
    findings.require_distinct("id", ids);
    // With user networking, each interface has its own network.
    let macs: Vec<_> = named()
        .filter(|(_, interface)| interface.interface_type != InterfaceType::User)
        .map(|(index, interface)| (format!("interfaces[{index}].mac"), interface.mac.to_ascii_lowercase()))
        .collect();
    findings.require_distinct("MAC address", macs.iter().map(|(option, mac)| (option.clone(), mac.as_str())));
    require_links_alone(spec, findings);
    interfaces
}

/// A macvtap in the mode passthru takes its whole link, and the kernel makes no other one on it.
fn require_links_alone(spec: &MachineSpec, findings: &mut Findings) {
    let macvtaps = || spec.interfaces.iter().enumerate().filter_map(|(index, it)| Some((index, it.macvtap.as_ref()?)));
    for (index, macvtap) in macvtaps().filter(|(_, macvtap)| macvtap.mode == MacvtapMode::Passthru) {
        if let Some((other, _)) = macvtaps().find(|(other, it)| *other != index && it.link == macvtap.link) {
            let reason = format!(
                "the mode \"passthru\" uses the whole link `{}`, which interfaces[{other}] uses too",
                macvtap.link
            );
            findings.problem(format!("interfaces[{index}].macvtap.mode"), reason);
        }
    }
}

fn check_kind(index: usize, interface: &Interface, findings: &mut Findings) -> Option<InterfaceKind> {
    let option = |name: &str| format!("interfaces[{index}].{name}");
    let kind = interface.interface_type;
    let mut only_for = |name: &str, given: bool, owner: InterfaceType| {
        if given && kind != owner {
            let reason =
                format!("has an effect only with type = \"{}\", but the type is \"{}\"", owner.as_str(), kind.as_str());
            findings.problem(option(name), reason);
        }
    };
    only_for("bridge", interface.bridge.is_some(), InterfaceType::Bridge);
    only_for("macvtap", interface.macvtap.is_some(), InterfaceType::Macvtap);
    only_for("tap.vhost", interface.tap.vhost, InterfaceType::Tap);
    match kind {
        InterfaceType::User => Some(InterfaceKind::User),
        InterfaceType::Tap => Some(InterfaceKind::Tap { vhost: interface.tap.vhost }),
        InterfaceType::Macvtap => {
            let Some(macvtap) = &interface.macvtap else {
                findings.problem(option("macvtap"), "must be set, because the type is \"macvtap\"");
                return None;
            };
            findings.require(option("macvtap.link"), names::interface_name(&macvtap.link));
            Some(InterfaceKind::Macvtap { link: macvtap.link.clone(), mode: macvtap.mode })
        }
        InterfaceType::Bridge => {
            let Some(bridge) = &interface.bridge else {
                findings.problem(option("bridge"), "must be set, because the type is \"bridge\"");
                return None;
            };
            findings.require(option("bridge"), names::interface_name(bridge));
            Some(InterfaceKind::Bridge { bridge: bridge.clone() })
        }
    }
}

pub(super) fn forward_ports(spec: &MachineSpec, findings: &mut Findings) {
    let users = spec.interfaces.iter().filter(|interface| interface.interface_type == InterfaceType::User).count();
    if !spec.forward_ports.is_empty() && users == 0 {
        findings.problem("forwardPorts", "require an interface with type = \"user\"");
    }
    let mut taken = Vec::new();
    for (index, forward) in spec.forward_ports.iter().enumerate() {
        let option = |name: &str| format!("forwardPorts[{index}].{name}");
        for (name, end) in [("host", &forward.host), ("guest", &forward.guest)] {
            findings.require(option(&format!("{name}.address")), names::ipv4_address(&end.address));
            if end.port == 0 {
                findings.problem(option(&format!("{name}.port")), "must be at least 1");
            }
        }
        if forward.from == ForwardFrom::Host {
            let claim = format!("{} {}:{}", forward.proto.as_str(), forward.host.address, forward.host.port);
            taken.push((option("host.port"), claim));
        }
    }
    findings.require_distinct("port", taken.iter().map(|(option, claim)| (option.clone(), claim.as_str())));
}

pub(super) fn vsock(spec: &MachineSpec, findings: &mut Findings) -> Option<CheckedVsock> {
    let Some(cid) = spec.vsock.cid else {
        if spec.vsock.notify {
            findings.problem("vsock.notify", "requires vsock.cid");
        }
        return None;
    };
    if !(FIRST_GUEST_CID..ANY_CID).contains(&cid) {
        findings
            .problem("vsock.cid", format!("{cid} is reserved; a guest's address must be {FIRST_GUEST_CID} or greater"));
    }
    let socket = spec.vsock.socket.clone().unwrap_or_else(|| HostPath::new(format!("{}.vsock", spec.name)));
    let notify_port = spec.vsock.notify.then(|| FIRST_NOTIFY_PORT.wrapping_add(cid) | FIRST_NOTIFY_PORT);
    Some(CheckedVsock { cid, socket, notify_port })
}
