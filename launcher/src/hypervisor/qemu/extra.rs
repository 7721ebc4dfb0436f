//! The user's additions to qemu's command line: what they change about our arguments, and what is refused.

use super::super::launch_builder::LaunchBuilder;
use crate::spec::{Device, DeviceBus};

/// The prefix of all ids that the launcher assigns. Ids of the user must not start with it.
pub(super) const OWN_IDS: &str = "microvm-";

/// Options that silently override ours, because qemu uses the last one, with the option of the spec to use instead.
const REPLACING: [(&str, &str); 6] = [
    ("kernel", "use kernel"),
    ("initrd", "use initrd"),
    ("append", "use kernelParams"),
    ("cpu", "use cpu"),
    ("accel", "use qemu.accelerator"),
    ("enable-kvm", "use qemu.accelerator"),
];

/// Options that qemu merges with ours, with the keys that only the spec may set. The first word of the value may omit
/// its key.
const PARTLY_OURS: [(&str, &[&str], &str); 5] = [
    ("machine", &["type"], "use qemu.machine"),
    ("M", &["type"], "use qemu.machine"),
    ("m", &["size"], "use mem"),
    ("smp", &["cpus"], "use vcpu"),
    ("name", &["guest"], "use name"),
];

/// Parts of the names of devices that do not need a PCI bus: devices on other buses, and virtio devices without a
/// transport.
const WITHOUT_PCI: [&str; 15] = [
    "-device",
    "isa-",
    "i8042",
    "usb-",
    "scsi-",
    "ide-",
    "hda-",
    "virtconsole",
    "virtserialport",
    "pc-dimm",
    "nvdimm",
    "tpm-",
    "loader",
    "vmgenid",
    "vmcoreinfo",
];

/// A device that the user adds in qemu's syntax.
#[derive(Clone, Debug, Default)]
pub(super) struct UserDevice {
    /// The option of the spec.
    pub(super) option: String,
    /// The value before the first comma, which names the type of the device.
    pub(super) driver: String,
    /// The value of `id`, if there is one.
    pub(super) id: Option<String>,
    /// The bus that it is attached to.
    pub(super) bus: Option<String>,
    /// Its slot and function on a PCI bus.
    pub(super) address: Option<(u8, u8)>,
}

impl UserDevice {
    /// Parses the value of `-device`, which may be JSON.
    fn read(option: &str, text: &str) -> Self {
        let pairs = if text.starts_with('{') { json_pairs(text) } else { pairs(text) };
        let mut device = Self { option: option.to_owned(), ..Self::default() };
        for (index, (key, value)) in pairs.into_iter().enumerate() {
            match (key.as_str(), value) {
                (_, None) if index == 0 => device.driver = key,
                ("driver", Some(value)) => device.driver = value,
                ("id", value) => device.id = value,
                ("bus", value) => device.bus = value,
                ("addr", Some(value)) => device.address = address(&value),
                _ => {}
            }
        }
        device
    }

    /// Whether it is attached to a PCI bus.
    pub(super) fn needs_pci(&self) -> bool {
        let is = |name: &&str| {
            if name.starts_with('-') { self.driver.ends_with(*name) } else { self.driver.starts_with(*name) }
        };
        !WITHOUT_PCI.iter().any(is)
    }

    /// Whether it needs a virtio-mmio slot.
    pub(super) fn is_virtio_mmio(&self) -> bool {
        self.driver.ends_with("-device") && (self.driver.starts_with("virtio-") || self.driver.starts_with("vhost-"))
    }
}

/// Returns the devices in the extra arguments.
pub(super) fn devices(extra: &[String]) -> Vec<UserDevice> {
    options(extra)
        .into_iter()
        .filter(|(name, _)| *name == "device")
        .filter_map(|(_, value)| Some(UserDevice::read("qemu.extraArgs", value?)))
        .collect()
}

/// Returns the indices of the arguments that add a virtio device without a PCI address.
pub(super) fn slots_of_user_devices(extra: &[String]) -> Vec<usize> {
    let is_device = |name: &str| matches!(name, "-device" | "--device");
    let unplaced = |text: &String| {
        let device = UserDevice::read("qemu.extraArgs", text);
        let is_virtio = device.driver.starts_with("virtio-") || device.driver.starts_with("vhost-");
        let is_free = device.bus.is_none() && device.address.is_none() && !text.starts_with('{');
        is_virtio && is_free && device.needs_pci()
    };
    let places = 1..extra.len();
    places.filter(|at| is_device(&extra[at - 1]) && unplaced(&extra[*at])).collect()
}

/// Returns the number of those arguments.
pub(super) fn count_user_devices(extra: &[String]) -> usize {
    slots_of_user_devices(extra).len()
}

/// Whether the user turns the USB controllers of the machine model on.
pub(super) fn enables_usb(builder: &LaunchBuilder<'_>) -> bool {
    let qemu = &builder.spec.sections.qemu;
    let is_on = |value: Option<&str>| value.is_none_or(|value| ["on", "yes", "true", "y"].contains(&value));
    let by_option = |(name, value): (&str, Option<&str>)| match name {
        "usb" | "usbdevice" => true,
        "machine" | "M" => {
            let pairs = pairs(value.unwrap_or_default());
            pairs.iter().any(|(key, value)| key == "usb" && is_on(value.as_deref()))
        }
        _ => false,
    };
    let of_spec = qemu.machine_opts.as_ref().and_then(|options| options.get("usb"));
    of_spec.is_some_and(|value| is_on(Some(value))) || options(&qemu.extra_args).into_iter().any(by_option)
}

/// Returns the user's qemu properties of a host device.
pub(super) fn describe_device(device: &Device) -> UserDevice {
    device_words("devices".to_owned(), device.qemu.device_extra_args.as_deref().unwrap_or_default())
}

/// Parses a device's `deviceExtraArgs`.
fn device_words(option: String, text: &str) -> UserDevice {
    UserDevice { driver: String::new(), ..UserDevice::read(&option, &format!("device,{text}")) }
}

/// Parses `slot` or `slot.function`, in hexadecimal digits: `set_pci_devfn` in hw/core/qdev-properties-system.c.
pub(super) fn address(text: &str) -> Option<(u8, u8)> {
    let number = |text: &str| u8::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    Some((number(slot)?, number(function)?))
}

/// Refuses arguments that conflict with ours.
pub(super) fn check(builder: &mut LaunchBuilder<'_>) {
    let extra = &builder.spec.sections.qemu.extra_args;
    for (name, value) in options(extra) {
        if let Some((_, instead)) = REPLACING.iter().find(|(option, _)| *option == name) {
            builder.refuse("qemu.extraArgs", format!("would use this -{name} instead of the launcher's; {instead}"));
        }
        if name == "incoming" {
            builder.refuse("qemu.extraArgs", "would wait for a migration instead of booting; leave -incoming out");
        }
        if let Some((_, keys, instead)) = PARTLY_OURS.iter().find(|(option, _, _)| *option == name) {
            let gives = |(index, (key, value)): (usize, &(String, Option<String>))| {
                keys.contains(&key.as_str()) || (index == 0 && value.is_none())
            };
            if value.is_some_and(|value| pairs(value).iter().enumerate().any(gives)) {
                let reason = format!(
                    "would use the {} of this -{name} instead of the launcher's; {instead}",
                    keys.join(" and ")
                );
                builder.refuse("qemu.extraArgs", reason);
            }
        }
        if matches!(name, "machine" | "M") {
            check_machine_keys(builder, value.unwrap_or_default());
        }
        let backs_memory = builder.spec.memory.shared || builder.spec.memory.huge_pages;
        let is_node = name == "numa" && value.is_some_and(|value| value.starts_with("node"));
        if backs_memory && (is_node || name == "mem-path") {
            let instead = if is_node { "have NUMA nodes" } else { "be in a file" };
            let reason = "has the memory in one backend, for shared memory or huge pages, so it cannot";
            builder.refuse("qemu.extraArgs", format!("{reason} {instead}; leave -{name} out"));
        }
        if name == "daemonize" {
            let reason = "cannot run in the background, because the launcher supervises its process";
            builder.refuse("qemu.extraArgs", format!("{reason}; leave -daemonize out"));
        }
        let keeps_running =
            name == "action" && value.is_some_and(|value| value.split(',').any(|action| action == "shutdown=pause"));
        if name == "no-shutdown" || keeps_running {
            let reason = "would keep running after the guest has shut down, so the machine would never end";
            builder.refuse("qemu.extraArgs", format!("{reason}; leave -{name} out"));
        }
        let first = value.and_then(|value| value.split(',').next());
        let on_terminal = value.is_some_and(|value| matches!(value.trim_start_matches("mon:"), "stdio"))
            || (name == "chardev" && first == Some("stdio"))
            // It draws the screen on the terminal, and does not start without one.
            || (name == "display" && first == Some("curses"))
            || name == "curses";
        if on_terminal && builder.spec.sections.qemu.serial_console {
            let reason = format!("has the serial console on the terminal, so -{name} cannot be there too");
            builder.refuse("qemu.extraArgs", format!("{reason}; set qemu.serialConsole = false"));
        }
    }
    if extra.iter().any(|argument| has_own_id(argument)) {
        let reason =
            format!("cannot use ids that start with `{OWN_IDS}`, which the launcher reserves; choose another id");
        builder.refuse("qemu.extraArgs", reason);
    }
    let is_vsock = |device: &UserDevice| device.driver.starts_with("vhost-vsock");
    if devices(extra).iter().any(is_vsock) && !extra.iter().any(|argument| argument.contains("vhostfd")) {
        builder.need_device("qemu.extraArgs", "/dev/vhost-vsock", "modprobe vhost_vsock");
    }
    check_ids(builder);
    check_ids_of_backends(builder);
}

/// Refuses machine properties that our own arguments set.
fn check_machine_keys(builder: &mut LaunchBuilder<'_>, value: &str) {
    let backs_memory = builder.spec.memory.shared || builder.spec.memory.huge_pages;
    for (key, _) in pairs(value) {
        if key == "accel" {
            builder.refuse(
                "qemu.extraArgs",
                "would use the accel of this -machine instead of the launcher's; use qemu.accelerator",
            );
        }
        if key == "memory-backend" && backs_memory {
            let reason = "already has a memory backend, for shared memory or huge pages";
            builder.refuse("qemu.extraArgs", reason);
        }
    }
}

/// Checks the ids of root ports and devices: they must be well-formed, unique, and not reserved.
fn check_ids(builder: &mut LaunchBuilder<'_>) {
    let spec = builder.spec;
    let ports = spec.sections.qemu.pcie_root_ports.iter().enumerate();
    let mut ids: Vec<(String, String)> =
        ports.map(|(index, port)| (format!("qemu.pcieRootPorts[{index}].id"), port.id.clone())).collect();
    for (index, device) in spec.devices.iter().enumerate() {
        ids.extend(device.qemu.id.iter().map(|id| (format!("devices[{index}].qemu.id"), id.clone())));
        let words = device.qemu.device_extra_args.as_deref().unwrap_or_default();
        let option = format!("devices[{index}].qemu.deviceExtraArgs");
        let words = device_words(option, words);
        ids.extend(words.id.into_iter().map(|id| (words.option.clone(), id)));
    }
    for device in devices(&spec.sections.qemu.extra_args) {
        ids.extend(device.id.into_iter().map(|id| (device.option.clone(), id)));
    }
    for (index, (option, id)) in ids.iter().enumerate() {
        if id.starts_with(OWN_IDS) && option != "qemu.extraArgs" {
            let reason =
                format!("cannot use ids that start with `{OWN_IDS}`, which the launcher reserves; choose another id");
            builder.refuse(option, reason);
        } else if !is_well_formed(id) {
            let reason = format!(
                "requires ids of letters, digits, `-`, `.` and `_` that start with a letter; `{id}` is not one"
            );
            builder.refuse(option, reason);
        } else if let Some((other, _)) = ids[..index].iter().find(|(_, earlier)| earlier == id) {
            builder.refuse(option, format!("already has the id `{id}`, from {other}"));
        }
    }
}

/// Groups of options whose ids must be unique within the group.
const NAMED_TOGETHER: [&[&str]; 8] = [
    &["chardev"],
    &["netdev", "nic"],
    &["drive", "blockdev"],
    &["object"],
    &["fsdev"],
    &["audiodev"],
    &["tpmdev"],
    &["mon"],
];

/// Checks that the user's backends have unique ids.
fn check_ids_of_backends(builder: &mut LaunchBuilder<'_>) {
    let extra = &builder.spec.sections.qemu.extra_args;
    for group in NAMED_TOGETHER {
        let mut seen: Vec<(&str, String)> = Vec::new();
        for (name, value) in options(extra).into_iter().filter(|(name, _)| group.contains(name)) {
            for id in ids(value.unwrap_or_default()) {
                if let Some((other, _)) = seen.iter().find(|(_, earlier)| *earlier == id) {
                    let reason = format!("already has the id `{id}`, from -{other}, and -{name} cannot have it too");
                    builder.refuse("qemu.extraArgs", format!("{reason}; choose another id"));
                }
                seen.push((name, id));
            }
        }
    }
}

/// Returns the ids in the value of an argument.
fn ids(argument: &str) -> Vec<String> {
    let pairs = if argument.starts_with('{') { json_pairs(argument) } else { pairs(argument) };
    let names = pairs.into_iter().filter(|(key, _)| matches!(key.as_str(), "id" | "node-name"));
    names.filter_map(|(_, value)| value).collect()
}

/// The same as `id_wellformed` in util/id.c.
fn is_well_formed(id: &str) -> bool {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-._".contains(character);
    id.starts_with(|character: char| character.is_ascii_alphabetic()) && id.chars().all(allowed)
}

fn has_own_id(argument: &str) -> bool {
    ids(argument).iter().any(|id| id.starts_with(OWN_IDS))
}

/// Returns the options and their values: the name without its dashes, and the next argument unless that is an option.
fn options(arguments: &[String]) -> Vec<(&str, Option<&str>)> {
    let mut found = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        let Some(name) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { continue };
        let value = arguments.get(index + 1).map(String::as_str).filter(|value| !value.starts_with('-'));
        found.push((name, value));
    }
    found
}

/// Parses `key=value,key`. A doubled comma is a comma in the value.
fn pairs(text: &str) -> Vec<(String, Option<String>)> {
    let parts = text.replace(",,", "\0");
    let parts = parts.split(',').map(|part| part.replace('\0', ","));
    let pair = |part: String| match part.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (part, None),
    };
    parts.filter(|part| !part.is_empty()).map(pair).collect()
}

/// Returns the string fields of a JSON object; none if the text is not an object.
fn json_pairs(text: &str) -> Vec<(String, Option<String>)> {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(text) else { return Vec::new() };
    let text_of = |value: serde_json::Value| value.as_str().map(str::to_owned);
    fields.into_iter().filter_map(|(key, value)| Some((key, Some(text_of(value)?)))).collect()
}

/// Whether the user's arguments or a passed-through device require a PCI bus.
pub(super) fn needs_pci(builder: &LaunchBuilder<'_>) -> bool {
    builder.spec.devices.iter().any(|device| device.bus == DeviceBus::Pci)
        || devices(&builder.spec.sections.qemu.extra_args).iter().any(UserDevice::needs_pci)
}
