//! Choosing qemu's machine model and accelerator: microvm if it supports all devices, otherwise one with PCI; KVM or
//! emulation.

use super::super::launch_builder::LaunchBuilder;
use super::extra;
use super::screen;
use crate::facts::{Architecture, Kvm};
use crate::keyval::{Dialect, Options};
use crate::launch::KvmUse;
use crate::spec::{Accelerator, Device, DeviceBus};
use crate::validate::DiskBackend;
use program::escape::one_line;
use std::collections::BTreeMap;

/// The virtio-mmio slots of the machine model microvm (docs/system/i386/microvm.rst).
const MMIO_SLOTS: usize = 8;
/// The most virtual CPUs with KVM: `max_cpus` of microvm and q35 in qemu 7.2.
const MAX_VCPUS: u32 = 288;
/// The most virtual CPUs when emulating: the limit of the emulated interrupt controller.
const MAX_VCPUS_EMULATED: u32 = 255;
/// `VIRT_MAX_CPUS` of the machine model virt on ARM.
const MAX_VCPUS_ARM: u32 = 512;

/// How virtio devices are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bus {
    /// Each one at its own address.
    Mmio,
    /// On a PCI bus.
    Pci,
}

impl Bus {
    /// Returns the suffix of the names of virtio devices.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Mmio => "device",
            Self::Pci => "pci",
        }
    }
}

/// The chosen machine model.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) model: String,
    pub(super) bus: Bus,
    pub(super) is_emulated: bool,
    pub(super) has_keyboard: bool,
    /// The number of our PCI devices on the root bus.
    pub(super) own_pci_devices: usize,
    /// Length of the store disk's image if it is mapped as persistent memory, else 0.
    pub(super) pmem_bytes: u64,
}

pub(super) fn choose(builder: &mut LaunchBuilder<'_>) -> Machine {
    let is_emulated = is_emulated(builder);
    check_cpus(builder, is_emulated);
    let virtio_devices = count_virtio_devices(builder);
    let (spec, architecture) = (builder.spec, builder.architecture());
    let user_devices = extra::devices(&spec.sections.qemu.extra_args);
    let on_mmio = virtio_devices + user_devices.iter().filter(|device| device.is_virtio_mmio()).count();
    let needs_pci = extra::needs_pci(builder)
        || !spec.devices.is_empty()
        || !spec.sections.qemu.pcie_root_ports.is_empty()
        || spec.memory.hotplug.is_some()
        || spec.graphics.is_some()
        || has_pmem(builder)
        || on_mmio > MMIO_SLOTS;
    let model = spec.sections.qemu.machine.clone().unwrap_or_else(|| match architecture {
        Architecture::Aarch64 => "virt".to_owned(),
        // When emulated, the clock of microvm is inaccurate on a busy host, and kernels that do not find the addresses
        // of its devices in ACPI find no disk.
        Architecture::X86_64 if needs_pci || is_emulated => "q35".to_owned(),
        Architecture::X86_64 => "microvm".to_owned(),
    });
    let is_microvm = model == "microvm";
    if is_microvm && spec.memory.mem_mib == 2048 {
        // https://github.com/microvm-nix/microvm.nix/issues/171
        builder.warn("mem", "guests of the machine model microvm can hang with exactly 2048 MiB; use another size");
    }
    if is_microvm && spec.memory.hotplug.is_some() {
        builder.refuse(
            "hotplugMem",
            "does not support hot-plugged memory with the machine model microvm; unset qemu.machine, or set it to \"q35\"",
        );
    }
    if is_microvm && has_pmem(builder) {
        builder.refuse(
            "storeDisk.transport",
            "does not support persistent memory with the machine model microvm; unset qemu.machine, or set it to \"q35\"",
        );
    }
    check_machine_options(builder, is_microvm && needs_pci);
    if is_microvm && !spec.sections.qemu.pcie_root_ports.is_empty() {
        builder.refuse(
            "qemu.pcieRootPorts",
            "does not support PCI Express root ports with the machine model microvm; set qemu.machine to \"q35\"",
        );
    }
    Machine {
        bus: if is_microvm && !needs_pci { Bus::Mmio } else { Bus::Pci },
        has_keyboard: architecture == Architecture::X86_64,
        own_pci_devices: count_own_pci_devices(builder, virtio_devices),
        pmem_bytes: builder.aligned_pmem_bytes(),
        model,
        is_emulated,
    }
}

/// Returns the number of our PCI devices that need a slot of the root bus.
fn count_own_pci_devices(builder: &LaunchBuilder<'_>, virtio_devices: usize) -> usize {
    let spec = builder.spec;
    let ports =
        spec.sections.qemu.pcie_root_ports.iter().filter(|port| port.addr.is_none() && port.bus.is_none()).count();
    let hosts = spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci);
    let placed = |device: &&Device| {
        let words = extra::describe_device(device);
        device.qemu.bus.is_none() && words.bus.is_none() && words.address.is_none()
    };
    let usb = usize::from(spec.devices.iter().any(|device| device.bus == DeviceBus::Usb));
    virtio_devices + ports + hosts.filter(placed).count() + usb
}

/// Refuses the user's machine options that conflict with ours.
fn check_machine_options(builder: &mut LaunchBuilder<'_>, needs_pcie: bool) {
    let spec = builder.spec;
    let Some(options) = &spec.sections.qemu.machine_opts else { return };
    let is_name =
        |key: &str| !key.is_empty() && key.chars().all(|one| one.is_ascii_alphanumeric() || "-_.".contains(one));
    for key in options.keys().filter(|key| !is_name(key)) {
        builder.refuse("qemu.machineOpts", format!("has no machine option `{}`", one_line(key)));
    }
    if options.contains_key("type") {
        builder.refuse("qemu.machineOpts.type", "takes the machine model from qemu.machine; use that");
    }
    if options.contains_key("memory-backend") && (spec.memory.shared || spec.memory.huge_pages) {
        let reason = "already has a memory backend, for shared memory or huge pages";
        builder.refuse("qemu.machineOpts.memory-backend", reason);
    }
    if needs_pcie && options.get("pcie").is_some_and(|value| matches!(value.as_str(), "off" | "no" | "false")) {
        let reason = "needs PCI Express for the devices of this machine; leave `pcie` out or set it to \"on\"";
        builder.refuse("qemu.machineOpts.pcie", reason);
    }
}

/// Returns the accelerator in the machine options, or by default the one of the spec.
fn accelerator(spec: &crate::validate::CheckedSpec) -> Accelerator {
    match spec.sections.qemu.machine_opts.as_ref().and_then(|options| options.get("accel")).map(String::as_str) {
        Some("kvm") => Accelerator::Kvm,
        Some("tcg") => Accelerator::Tcg,
        Some(_) => Accelerator::Auto,
        None => spec.sections.qemu.accelerator,
    }
}

fn check_cpus(builder: &mut LaunchBuilder<'_>, is_emulated: bool) {
    let most = match builder.architecture() {
        Architecture::Aarch64 => MAX_VCPUS_ARM,
        Architecture::X86_64 if is_emulated => MAX_VCPUS_EMULATED,
        Architecture::X86_64 => MAX_VCPUS,
    };
    if !is_emulated {
        builder.check_cpus(most);
    } else if builder.spec.vcpu > most {
        builder.refuse("vcpu", format!("supports at most {most} CPUs when it emulates"));
    }
    let is_host = builder.spec.cpu.as_deref().is_some_and(|cpu| cpu.split(',').next() == Some("host"));
    if is_host && is_emulated {
        let why = match &builder.facts.kvm {
            Kvm::Unusable(why) => format!(", but {why}"),
            _ => ", and this machine is emulated".to_owned(),
        };
        builder.refuse("cpu", format!("supports the CPU model `host` only with KVM{why}; set cpu to null or \"max\""));
    }
}

fn is_emulated(builder: &mut LaunchBuilder<'_>) -> bool {
    let (spec, facts) = (builder.spec, builder.facts);
    let is_foreign = builder.architecture() != facts.architecture;
    let is_emulated = match (accelerator(spec), &facts.kvm) {
        (Accelerator::Tcg, _) => true,
        (Accelerator::Auto, _) if is_foreign => true,
        (Accelerator::Kvm, _) if is_foreign => {
            let (guest, host) = (builder.architecture().as_str(), facts.architecture.as_str());
            let reason = format!("requires KVM, but a guest for {guest} on a host with {host} can only be emulated");
            builder.refuse("qemu.accelerator", reason);
            false
        }
        (Accelerator::Auto, Kvm::Unusable(why)) => {
            builder.warn("hypervisor", &format!("{why}; qemu emulates the machine, many times slower"));
            true
        }
        // KVM on ARM supports only the host's CPU model.
        (Accelerator::Auto, _) if is_foreign_model(builder) => {
            let reason = "names a CPU model that KVM does not run on ARM; qemu emulates the machine, many times slower";
            builder.warn("cpu", reason);
            true
        }
        (Accelerator::Kvm, Kvm::Unusable(why)) => {
            builder.refuse("qemu.accelerator", format!("requires KVM, but {why}; \"auto\" would emulate"));
            false
        }
        (Accelerator::Auto | Accelerator::Kvm, _) => false,
    };
    if is_emulated {
        builder.needs.kvm = KvmUse::NotUsed;
    } else {
        builder.use_kvm();
    }
    is_emulated
}

fn is_foreign_model(builder: &LaunchBuilder<'_>) -> bool {
    let model = builder.spec.cpu.as_deref().and_then(|cpu| cpu.split(',').next());
    builder.architecture() == Architecture::Aarch64 && model.is_some_and(|model| !matches!(model, "host" | "max"))
}

fn count_virtio_devices(builder: &LaunchBuilder<'_>) -> usize {
    let spec = builder.spec;
    let singles = [spec.rng, spec.memory.balloon.is_some(), spec.vsock.is_some(), spec.memory.hotplug.is_some()];
    spec.disks.len()
        + spec.shares.len()
        + spec.interfaces.len()
        + if spec.graphics.is_some() { screen::DEVICES } else { 0 }
        + singles.into_iter().filter(|present| *present).count()
}

fn has_pmem(builder: &LaunchBuilder<'_>) -> bool {
    builder.spec.disks.iter().any(|disk| disk.backend == DiskBackend::Pmem)
}

/// Returns an id that never conflicts with the user's ids.
pub(super) fn own_id(name: &str) -> String {
    format!("{}{name}", extra::OWN_IDS)
}

/// Writes the machine, its CPUs and its memory.
pub(super) fn write(builder: &mut LaunchBuilder<'_>, machine: &Machine, arguments: &mut Vec<String>) {
    let spec = builder.spec;
    let backs_memory = spec.memory.shared || spec.memory.huge_pages;
    let mut machine_options = Options::new(Dialect::Qemu).word(&machine.model);
    for (key, value) in machine_settings(builder, machine) {
        machine_options = machine_options.pair(&key, value);
    }
    machine_options = machine_options.pair_if("memory-backend", backs_memory.then(|| own_id("memory")));
    let machine_options = builder.written("qemu.machineOpts", machine_options.finish());
    let cpu = builder.written("cpu", Options::new(Dialect::Qemu).word(cpu(builder, machine)).finish());
    let memory = format!("{}M", spec.memory.mem_mib);
    let words = ["-machine", &machine_options, "-cpu", &cpu, "-smp", &spec.vcpu.to_string()];
    arguments.extend(words.map(str::to_owned));
    let hotplug_mib = spec.memory.hotplug.as_ref().map_or(0, |hotplug| hotplug.max_mib);
    let total = match hotplug_mib + machine.pmem_bytes.div_ceil(1 << 20) {
        0 => memory,
        more_mib => format!("size={memory},maxmem={}M", spec.memory.mem_mib + more_mib),
    };
    arguments.extend(["-m".to_owned(), total]);
    if backs_memory {
        arguments.extend(["-object".to_owned(), memory_backend(builder, &own_id("memory"), spec.memory.mem_mib)]);
    }
    if let Some(hotplug) = &spec.memory.hotplug {
        arguments.extend(["-object".to_owned(), memory_backend(builder, &own_id("hotplug"), hotplug.max_mib)]);
    }
}

/// Returns the options of memory that is shared with another process, or consists of huge pages.
fn memory_backend(builder: &LaunchBuilder<'_>, id: &str, size_mib: u64) -> String {
    let memory = &builder.spec.memory;
    let shared = if memory.shared { "on" } else { "off" };
    let huge = if memory.huge_pages { ",hugetlb=on,hugetlbsize=2M" } else { "" };
    format!("memory-backend-memfd,id={id},size={size_mib}M,share={shared}{huge}")
}

fn machine_settings(builder: &LaunchBuilder<'_>, machine: &Machine) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut set = |key: &str, value: &str| settings.insert(key.to_owned(), value.to_owned());
    let accelerator = if machine.is_emulated { "tcg" } else { "kvm" };
    set("accel", accelerator);
    if let Some(chosen) = &builder.spec.sections.qemu.machine_opts {
        settings.extend(chosen.clone());
        if machine.model == "microvm" && machine.bus == Bus::Pci {
            settings.entry("pcie".to_owned()).or_insert_with(|| "on".to_owned());
        }
        return settings;
    }
    set("mem-merge", "on");
    match machine.model.as_str() {
        "microvm" => {
            // The kernel finds the devices through ACPI; with KVM, the legacy timer and interrupt controller only cost
            // time.
            set("acpi", "on");
            set("pcie", if machine.bus == Bus::Pci { "on" } else { "off" });
            let legacy = if machine.is_emulated { "on" } else { "off" };
            set("pic", legacy);
            set("pit", legacy);
            set("usb", "off");
        }
        "virt" => {
            set("gic-version", "max");
        }
        _ => {
            set("usb", "off");
        }
    }
    settings
}

/// Returns the CPU model, which may have flags after commas.
fn cpu(builder: &LaunchBuilder<'_>, machine: &Machine) -> String {
    let (spec, facts) = (builder.spec, builder.facts);
    if let Some(cpu) = &spec.cpu {
        // For the same reason as below.
        let lacks_flag = facts.kvm == Kvm::UsableSoftware && !machine.is_emulated && !cpu.contains("arch-capabilities");
        let model = cpu.split(',').next().unwrap_or_default();
        let flag = if lacks_flag && matches!(model, "host" | "max") { ",-arch-capabilities" } else { "" };
        return format!("{cpu}{flag}");
    }
    if machine.is_emulated {
        return "max".to_owned();
    }
    match (builder.architecture(), &facts.kvm) {
        // Software KVM does not support the register of that flag, and qemu then fails.
        (Architecture::X86_64, Kvm::UsableSoftware) => "host,-arch-capabilities".to_owned(),
        // SGX would need separate memory, which microvm does not have.
        (Architecture::X86_64, _) => "host,+x2apic,-sgx".to_owned(),
        (Architecture::Aarch64, _) => "host".to_owned(),
    }
}
