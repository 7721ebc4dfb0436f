//! Firecracker, which is configured by one JSON document, and has few devices and no shares. Written against 1.17-dev.

mod config;

use super::conditions::{Condition, GivenArguments, check_conditions, values};
use super::description::{CredentialTransport, Description, HypervisorProgram, VsockTransport};
use super::launch_builder::{Command, LaunchBuilder, UniqueOption};
use super::side_process::live_store;
use crate::capability::{Feature, Support};
use crate::facts::{Architecture, KernelForm, Version};
use crate::launch::{ControlProtocol, FileToWrite, ForcedStop, GracefulStep, HttpRequest, Launch, configuration_of};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::{DriveIoEngine, Hypervisor};
use crate::validate::{Disk, DiskBackend, InterfaceKind, LiveStore};
use config::{
    Balloon, BootSource, CacheType, Drive, DriveBackend, Entropy, FullConfiguration, HugePages, MachineConfiguration,
    MemoryHotplug, NetworkInterface, Pmem, Vsock,
};
use std::collections::BTreeMap;

/// The most virtio devices that the interrupt lines on x86 allow (changelog of 1.15).
const MAX_DEVICES: usize = 17;
/// `MAX_SUPPORTED_VCPUS`.
const MAX_VCPUS: u32 = 32;
/// The default and smallest slot of hot-plugged memory; the total size must be a multiple of it.
const HOTPLUG_SLOT_MIB: u64 = 128;
/// The parameters that firecracker appends: `pci=off` and, for each device, `virtio_mmio.device=4K@0xc0001000:5`.
const APPENDED_BYTES: usize = 8;
const APPENDED_BYTES_PER_DEVICE: usize = 40;
/// The first version with virtio-mem and free page reporting.
const MEMORY_DEVICES: Version = Version(1, 14, 0);
/// The first version in which another process can serve a drive.
const VHOST_USER: Version = Version(1, 6, 0);
/// The first version with virtio-pmem.
const PMEM: Version = Version(1, 14, 0);
/// The first version that boots bzImages.
const BZ_IMAGE: Version = Version(1, 17, 0);

/// The option with the path of the configuration, which is its next argument.
const CONFIGURATION_OPTION: &str = "--config-file";

/// Options that the launcher always gives, and that make firecracker fail when they are given twice.
const UNIQUE_OPTIONS: [UniqueOption; 2] = [
    UniqueOption { names: &["--api-sock", "--no-api"], instead: "use socket" },
    UniqueOption { names: &[CONFIGURATION_OPTION], instead: "use firecracker.extraConfig" },
];

/// Options that firecracker does not accept twice, or together (`ArgParser` in src/firecracker/src/main.rs).
const CONDITIONS: [Condition; 17] = [
    Condition::Excludes("--no-seccomp", &["--seccomp-filter"]),
    Condition::AtMostOne(&["--id"]),
    Condition::AtMostOne(&["--seccomp-filter"]),
    Condition::AtMostOne(&["--no-seccomp"]),
    Condition::AtMostOne(&["--start-time-us"]),
    Condition::AtMostOne(&["--start-time-cpu-us"]),
    Condition::AtMostOne(&["--parent-cpu-time-us"]),
    Condition::AtMostOne(&["--metadata"]),
    Condition::AtMostOne(&["--log-path"]),
    Condition::AtMostOne(&["--level"]),
    Condition::AtMostOne(&["--module"]),
    Condition::AtMostOne(&["--show-level"]),
    Condition::AtMostOne(&["--show-log-origin"]),
    Condition::AtMostOne(&["--metrics-path"]),
    Condition::AtMostOne(&["--boot-timer"]),
    Condition::AtMostOne(&["--http-api-max-payload-size"]),
    Condition::AtMostOne(&["--mmds-size-limit"]),
];

pub(super) const DESCRIPTION: Description = Description {
    hypervisor: Hypervisor::Firecracker,
    programs: &[HypervisorProgram {
        architecture: None,
        name: "firecracker",
        debian_package: None,
        nix_package: "firecracker",
    }],
    version_option: Some("--version"),
    vsock: VsockTransport::UnixSocket,
    protocol: ControlProtocol::FirecrackerHttp,
    credentials: CredentialTransport::Initrd,
    image_limits: None,
    needs_empty_directory: false,
    uses_tsc_frequency: false,
    reconnects_disks: false,
    support,
    suspend_obstacle,
    clone_obstacle: |_| None,
    resume,
    lower,
};

/// The supported features. `tests/hypervisors/rows.rs` has verified all supported ones with version 1.17.0-dev of
/// 2026-08.
fn support(feature: Feature) -> Support {
    const NO_SHARES: &str = "does not support shares";
    match feature {
        Feature::StoreDisk
        | Feature::SealedStoreDisk
        | Feature::InterfaceTap
        | Feature::Vsock
        | Feature::GuestNotification
        | Feature::Balloon
        | Feature::InitialBalloon
        | Feature::HugePages
        | Feature::WithoutRng
        | Feature::Console
        | Feature::GracefulStop
        | Feature::Suspend => Support::Yes,
        Feature::LiveMigration => Support::No("resumes a machine only from files"),
        Feature::LiveStoreDisk => Support::With("a developer preview of firecracker, without snapshots"),
        Feature::PmemStoreDisk => Support::With("from version 1.14 on"),
        Feature::HotplugMemory => Support::Partly("plugged in while it runs, so hotpluggedMem must be 0"),
        Feature::Credentials => Support::With("in an initrd that is assembled in memory at the start"),
        Feature::MachineId => Support::With("as a kernel parameter"),
        Feature::VolumeSerial => Support::No("cannot set serial numbers"),
        Feature::VolumeDirect => Support::No("cannot open disks for direct I/O"),
        Feature::VolumeQcow2 | Feature::VolumeVhd | Feature::VolumeVhdx => Support::No("supports raw images only"),
        Feature::NineP | Feature::NinePReadOnly | Feature::NinePSecurityModel | Feature::Virtiofs => {
            Support::No(NO_SHARES)
        }
        Feature::InterfaceUser => Support::No("has no user networking"),
        Feature::InterfaceMacvtap => Support::No("opens taps by name, which does not work for macvtap"),
        Feature::InterfaceBridge => Support::No("has no bridge helper; add a tap to the bridge on the host"),
        Feature::TapMultiQueue => Support::No("has one queue pair per interface"),
        Feature::TapVhost => Support::No("has no vhost-net"),
        Feature::ForwardFromHost | Feature::ForwardFromGuest => {
            Support::No("has no user networking, so no forwarded ports")
        }
        Feature::DevicePci => Support::No("does not support PCI passthrough"),
        Feature::DeviceUsb => Support::No("has no USB"),
        Feature::CpuModel => Support::No("has CPU templates instead of models; set firecracker.cpu"),
        Feature::WithoutKvm => Support::No("needs KVM"),
        Feature::OtherArchitecture => Support::No("runs guests of the host's architecture only"),
        Feature::Graphics => Support::No("has no screen"),
        #[allow(unreachable_patterns, reason = "a feature without a row is not supported")]
        _ => Support::No("does not support it"),
    }
}

/// What is not saved, or cannot be loaded from a file.
fn suspend_obstacle(feature: Feature) -> Option<&'static str> {
    match feature {
        Feature::LiveStoreDisk => Some("does not save the state of the server of a store disk without an image"),
        Feature::HugePages => Some("cannot map saved memory into huge pages"),
        _ => None,
    }
}

/// The configuration of the machine is part of what was saved, which is loaded over the control socket.
fn resume(launch: &mut Launch, _: &HostPath) {
    if let Some(at) = launch.arguments.iter().position(|argument| argument == CONFIGURATION_OPTION) {
        launch.arguments.drain(at..at + 2);
    }
    launch.files.clear();
}

fn lower(mut builder: LaunchBuilder<'_>) -> Result<Launch, Vec<Refusal>> {
    let spec = builder.spec;
    builder.require_kvm();
    let kernel = builder.uncompressed_image();
    check_kernel(&mut builder, &kernel);
    let devices = check_limits(&mut builder);
    let configuration = FullConfiguration {
        boot_source: boot_source(&mut builder, &kernel, devices),
        machine_config: MachineConfiguration {
            vcpu_count: spec.vcpu,
            mem_size_mib: spec.memory.mem_mib,
            // With SMT, an odd number of CPUs is refused; without it, the guest sees the same number of cores.
            smt: false,
            track_dirty_pages: false,
            huge_pages: spec.memory.huge_pages.then_some(HugePages::TwoMib),
        },
        cpu_config: spec.sections.firecracker.cpu.clone(),
        drives: drives(&mut builder),
        pmem: pmem(&mut builder),
        network_interfaces: network_interfaces(&mut builder),
        vsock: spec
            .vsock
            .as_ref()
            .map(|vsock| Vsock { guest_cid: vsock.cid, uds_path: vsock.socket.as_str().to_owned() }),
        balloon: balloon(&builder),
        memory_hotplug: memory_hotplug(&mut builder),
        entropy: spec.rng.then_some(Entropy {}),
    };
    let mut document = configuration.to_value();
    for (field, reason) in config::merge(&mut document, &spec.sections.firecracker.extra_config) {
        builder.refuse(format!("firecracker.extraConfig.{field}"), reason);
    }
    // `extraConfig` can turn on hyper-threading, and `vcpu` stays ours.
    let vcpus = spec.vcpu;
    if document["machine-config"]["smt"] == true && vcpus > 1 && vcpus % 2 == 1 {
        let reason = format!("requires an even number of vCPUs, or one; the machine has {vcpus}");
        builder.refuse("firecracker.extraConfig.machine-config.smt", reason);
    }
    finish(builder, &document)
}

fn check_kernel(builder: &mut LaunchBuilder<'_>, kernel: &HostPath) {
    let form = builder.kernel_form(kernel);
    if form == Some(KernelForm::BzImage) && !builder.facts.at_least(Hypervisor::Firecracker, BZ_IMAGE) {
        let reason =
            format!("boots bzImages only from version {BZ_IMAGE} on; give it the uncompressed kernel as vmlinux");
        builder.refuse(builder.kernel_option(kernel), reason);
    }
}

/// Refuses a machine that exceeds firecracker's limits, and returns the number of its devices.
fn check_limits(builder: &mut LaunchBuilder<'_>) -> usize {
    let spec = builder.spec;
    builder.check_cpus(MAX_VCPUS);
    let single = [spec.vsock.is_some(), spec.memory.balloon.is_some(), spec.memory.hotplug.is_some(), spec.rng];
    let devices = spec.disks.len() + spec.interfaces.len() + single.into_iter().filter(|present| *present).count();
    if devices > MAX_DEVICES {
        builder.refuse("volumes", format!("supports at most {MAX_DEVICES} devices, but this machine has {devices}"));
    }
    let memory = &spec.memory;
    if memory.hotplug.is_some() || memory.balloon.is_some() {
        let too_old = !builder.facts.at_least(Hypervisor::Firecracker, MEMORY_DEVICES);
        if memory.hotplug.is_some() && too_old {
            builder.refuse("hotplugMem", format!("supports virtio-mem from version {MEMORY_DEVICES} on"));
        }
    }
    devices
}

fn boot_source(builder: &mut LaunchBuilder<'_>, kernel: &HostPath, devices: usize) -> BootSource {
    let initrd_path = builder.initrd_with_credentials().map(|initrd| initrd.as_str().to_owned());
    // Always set, because firecracker's own default contains `nomodule`, with which no NixOS initrd finds its root.
    // `i8042.nopnp` is left out, because with it the guest does not receive Ctrl-Alt-Delete.
    let own = match builder.architecture() {
        Architecture::X86_64 => {
            ["console=ttyS0,115200", "reboot=k", "panic=1", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd"].as_slice()
        }
        Architecture::Aarch64 => ["console=ttyS0,115200", "reboot=k", "panic=1"].as_slice(),
    };
    let machine_id = builder.machine_id_parameter();
    let parameters: Vec<_> = own.iter().copied().chain([machine_id.as_str()]).collect();
    let boot_args = builder.command_line(&parameters, APPENDED_BYTES + APPENDED_BYTES_PER_DEVICE * devices);
    BootSource { kernel_image_path: kernel.as_str().to_owned(), initrd_path, boot_args }
}

fn drives(builder: &mut LaunchBuilder<'_>) -> Vec<Drive> {
    let io_engine = if builder.facts.io_uring_is_usable {
        builder.spec.sections.firecracker.drive_io_engine
    } else {
        DriveIoEngine::Sync
    };
    if io_engine != builder.spec.sections.firecracker.drive_io_engine {
        builder.warn(
            "firecracker.driveIoEngine",
            "this host has no io_uring, so disks are read and written with \"Sync\"",
        );
    }
    let mut drives = Vec::new();
    for disk in &builder.spec.disks {
        let backend = match &disk.backend {
            DiskBackend::Image => DriveBackend::Image {
                path_on_host: disk.image.as_str().to_owned(),
                is_read_only: disk.read_only,
                cache_type: if disk.read_only { CacheType::Unsafe } else { CacheType::Writeback },
                io_engine,
            },
            DiskBackend::Live(live) => live_drive(builder, disk, live),
            DiskBackend::Pmem => continue,
        };
        let drive_id = disk.device.trim_start_matches("/dev/").to_owned();
        // A root device would come first regardless of its place in the list, and would add root=/dev/vda to the
        // command line.
        drives.push(Drive { drive_id, is_root_device: false, backend });
    }
    drives
}

/// It uses a single queue.
fn live_drive(builder: &mut LaunchBuilder<'_>, disk: &Disk, live: &LiveStore) -> DriveBackend {
    if !builder.facts.at_least(Hypervisor::Firecracker, VHOST_USER) {
        builder.refuse("storeDisk.live", format!("supports store disks without an image from version {VHOST_USER} on"));
    }
    let process = live_store(builder, live, &disk.image, 1);
    builder.needs.processes.push(process);
    DriveBackend::Socket { socket: live.socket.as_str().to_owned() }
}

fn pmem(builder: &mut LaunchBuilder<'_>) -> Vec<Pmem> {
    let disks = builder.spec.disks.iter().filter(|disk| disk.backend == DiskBackend::Pmem);
    let pmem: Vec<_> = disks
        .map(|disk| Pmem {
            id: "store".to_owned(),
            path_on_host: disk.image.as_str().to_owned(),
            root_device: false,
            read_only: true,
        })
        .collect();
    if !pmem.is_empty() && !builder.facts.at_least(Hypervisor::Firecracker, PMEM) {
        builder.refuse("storeDisk.transport", format!("supports persistent memory from version {PMEM} on"));
    }
    pmem
}

fn network_interfaces(builder: &mut LaunchBuilder<'_>) -> Vec<NetworkInterface> {
    let mut interfaces = Vec::new();
    for interface in &builder.spec.interfaces {
        if matches!(interface.kind, InterfaceKind::Tap { .. }) {
            builder.need_tap(&interface.id, 1);
            interfaces.push(NetworkInterface {
                iface_id: format!("eth{}", interfaces.len()),
                host_dev_name: interface.id.clone(),
                guest_mac: interface.mac.clone(),
            });
        }
    }
    interfaces
}

fn balloon(builder: &LaunchBuilder<'_>) -> Option<Balloon> {
    let balloon = builder.spec.memory.balloon.as_ref()?;
    // Older versions fail on an unknown field.
    let reports = builder.facts.at_least(Hypervisor::Firecracker, MEMORY_DEVICES);
    Some(Balloon {
        amount_mib: balloon.initial_mib,
        deflate_on_oom: balloon.deflate_on_oom,
        stats_polling_interval_s: 1,
        free_page_reporting: reports.then_some(true),
    })
}

fn memory_hotplug(builder: &mut LaunchBuilder<'_>) -> Option<MemoryHotplug> {
    let hotplug = builder.spec.memory.hotplug.as_ref()?;
    if hotplug.initial_mib > 0 {
        builder.refuse("hotpluggedMem", "plugs memory in only while it runs; set hotpluggedMem = 0");
    }
    if !hotplug.max_mib.is_multiple_of(HOTPLUG_SLOT_MIB) {
        builder.refuse(
            "hotplugMem",
            format!(
                "plugs memory in slots of {HOTPLUG_SLOT_MIB} MiB, and {} is not a multiple of that",
                hotplug.max_mib
            ),
        );
    }
    Some(MemoryHotplug { total_size_mib: hotplug.max_mib })
}

/// Whether the option is among the arguments.
fn has_option(arguments: &[String], option: &str) -> bool {
    arguments.iter().any(|argument| argument.split('=').next() == Some(option))
}

/// Refuses arguments of the user with which firecracker would not start.
fn check_arguments(builder: &mut LaunchBuilder<'_>, own: &[String]) {
    let option = "firecracker.extraArgs";
    let extra = &builder.spec.sections.firecracker.extra_args;
    check_conditions(builder, &GivenArguments { option, extra, own }, &CONDITIONS);
    if has_option(extra, "--describe-snapshot") {
        builder.refuse(option, "would print text and exit with --describe-snapshot, instead of starting the machine");
    }
    // validate_instance_id in src/utils/src/validators.rs
    let is_id =
        |id: &str| (1..=64).contains(&id.len()) && id.chars().all(|letter| letter == '-' || letter.is_alphanumeric());
    if let Some(id) = values(extra, "--id").find(|id| !is_id(id)) {
        builder.refuse(option, format!("accepts ids of 1 to 64 letters, digits and hyphens, but --id is `{id}`"));
    }
}

fn finish(mut builder: LaunchBuilder<'_>, document: &serde_json::Value) -> Result<Launch, Vec<Refusal>> {
    let spec = builder.spec;
    let path = configuration_of(&spec.name);
    let words = ["--api-sock", spec.control_socket.as_str(), CONFIGURATION_OPTION, path.as_str()];
    let mut arguments = words.map(str::to_owned).to_vec();
    let extra = &spec.sections.firecracker.extra_args;
    // firecracker logs to stdout, which is the guest's console, so only warnings and errors are logged.
    if !has_option(extra, "--level") {
        arguments.extend(["--level".to_owned(), "Warning".to_owned()]);
    }
    check_arguments(&mut builder, &arguments);
    builder.add_extra_arguments("firecracker.extraArgs", &mut arguments, extra, &UNIQUE_OPTIONS);
    let action = |action: &str| HttpRequest {
        method: "PUT".to_owned(),
        path: "/actions".to_owned(),
        body: Some(serde_json::json!({"action_type": action})),
    };
    let graceful = match builder.architecture() {
        Architecture::X86_64 => vec![GracefulStep::Http(action("SendCtrlAltDel"))],
        Architecture::Aarch64 => Vec::new(),
    };
    let command = Command {
        program: spec.sections.firecracker.program.clone(),
        arguments,
        environment: BTreeMap::new(),
        files: vec![FileToWrite { path, content: format!("{document:#}\n") }],
        control: spec.control_socket.clone(),
        graceful,
        forced: ForcedStop::Terminate,
        console_device: Some("ttyS0"),
        expected_configuration: Some(document.clone()),
    };
    builder.finish(command)
}
