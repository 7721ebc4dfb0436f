//! Where qemu's PCI devices sit. Ours take the high slots, so that the low ones are free for the devices that the user
//! adds with an address, or with none: qemu gives those the lowest that is free.

use super::super::frame::Frame;
use super::extra::{self, UserDevice};
use super::machine::{Bus, Machine};
use crate::spec::DeviceBus;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The last slot for devices: q35 has its chip set in the one behind it.
const LAST_SLOT: u8 = 0x1e;
/// Slots for devices: the host bridge is in slot 0.
pub(super) const SLOTS: usize = 30;
/// Functions of a PCI device.
const FUNCTIONS: u8 = 8;

/// The PCI addresses of our devices.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Free slots of the root bus for ours, ascending.
    own: VecDeque<u8>,
    /// Slots behind ours, for devices of the user that the guest counts after ours.
    behind: VecDeque<u8>,
    /// Functions above 0 that somebody puts on this bus and slot.
    multifunction: BTreeSet<(String, u8)>,
    /// For the devices of the host that share a root port: how many, and how many are placed.
    shared_buses: BTreeMap<String, (u8, u8)>,
}

/// The address of a device and whether other functions share its slot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: Option<String>,
    pub(super) multifunction: bool,
}

impl Slots {
    /// Slots for all of the machine's devices; refuses more than there are.
    pub(super) fn new(frame: &mut Frame<'_>, machine: &Machine) -> Self {
        let spec = frame.spec;
        if machine.bus != Bus::Pci {
            return Self::default();
        }
        let users = placed_by_user(frame);
        let mut slots = Self::default();
        for device in &users {
            if let Some((slot, 1..)) = device.address {
                slots.multifunction.insert((device.bus.clone().unwrap_or_default(), slot));
            }
        }
        let ports = root_ports(frame);
        for device in spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci) {
            let words = words_of(device);
            let bus = device.qemu.bus.clone().or(words.bus).filter(|bus| ports.contains(bus));
            if let (Some(bus), None) = (bus, words.address) {
                slots.shared_buses.entry(bus).or_default().0 += 1;
            }
        }
        let crowded: Vec<_> = slots.shared_buses.iter().filter(|(_, (count, _))| *count > FUNCTIONS).collect();
        if let Some((bus, (count, _))) = crowded.first() {
            let reason =
                format!("has room for {FUNCTIONS} devices on the root port `{bus}`, and {count} are put there");
            frame.refuse("devices", reason);
        }
        let on_root_bus = |device: &&UserDevice| device.bus.is_none() || device.bus.as_deref() == Some("pcie.0");
        let taken: BTreeSet<u8> =
            users.iter().filter(on_root_bus).filter_map(|device| Some(device.address?.0)).collect();
        let placed_by_qemu = users
            .iter()
            .filter(on_root_bus)
            .filter(|device| device.address.is_none() && device.option == "qemu.extraArgs" && device.needs_pci())
            .count();
        let own = machine.own_pci_devices;
        let free: Vec<u8> = (1..=LAST_SLOT).filter(|slot| !taken.contains(slot)).collect();
        if own + placed_by_qemu > free.len() {
            let reason = format!(
                "has room for {} devices beside those with an address, and this machine has {}",
                free.len(),
                own + placed_by_qemu
            );
            let reason = if taken.is_empty() {
                format!("has room for {SLOTS} devices, and this machine has {}", own + placed_by_qemu)
            } else {
                reason
            };
            frame.refuse("volumes", reason);
        }
        let behind = extra::devices_behind_ours(&spec.qemu.extra_args).min(free.len());
        let (before, behind) = free.split_at(free.len() - behind);
        slots.own = before[before.len().saturating_sub(own)..].iter().copied().collect();
        slots.behind = behind.iter().copied().collect();
        slots
    }

    /// The next slot of ours.
    pub(super) fn next(&mut self) -> Place {
        Place { address: self.own.pop_front().map(|slot| format!("{slot:#x}")), multifunction: false }
    }

    /// The user's arguments, with a place for each virtio device that has none: qemu would put it into the first slot, and
    /// the guest would call the disk /dev/vda.
    pub(super) fn place_behind(&mut self, extra: &[String]) -> Vec<String> {
        let mut placed = extra.to_vec();
        for at in extra::places_behind_ours(extra) {
            if let Some(slot) = self.behind.pop_front() {
                placed[at].push_str(&format!(",addr={slot:#x}"));
            }
        }
        placed
    }

    /// The place of a device for which the user chose this bus and address.
    pub(super) fn chosen(&mut self, bus: Option<&str>, address: Option<(u8, u8)>) -> Place {
        match (bus, address) {
            (bus, Some((slot, 0))) => {
                let key = (bus.unwrap_or_default().to_owned(), slot);
                Place { address: None, multifunction: self.multifunction.contains(&key) }
            }
            (_, Some(_)) => Place::default(),
            (None, None) => self.next(),
            (Some(bus), None) => match self.shared_buses.get_mut(bus) {
                // A root port has one slot: its devices are that slot's functions.
                Some((count, placed)) if *count > 1 => {
                    let function = *placed;
                    *placed += 1;
                    Place { address: Some(format!("0x0.{function}")), multifunction: function == 0 }
                }
                _ => Place::default(),
            },
        }
    }
}

/// The ids of the root ports, each of which is a bus with one slot.
fn root_ports(frame: &Frame<'_>) -> BTreeSet<String> {
    let qemu = &frame.spec.qemu;
    let added = extra::devices(&qemu.extra_args).into_iter().filter(|device| device.driver == "pcie-root-port");
    qemu.pcie_root_ports.iter().map(|port| port.id.clone()).chain(added.filter_map(|device| device.id)).collect()
}

/// The slot that a device of the host has in qemu's own syntax.
pub(super) fn words_of(device: &crate::spec::Device) -> UserDevice {
    extra::device_words("devices".to_owned(), device.qemu.device_extra_args.as_deref().unwrap_or_default())
}

/// Everything for which the user may have chosen an address.
fn placed_by_user(frame: &Frame<'_>) -> Vec<UserDevice> {
    let spec = frame.spec;
    let mut users = extra::devices(&spec.qemu.extra_args);
    for device in spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci) {
        let words = words_of(device);
        let bus = device.qemu.bus.clone().or_else(|| words.bus.clone());
        users.push(UserDevice { bus, ..words });
    }
    for port in &spec.qemu.pcie_root_ports {
        let address = port.addr.as_deref().and_then(extra::address);
        let option = "qemu.pcieRootPorts".to_owned();
        users.push(UserDevice { option, bus: port.bus.clone(), address, ..UserDevice::default() });
    }
    users
}

/// How many PCI devices of ours take a slot of the root bus.
pub(super) fn count_own(frame: &Frame<'_>, virtio_devices: usize) -> usize {
    let spec = frame.spec;
    let ports = spec.qemu.pcie_root_ports.iter().filter(|port| port.addr.is_none() && port.bus.is_none()).count();
    let hosts = spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci);
    let placed = |device: &&crate::spec::Device| {
        let words = words_of(device);
        device.qemu.bus.is_none() && words.bus.is_none() && words.address.is_none()
    };
    let usb = usize::from(spec.devices.iter().any(|device| device.bus == DeviceBus::Usb));
    virtio_devices + ports + hosts.filter(placed).count() + usb
}
