//! Which of qemu's machines: the small one where it can do the work, else one with PCI; with KVM, or emulated.

use super::super::frame::Frame;
use super::screen;
use crate::facts::{Architecture, Kvm};
use crate::keyval::{Dialect, Options};
use crate::launch::KvmUse;
use crate::spec::{Accelerator, DeviceBus};
use std::collections::BTreeMap;

/// virtio-mmio slots of the machine model microvm (docs/system/i386/microvm.rst).
const MMIO_SLOTS: usize = 8;
/// Free slots of q35's bus: the host bridge and the chip set take the others.
const PCIE_SLOTS: usize = 30;

/// How virtio devices are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bus {
    /// Each at an address of its own.
    Mmio,
    /// On PCI.
    Pci,
}

impl Bus {
    /// What the names of virtio devices end in.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Mmio => "device",
            Self::Pci => "pci",
        }
    }
}

/// A machine model, chosen.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) model: String,
    pub(super) bus: Bus,
    pub(super) is_emulated: bool,
    pub(super) has_keyboard: bool,
}

pub(super) fn choose(frame: &mut Frame<'_>) -> Machine {
    let is_emulated = is_emulated(frame);
    let virtio_devices = count_virtio_devices(frame);
    let (spec, architecture) = (frame.spec, frame.architecture());
    let needs_pci = !spec.devices.is_empty()
        || !spec.qemu.pcie_root_ports.is_empty()
        || spec.memory.hotplug.is_some()
        || spec.graphics.is_some()
        || virtio_devices > MMIO_SLOTS;
    let model = spec.qemu.machine.clone().unwrap_or_else(|| match architecture {
        Architecture::Aarch64 => "virt".to_owned(),
        // Emulated, the small machine has no clock that a busy host leaves right, and kernels without its devices'
        // addresses in ACPI find no disk.
        Architecture::X86_64 if needs_pci || is_emulated => "q35".to_owned(),
        Architecture::X86_64 => "microvm".to_owned(),
    });
    let is_microvm = model == "microvm";
    if is_microvm && spec.memory.mem_mib == 2048 {
        // https://github.com/microvm-nix/microvm.nix/issues/171
        frame.warn(
            "mem",
            "guests of the machine model microvm were seen to hang with exactly 2048 MiB; another size works",
        );
    }
    if is_microvm && spec.memory.hotplug.is_some() {
        frame.refuse(
            "hotplugMem",
            "has no hot-plugged memory with the machine model microvm; leave qemu.machine to it, or set \"q35\"",
        );
    }
    if is_microvm && !spec.qemu.pcie_root_ports.is_empty() {
        frame.refuse(
            "qemu.pcieRootPorts",
            "has no PCI Express root ports with the machine model microvm; set qemu.machine to \"q35\"",
        );
    }
    if virtio_devices > PCIE_SLOTS {
        frame.refuse("volumes", format!("has room for {PCIE_SLOTS} devices, and this machine has {virtio_devices}"));
    }
    Machine {
        bus: if is_microvm && !needs_pci { Bus::Mmio } else { Bus::Pci },
        has_keyboard: architecture == Architecture::X86_64,
        model,
        is_emulated,
    }
}

fn is_emulated(frame: &mut Frame<'_>) -> bool {
    let (spec, facts) = (frame.spec, frame.facts);
    let is_foreign = frame.architecture() != facts.architecture;
    let is_emulated = match (spec.qemu.accelerator, &facts.kvm) {
        (Accelerator::Tcg, _) => true,
        (Accelerator::Auto, _) if is_foreign => true,
        (Accelerator::Kvm, _) if is_foreign => {
            let (guest, host) = (frame.architecture().as_str(), facts.architecture.as_str());
            let reason = format!("is to use KVM, but a guest for {guest} on a host with {host} can only be emulated");
            frame.refuse("qemu.accelerator", reason);
            false
        }
        (Accelerator::Auto, Kvm::Unusable(why)) => {
            frame.warn("hypervisor", &format!("{why}; qemu emulates the machine, many times slower"));
            true
        }
        (Accelerator::Auto, _) if spec.cpu.is_some() => true,
        (Accelerator::Kvm, Kvm::Unusable(why)) => {
            frame.refuse("qemu.accelerator", format!("is to use KVM, but {why}; \"auto\" would emulate"));
            false
        }
        (Accelerator::Auto | Accelerator::Kvm, _) => false,
    };
    if is_emulated {
        frame.needs.kvm = KvmUse::NotUsed;
    } else {
        frame.use_kvm();
    }
    is_emulated
}

fn count_virtio_devices(frame: &Frame<'_>) -> usize {
    let spec = frame.spec;
    let singles = [spec.rng, spec.memory.balloon.is_some(), spec.vsock.is_some(), spec.memory.hotplug.is_some()];
    spec.disks.len()
        + spec.shares.len()
        + spec.interfaces.len()
        + spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci).count()
        + if spec.graphics.is_some() { screen::DEVICES } else { 0 }
        + singles.into_iter().filter(|present| *present).count()
}

/// The machine, its CPUs and its memory.
pub(super) fn write(frame: &mut Frame<'_>, machine: &Machine, arguments: &mut Vec<String>) {
    let spec = frame.spec;
    let backs_memory = spec.memory.shared || spec.memory.huge_pages;
    let mut machine_options = Options::new(Dialect::Qemu).word(&machine.model);
    for (key, value) in machine_settings(frame, machine) {
        machine_options = machine_options.pair(&key, value);
    }
    machine_options = machine_options.pair_if("memory-backend", backs_memory.then_some("memory"));
    let machine_options = frame.written("qemu.machineOpts", machine_options.finish());
    let cpu = frame.written("cpu", Options::new(Dialect::Qemu).word(cpu(frame, machine)).finish());
    let memory = format!("{}M", spec.memory.mem_mib);
    let words = ["-machine", &machine_options, "-cpu", &cpu, "-smp", &spec.vcpu.to_string()];
    arguments.extend(words.map(str::to_owned));
    let total = match &spec.memory.hotplug {
        Some(hotplug) => format!("size={memory},maxmem={}M", spec.memory.mem_mib + hotplug.most_mib),
        None => memory,
    };
    arguments.extend(["-m".to_owned(), total]);
    if backs_memory {
        arguments.extend(["-object".to_owned(), memory_backend(frame, "memory", spec.memory.mem_mib)]);
    }
    if let Some(hotplug) = &spec.memory.hotplug {
        arguments.extend(["-object".to_owned(), memory_backend(frame, "hotplug", hotplug.most_mib)]);
    }
}

/// Memory that can be shared with another process, or is made of huge pages.
fn memory_backend(frame: &Frame<'_>, id: &str, size_mib: u64) -> String {
    let memory = &frame.spec.memory;
    let shared = if memory.shared { "on" } else { "off" };
    let huge = if memory.huge_pages { ",hugetlb=on,hugetlbsize=2M" } else { "" };
    format!("memory-backend-memfd,id={id},size={size_mib}M,share={shared}{huge}")
}

fn machine_settings(frame: &Frame<'_>, machine: &Machine) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut set = |key: &str, value: &str| settings.insert(key.to_owned(), value.to_owned());
    let accelerator = if machine.is_emulated { "tcg" } else { "kvm" };
    set("accel", accelerator);
    if let Some(chosen) = &frame.spec.qemu.machine_opts {
        settings.extend(chosen.clone());
        return settings;
    }
    set("mem-merge", "on");
    match machine.model.as_str() {
        "microvm" => {
            // ACPI tells the kernel where the devices are; with KVM the old timer and interrupt controller only cost.
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

/// The CPU model, which may carry flags after commas.
fn cpu(frame: &Frame<'_>, machine: &Machine) -> String {
    let (spec, facts) = (frame.spec, frame.facts);
    if let Some(cpu) = &spec.cpu {
        return cpu.clone();
    }
    if machine.is_emulated {
        return "max".to_owned();
    }
    match (frame.architecture(), &facts.kvm) {
        // The software kind of KVM does not know the register behind that flag, and qemu stops over it.
        (Architecture::X86_64, Kvm::UsableSoftware) => "host,-arch-capabilities".to_owned(),
        // SGX would need memory of its own that the small machine does not have.
        (Architecture::X86_64, _) => "host,+x2apic,-sgx".to_owned(),
        (Architecture::Aarch64, _) => "host".to_owned(),
    }
}
