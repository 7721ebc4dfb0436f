//! Conflicts between machines of one host.

use super::checked::{CheckedSpec, InterfaceKind};
use super::findings::Problem;
use crate::spec::{ForwardFrom, MacvtapMode, ShareProtocol};
use std::collections::BTreeMap;

/// Returns all conflicts between machines that run on one host at the same time.
///
/// Relative paths do not conflict, because each machine has its own state directory.
pub fn check_across(specs: &[&CheckedSpec]) -> Vec<Problem> {
    let mut holders: BTreeMap<(&'static str, String), Vec<Holder<'_>>> = BTreeMap::new();
    for spec in specs {
        for claim in claims(spec) {
            let holder = Holder { machine: &spec.name, option: claim.option, hold: claim.hold };
            holders.entry((claim.what, claim.value)).or_default().push(holder);
        }
    }
    let clashes = holders
        .into_iter()
        .filter(|(_, holders)| holders.len() > 1 && holders.iter().any(|holder| holder.hold == Hold::Alone));
    clashes.map(|((what, value), holders)| clash(what, &value, &holders)).collect()
}

/// A resource that a host has only once, and the option that uses it.
struct Claim {
    what: &'static str,
    value: String,
    option: String,
    hold: Hold,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Only one machine can use it.
    Alone,
    /// Several machines can use it if none of them needs it alone: files that are only read, links of macvtaps.
    Shared,
}

struct Holder<'machine> {
    machine: &'machine str,
    option: String,
    hold: Hold,
}

fn clash(what: &str, value: &str, holders: &[Holder<'_>]) -> Problem {
    let machines: Vec<_> = holders.iter().map(|holder| holder.machine).collect();
    let options: Vec<_> = holders.iter().map(|holder| format!("{}'s {}", holder.machine, holder.option)).collect();
    Problem {
        machine: machines.join(", "),
        option: holders.first().map(|holder| holder.option.clone()).unwrap_or_default(),
        reason: format!("the {what} `{value}` is used by {}; only one of them can run", options.join(" and ")),
    }
}

fn claims(spec: &CheckedSpec) -> Vec<Claim> {
    let mut claims = vec![alone("machine name", &spec.name, "name")];
    claims.extend(network_claims(spec));
    for (index, device) in spec.devices.iter().enumerate() {
        claims.push(alone("device", &device.path, format!("devices[{index}].path")));
    }
    for disk in spec.disks.iter().filter(|disk| disk.image.is_absolute()) {
        let hold = if disk.read_only { Hold::Shared } else { Hold::Alone };
        claims.push(Claim { hold, ..alone("image", disk.image.as_str(), format!("{}.image", disk.option)) });
    }
    let mut sockets = vec![(&spec.control_socket, "socket".to_owned())];
    sockets.extend(spec.console_socket.iter().map(|socket| (socket, "consoleSocket".to_owned())));
    sockets.extend(spec.vsock.iter().map(|vsock| (&vsock.socket, "vsock.socket".to_owned())));
    for (index, share) in spec.shares.iter().enumerate() {
        if share.share.proto == ShareProtocol::Virtiofs {
            sockets.push((&share.socket, format!("shares[{index}].socket")));
        }
    }
    let sockets = sockets.into_iter().filter(|(path, _)| path.is_absolute());
    claims.extend(sockets.map(|(path, option)| alone("socket", path.as_str(), option)));
    claims
}

fn network_claims(spec: &CheckedSpec) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (index, interface) in spec.interfaces.iter().enumerate() {
        // With user networking, every machine has its own network.
        if interface.kind != InterfaceKind::User {
            claims.push(alone("MAC address", &interface.mac, format!("interfaces[{index}].mac")));
        }
        if let InterfaceKind::Macvtap { link, mode } = &interface.kind {
            let hold = if *mode == MacvtapMode::Passthru { Hold::Alone } else { Hold::Shared };
            claims.push(Claim { hold, ..alone("link", link, format!("interfaces[{index}].macvtap.link")) });
        }
        if matches!(interface.kind, InterfaceKind::Tap { .. } | InterfaceKind::Macvtap { .. }) {
            claims.push(alone("network interface", &interface.id, format!("interfaces[{index}].id")));
        }
    }
    if let Some(vsock) = &spec.vsock {
        claims.push(alone("vsock address", &vsock.cid.to_string(), "vsock.cid"));
    }
    for (index, forward) in spec.forward_ports.iter().enumerate() {
        if forward.from == ForwardFrom::Host {
            let port = format!("{} {}:{}", forward.proto.as_str(), forward.host.address, forward.host.port);
            claims.push(alone("port", &port, format!("forwardPorts[{index}].host.port")));
        }
    }
    claims
}

fn alone(what: &'static str, value: &str, option: impl Into<String>) -> Claim {
    Claim { what, value: value.to_owned(), option: option.into(), hold: Hold::Alone }
}
