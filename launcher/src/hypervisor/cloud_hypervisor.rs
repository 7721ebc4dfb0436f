//! Cloud Hypervisor, which has PCI devices only, an HTTP API, and no 9p. Written against v53.

mod config;
mod extra;

use super::frame::{Command, Frame, VsockTransport};
use super::side_process::{TagTeller, passt, virtiofsd};
use crate::capability::{Feature, Support};
use crate::facts::{Architecture, KernelForm, Version};
use crate::launch::{ControlProtocol, ControlSocket, ForcedStop, GracefulStep, HttpRequest, Launch};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::{DeviceBus, ForwardFrom, Hypervisor, ImageType, ShareProtocol};
use crate::validate::{CheckedInterface, Disk, InterfaceKind};
use config::{
    Balloon, Cpus, Device, DiskConfig, FileSystem, ImageKind, Memory, Mode, Net, Payload, Platform, Port, Random,
    VmConfig, Vsock,
};
use std::collections::BTreeMap;

/// The slots of its PCI bus without the host bridge.
const MOST_DEVICES: usize = 31;
/// The first version that boots bzImages.
const BZ_IMAGE: Version = Version(39, 0, 0);
/// The first version that can set a disk's serial number.
const SERIAL: Version = Version(35, 0, 0);
/// The first version that can set a disk's format, which from then on is required for writing to the first sector.
const IMAGE_TYPE: Version = Version(51, 0, 0);
/// The first version that names the SMBIOS UUID `system_uuid`.
const SYSTEM_UUID: Version = Version(53, 0, 0);
/// `VIRTIO_MEM_ALIGN_SIZE`: the size of hot-plugged memory must be a multiple of it.
const HOTPLUG_ALIGNMENT_MIB: u64 = 128;
/// `MAX_SUPPORTED_CPUS` in vmm/src/config.rs.
const MOST_VCPUS: u32 = 8192;
/// The mount point of hugetlbfs. Cloud Hypervisor reads the size of huge pages from it.
const HUGE_PAGES: &str = "/dev/hugepages";

/// The supported features. `tests/hypervisors/rows.rs` has verified all supported ones with version v54.0, except for
/// PCI devices.
pub(super) fn support(feature: Feature) -> Support {
    match feature {
        Feature::StoreDisk
        | Feature::VolumeSerial
        | Feature::VolumeDirect
        | Feature::VolumeVhdx
        | Feature::Virtiofs
        | Feature::InterfaceTap
        | Feature::InterfaceMacvtap
        | Feature::TapMultiQueue
        | Feature::Vsock
        | Feature::GuestNotification
        | Feature::Balloon
        | Feature::InitialBalloon
        | Feature::HotplugMemory
        | Feature::HugePages
        | Feature::DevicePci
        | Feature::MachineId
        | Feature::Console
        | Feature::GracefulStop => Support::Yes,
        Feature::VolumeQcow2 => Support::With("without a backing file"),
        Feature::VolumeVhd => Support::With("of a fixed size"),
        Feature::InterfaceUser | Feature::ForwardFromHost => {
            Support::With("by passt 2024_11_27 or newer, which has --vhost-user; that of Debian 12 is older")
        }
        Feature::WithoutRng => Support::No("always has an entropy source; leave rng on"),
        Feature::Credentials => Support::With("in an initrd that is assembled in memory at the start"),
        Feature::NineP | Feature::NinePReadOnly | Feature::NinePSecurityModel => Support::No("has no 9p; use virtiofs"),
        Feature::InterfaceBridge => Support::No("has no bridge helper; add a tap to the bridge on the host"),
        Feature::TapVhost => Support::No("moves packets itself, without vhost-net"),
        Feature::ForwardFromGuest => {
            Support::No("has no user networking of its own, and passt forwards from the host only")
        }
        Feature::DeviceUsb => Support::No("has no USB"),
        Feature::CpuModel => Support::No("always uses the host's CPU"),
        Feature::WithoutKvm => Support::No("needs KVM"),
        Feature::OtherArchitecture => Support::No("runs guests of the host's architecture only"),
        Feature::Graphics => Support::No("has no graphics card; only a patched one has `--gpu`"),
    }
}

pub(super) fn lower(mut frame: Frame<'_>) -> Result<Launch, Vec<Refusal>> {
    let spec = frame.spec;
    frame.require_kvm();
    frame.guesses_formats();
    let kernel = frame.uncompressed_image();
    check_kernel(&mut frame, &kernel);
    check_limits(&mut frame);
    let config = VmConfig {
        cpus: Cpus { boot_vcpus: spec.vcpu, max_vcpus: spec.vcpu },
        memory: memory(&frame),
        payload: payload(&mut frame, &kernel),
        disks: spec.disks.iter().map(|disk| disk_config(&mut frame, disk)).collect(),
        net: spec
            .interfaces
            .iter()
            .enumerate()
            .filter_map(|(index, interface)| net(&mut frame, index, interface))
            .collect(),
        rng: Random { src: "/dev/urandom".to_owned() },
        balloon: spec.memory.balloon.as_ref().map(|balloon| Balloon {
            size: balloon.initial_mib << 20,
            deflate_on_oom: balloon.deflate_on_oom,
            free_page_reporting: true,
        }),
        fs: file_systems(&mut frame),
        serial: Port { mode: Mode::Tty },
        // The mode Null would still add a virtio device.
        console: Port { mode: Mode::Off },
        devices: spec
            .devices
            .iter()
            .filter(|device| device.bus == DeviceBus::Pci)
            .map(|device| Device { path: format!("/sys/bus/pci/devices/{}", device.path) })
            .collect(),
        vsock: spec.vsock.as_ref().map(|vsock| Vsock { cid: vsock.cid, socket: vsock.socket.as_str().to_owned() }),
        platform: platform(&frame),
        watchdog: true,
    };
    check_devices(&mut frame, &config);
    finish(frame, &config)
}

fn check_kernel(frame: &mut Frame<'_>, kernel: &HostPath) {
    let option = frame.kernel_option(kernel);
    match frame.kernel_form(kernel) {
        Some(KernelForm::Elf) => {
            frame.refuse(
                option,
                format!(
                    "boots an ELF kernel only if it has a PVH note, and {kernel} has none; build it with CONFIG_PVH"
                ),
            );
        }
        Some(KernelForm::BzImage) if !frame.facts.at_least(Hypervisor::CloudHypervisor, BZ_IMAGE) => {
            frame.refuse(
                option,
                format!("boots bzImages only from version {BZ_IMAGE} on; give it the uncompressed kernel as vmlinux"),
            );
        }
        _ => {}
    }
}

fn check_limits(frame: &mut Frame<'_>) {
    frame.check_cpus(MOST_VCPUS);
    if frame.spec.memory.huge_pages {
        frame.needs.hugetlbfs = Some(HostPath::from(HUGE_PAGES));
    }
    let Some(hotplug) = &frame.spec.memory.hotplug else { return };
    for (option, mib) in [("hotplugMem", hotplug.most_mib), ("hotpluggedMem", hotplug.initial_mib)] {
        if !mib.is_multiple_of(HOTPLUG_ALIGNMENT_MIB) {
            let reason =
                format!("plugs memory in steps of {HOTPLUG_ALIGNMENT_MIB} MiB, and {mib} is not a multiple of that");
            frame.refuse(option, reason);
        }
    }
}

fn check_devices(frame: &mut Frame<'_>, config: &VmConfig) {
    let singles =
        [true, config.balloon.is_some(), config.vsock.is_some(), config.memory.hotplug_size.is_some(), config.watchdog];
    let devices = config.disks.len()
        + config.net.len()
        + config.fs.len()
        + config.devices.len()
        + singles.into_iter().filter(|present| *present).count();
    if devices > MOST_DEVICES {
        frame.refuse("volumes", format!("supports at most {MOST_DEVICES} devices, but this machine has {devices}"));
    }
}

fn memory(frame: &Frame<'_>) -> Memory {
    let (memory, hotplug) = (&frame.spec.memory, frame.spec.memory.hotplug.as_ref());
    let uses_passt = frame.spec.interfaces.iter().any(|interface| interface.kind == InterfaceKind::User);
    let shared = memory.shared || uses_passt;
    Memory {
        size: memory.mem_mib << 20,
        shared,
        // Cloud Hypervisor refuses mergeable memory together with shared memory or huge pages.
        mergeable: !shared && !memory.huge_pages,
        hugepages: memory.huge_pages,
        hotplug_method: hotplug.map(|_| "VirtioMem"),
        hotplug_size: hotplug.map(|hotplug| hotplug.most_mib << 20),
        hotplugged_size: hotplug.map(|hotplug| hotplug.initial_mib << 20),
    }
}

fn payload(frame: &mut Frame<'_>, kernel: &HostPath) -> Payload {
    let own = match frame.architecture() {
        Architecture::X86_64 => ["earlyprintk=ttyS0", "console=ttyS0", "reboot=t", "panic=-1"].as_slice(),
        Architecture::Aarch64 => ["console=ttyAMA0", "panic=-1"].as_slice(),
    };
    Payload {
        kernel: kernel.as_str().to_owned(),
        cmdline: frame.ascii_command_line(own, 0),
        initramfs: frame.initrd_with_credentials().map(|initrd| initrd.as_str().to_owned()),
    }
}

fn disk_config(frame: &mut Frame<'_>, disk: &Disk) -> DiskConfig {
    let knows_types = frame.facts.at_least(Hypervisor::CloudHypervisor, IMAGE_TYPE);
    if disk.serial.is_some() && !frame.facts.at_least(Hypervisor::CloudHypervisor, SERIAL) {
        frame.refuse(format!("{}.serial", disk.option), format!("sets serial numbers from version {SERIAL} on"));
    }
    let image_type = match disk.image_type {
        ImageType::Raw => ImageKind::Raw,
        ImageType::Qcow2 => ImageKind::Qcow2,
        ImageType::Vhd => ImageKind::FixedVhd,
        ImageType::Vhdx => ImageKind::Vhdx,
    };
    DiskConfig {
        path: disk.image.as_str().to_owned(),
        readonly: disk.read_only,
        direct: disk.direct,
        // Cloud Hypervisor refuses more queues than CPUs.
        num_queues: frame.queue_pairs(),
        serial: disk.serial.clone(),
        image_type: knows_types.then_some(image_type),
    }
}

fn net(frame: &mut Frame<'_>, index: usize, interface: &CheckedInterface) -> Option<Net> {
    let mut net = Net { mac: interface.mac.clone(), ..Net::default() };
    match &interface.kind {
        InterfaceKind::Tap { .. } => {
            let pairs = frame.queue_pairs();
            frame.need_tap(&interface.id, pairs);
            net.tap = Some(interface.id.clone());
            net.num_queues = 2 * pairs;
        }
        InterfaceKind::Macvtap { link, mode } => {
            let pairs = frame.queue_pairs();
            net.fds = frame.need_macvtap(interface, (link, *mode), pairs);
            net.num_queues = 2 * pairs;
        }
        InterfaceKind::User => {
            let socket = HostPath::new(format!("{}-passt-{index}.sock", frame.spec.name));
            // Only to the first such interface, because all forwarded ports reach the same guest.
            let is_first =
                frame.spec.interfaces.iter().position(|other| other.kind == InterfaceKind::User) == Some(index);
            let ports = if is_first { frame.spec.forward_ports.as_slice() } else { &[] };
            for (place, forward) in ports.iter().enumerate() {
                if forward.from == ForwardFrom::Host && !forward.guest.address.is_empty() {
                    frame.refuse(
                        format!("forwardPorts[{place}].guest.address"),
                        "forwards ports through passt, which supports only one guest",
                    );
                }
            }
            frame.needs.sockets_to_remove.push(socket.clone());
            frame.needs.processes.push(passt(&interface.id, &socket, ports));
            net.vhost_user = true;
            net.vhost_socket = Some(socket.as_str().to_owned());
        }
        InterfaceKind::Bridge { .. } => return None,
    }
    Some(net)
}

fn file_systems(frame: &mut Frame<'_>) -> Vec<FileSystem> {
    let mut file_systems = Vec::new();
    for checked in frame.spec.shares.iter().filter(|checked| checked.share.proto == ShareProtocol::Virtiofs) {
        let process = virtiofsd(frame, checked, TagTeller::Hypervisor);
        frame.needs.processes.push(process);
        file_systems.push(FileSystem {
            tag: checked.share.tag.clone(),
            socket: checked.socket.as_str().to_owned(),
            num_queues: 1,
            queue_size: 1024,
        });
    }
    file_systems
}

fn platform(frame: &Frame<'_>) -> Option<Platform> {
    let spec = frame.spec;
    let new = frame.facts.at_least(Hypervisor::CloudHypervisor, SYSTEM_UUID);
    let id = spec.machine_id.clone();
    let platform = Platform {
        system_uuid: id.clone().filter(|_| new),
        uuid: id.filter(|_| !new),
        oem_strings: spec.cloud_hypervisor.platform_oem_strings.clone(),
    };
    (!platform.is_empty()).then_some(platform)
}

fn finish(mut frame: Frame<'_>, config: &VmConfig) -> Result<Launch, Vec<Refusal>> {
    let spec = frame.spec;
    let own = config::arguments(&mut frame, config);
    let merged = extra::merge(&mut frame, own);
    let put = |path: &str| HttpRequest { method: "PUT".to_owned(), path: format!("/api/v1/{path}"), body: None };
    let command = Command {
        program: spec.cloud_hypervisor.program.clone().unwrap_or_else(|| HostPath::from("cloud-hypervisor")),
        arguments: merged.arguments,
        environment: BTreeMap::new(),
        files: Vec::new(),
        control: ControlSocket { protocol: ControlProtocol::CloudHypervisorHttp, path: spec.control_socket.clone() },
        graceful: vec![GracefulStep::Http(put("vm.power-button"))],
        forced: ForcedStop::Http(put("vmm.shutdown")),
        console_device: merged.serial_is_ours.then_some(match frame.architecture() {
            Architecture::X86_64 => "ttyS0",
            Architecture::Aarch64 => "ttyAMA0",
        }),
        expected_configuration: merged.config_is_ours.then(|| config.to_value()),
    };
    frame.finish(command, VsockTransport::UnixSocket)
}
