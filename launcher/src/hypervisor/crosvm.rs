//! crosvm, which runs each device in its own jail. Written against 2026-08.

mod extra;

use super::description::{CredentialTransport, Description, HypervisorProgram, ImageLimits, VsockTransport};
use super::launch_builder::{Command, LaunchBuilder, UniqueOption};
use super::renderer::{Renderer, SoftwareOpenGl, renderer};
use super::side_process::{TagProvider, crosvm_gpu, live_store, virtiofsd};
use crate::capability::{Feature, Support};
use crate::keyval::{Dialect, Options};
use crate::launch::{Access, ControlProtocol, ForcedStop, GracefulStep, Launch, crosvm_directory};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::{DeviceBus, Hypervisor, ImageType, ShareProtocol};
use crate::validate::{CheckedGraphics, CheckedInterface, CheckedShare, Disk, DiskBackend, InterfaceKind};
use serde_json::json;
use std::collections::BTreeMap;

/// The parameters that crosvm adds before the user's.
const PREPENDED: &str = "panic=-1 console=ttyS0 ";
/// The slots of its PCI bus without the host bridge and two devices of its own, which come last.
const MAX_DEVICES: usize = 29;
/// The directory in which crosvm jails its devices unless an option names another one: `DEFAULT_PIVOT_ROOT` in its
/// build.
const DEFAULT_PIVOT_ROOT: &str = "/var/empty";

/// Measured: with more CPUs the x86 tables fail, because the number of the interrupt controller follows those of the
/// CPUs.
const MAX_VCPUS: u32 = 254;
/// Options that make crosvm fail when they are given twice.
const UNIQUE_OPTIONS: [UniqueOption; 9] = [
    UniqueOption { names: &["-c", "--cpus"], instead: "use vcpu" },
    UniqueOption { names: &["-m", "--mem"], instead: "use mem" },
    UniqueOption { names: &["-s", "--socket"], instead: "use socket" },
    UniqueOption { names: &["--name"], instead: "use name" },
    UniqueOption { names: &["-i", "--initrd"], instead: "use initrd" },
    UniqueOption { names: &["--pivot-root"], instead: "use crosvm.pivotRoot" },
    UniqueOption { names: &["--init-mem"], instead: "use initialBalloonMem" },
    UniqueOption { names: &["--smbios"], instead: "use machineId, or omit that option" },
    UniqueOption { names: &["--vsock", "--cid"], instead: "use vsock.cid" },
];

pub(super) const DESCRIPTION: Description = Description {
    hypervisor: Hypervisor::Crosvm,
    programs: &[HypervisorProgram { architecture: None, name: "crosvm", debian_package: None, nix_package: "crosvm" }],
    // It has no meaningful version numbers.
    version_option: None,
    vsock: VsockTransport::Kernel,
    protocol: ControlProtocol::CrosvmSeqpacket,
    credentials: CredentialTransport::Initrd,
    image_limits: Some(ImageLimits { opens_old_and_compressed_qcow2: false }),
    needs_empty_directory: true,
    uses_tsc_frequency: false,
    reconnects_disks: false,
    support,
    suspend_obstacle,
    clone_obstacle,
    resume,
    lower,
};

/// The supported features. `tests/hypervisors/rows.rs` has verified all supported ones with version 2026-08-21, except
/// for PCI devices, vhost-net, vsock and the screen, which the test host did not have.
fn support(feature: Feature) -> Support {
    match feature {
        Feature::StoreDisk
        | Feature::SealedStoreDisk
        | Feature::LiveStoreDisk
        | Feature::PmemStoreDisk
        | Feature::VolumeSerial
        | Feature::VolumeDirect
        | Feature::Virtiofs
        | Feature::InterfaceTap
        | Feature::InterfaceMacvtap
        | Feature::TapVhost
        | Feature::Vsock
        | Feature::GuestNotification
        | Feature::Balloon
        | Feature::InitialBalloon
        | Feature::DevicePci
        | Feature::MachineId
        | Feature::Console
        | Feature::WithoutRng
        | Feature::GracefulStop
        | Feature::Suspend => Support::Yes,
        Feature::LiveMigration => Support::No("resumes a machine only from files"),
        Feature::VolumeQcow2 => Support::Partly("of version 3, uncompressed, without direct I/O and backing file"),
        Feature::NineP => Support::Partly("reported as broken by users of the former launcher; virtiofs works"),
        Feature::TapMultiQueue => Support::Partly("not together with vhost-net"),
        Feature::HugePages => Support::Partly("transparent huge pages, by madvise(2)"),
        Feature::Credentials => Support::With("in an initrd that is assembled in memory at the start"),
        Feature::VolumeVhd | Feature::VolumeVhdx => Support::No("supports raw and qcow2 images only"),
        Feature::NinePReadOnly => Support::No("cannot share a directory read-only by 9p"),
        Feature::NinePSecurityModel => Support::No("has no security models"),
        Feature::InterfaceUser => Support::No("has no user networking, and passt does not work with it"),
        Feature::InterfaceBridge => Support::No("has no bridge helper; add a tap to the bridge on the host"),
        Feature::ForwardFromHost | Feature::ForwardFromGuest => {
            Support::No("has no user networking, so no forwarded ports")
        }
        Feature::HotplugMemory => Support::No("has no virtio-mem"),
        Feature::DeviceUsb => Support::No("supports USB devices only while it runs"),
        Feature::CpuModel => Support::No("always uses the host's CPU"),
        Feature::WithoutKvm => Support::No("needs KVM"),
        Feature::OtherArchitecture => Support::No("runs guests of the host's architecture only"),
        Feature::Graphics => Support::Partly("a window on a Wayland desktop, without keyboard and pointer"),
        #[allow(unreachable_patterns, reason = "a feature without a row is not supported")]
        _ => Support::No("does not support it"),
    }
}

/// The devices that crosvm cannot save. Parts of a qcow2 image are only in its memory.
fn suspend_obstacle(feature: Feature) -> Option<&'static str> {
    match feature {
        Feature::NineP => Some("does not save the open files of a 9p share"),
        Feature::Virtiofs => Some("does not save the state of virtiofsd"),
        Feature::LiveStoreDisk => Some("does not save the state of the server of a store disk without an image"),
        Feature::VolumeQcow2 => Some("saves machines with raw images only"),
        Feature::TapVhost => Some("does not save the state of vhost-net"),
        Feature::DevicePci => Some("cannot save the state of a device of the host"),
        Feature::Graphics => Some("does not save the state of the screen"),
        _ => None,
    }
}

/// What was saved contains the vsock address, of which a host has only one.
fn clone_obstacle(feature: Feature) -> Option<&'static str> {
    (feature == Feature::Vsock).then_some("restores the vsock address of the machine that was saved")
}

/// The last argument is the kernel, after which there are no options.
fn resume(launch: &mut Launch, directory: &HostPath) {
    let kernel = launch.arguments.len().saturating_sub(1);
    let words = ["--restore".to_owned(), crosvm_directory(directory).as_str().to_owned()];
    launch.arguments.splice(kernel..kernel, words);
}

fn lower(mut builder: LaunchBuilder<'_>) -> Result<Launch, Vec<Refusal>> {
    let spec = builder.spec;
    builder.require_kvm();
    builder.probes_formats();
    let kernel = builder.uncompressed_image();
    builder.kernel_form(&kernel);
    check_devices(&mut builder);
    if spec.memory.balloon.is_some() && !builder.facts.crosvm_has_balloon {
        builder.refuse("balloon", "of this host is built without the balloon");
    }
    let words = ["--no-syslog", "--log-level", "warn", "run", "--name", &spec.name, "-s", spec.control_socket.as_str()];
    let mut arguments = words.map(str::to_owned).to_vec();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-c", &spec.vcpu.to_string(), "-m", &spec.memory.mem_mib.to_string()]);
    // crosvm cannot save its USB controller, so a machine with one could not be suspended.
    add(&["--no-usb"]);
    add(&["--serial", "type=stdout,hardware=serial,num=1,console=true,stdin=true"]);
    if builder.facts.is_confined {
        // The jail requires namespaces, which the unit denies. The unit itself is the jail.
        add(&["--disable-sandbox"]);
    } else if let Some(pivot_root) = pivot_root(&mut builder) {
        add(&["--pivot-root", pivot_root.as_str()]);
    }
    if spec.memory.huge_pages {
        // Transparent huge pages: none need to be reserved.
        builder.needs.huge_pages_mib = 0;
        add(&["--hugepages"]);
    }
    match &spec.memory.balloon {
        Some(balloon) => {
            add(&["--balloon-page-reporting"]);
            if balloon.initial_mib > 0 {
                add(&["--init-mem", &(spec.memory.mem_mib - balloon.initial_mib).to_string()]);
            }
        }
        None if builder.facts.crosvm_has_balloon => add(&["--no-balloon"]),
        None => {}
    }
    if !spec.rng {
        add(&["--no-rng"]);
    }
    if let Some(id) = &spec.machine_id {
        add(&["--smbios", &format!("uuid={id}")]);
    }
    for disk in &spec.disks {
        let (switch, options) = disk_options(&mut builder, disk);
        add(&[switch, &options]);
    }
    for (index, interface) in spec.interfaces.iter().enumerate() {
        add(&["--net", &network_options(&mut builder, index, interface)]);
    }
    for (index, checked) in spec.shares.iter().enumerate() {
        add(&share_options(&mut builder, index, checked).each_ref().map(String::as_str));
    }
    if let Some(graphics) = &spec.graphics {
        add(&["--vhost-user", &graphics_options(&mut builder, graphics)]);
    }
    if let Some(vsock) = &spec.vsock {
        add(&["--vsock", &format!("cid={}", vsock.cid)]);
    }
    for device in spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci) {
        add(&["--vfio", &format!("/sys/bus/pci/devices/{}", device.path)]);
    }
    if let Some(initrd) = builder.initrd_with_credentials() {
        add(&["-i", initrd.as_str()]);
    }
    // Before the serial console: the last console is /dev/console, which programs write to.
    let screen = if spec.graphics.is_some() { "console=tty0" } else { "" };
    add(&["-p", &builder.ascii_command_line(&[screen, "console=ttyS0", "reboot=k", "panic=1"], PREPENDED.len())]);
    extra::check(&mut builder, &arguments);
    builder.add_extra_arguments("crosvm.extraArgs", &mut arguments, &spec.sections.crosvm.extra_args, &UNIQUE_OPTIONS);
    arguments.push(kernel.as_str().to_owned());
    finish(builder, arguments)
}

fn check_devices(builder: &mut LaunchBuilder<'_>) {
    let spec = builder.spec;
    let singles = [spec.rng, spec.memory.balloon.is_some(), spec.vsock.is_some(), spec.graphics.is_some()];
    let devices = spec.disks.len()
        + spec.interfaces.len()
        + spec.shares.len()
        + spec.devices.len()
        + singles.into_iter().filter(|present| *present).count();
    builder.check_cpus(MAX_VCPUS);
    if devices > MAX_DEVICES {
        builder.refuse("volumes", format!("supports at most {MAX_DEVICES} devices, but this machine has {devices}"));
    }
}

/// Returns the directory for the jails, if the command must name it.
fn pivot_root(builder: &mut LaunchBuilder<'_>) -> Option<HostPath> {
    let chosen = builder.spec.sections.crosvm.pivot_root.clone().or_else(|| builder.facts.empty_directory.clone());
    let directory = chosen.clone().unwrap_or_else(|| HostPath::from(DEFAULT_PIVOT_ROOT));
    builder.need_file("crosvm.pivotRoot", &directory, Access::ReadDirectory);
    chosen
}

fn disk_options(builder: &mut LaunchBuilder<'_>, disk: &Disk) -> (&'static str, String) {
    let new = || Options::new(Dialect::Crosvm);
    match &disk.backend {
        DiskBackend::Image => ("--block", image_options(builder, disk)),
        DiskBackend::Pmem => {
            let options = new().pair("path", &disk.image).pair("ro", true);
            ("--pmem", builder.written("storeDisk.image", options.finish()))
        }
        DiskBackend::Live(live) => {
            // A guest uses as many queues as it has CPUs; the server says how many there are.
            let queues = builder.queue_pairs();
            let process = live_store(builder, live, &disk.image, queues);
            builder.needs.processes.push(process);
            let options = new().pair("type", "block").pair("socket", &live.socket);
            ("--vhost-user", builder.written("storeDisk.live", options.finish()))
        }
    }
}

fn image_options(builder: &mut LaunchBuilder<'_>, disk: &Disk) -> String {
    if disk.direct && disk.image_type == ImageType::Qcow2 {
        builder
            .refuse(format!("{}.direct", disk.option), "opens raw images only for direct I/O, and this one is qcow2");
    }
    let options = Options::new(Dialect::Crosvm)
        .pair("path", &disk.image)
        .pair_if("ro", disk.read_only.then_some(true))
        .pair_if("direct", disk.direct.then_some(true))
        .pair_if("id", disk.serial.as_ref());
    builder.written(&format!("{}.image", disk.option), options.finish())
}

fn network_options(builder: &mut LaunchBuilder<'_>, index: usize, interface: &CheckedInterface) -> String {
    let options = Options::new(Dialect::Crosvm);
    let options = match &interface.kind {
        InterfaceKind::Tap { vhost } => {
            // With vhost-net, crosvm opens the tap with a single queue, regardless of the options.
            let pairs = if *vhost { 1 } else { builder.queue_pairs() };
            builder.need_tap(&interface.id, pairs);
            let options = options.pair("tap-name", &interface.id).pair("mac", &interface.mac);
            let options = options.pair_if("vq-pairs", (pairs > 1).then_some(pairs));
            if *vhost {
                builder.need_device(&format!("interfaces[{index}].tap.vhost"), "/dev/vhost-net", "modprobe vhost_net");
                options.word("vhost-net")
            } else {
                options
            }
        }
        InterfaceKind::Macvtap { link, mode } => {
            let descriptors = builder.need_macvtap(interface, (link, *mode), 1);
            options.pair_if("tap-fd", descriptors.first()).pair("mac", &interface.mac)
        }
        InterfaceKind::User | InterfaceKind::Bridge { .. } => return String::new(),
    };
    builder.written(&format!("interfaces[{index}]"), options.finish())
}

fn share_options(builder: &mut LaunchBuilder<'_>, index: usize, checked: &CheckedShare) -> [String; 2] {
    let share = &checked.share;
    match share.proto {
        ShareProtocol::Virtiofs => {
            let process = virtiofsd(builder, checked, TagProvider::Daemon);
            builder.needs.processes.push(process);
            let options = Options::new(Dialect::Crosvm).pair("type", "fs").pair("socket", &checked.socket);
            ["--vhost-user".to_owned(), builder.written(&format!("shares[{index}].socket"), options.finish())]
        }
        ShareProtocol::NineP => {
            for (name, value) in [("source", share.source.as_str()), ("tag", share.tag.as_str())] {
                if value.contains(':') {
                    builder.refuse(
                        format!("shares[{index}].{name}"),
                        format!("cannot be given `{value}`: a colon cannot be written in its option for shares"),
                    );
                }
            }
            // crosvm's process for the share has another working directory, so the path must be absolute.
            let source = share.source.below(&builder.facts.state_directory);
            ["--shared-dir".to_owned(), format!("{source}:{}:type=p9", share.tag)]
        }
    }
}

/// Adds the graphics card, which is a process without a jail because it must find the host's graphics drivers.
fn graphics_options(builder: &mut LaunchBuilder<'_>, graphics: &CheckedGraphics) -> String {
    let renderer = renderer(builder, graphics, SoftwareOpenGl::Fails);
    let Some(wayland_socket) = builder.facts.desktop.wayland_socket.clone() else {
        let reason = "shows its window on a Wayland desktop only, but $WAYLAND_DISPLAY is not set; \
                      start it from a graphical session";
        builder.refuse("graphics.enable", reason);
        return String::new();
    };
    if wayland_socket.as_str().contains(',') {
        let reason = format!("cannot be given `{wayland_socket}`: a comma ends a path in its option for Wayland");
        builder.refuse("graphics.enable", reason);
    }
    // The cross-domain context lets a proxy in the guest show single windows over Wayland's protocol.
    let parameters = match renderer {
        Renderer::Host(_) => json!({"context-types": "virgl:virgl2:cross-domain", "egl": true, "vulkan": true}),
        Renderer::Guest => json!({"backend": "2d", "context-types": "cross-domain"}),
    };
    let process = crosvm_gpu(builder.spec, graphics, &wayland_socket, &parameters);
    builder.needs.sockets_to_remove.push(graphics.socket.clone());
    builder.needs.processes.push(process);
    let options = Options::new(Dialect::Crosvm).pair("type", "gpu").pair("socket", &graphics.socket);
    builder.written("graphics.socket", options.finish())
}

fn finish(builder: LaunchBuilder<'_>, arguments: Vec<String>) -> Result<Launch, Vec<Refusal>> {
    let spec = builder.spec;
    let command = Command {
        program: spec.sections.crosvm.program.clone(),
        arguments,
        environment: BTreeMap::new(),
        files: Vec::new(),
        control: spec.control_socket.clone(),
        graceful: vec![GracefulStep::CrosvmPowerButton],
        forced: ForcedStop::CrosvmExit,
        console_device: Some("ttyS0"),
        expected_configuration: None,
    };
    builder.finish(command)
}
