//! qemu's devices, in the order in which the guest numbers them.

use super::super::launch_builder::LaunchBuilder;
use super::super::side_process::{TagProvider, live_store, share_view, virtiofsd};
use super::extra;
use super::machine::{Bus, Machine, own_id};
use super::screen::Screen;
use super::slots::{Place, Slots};
use crate::facts::Version;
use crate::keyval::{Dialect, Options};
use crate::launch::BridgeNeed;
use crate::path::HostPath;
use crate::spec::{DeviceBus, ForwardFrom, Hypervisor, ImageType, Protocol, ShareProtocol};
use crate::validate::{CheckedInterface, CheckedShare, Disk, DiskBackend, InterfaceKind, LiveStore};

/// The first version in which the time between two connections of a socket is in milliseconds; version 10 removed the
/// former option.
const RECONNECT_MS: Version = Version(9, 2, 0);

/// The command line that is being written.
struct Writer<'builder, 'spec, 'arguments> {
    builder: &'builder mut LaunchBuilder<'spec>,
    machine: &'builder Machine,
    slots: Slots,
    arguments: &'arguments mut Vec<String>,
}

/// Writes the devices, and returns the user's arguments, which must come after them.
pub(super) fn write(
    builder: &mut LaunchBuilder<'_>,
    machine: &Machine,
    screen: &Screen,
    arguments: &mut Vec<String>,
) -> Vec<String> {
    let spec = builder.spec;
    let slots = Slots::new(builder, machine);
    let mut writer = Writer { builder, machine, slots, arguments };
    if machine.model == "microvm" {
        // Needed for Ctrl-Alt-Delete and for the guest's reset.
        writer.add("qemu.machine", "-device", Options::new(Dialect::Qemu).word("i8042"));
    }
    writer.root_ports();
    for (index, disk) in spec.disks.iter().enumerate() {
        writer.disk(index, disk);
    }
    if spec.rng {
        writer.virtio("rng", "virtio-rng", |device| device);
    }
    if let Some(balloon) = &spec.memory.balloon {
        let deflate = if balloon.deflate_on_oom { "on" } else { "off" };
        writer.virtio("balloon", "virtio-balloon", |device| {
            device.pair("id", own_id("balloon")).pair("free-page-reporting", "on").pair("deflate-on-oom", deflate)
        });
    }
    if let Some(hotplug) = &spec.memory.hotplug {
        writer.virtio("hotplugMem", "virtio-mem", |device| {
            let size = format!("{}M", hotplug.initial_mib);
            device.pair("id", own_id("hotplugged")).pair("memdev", own_id("hotplug")).pair("requested-size", size)
        });
    }
    for (index, checked) in spec.shares.iter().enumerate() {
        writer.share(index, checked);
    }
    for (index, interface) in spec.interfaces.iter().enumerate() {
        writer.interface(index, interface);
    }
    if let Some(vsock) = &spec.vsock {
        writer.virtio("vsock", "vhost-vsock", |device| device.pair("guest-cid", vsock.cid));
    }
    if let Some(card) = &screen.card {
        writer.virtio("graphics.enable", card.name, |device| card.with_properties(device));
        for name in ["virtio-keyboard", "virtio-tablet"] {
            writer.virtio("graphics.enable", name, |device| device);
        }
    }
    writer.passed_devices();
    writer.slots.reserve_for_user(&spec.sections.qemu.extra_args)
}

impl Writer<'_, '_, '_> {
    fn add(&mut self, option: &str, switch: &str, options: Options) {
        let value = self.builder.written(option, options.finish());
        self.arguments.extend([switch.to_owned(), value]);
    }

    /// Adds a virtio device to the machine's bus.
    fn virtio(&mut self, option: &str, name: &str, with: impl FnOnce(Options) -> Options) {
        let device = Options::new(Dialect::Qemu).word(format!("{name}-{}", self.machine.bus.suffix()));
        let device = with_address(device, self.slots.next());
        self.add(option, "-device", with(device));
    }

    fn root_ports(&mut self) {
        let ports = &self.builder.spec.sections.qemu.pcie_root_ports;
        // qemu refuses two ports with the same chassis and slot.
        let mut chassis = (1..).filter(|number| ports.iter().all(|port| port.chassis != Some(*number)));
        for (index, port) in ports.iter().enumerate() {
            let address = port.addr.as_deref().and_then(extra::address);
            let place = self.slots.chosen(port.bus.as_deref(), address);
            let number = port.chassis.or_else(|| if port.slot.is_none() { chassis.next() } else { None });
            let options = Options::new(Dialect::Qemu)
                .word("pcie-root-port")
                .pair("id", &port.id)
                .pair_if("bus", port.bus.as_ref())
                .pair_if("chassis", number)
                .pair_if("slot", port.slot.as_ref())
                .pair_if("addr", port.addr.as_ref());
            let options = with_address(options, place);
            self.add(&format!("qemu.pcieRootPorts[{index}]"), "-device", options);
        }
    }

    fn disk(&mut self, index: usize, disk: &Disk) {
        let id = own_id(&format!("disk{index}"));
        match &disk.backend {
            DiskBackend::Image => {}
            DiskBackend::Live(live) => return self.live_disk(&id, disk, live),
            DiskBackend::Pmem => return self.pmem(&id, disk),
        }
        let format = match disk.image_type {
            ImageType::Raw => "raw",
            ImageType::Qcow2 => "qcow2",
            ImageType::Vhd => "vpc",
            ImageType::Vhdx => "vhdx",
        };
        // Native calls would require O_DIRECT; io_uring works with and without it.
        let aio = if self.builder.facts.io_uring_is_usable { "io_uring" } else { "threads" };
        let drive = Options::new(Dialect::Qemu)
            .pair("id", &id)
            .pair("format", format)
            .pair("file", file_name(disk.image.as_str()))
            .pair("if", "none")
            .pair("aio", aio)
            .pair_if("cache", disk.direct.then_some("none"))
            .pair_if("read-only", disk.read_only.then_some("on"))
            .pair_if("discard", (!disk.read_only).then_some("unmap"));
        self.add(&format!("{}.image", disk.option), "-drive", drive);
        self.virtio(&disk.option, "virtio-blk", |device| {
            device.pair("drive", &id).pair_if("serial", disk.serial.as_ref())
        });
    }

    /// A disk that another process serves, which may be started again.
    fn live_disk(&mut self, id: &str, disk: &Disk, live: &LiveStore) {
        let queues = self.builder.queue_pairs();
        let process = live_store(self.builder, live, &disk.image, queues);
        self.builder.needs.processes.push(process);
        let in_milliseconds = self.builder.facts.at_least(Hypervisor::Qemu, RECONNECT_MS);
        let (key, value) = if in_milliseconds { ("reconnect-ms", 1000) } else { ("reconnect", 1) };
        let socket =
            Options::new(Dialect::Qemu).word("socket").pair("id", id).pair("path", &live.socket).pair(key, value);
        self.add("storeDisk.live", "-chardev", socket);
        // The only device of its kind whose name does not end in the bus on virtio-mmio.
        let name = match self.machine.bus {
            Bus::Mmio => "vhost-user-blk",
            Bus::Pci => "vhost-user-blk-pci",
        };
        let device = with_address(Options::new(Dialect::Qemu).word(name), self.slots.next());
        self.add("storeDisk.live", "-device", device.pair("chardev", id).pair("num-queues", queues));
    }

    /// An image that is mapped into the guest; the guest cannot write to the pages.
    fn pmem(&mut self, id: &str, disk: &Disk) {
        let bytes = self.machine.pmem_bytes;
        let backend = Options::new(Dialect::Qemu)
            .word("memory-backend-file")
            .pair("id", id)
            .pair("mem-path", &disk.image)
            .pair("size", bytes)
            .pair("share", "on")
            .pair("readonly", "on");
        self.add("storeDisk.image", "-object", backend);
        self.virtio("storeDisk.transport", "virtio-pmem", |device| device.pair("memdev", id));
    }

    fn share(&mut self, index: usize, checked: &CheckedShare) {
        let (share, id) = (&checked.share, own_id(&format!("share{index}")));
        let option = format!("shares[{index}]");
        match share.proto {
            ShareProtocol::NineP => {
                let directory = self.shared_directory(checked);
                let backend = Options::new(Dialect::Qemu)
                    .word("local")
                    .pair("id", &id)
                    .pair("path", directory)
                    .pair("security_model", share.security_model.as_str())
                    .pair_if("readonly", share.read_only.then_some("on"))
                    // The view and its paths are different file systems, so inode numbers could be equal.
                    .pair_if("multidevs", share.closure.is_some().then_some("remap"));
                self.add(&option, "-fsdev", backend);
                self.virtio(&option, "virtio-9p", |device| device.pair("fsdev", &id).pair("mount_tag", &share.tag));
            }
            ShareProtocol::Virtiofs => {
                let process = virtiofsd(self.builder, checked, TagProvider::Hypervisor);
                self.builder.needs.processes.push(process);
                let socket = Options::new(Dialect::Qemu).word("socket").pair("id", &id).pair("path", &checked.socket);
                self.add(&option, "-chardev", socket);
                self.virtio(&option, "vhost-user-fs", |device| device.pair("chardev", &id).pair("tag", &share.tag));
            }
        }
    }

    /// The directory of a share, or the inherited view of its closure.
    fn shared_directory(&mut self, checked: &CheckedShare) -> HostPath {
        if checked.share.closure.is_none() {
            return checked.share.source.clone();
        }
        let descriptor = self.builder.descriptor();
        self.builder.needs.processes.extend(share_view(checked, descriptor));
        HostPath::of_descriptor(descriptor)
    }

    fn interface(&mut self, index: usize, interface: &CheckedInterface) {
        let (id, option) = (own_id(&format!("net{index}")), format!("interfaces[{index}]"));
        let mut pairs = 1;
        let backend = match &interface.kind {
            InterfaceKind::User => self.user_network(index, &id),
            InterfaceKind::Tap { vhost } => {
                pairs = self.builder.queue_pairs();
                self.builder.need_tap(&interface.id, pairs);
                if *vhost {
                    self.builder.need_device(&format!("{option}.tap.vhost"), "/dev/vhost-net", "modprobe vhost_net");
                }
                Options::new(Dialect::Qemu)
                    .word("tap")
                    .pair("id", &id)
                    .pair("ifname", &interface.id)
                    .pair("script", "no")
                    .pair("downscript", "no")
                    .pair_if("queues", (pairs > 1).then_some(pairs))
                    .pair_if("vhost", vhost.then_some("on"))
            }
            InterfaceKind::Macvtap { link, mode } => {
                pairs = self.builder.queue_pairs();
                let descriptors = self.builder.need_macvtap(interface, (link, *mode), pairs);
                let descriptors: Vec<_> = descriptors.iter().map(ToString::to_string).collect();
                let key = if pairs > 1 { "fds" } else { "fd" };
                Options::new(Dialect::Qemu).word("tap").pair("id", &id).pair(key, descriptors.join(":"))
            }
            InterfaceKind::Bridge { bridge } => {
                let helper = self.builder.spec.sections.qemu.bridge_helper.clone();
                let tap = bridge_tap(&self.builder.spec.name, index, &interface.id);
                if self.builder.facts.is_confined {
                    // In a confined unit the helper cannot gain its privileges. Another unit has created the tap and
                    // added it to the bridge.
                    self.builder.need_tap(&tap, 1);
                    Options::new(Dialect::Qemu)
                        .word("tap")
                        .pair("id", &id)
                        .pair("ifname", &tap)
                        .pair("script", "no")
                        .pair("downscript", "no")
                } else {
                    self.builder.needs.bridges.push(BridgeNeed { bridge: bridge.clone(), helper: helper.clone(), tap });
                    Options::new(Dialect::Qemu)
                        .word("bridge")
                        .pair("id", &id)
                        .pair("br", bridge)
                        .pair_if("helper", helper)
                }
            }
        };
        self.add(&option, "-netdev", backend);
        let on_pci = self.machine.bus == Bus::Pci;
        self.virtio(&option, "virtio-net", |device| {
            device
                .pair("netdev", &id)
                .pair("mac", &interface.mac)
                .pair_if("mq", (pairs > 1).then_some("on"))
                // One vector per queue, one for control, and one for the configuration.
                .pair_if("vectors", (pairs > 1 && on_pci).then_some(2 * pairs + 2))
                // An empty ROM, because the firmware would otherwise wait for a network boot.
                .word_if(on_pci.then_some("romfile="))
        });
    }

    /// Adds the forwarded ports to the first interface with user networking only, because all of them reach the same
    /// guest.
    fn user_network(&mut self, index: usize, id: &str) -> Options {
        let spec = self.builder.spec;
        let mut options = Options::new(Dialect::Qemu).word("user").pair("id", id);
        let first = spec.interfaces.iter().position(|interface| interface.kind == InterfaceKind::User);
        if first != Some(index) {
            return options;
        }
        for (place, forward) in spec.forward_ports.iter().enumerate() {
            let (host, guest) = (&forward.host, &forward.guest);
            options = match forward.from {
                ForwardFrom::Host => {
                    let protocol = forward.proto.as_str();
                    let rule = format!("{protocol}:{}:{}-{}:{}", host.address, host.port, guest.address, guest.port);
                    options.pair("hostfwd", rule)
                }
                ForwardFrom::Guest => {
                    if forward.proto == Protocol::Udp {
                        self.builder.refuse(
                            format!("forwardPorts[{place}].proto"),
                            "forwards TCP only from the guest to the host",
                        );
                    }
                    if guest.address.is_empty() {
                        let reason =
                            "requires an address in the guest's network for the forwarded port, such as 10.0.2.10";
                        self.builder.refuse(format!("forwardPorts[{place}].guest.address"), reason);
                    }
                    let address = if host.address.is_empty() { "127.0.0.1" } else { &host.address };
                    let rule = format!("tcp:{}:{}-tcp:{address}:{}", guest.address, guest.port, host.port);
                    options.pair("guestfwd", rule)
                }
            };
        }
        options
    }

    fn passed_devices(&mut self) {
        let devices = &self.builder.spec.devices;
        if devices.iter().any(|device| device.bus == DeviceBus::Usb) {
            let controller = Options::new(Dialect::Qemu).word("qemu-xhci").pair("id", own_id("usb"));
            let controller = with_address(controller, self.slots.next());
            self.add("devices", "-device", controller);
        }
        for (index, device) in devices.iter().enumerate() {
            let options = match device.bus {
                DeviceBus::Pci => Options::new(Dialect::Qemu).word("vfio-pci").pair("host", &device.path),
                // Validated to contain only pairs that usb-host supports.
                DeviceBus::Usb => Options::new(Dialect::Qemu).word("usb-host").word(&device.path),
            };
            let words = extra::describe_device(device);
            let bus = device.qemu.bus.as_deref().or(words.bus.as_deref());
            let place = match device.bus {
                DeviceBus::Pci => self.slots.chosen(bus, words.address),
                DeviceBus::Usb => Place::default(),
            };
            let options = with_address(options, place);
            let options = options.pair_if("id", device.qemu.id.as_ref()).pair_if("bus", device.qemu.bus.as_ref());
            // The user's own text in qemu's syntax.
            let options = match &device.qemu.device_extra_args {
                Some(extra) => options.word(extra),
                None => options,
            };
            self.add(&format!("devices[{index}]"), "-device", options);
        }
    }
}

/// Adds the place to a device.
fn with_address(device: Options, place: Place) -> Options {
    device.pair_if("addr", place.address).pair_if("multifunction", place.multifunction.then_some("on"))
}

/// Returns the file for `-drive file=`, which takes the text before a colon for a protocol unless a slash precedes it.
fn file_name(path: &str) -> String {
    let is_relative = !path.starts_with('/') && !path.starts_with("./");
    if is_relative && path.contains(':') { format!("./{path}") } else { path.to_owned() }
}

/// Returns the name of the tap that replaces the helper's: the interface's name, if it is a valid name for the kernel.
fn bridge_tap(machine: &str, index: usize, interface: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    if (1..=15).contains(&interface.len())
        && interface.starts_with(char::is_alphanumeric)
        && interface.chars().all(is_plain)
    {
        return interface.to_owned();
    }
    // FNV-1a, 64 bits, of which 44 are used.
    let hash = machine
        .bytes()
        .chain(interface.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("vm{index:02}{:011x}", hash >> 20)
}
