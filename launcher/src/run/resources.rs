//! What the machine needs of the host besides files and devices: ports, and memory that it may lock. The hypervisor or passt
//! would fail without it, after everything else has been created.

use super::Lowered;
use crate::host::HostProblem;
use crate::spec::{DeviceBus, ForwardFrom, Hypervisor, Protocol};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use program::user::Identity;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Returns which resources the machine would not get. `identity` is the user who runs the hypervisor, if root starts it for
/// another user.
pub(super) fn unavailable(lowered: &Lowered<'_>, identity: Option<&Identity>) -> Vec<HostProblem> {
    let mut found = ports_in_use(lowered, identity);
    found.extend(too_little_locked_memory(lowered, identity));
    found
}

/// Tries to listen on the forwarded ports.
fn ports_in_use(lowered: &Lowered<'_>, identity: Option<&Identity>) -> Vec<HostProblem> {
    // passt becomes the user nobody if root starts it: passt(1), --runas.
    let is_passt = lowered.launch.hypervisor != Hypervisor::Qemu;
    let nobody = Identity::of("nobody").ok().filter(|_| is_passt);
    let user = identity.or(nobody.as_ref());
    let mut found = Vec::new();
    for (index, forward) in lowered.spec.forward_ports.iter().enumerate() {
        if forward.from != ForwardFrom::Host {
            continue;
        }
        // An empty address means all. The addresses have been validated.
        let address: Ipv4Addr = forward.host.address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let place = (address, forward.host.port);
        let listen = || match forward.proto {
            Protocol::Tcp => TcpListener::bind(place).map(drop),
            Protocol::Udp => UdpSocket::bind(place).map(drop),
        };
        let outcome = match user {
            Some(user) => user.run_as(listen).and_then(|outcome| outcome),
            None => listen(),
        };
        if let Err(error) = outcome {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => "end the program that uses it, or choose another port",
                io::ErrorKind::PermissionDenied => {
                    "choose a port from 1024, or lower the sysctl net.ipv4.ip_unprivileged_port_start"
                }
                _ => "choose an address of this host",
            };
            let protocol = forward.proto.as_str();
            found.push(HostProblem {
                option: format!("forwardPorts[{index}].host"),
                message: format!("{protocol} port {address}:{}: {error}; {remedy}", forward.host.port),
            });
        }
    }
    found
}

/// VFIO locks the guest's whole memory, which only root may do beyond the limit.
fn too_little_locked_memory(lowered: &Lowered<'_>, identity: Option<&Identity>) -> Option<HostProblem> {
    let is_root = identity.map_or(nix::unistd::geteuid().is_root(), |identity| identity.user().is_root());
    let has_pci = lowered.spec.devices.iter().any(|device| device.bus == DeviceBus::Pci);
    if is_root || !has_pci {
        return None;
    }
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    let mem_mib = lowered.spec.memory.mem_mib;
    (limit != RLIM_INFINITY && limit >> 20 < mem_mib).then(|| HostProblem {
        option: "devices".to_owned(),
        message: format!(
            "a PCI device locks the guest's {mem_mib} MiB of memory, but this user may lock only {} MiB; raise the limit with \
             `ulimit -l unlimited`, or LimitMEMLOCK=infinity in a unit",
            limit >> 20
        ),
    })
}
