//! What the machine needs of the host besides files and devices: ports, and memory that it may lock. The hypervisor or passt
//! would fail without it, after everything else has been created.

use super::{Lowered, cpu_model};
use crate::host::HostProblem;
use crate::programs::find_program_of_machine;
use crate::spec::{DeviceBus, ForwardFrom, ForwardPort, Hypervisor, Protocol};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use program::user::Identity;
use rustix::fs::getxattr;
use rustix::thread::{CapabilitySet, capabilities, capability_is_in_ambient_set};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

/// Returns which resources the machine would not get. `identity` is the user who runs the hypervisor, if root starts it for
/// another user.
pub(super) fn unavailable(lowered: &Lowered<'_>, identity: Option<&Identity>) -> Vec<HostProblem> {
    let mut found = unusable_ports(&lowered.spec.forward_ports);
    found.extend(too_little_locked_memory(lowered, identity));
    found.extend(too_little_memory(lowered));
    found.extend(cpu_model::unsupported(lowered, identity));
    found
}

/// Tries to listen on the forwarded ports.
fn unusable_ports(forward_ports: &[ForwardPort]) -> Vec<HostProblem> {
    let mut found = Vec::new();
    for (index, forward) in forward_ports.iter().enumerate() {
        if forward.from != ForwardFrom::Host {
            continue;
        }
        // An empty address means all. The addresses have been validated.
        let address: Ipv4Addr = forward.host.address.parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let place = (address, forward.host.port);
        let outcome = match forward.proto {
            Protocol::Tcp => TcpListener::bind(place).map(drop),
            Protocol::Udp => UdpSocket::bind(place).map(drop),
        };
        let Err(error) = outcome else { continue };
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "end the program that uses it, or choose another port",
            io::ErrorKind::AddrNotAvailable => "choose an address of this host",
            // A lack of permission says nothing: the program that listens may have the capability for ports below 1024.
            _ => continue,
        };
        let protocol = forward.proto.as_str();
        found.push(HostProblem {
            option: format!("forwardPorts[{index}].host"),
            message: format!("{protocol} port {address}:{}: {error}; {remedy}", forward.host.port),
        });
    }
    found
}

/// qemu reserves the guest's memory when it starts, and the kernel refuses more at once than the host has: `obvious
/// overcommits` in Documentation/mm/overcommit-accounting.rst. The other hypervisors do not reserve it.
fn too_little_memory(lowered: &Lowered<'_>) -> Option<HostProblem> {
    let mode = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").ok()?;
    let memory = &lowered.spec.memory;
    if lowered.launch.hypervisor != Hypervisor::Qemu || memory.huge_pages || mode.trim() == "1" {
        return None;
    }
    let host_mib = memory_and_swap_mib(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let hotplug = memory.hotplug.as_ref().map(|hotplug| ("hotplugMem", hotplug.max_mib));
    let regions = std::iter::once(("mem", memory.mem_mib)).chain(hotplug);
    regions.filter(|(_, mib)| *mib > host_mib).map(|(option, mib)| HostProblem {
        option: option.to_owned(),
        message: format!(
            "qemu reserves all {mib} MiB at the start, but this host has only {host_mib} MiB of memory and swap space; use less, or \
             set vm.overcommit_memory to 1"
        ),
    }).next()
}

/// Returns the sum in the text of /proc/meminfo.
fn memory_and_swap_mib(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix(" kB"));
        value?.trim().parse::<u64>().ok()
    };
    Some((kib("MemTotal:")? + kib("SwapTotal:")?) >> 10)
}

/// VFIO locks the guest's whole memory, which beyond the limit needs a capability.
fn too_little_locked_memory(lowered: &Lowered<'_>, identity: Option<&Identity>) -> Option<HostProblem> {
    let has_pci = lowered.spec.devices.iter().any(|device| device.bus == DeviceBus::Pci);
    if !has_pci || may_lock_all(lowered, identity) {
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

/// Whether the limit does not apply to the hypervisor.
fn may_lock_all(lowered: &Lowered<'_>, identity: Option<&Identity>) -> bool {
    let has_capability = match identity {
        Some(user) if user.user().is_root() => true,
        // Only ambient capabilities can remain when root becomes another user.
        Some(_) => capability_is_in_ambient_set(CapabilitySet::IPC_LOCK).unwrap_or_default(),
        None => capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK)),
    };
    let launch = lowered.launch;
    has_capability
        || find_program_of_machine(&launch.program, &launch.working_directory)
            .is_ok_and(|file| has_file_capabilities(&file))
}

/// Whether a program gets capabilities from its file: capabilities(7). The set of capabilities is not examined.
fn has_file_capabilities(program: &Path) -> bool {
    getxattr(program, "security.capability", &mut [0_u8; 0]).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{XattrFlags, setxattr};
    use rustix::thread::set_capabilities;

    #[test]
    fn a_port_that_this_process_may_not_use_is_left_to_the_program_that_listens_on_it() {
        // Capabilities belong to a thread.
        let without_capability = std::thread::spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::NET_BIND_SERVICE);
            set_capabilities(None, sets).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let used = listener.local_addr().unwrap().port();
            for (address, port, expected) in [
                ("127.0.0.1", 1, None),
                ("127.0.0.1", used, Some("end the program that uses it")),
                ("192.0.2.1", 2000, Some("choose an address of this host")),
            ] {
                let forward = serde_json::json!({"host": {"address": address, "port": port}, "guest": {"port": 22}});
                let found = unusable_ports(&[serde_json::from_value(forward).unwrap()]);
                assert_eq!(found.len(), usize::from(expected.is_some()), "{port}: {found:?}");
                assert!(found.iter().all(|found| found.message.contains(expected.unwrap_or_default())), "{found:?}");
            }
        });
        without_capability.join().unwrap();
    }

    #[test]
    fn the_memory_of_the_host_includes_its_swap_space() {
        let text = "MemTotal:       24684104 kB\nMemFree:          1 kB\nSwapTotal:       1048576 kB\n";
        assert_eq!(memory_and_swap_mib(text), Some(24_105 + 1024));
        assert_eq!(memory_and_swap_mib("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_program_whose_file_has_capabilities_is_recognised() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!has_file_capabilities(file.path()));
        // struct vfs_cap_data of linux/capability.h: revision 2, permitted and inheritable, twice.
        let mut data = [0_u8; 20];
        data[3] = 2;
        data[5] = 0x40;
        match setxattr(file.path(), "security.capability", &data, XattrFlags::empty()) {
            Ok(()) => assert!(has_file_capabilities(file.path())),
            Err(error) => testing::missing(&format!("capabilities of files cannot be set here: {error}")),
        }
    }
}
