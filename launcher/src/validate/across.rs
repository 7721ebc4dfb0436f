//! Conflicts between machines of one host.

use super::checked::{CheckedSpec, InterfaceKind};
use super::findings::Problem;
use crate::spec::{ForwardFrom, MacvtapMode, ShareProtocol};
use std::collections::BTreeMap;

/// Returns all conflicts between machines that run on one host at the same time.
///
/// Relative paths do not conflict, because each machine has its own state directory.
pub fn check_across(specs: &[&CheckedSpec]) -> Vec<Problem> {
    let mut users: BTreeMap<(&'static str, String), Vec<UsedBy<'_>>> = BTreeMap::new();
    for spec in specs {
        for claim in claims(spec) {
            let user = UsedBy { machine: &spec.name, option: claim.option, usage: claim.usage };
            users.entry((claim.what, claim.value)).or_default().push(user);
        }
    }
    let conflicts =
        users.into_iter().filter(|(_, users)| users.len() > 1 && users.iter().any(|user| user.usage == Use::Exclusive));
    conflicts.map(|((what, value), users)| conflict(what, &value, &users)).collect()
}

/// A resource that a host has only once, and the option that uses it.
struct Claim {
    what: &'static str,
    value: String,
    option: String,
    usage: Use,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Only one machine can use it.
    Exclusive,
    /// Several machines can use it if none of them needs it alone: files that are only read, links of macvtaps.
    Shared,
}

struct UsedBy<'machine> {
    machine: &'machine str,
    option: String,
    usage: Use,
}

fn conflict(what: &str, value: &str, users: &[UsedBy<'_>]) -> Problem {
    let machines: Vec<_> = users.iter().map(|user| user.machine).collect();
    let options: Vec<_> = users.iter().map(|user| format!("{}'s {}", user.machine, user.option)).collect();
    Problem {
        machine: machines.join(", "),
        option: users.first().map(|user| user.option.clone()).unwrap_or_default(),
        reason: format!("the {what} `{value}` is used by {}; only one of them can run", options.join(" and ")),
    }
}

fn claims(spec: &CheckedSpec) -> Vec<Claim> {
    let mut claims = vec![exclusive("machine name", &spec.name, "name")];
    claims.extend(network_claims(spec));
    for (index, device) in spec.devices.iter().enumerate() {
        claims.push(exclusive("device", &device.path, format!("devices[{index}].path")));
    }
    for disk in spec.disks.iter().filter(|disk| disk.image.is_absolute()) {
        let usage = if disk.read_only { Use::Shared } else { Use::Exclusive };
        claims.push(Claim { usage, ..exclusive("image", disk.image.as_str(), format!("{}.image", disk.option)) });
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
    claims.extend(sockets.map(|(path, option)| exclusive("socket", path.as_str(), option)));
    claims
}

fn network_claims(spec: &CheckedSpec) -> Vec<Claim> {
    let mut claims = Vec::new();
    for (index, interface) in spec.interfaces.iter().enumerate() {
        // With user networking, every machine has its own network.
        if interface.kind != InterfaceKind::User {
            claims.push(exclusive("MAC address", &interface.mac, format!("interfaces[{index}].mac")));
        }
        if let InterfaceKind::Macvtap { link, mode } = &interface.kind {
            let usage = if *mode == MacvtapMode::Passthru { Use::Exclusive } else { Use::Shared };
            claims.push(Claim { usage, ..exclusive("link", link, format!("interfaces[{index}].macvtap.link")) });
        }
        if matches!(interface.kind, InterfaceKind::Tap { .. } | InterfaceKind::Macvtap { .. }) {
            claims.push(exclusive("network interface", &interface.id, format!("interfaces[{index}].id")));
        }
    }
    if let Some(vsock) = &spec.vsock {
        claims.push(exclusive("vsock address", &vsock.cid.to_string(), "vsock.cid"));
    }
    for (index, forward) in spec.forward_ports.iter().enumerate() {
        if forward.from == ForwardFrom::Host {
            let port = format!("{} {}:{}", forward.proto.as_str(), forward.host.address, forward.host.port);
            claims.push(exclusive("port", &port, format!("forwardPorts[{index}].host.port")));
        }
    }
    claims
}

fn exclusive(what: &'static str, value: &str, option: impl Into<String>) -> Claim {
    Claim { what, value: value.to_owned(), option: option.into(), usage: Use::Exclusive }
}
