//! The PCI addresses of qemu's devices. Our devices use the highest slots, so that the low ones are free for devices
//! that the user adds. qemu assigns the lowest free slot to those without an address.

use super::super::launch_builder::LaunchBuilder;
use super::extra::{self, UserDevice, describe_device};
use super::machine::{Bus, Machine};
use crate::spec::DeviceBus;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The last slot for devices: the next one contains the chip set of q35.
const LAST_SLOT: u8 = 0x1e;
/// The slot of q35's USB controllers: `ehci_create_ich9_with_companions` in hw/i386/pc_q35.c.
const USB_SLOT_OF_Q35: u8 = 0x1d;
/// The number of slots for devices: slot 0 contains the host bridge.
pub(super) const SLOTS: usize = 30;
/// The number of functions of a PCI device.
const FUNCTIONS: u8 = 8;

/// The PCI addresses that are available for devices.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// The slots of the root bus for our devices, ascending.
    own: VecDeque<u8>,
    /// The slots after ours, for devices of the user that the guest must number after ours.
    for_user: VecDeque<u8>,
    /// The buses and slots on which the user places functions above 0.
    multifunction: BTreeSet<(String, u8)>,
    /// For host devices that share a root port: how many there are, and how many have been placed.
    shared_buses: BTreeMap<String, (u8, u8)>,
}

/// The address of a device, and whether its slot has other functions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: Option<String>,
    pub(super) multifunction: bool,
}

impl Slots {
    /// Assigns slots for all devices of the machine. Refuses the machine if there are not enough.
    pub(super) fn new(builder: &mut LaunchBuilder<'_>, machine: &Machine) -> Self {
        let spec = builder.spec;
        if machine.bus != Bus::Pci {
            return Self::default();
        }
        let users = placed_by_user(builder);
        let mut slots = Self::default();
        for device in &users {
            if let Some((slot, 1..)) = device.address {
                slots.multifunction.insert((device.bus.clone().unwrap_or_default(), slot));
            }
        }
        let ports = root_ports(builder);
        for device in spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci) {
            let words = describe_device(device);
            let bus = device.qemu.bus.clone().or(words.bus).filter(|bus| ports.contains(bus));
            if let (Some(bus), None) = (bus, words.address) {
                slots.shared_buses.entry(bus).or_default().0 += 1;
            }
        }
        let crowded: Vec<_> = slots.shared_buses.iter().filter(|(_, (count, _))| *count > FUNCTIONS).collect();
        if let Some((bus, (count, _))) = crowded.first() {
            let reason =
                format!("supports at most {FUNCTIONS} devices on the root port `{bus}`, but {count} are placed there");
            builder.refuse("devices", reason);
        }
        let on_root_bus = |device: &&UserDevice| device.bus.is_none() || device.bus.as_deref() == Some("pcie.0");
        let mut taken: BTreeSet<u8> =
            users.iter().filter(on_root_bus).filter_map(|device| Some(device.address?.0)).collect();
        if machine.model.contains("q35") && extra::enables_usb(builder) {
            taken.insert(USB_SLOT_OF_Q35);
        }
        let placed_by_qemu = users
            .iter()
            .filter(on_root_bus)
            .filter(|device| device.address.is_none() && device.option == "qemu.extraArgs" && device.needs_pci())
            .count();
        let own = machine.own_pci_devices;
        let free: Vec<u8> = (1..=LAST_SLOT).filter(|slot| !taken.contains(slot)).collect();
        if own + placed_by_qemu > free.len() {
            let reason = format!(
                "supports at most {} devices besides those with an address, but this machine has {}",
                free.len(),
                own + placed_by_qemu
            );
            let reason = if taken.is_empty() {
                format!("supports at most {SLOTS} devices, but this machine has {}", own + placed_by_qemu)
            } else {
                reason
            };
            builder.refuse("volumes", reason);
        }
        let user_devices = extra::count_user_devices(&spec.sections.qemu.extra_args).min(free.len());
        let (before, last) = free.split_at(free.len() - user_devices);
        slots.own = before[before.len().saturating_sub(own)..].iter().copied().collect();
        slots.for_user = last.iter().copied().collect();
        slots
    }

    /// Returns the next slot for one of our devices.
    pub(super) fn next(&mut self) -> Place {
        Place { address: self.own.pop_front().map(|slot| format!("{slot:#x}")), multifunction: false }
    }

    /// Returns the user's arguments, with an address for each virtio device that has none. qemu would put it into the
    /// first slot, and the guest would name such a disk /dev/vda.
    pub(super) fn reserve_for_user(&mut self, extra: &[String]) -> Vec<String> {
        let mut placed = extra.to_vec();
        for at in extra::slots_of_user_devices(extra) {
            if let Some(slot) = self.for_user.pop_front() {
                placed[at].push_str(&format!(",addr={slot:#x}"));
            }
        }
        placed
    }

    /// Returns the place of a device for which the user may have chosen the bus and the address.
    pub(super) fn chosen(&mut self, bus: Option<&str>, address: Option<(u8, u8)>) -> Place {
        match (bus, address) {
            (bus, Some((slot, 0))) => {
                let key = (bus.unwrap_or_default().to_owned(), slot);
                Place { address: None, multifunction: self.multifunction.contains(&key) }
            }
            (_, Some(_)) => Place::default(),
            (None, None) => self.next(),
            (Some(bus), None) => match self.shared_buses.get_mut(bus) {
                // A root port has one slot, so its devices are functions of that slot.
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

/// Returns the ids of the root ports. Each root port is a bus with one slot.
fn root_ports(builder: &LaunchBuilder<'_>) -> BTreeSet<String> {
    let qemu = &builder.spec.sections.qemu;
    let added = extra::devices(&qemu.extra_args).into_iter().filter(|device| device.driver == "pcie-root-port");
    qemu.pcie_root_ports.iter().map(|port| port.id.clone()).chain(added.filter_map(|device| device.id)).collect()
}

/// Returns all devices for which the user may have chosen an address.
fn placed_by_user(builder: &LaunchBuilder<'_>) -> Vec<UserDevice> {
    let spec = builder.spec;
    let mut users = extra::devices(&spec.sections.qemu.extra_args);
    for device in spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci) {
        let words = describe_device(device);
        let bus = device.qemu.bus.clone().or_else(|| words.bus.clone());
        users.push(UserDevice { bus, ..words });
    }
    for port in &spec.sections.qemu.pcie_root_ports {
        let address = port.addr.as_deref().and_then(extra::address);
        let option = "qemu.pcieRootPorts".to_owned();
        users.push(UserDevice { option, bus: port.bus.clone(), address, ..UserDevice::default() });
    }
    users
}
