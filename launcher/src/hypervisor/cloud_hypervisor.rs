//! Cloud Hypervisor, which has PCI devices only, an HTTP API, and no 9p. Written against v53.

mod arguments;
mod conditions;
mod config;
mod extra;
mod landlock;

use super::description::{CredentialTransport, Description, HypervisorProgram, ImageLimits, VsockTransport};
use super::launch_builder::{Command, LaunchBuilder};
use super::side_process::{TagProvider, live_store, passt, virtiofsd};
use crate::capability::{Feature, Support};
use crate::facts::{Architecture, KernelForm, Version};
use crate::launch::{ControlProtocol, ForcedStop, GracefulStep, HttpRequest, Launch};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::{DeviceBus, ForwardFrom, Hypervisor, ImageType, ShareProtocol};
use crate::validate::{CheckedInterface, Disk, DiskBackend, InterfaceKind};
use config::{
    Balloon, Cpus, Device, DiskConfig, FileSystem, ImageKind, Memory, Mode, Net, Payload, Platform, Pmem, Port, Random,
    VmConfig, Vsock,
};
use std::collections::BTreeMap;

/// The slots of its PCI bus without the host bridge.
const MAX_DEVICES: usize = 31;
/// The first version that boots bzImages.
const BZ_IMAGE: Version = Version(39, 0, 0);
/// The first version that can set a disk's serial number.
const SERIAL: Version = Version(35, 0, 0);
/// The first version that can set a disk's format, which from then on is required for writing to the first sector. 50.1
/// got this from 51.0 as a security fix.
const IMAGE_TYPE: Version = Version(50, 1, 0);
/// The first version that names the SMBIOS UUID `system_uuid`.
const SYSTEM_UUID: Version = Version(53, 0, 0);
/// `VIRTIO_MEM_ALIGN_SIZE`: the size of hot-plugged memory must be a multiple of it.
const HOTPLUG_ALIGNMENT_MIB: u64 = 128;
/// `MAX_SUPPORTED_CPUS` in vmm/src/config.rs.
const MAX_VCPUS: u32 = 8192;
/// The options that configure the process, not the machine.
const OPTIONS_OF_PROCESS: [&str; 4] = ["--api-socket", "--event-monitor", "--log-file", "--seccomp"];
/// The mount point of hugetlbfs. Cloud Hypervisor reads the size of huge pages from it.
const HUGE_PAGES: &str = "/dev/hugepages";

pub(super) const DESCRIPTION: Description = Description {
    hypervisor: Hypervisor::CloudHypervisor,
    programs: &[HypervisorProgram {
        architecture: None,
        name: "cloud-hypervisor",
        debian_package: None,
        nix_package: "cloud-hypervisor",
    }],
    version_option: Some("--version"),
    vsock: VsockTransport::UnixSocket,
    protocol: ControlProtocol::CloudHypervisorHttp,
    credentials: CredentialTransport::Initrd,
    image_limits: Some(ImageLimits { opens_old_and_compressed_qcow2: true }),
    needs_empty_directory: false,
    uses_tsc_frequency: false,
    reconnects_disks: true,
    support,
    suspend_obstacle,
    clone_obstacle,
    resume,
    lower,
};

/// The supported features. `tests/hypervisors/rows.rs` has verified all supported ones with version v54.0, except for
/// PCI devices.
fn support(feature: Feature) -> Support {
    match feature {
        Feature::StoreDisk
        | Feature::SealedStoreDisk
        | Feature::LiveStoreDisk
        | Feature::PmemStoreDisk
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
        | Feature::GracefulStop
        | Feature::Suspend
        | Feature::LiveMigration => Support::Yes,
        Feature::VolumeQcow2 => Support::With("without a backing file"),
        Feature::VolumeVhd => Support::With("of a fixed size"),
        Feature::InterfaceUser | Feature::ForwardFromHost => {
            Support::With("with passt 2024_11_27 or newer, which has --vhost-user; Debian 12 has an older one")
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
        #[allow(unreachable_patterns, reason = "a feature without a row is not supported")]
        _ => Support::No("does not support it"),
    }
}

/// What is not saved: the state of other processes and of host devices. Parts of an image in another format than raw
/// are only in the hypervisor's memory.
fn suspend_obstacle(feature: Feature) -> Option<&'static str> {
    match feature {
        Feature::Virtiofs => Some("does not save the state of virtiofsd"),
        Feature::LiveStoreDisk => Some("does not save the state of the server of a store disk without an image"),
        Feature::InterfaceUser => Some("does not save the state of passt"),
        Feature::InterfaceMacvtap => Some("does not save interfaces that it has not opened itself"),
        Feature::VolumeQcow2 | Feature::VolumeVhdx => Some("saves machines with raw images only"),
        Feature::DevicePci => Some("cannot save the state of a device of the host"),
        _ => None,
    }
}

/// Its saved configuration names the interfaces and the socket of the machine; `control/suspend.rs` changes it.
fn clone_obstacle(_: Feature) -> Option<&'static str> {
    None
}

/// The configuration of the machine is part of what was saved, and options of a machine are refused without a kernel.
/// Its landlock rules are part of the configuration as well.
fn resume(launch: &mut Launch, _: &HostPath) {
    let mut is_kept = false;
    launch.arguments.retain(|argument| {
        if argument.starts_with('-') {
            let option = argument.split('=').next().unwrap_or_default();
            is_kept = OPTIONS_OF_PROCESS.contains(&option) || argument.starts_with("-v");
        }
        is_kept
    });
}

fn lower(mut builder: LaunchBuilder<'_>) -> Result<Launch, Vec<Refusal>> {
    let spec = builder.spec;
    builder.require_kvm();
    builder.probes_formats();
    let kernel = builder.uncompressed_image();
    check_kernel(&mut builder, &kernel);
    check_limits(&mut builder);
    let config = VmConfig {
        cpus: Cpus { boot_vcpus: spec.vcpu, max_vcpus: spec.vcpu },
        memory: memory(&builder),
        payload: payload(&mut builder, &kernel),
        disks: spec.disks.iter().filter_map(|disk| disk_config(&mut builder, disk)).collect(),
        pmem: spec.disks.iter().filter_map(pmem).collect(),
        net: spec
            .interfaces
            .iter()
            .enumerate()
            .filter_map(|(index, interface)| net(&mut builder, index, interface))
            .collect(),
        rng: Random { src: "/dev/urandom".to_owned() },
        balloon: spec.memory.balloon.as_ref().map(|balloon| Balloon {
            size: balloon.initial_mib << 20,
            deflate_on_oom: balloon.deflate_on_oom,
            free_page_reporting: true,
        }),
        fs: file_systems(&mut builder),
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
        platform: platform(&builder),
        watchdog: true,
        landlock_enable: false,
        landlock_rules: Vec::new(),
    };
    check_devices(&mut builder, &config);
    finish(builder, config)
}

fn check_kernel(builder: &mut LaunchBuilder<'_>, kernel: &HostPath) {
    let option = builder.kernel_option(kernel);
    match builder.kernel_form(kernel) {
        Some(KernelForm::Elf) => {
            builder.refuse(
                option,
                format!(
                    "boots an ELF kernel only if it has a PVH note, and {kernel} has none; build it with CONFIG_PVH"
                ),
            );
        }
        Some(KernelForm::BzImage) if !builder.facts.at_least(Hypervisor::CloudHypervisor, BZ_IMAGE) => {
            builder.refuse(
                option,
                format!("boots bzImages only from version {BZ_IMAGE} on; give it the uncompressed kernel as vmlinux"),
            );
        }
        _ => {}
    }
}

fn check_limits(builder: &mut LaunchBuilder<'_>) {
    builder.check_cpus(MAX_VCPUS);
    builder.aligned_pmem_bytes();
    if builder.spec.memory.huge_pages {
        builder.needs.hugetlbfs = Some(HostPath::from(HUGE_PAGES));
    }
    let Some(hotplug) = &builder.spec.memory.hotplug else { return };
    for (option, mib) in [("hotplugMem", hotplug.max_mib), ("hotpluggedMem", hotplug.initial_mib)] {
        if !mib.is_multiple_of(HOTPLUG_ALIGNMENT_MIB) {
            let reason =
                format!("plugs memory in steps of {HOTPLUG_ALIGNMENT_MIB} MiB, and {mib} is not a multiple of that");
            builder.refuse(option, reason);
        }
    }
}

fn check_devices(builder: &mut LaunchBuilder<'_>, config: &VmConfig) {
    let singles =
        [true, config.balloon.is_some(), config.vsock.is_some(), config.memory.hotplug_size.is_some(), config.watchdog];
    let devices = config.disks.len()
        + config.pmem.len()
        + config.net.len()
        + config.fs.len()
        + config.devices.len()
        + singles.into_iter().filter(|present| *present).count();
    if devices > MAX_DEVICES {
        builder.refuse("volumes", format!("supports at most {MAX_DEVICES} devices, but this machine has {devices}"));
    }
}

fn memory(builder: &LaunchBuilder<'_>) -> Memory {
    let (memory, hotplug) = (&builder.spec.memory, builder.spec.memory.hotplug.as_ref());
    let uses_passt = builder.spec.interfaces.iter().any(|interface| interface.kind == InterfaceKind::User);
    let shared = memory.shared || uses_passt;
    Memory {
        size: memory.mem_mib << 20,
        shared,
        // Cloud Hypervisor refuses mergeable memory together with shared memory or huge pages.
        mergeable: !shared && !memory.huge_pages,
        hugepages: memory.huge_pages,
        hotplug_method: hotplug.map(|_| "VirtioMem"),
        hotplug_size: hotplug.map(|hotplug| hotplug.max_mib << 20),
        hotplugged_size: hotplug.map(|hotplug| hotplug.initial_mib << 20),
    }
}

fn payload(builder: &mut LaunchBuilder<'_>, kernel: &HostPath) -> Payload {
    let own = match builder.architecture() {
        Architecture::X86_64 => ["earlyprintk=ttyS0", "console=ttyS0", "reboot=t", "panic=-1"].as_slice(),
        Architecture::Aarch64 => ["console=ttyAMA0", "panic=-1"].as_slice(),
    };
    Payload {
        kernel: kernel.as_str().to_owned(),
        cmdline: builder.ascii_command_line(own, 0),
        initramfs: builder.initrd_with_credentials().map(|initrd| initrd.as_str().to_owned()),
    }
}

fn pmem(disk: &Disk) -> Option<Pmem> {
    let file = disk.image.as_str().to_owned();
    (disk.backend == DiskBackend::Pmem).then_some(Pmem { file, discard_writes: true })
}

/// The disk; none if it is persistent memory.
fn disk_config(builder: &mut LaunchBuilder<'_>, disk: &Disk) -> Option<DiskConfig> {
    match &disk.backend {
        DiskBackend::Image => Some(image_config(builder, disk)),
        DiskBackend::Pmem => None,
        DiskBackend::Live(live) => {
            let queues = builder.queue_pairs();
            let process = live_store(builder, live, &disk.image, queues);
            builder.needs.processes.push(process);
            Some(DiskConfig {
                path: None,
                vhost_user: Some(true),
                vhost_socket: Some(live.socket.as_str().to_owned()),
                // The server reports that it is read-only.
                readonly: false,
                direct: false,
                num_queues: queues,
                serial: None,
                image_type: None,
            })
        }
    }
}

/// Refuses writable raw disks where their format is detected and nothing restricts which files are opened. The launcher
/// checks the format at every start, but when the guest restarts, the same process opens the disks again.
fn check_detected_formats(builder: &mut LaunchBuilder<'_>) {
    if builder.facts.at_least(Hypervisor::CloudHypervisor, IMAGE_TYPE) || builder.facts.is_confined {
        return;
    }
    let is_raw =
        |disk: &&Disk| disk.backend == DiskBackend::Image && !disk.read_only && disk.image_type == ImageType::Raw;
    for disk in builder.spec.disks.iter().filter(is_raw) {
        let reason = format!(
            "detects the format of a disk before version {IMAGE_TYPE}, also when the guest restarts, and without landlock \
             a guest that writes the header of another format to it could read any file of this host; install a newer \
             version, or use a kernel with landlock"
        );
        builder.refuse(format!("{}.image", disk.option), reason);
    }
}

fn image_config(builder: &mut LaunchBuilder<'_>, disk: &Disk) -> DiskConfig {
    let knows_types = builder.facts.at_least(Hypervisor::CloudHypervisor, IMAGE_TYPE);
    if disk.serial.is_some() && !builder.facts.at_least(Hypervisor::CloudHypervisor, SERIAL) {
        builder.refuse(format!("{}.serial", disk.option), format!("supports serial numbers from version {SERIAL} on"));
    }
    let image_type = match disk.image_type {
        ImageType::Raw => ImageKind::Raw,
        ImageType::Qcow2 => ImageKind::Qcow2,
        ImageType::Vhd => ImageKind::FixedVhd,
        ImageType::Vhdx => ImageKind::Vhdx,
    };
    DiskConfig {
        path: Some(disk.image.as_str().to_owned()),
        vhost_user: None,
        vhost_socket: None,
        readonly: disk.read_only,
        direct: disk.direct,
        // Cloud Hypervisor refuses more queues than CPUs.
        num_queues: builder.queue_pairs(),
        serial: disk.serial.clone(),
        image_type: knows_types.then_some(image_type),
    }
}

fn net(builder: &mut LaunchBuilder<'_>, index: usize, interface: &CheckedInterface) -> Option<Net> {
    let mut net = Net { mac: interface.mac.clone(), ..Net::default() };
    match &interface.kind {
        InterfaceKind::Tap { .. } => {
            let pairs = builder.queue_pairs();
            builder.need_tap(&interface.id, pairs);
            net.tap = Some(interface.id.clone());
            net.num_queues = 2 * pairs;
        }
        InterfaceKind::Macvtap { link, mode } => {
            let pairs = builder.queue_pairs();
            net.fds = builder.need_macvtap(interface, (link, *mode), pairs);
            net.num_queues = 2 * pairs;
        }
        InterfaceKind::User => {
            let socket = HostPath::new(format!("{}-passt-{index}.sock", builder.spec.name));
            // Only to the first such interface, because all forwarded ports reach the same guest.
            let is_first =
                builder.spec.interfaces.iter().position(|other| other.kind == InterfaceKind::User) == Some(index);
            let ports = if is_first { builder.spec.forward_ports.as_slice() } else { &[] };
            for (place, forward) in ports.iter().enumerate() {
                if forward.from == ForwardFrom::Host && !forward.guest.address.is_empty() {
                    builder.refuse(
                        format!("forwardPorts[{place}].guest.address"),
                        "forwards ports through passt, which supports only one guest",
                    );
                }
            }
            builder.needs.sockets_to_remove.push(socket.clone());
            builder.needs.processes.push(passt(&interface.id, &socket, ports));
            net.vhost_user = true;
            net.vhost_socket = Some(socket.as_str().to_owned());
        }
        InterfaceKind::Bridge { .. } => return None,
    }
    Some(net)
}

fn file_systems(builder: &mut LaunchBuilder<'_>) -> Vec<FileSystem> {
    let mut file_systems = Vec::new();
    for checked in builder.spec.shares.iter().filter(|checked| checked.share.proto == ShareProtocol::Virtiofs) {
        let process = virtiofsd(builder, checked, TagProvider::Hypervisor);
        builder.needs.processes.push(process);
        file_systems.push(FileSystem {
            tag: checked.share.tag.clone(),
            socket: checked.socket.as_str().to_owned(),
            num_queues: 1,
            queue_size: 1024,
        });
    }
    file_systems
}

fn platform(builder: &LaunchBuilder<'_>) -> Option<Platform> {
    let spec = builder.spec;
    let new = builder.facts.at_least(Hypervisor::CloudHypervisor, SYSTEM_UUID);
    let id = spec.machine_id.clone();
    let platform = Platform {
        system_uuid: id.clone().filter(|_| new),
        uuid: id.filter(|_| !new),
        oem_strings: spec.sections.cloud_hypervisor.platform_oem_strings.clone(),
    };
    (!platform.is_empty()).then_some(platform)
}

fn finish(mut builder: LaunchBuilder<'_>, mut config: VmConfig) -> Result<Launch, Vec<Refusal>> {
    let spec = builder.spec;
    let own = config::arguments(&mut builder, &config);
    let merged = extra::merge(&mut builder, own);
    let mut arguments = merged.arguments();
    if landlock::is_used(&mut builder) {
        let (rules, added) = landlock::add(&mut builder, &merged.items);
        landlock::keep_initrd_within_rules(&mut builder);
        arguments.extend(added);
        config.landlock_enable = true;
        config.landlock_rules = rules;
    } else {
        check_detected_formats(&mut builder);
    }
    let put = |path: &str| HttpRequest { method: "PUT".to_owned(), path: format!("/api/v1/{path}"), body: None };
    let command = Command {
        program: spec.sections.cloud_hypervisor.program.clone(),
        arguments,
        environment: BTreeMap::new(),
        files: Vec::new(),
        control: spec.control_socket.clone(),
        graceful: vec![GracefulStep::Http(put("vm.power-button"))],
        forced: ForcedStop::Http(put("vmm.shutdown")),
        console_device: merged.serial_is_ours.then_some(match builder.architecture() {
            Architecture::X86_64 => "ttyS0",
            Architecture::Aarch64 => "ttyAMA0",
        }),
        expected_configuration: merged.config_is_ours.then(|| config.to_value()),
    };
    builder.finish(command)
}
