//! The identity of a clone: the names and addresses that two machines on one host or network must not have in common.
//! They are derived from the clone's name, by the rules of `lib/derived.nix` where it has one.

use crate::spec::{Interface, InterfaceType, MachineSpec, StoreDisk};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// The file in a state directory that makes the machine a clone.
pub const CLONE_FILE: &str = "clone.json";
/// The version of [`CloneRecord`].
pub const CLONE_VERSION: u32 = 1;

/// IFNAMSIZ in linux/if.h, without the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;
/// The fewest digits of a hash that make two names differ.
const MIN_DIGITS: usize = 6;

/// The content of [`CLONE_FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloneRecord {
    /// [`CLONE_VERSION`].
    pub version: u32,
    /// The machine whose runner the clone has. It is never a clone itself.
    pub clone_of: String,
}

/// A machine whose spec describes another one: that of which it is a clone.
#[derive(Clone, Debug, PartialEq)]
pub struct CloneOrigin {
    /// The machine that the spec describes.
    pub record: CloneRecord,
    /// The spec with its overrides, except for the name, which is that of its guest.
    pub document: MachineSpec,
}

impl CloneOrigin {
    /// Returns the spec of the clone of that name, or of the original.
    pub fn spec_of(&self, name: &str) -> MachineSpec {
        let mut spec = self.document.clone();
        if name != self.record.clone_of {
            self.give_identity(&mut spec, name);
        }
        name.clone_into(&mut spec.name);
        spec
    }

    /// Replaces everything that is derived from the machine's name, or that was chosen for this machine only. The store
    /// disk keeps its name: the memory of the guest fits only that file, and some hypervisors save its path.
    fn give_identity(&self, spec: &mut MachineSpec, name: &str) {
        if let Some(store_disk) = &mut spec.store_disk
            && store_disk.plan.is_some()
            && !store_disk.live
        {
            store_disk.image.get_or_insert_with(|| StoreDisk::default_image(&self.record.clone_of));
        }
        give_addresses(spec, [&self.record.clone_of, &self.document.name], name);
    }
}

/// Replaces the addresses, and the names of the host's interfaces. `originals` are the names that they may be derived from:
/// that of the machine on this host, and that of its guest.
fn give_addresses(spec: &mut MachineSpec, originals: [&String; 2], name: &str) {
    if spec.machine_id.is_some() {
        spec.machine_id = Some(machine_id(name));
    }
    if spec.vsock.cid.is_some() {
        spec.vsock.cid = Some(vsock_cid(name));
    }
    let mut used = HashSet::new();
    for interface in &mut spec.interfaces {
        interface.mac = mac_of_clone(interface, originals, name);
        // The other names are those of the host's interfaces.
        if interface.interface_type != InterfaceType::User {
            let former = std::mem::take(&mut interface.id);
            // Two names can differ only in the name of the original that they end with.
            interface.id = Some(id_of_clone(&former, originals, name))
                .filter(|id| !used.contains(id))
                .unwrap_or_else(|| hashed_id(network_of(&former), &former, name));
            used.insert(interface.id.clone());
        }
    }
}

/// Returns the first digits of a hash. `what` makes the hashes for different purposes independent.
fn hash(what: &str, names: &[&str]) -> String {
    let text = ["microvm ", what, "/", &names.join("/")].concat();
    hex(&Sha256::digest(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The rule of `microvm.machineId`.
fn machine_id(name: &str) -> String {
    let digits = hex(&Sha256::digest(format!("microvm.nix:{name}")));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..32]].join("-")
}

/// The rule of `microvm.vsock.cid = "auto"`.
fn vsock_cid(name: &str) -> u32 {
    let digits = hash("vsock", &[name]);
    65536 + u32::from_str_radix(&digits[..7], 16).unwrap_or_default()
}

/// The rule for interfaces in a network of the host.
fn mac_address(network: &str, machine: &str) -> String {
    let digits = hash("MAC address", &[network, machine]);
    let bytes: Vec<&str> = (0..5).map(|index| &digits[2 * index..2 * index + 2]).collect();
    format!("02:{}", bytes.join(":"))
}

/// An interface in a network of the host gets the address that the host expects from a machine of that name.
fn mac_of_clone(interface: &Interface, originals: [&String; 2], name: &str) -> String {
    let network = interface.id.split('-').next().unwrap_or_default();
    let is_in_network = originals.iter().any(|original| interface.mac == mac_address(network, original));
    mac_address(if is_in_network { network } else { &interface.id }, name)
}

/// Keeps the beginning of the name, by which the host's network configuration recognises it, such as `vm-` or `lan-`.
fn id_of_clone(id: &str, originals: [&String; 2], name: &str) -> String {
    // Without a separator, the name ends with that of the original by chance.
    let prefix = originals.iter().find_map(|original| id.strip_suffix(original.as_str()));
    if let Some(prefix) = prefix.filter(|prefix| prefix.is_empty() || prefix.ends_with('-'))
        && prefix.len() + name.len() <= MAX_INTERFACE_NAME
    {
        return format!("{prefix}{name}");
    }
    let network = network_of(id);
    let is_of = |original: &&String| id == format!("{network}-{original}") || id == tap_name(network, original);
    let is_of_network = originals.iter().any(is_of);
    if is_of_network && network.len() + 1 + MIN_DIGITS <= MAX_INTERFACE_NAME {
        return tap_name(network, name);
    }
    hashed_id(network, id, name)
}

/// Returns the beginning of a name, by which the host recognises it.
fn network_of(id: &str) -> &str {
    let letters = id.chars().take_while(char::is_ascii_alphabetic).count();
    id.split_once('-').map_or(&id[..letters], |(network, _)| network)
}

/// Returns a name that differs for each former name and each machine.
fn hashed_id(network: &str, id: &str, name: &str) -> String {
    let network: String = network.chars().take(MAX_INTERFACE_NAME - MIN_DIGITS - 1).collect();
    let digits = hash("tap", &[id, name]);
    format!("{network}-{}", &digits[..MAX_INTERFACE_NAME - network.len() - 1])
}

/// The rule for interfaces in a network of the host.
fn tap_name(network: &str, machine: &str) -> String {
    let space = MAX_INTERFACE_NAME.saturating_sub(network.len() + 1);
    if machine.len() <= space {
        return format!("{network}-{machine}");
    }
    format!("{network}-{}", &hash("tap", &[network, machine])[..space])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn origin() -> CloneOrigin {
        let document = serde_json::from_value(json!({
            "version": 1, "name": "web", "kernel": "vmlinux", "machineId": "a7a5ef47-7ea0-47e6-8a1e-3c2b1e6f1f3d",
            "vsock": {"cid": 3},
            "interfaces": [
                {"type": "tap", "id": "vm-web", "mac": "02:00:00:00:00:01"},
                {"type": "tap", "id": "lan-web", "mac": mac_address("lan", "web")},
                {"type": "tap", "id": "tap0", "mac": "02:00:00:00:00:03"},
                {"type": "user", "id": "user", "mac": "02:00:00:00:00:04"},
            ],
        }));
        CloneOrigin {
            record: CloneRecord { version: CLONE_VERSION, clone_of: "web".to_owned() },
            document: document.unwrap(),
        }
    }

    /// The hypervisor saves the name of the image, and the guest's memory fits no other one.
    #[test]
    fn the_store_disk_of_a_clone_has_the_name_of_the_originals() {
        let mut origin = origin();
        let mut image_of = |store_disk: serde_json::Value| {
            origin.document.store_disk = serde_json::from_value(store_disk).unwrap();
            let images = ["web", "worker-1"].map(|name| origin.spec_of(name).store_disk.unwrap().image);
            images.map(|image| image.map(|image| image.to_string()))
        };
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(image_of(json!({"plan": "/plan"})), [None, named("web-store.squashfs")]);
        let given = named("guest-store.erofs");
        assert_eq!(image_of(json!({"plan": "/plan", "image": "guest-store.erofs"})), [given.clone(), given]);
        assert_eq!(image_of(json!({"plan": "/plan", "live": true})), [None, None]);
        assert_eq!(image_of(json!({"image": "/store.img"})), [named("/store.img"), named("/store.img")]);
    }

    #[test]
    fn names_derived_from_the_name_of_the_guest_or_of_the_machine_on_the_host_become_those_of_the_clone() {
        let mut origin = origin();
        origin.document.name = "guest-of-web".to_owned();
        origin.document.interfaces[2].id = tap_name("net", "guest-of-web");
        origin.document.interfaces[2].mac = mac_address("net", "guest-of-web");
        let clone = origin.spec_of("worker-1");
        let ids: Vec<_> = clone.interfaces.iter().map(|interface| interface.id.as_str()).collect();
        assert_eq!(ids[..3], ["vm-worker-1", "lan-worker-1", "net-worker-1"]);
        assert_eq!(clone.interfaces[1].mac, mac_address("lan", "worker-1"));
        assert_eq!(clone.interfaces[2].mac, mac_address("net", "worker-1"));
    }

    #[test]
    fn two_interfaces_of_a_clone_never_get_the_same_name_and_a_name_changes_only_at_a_separator() {
        let interfaces =
            ["vm-prod", "vm-web", "vm-data"].map(|id| json!({"type": "tap", "id": id, "mac": "02:00:00:00:00:01"}));
        let document =
            json!({"version": 1, "name": "web", "kernel": "vmlinux", "machineId": null, "interfaces": interfaces});
        let mut origin = CloneOrigin {
            record: CloneRecord { version: CLONE_VERSION, clone_of: "prod".to_owned() },
            document: serde_json::from_value(document).unwrap(),
        };
        let ids = |origin: &CloneOrigin| {
            let clone = origin.spec_of("worker");
            clone.interfaces.into_iter().map(|interface| interface.id).collect::<Vec<_>>()
        };
        let found = ids(&origin);
        assert_eq!(found[0], "vm-worker");
        let distinct: HashSet<_> = found.iter().collect();
        assert_eq!(distinct.len(), 3, "{found:?}");
        assert!(found[1].starts_with("vm-") && found[2].starts_with("vm-"), "{found:?}");
        origin.record.clone_of = "a".to_owned();
        let found = ids(&origin);
        assert_eq!(found[1], "vm-worker");
        assert!(!found.iter().any(|id| id == "vm-datworker"), "{found:?}");
    }

    #[test]
    fn a_clone_has_addresses_of_its_own_and_the_original_keeps_its() {
        let origin = origin();
        assert_eq!(origin.spec_of("web"), origin.document);
        let (one, two) = (origin.spec_of("worker-1"), origin.spec_of("worker-2"));
        let addresses = |spec: &MachineSpec| {
            let of_interfaces =
                spec.interfaces.iter().flat_map(|interface| [interface.id.clone(), interface.mac.clone()]);
            let mut all: Vec<_> = of_interfaces.filter(|address| address != "user").collect();
            all.extend([spec.machine_id.clone().unwrap(), spec.vsock.cid.unwrap().to_string(), spec.name.clone()]);
            all
        };
        let all = [addresses(&origin.document), addresses(&one), addresses(&two)].concat();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
        let ids: Vec<_> = one.interfaces.iter().map(|interface| interface.id.as_str()).collect();
        assert_eq!(ids[..2], ["vm-worker-1", "lan-worker-1"]);
        assert!(ids[2].starts_with("tap-") && ids[2].len() == MAX_INTERFACE_NAME, "{ids:?}");
        // The lease of a machine in a network of the host depends on this address.
        assert_eq!(one.interfaces[1].mac, mac_address("lan", "worker-1"));
        let long = origin.spec_of("a-worker-with-a-long-name");
        assert!(long.interfaces.iter().all(|interface| interface.id.len() <= MAX_INTERFACE_NAME), "{long:?}");
        assert_eq!(long.interfaces[1].id, tap_name("lan", "a-worker-with-a-long-name"));
    }

    /// `nix-instantiate --eval --expr '(import lib/derived.nix).macAddress { network = "lan"; machine = "web"; }'`, and
    /// in the same way `tapName` and `vsockCid`.
    #[test]
    fn the_rules_are_those_of_the_modules() {
        assert_eq!(mac_address("lan", "web"), "02:ae:70:cc:e9:4c");
        assert_eq!(tap_name("lan", "a-machine-with-a-long-name"), "lan-88985828142");
        assert_eq!(vsock_cid("web"), 104041427);
        assert_eq!(machine_id("web"), "dc449f31-234a-af5f-a0e8-2c21ab644d76");
    }
}
