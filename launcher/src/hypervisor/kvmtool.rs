//! kvmtool, a small hypervisor without ACPI, disk serial numbers, or a way to request a shutdown. Written against
//! b48735e (2024-07).

use super::conditions::{Condition, GivenArguments, check_conditions, values};
use super::description::{CredentialTransport, Description, HypervisorProgram, VsockTransport};
use super::launch_builder::{Command, LaunchBuilder, UniqueOption};
use crate::capability::{Feature, Support};
use crate::facts::{Architecture, KernelForm};
use crate::keyval::{Dialect, Options};
use crate::launch::{Access, ControlProtocol, ForcedStop, GracefulStep, Launch};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::{DeviceBus, Hypervisor, ShareProtocol};
use crate::validate::{CheckedInterface, Disk, InterfaceKind};
use std::collections::BTreeMap;

/// `MAX_DISK_IMAGES` in include/kvm/disk-image.h.
const MAX_DISKS: usize = 4;
/// `MIN_RAM_SIZE` in include/kvm/kvm-config.h.
const MIN_MEMORY_MIB: u64 = 64;
/// The parameters that kvmtool adds by default on x86 (`kvm__arch_set_cmdline`), except for a root device. It has no
/// ACPI tables and no usable I/O APIC, and its keyboard controller supports only the reset command.
const X86_PARAMETERS: [&str; 11] = [
    "noapic",
    "noacpi",
    "pci=conf1",
    "reboot=k",
    "panic=1",
    "i8042.direct=1",
    "i8042.dumbkbd=1",
    "i8042.nopnp=1",
    "i8042.noaux=1",
    "earlyprintk=serial",
    "console=ttyS0",
];
/// `MPTABLE_MAX_CPUS` in x86/mptable.c.
const MAX_VCPUS: u32 = 255;
/// Options of which kvmtool silently uses the last one.
const UNIQUE_OPTIONS: [UniqueOption; 12] = [
    UniqueOption { names: &["-c", "--cpus"], instead: "use vcpu" },
    UniqueOption { names: &["-m", "--mem"], instead: "use mem" },
    UniqueOption { names: &["-k", "--kernel"], instead: "use kernel" },
    UniqueOption { names: &["-i", "--initrd"], instead: "use initrd" },
    UniqueOption { names: &["-p", "--params"], instead: "use kernelParams" },
    UniqueOption { names: &["--name"], instead: "use name" },
    UniqueOption { names: &["--console"], instead: "the launcher uses the serial console" },
    UniqueOption { names: &["--vsock"], instead: "use vsock.cid" },
    UniqueOption { names: &["--hugetlbfs"], instead: "use hugepageMem" },
    UniqueOption { names: &["--rng", "--no-rng"], instead: "use rng" },
    UniqueOption { names: &["--balloon", "--no-balloon"], instead: "use balloon" },
    UniqueOption { names: &["--nodefaults", "--no-nodefaults"], instead: "the launcher configures all devices itself" },
];
/// Options that kvmtool refuses together or beside the launcher's (`kvm_run_validate_cfg` in builtin-run.c).
const CONDITIONS: [Condition; 4] = [
    Condition::Refused(
        "--debug-single-step",
        "kvmtool stops after each instruction of the guest, which then does not boot",
    ),
    Condition::Refused("--firmware", "the kernel is booted without a firmware"),
    Condition::Refused("-f", "the kernel is booted without a firmware"),
    Condition::AtMostOne(&["--vnc", "--sdl", "--gtk"]),
];
/// Names of options that kvmtool also recognises by their first letters (`parse_long_opt` in util/parse-options.c). The
/// launcher must recognise each of them.
const NAMES: [&str; 17] = [
    "9p",
    "balloon",
    "console",
    "cpus",
    "debug-single-step",
    "disk",
    "firmware",
    "hugetlbfs",
    "initrd",
    "kernel",
    "mem",
    "name",
    "network",
    "nodefaults",
    "params",
    "rng",
    "vsock",
];
const ARM_PARAMETERS: [&str; 2] = ["panic=1", "console=ttyS0"];

pub(super) const DESCRIPTION: Description = Description {
    hypervisor: Hypervisor::Kvmtool,
    programs: &[HypervisorProgram { architecture: None, name: "lkvm", debian_package: None, nix_package: "kvmtool" }],
    // Its version numbers are not meaningful.
    version_option: None,
    vsock: VsockTransport::Kernel,
    protocol: ControlProtocol::Kvmtool,
    credentials: CredentialTransport::Initrd,
    image_limits: None,
    needs_empty_directory: false,
    uses_tsc_frequency: false,
    reconnects_disks: false,
    support,
    suspend_obstacle: |_| None,
    clone_obstacle: |_| None,
    resume: |_, _| {},
    lower,
};

/// The supported features. `tests/hypervisors/rows.rs` has verified all supported ones with version b48735e (3.18.0),
/// except for PCI devices, vhost-net and vsock, which the test host did not have.
fn support(feature: Feature) -> Support {
    match feature {
        Feature::StoreDisk
        | Feature::SealedStoreDisk
        | Feature::VolumeDirect
        | Feature::NineP
        | Feature::InterfaceTap
        | Feature::InterfaceMacvtap
        | Feature::TapVhost
        | Feature::Vsock
        | Feature::GuestNotification
        | Feature::Balloon
        | Feature::HugePages
        | Feature::DevicePci
        | Feature::WithoutRng
        | Feature::Console => Support::Yes,
        Feature::LiveStoreDisk => Support::No(
            "has no vhost-user, so no disk without an image; set microvm.storeDiskBuild to \"host\", or share /nix/store",
        ),
        Feature::PmemStoreDisk => {
            Support::No("has no persistent memory; leave microvm.storeDiskTransport at \"block\"")
        }
        Feature::InterfaceUser => {
            Support::Partly("one interface, without DHCP: the guest is 192.168.33.15/24, its gateway 192.168.33.1")
        }
        Feature::Credentials => Support::With("in an initrd that is assembled in memory at the start"),
        Feature::MachineId => Support::With("as a kernel parameter"),
        Feature::GracefulStop => Support::Partly(
            "when supervised: file systems are synced and remounted read-only by magic system requests, but services are \
             not stopped",
        ),
        Feature::Suspend | Feature::LiveMigration => Support::No("cannot save the memory and the devices of a machine"),
        Feature::VolumeSerial => Support::No("cannot set serial numbers"),
        Feature::VolumeQcow2 => Support::No("supports qcow2 images read-only"),
        Feature::VolumeVhd | Feature::VolumeVhdx => Support::No("supports raw images only"),
        Feature::NinePReadOnly => Support::No("cannot share a directory read-only"),
        Feature::NinePSecurityModel => Support::No("has no security models"),
        Feature::Virtiofs => Support::No("has no vhost-user devices, so no virtiofs"),
        Feature::InterfaceBridge => Support::No("has no bridge helper; add a tap to the bridge on the host"),
        Feature::TapMultiQueue => Support::No("opens taps with a single queue"),
        Feature::ForwardFromHost | Feature::ForwardFromGuest => Support::No("does not forward ports"),
        Feature::InitialBalloon => Support::No("starts with an empty balloon; fill it with `microvm balloon`"),
        Feature::HotplugMemory => Support::No("has no virtio-mem"),
        Feature::DeviceUsb => Support::No("has no USB"),
        Feature::CpuModel => Support::No("always uses the host's CPU"),
        Feature::WithoutKvm => Support::No("needs KVM"),
        Feature::OtherArchitecture => Support::No("runs guests of the host's architecture only"),
        Feature::Graphics => {
            Support::No("has a screen only if it is built with SDL, GTK or VNC, which nixpkgs does not do")
        }
        #[allow(unreachable_patterns, reason = "a feature without a row is not supported")]
        _ => Support::No("does not support it"),
    }
}

fn lower(mut builder: LaunchBuilder<'_>) -> Result<Launch, Vec<Refusal>> {
    let spec = builder.spec;
    builder.require_kvm();
    builder.probes_formats();
    check_limits(&mut builder);
    let kernel = builder.boot_image();
    let is_elf = matches!(builder.kernel_form(&kernel), Some(KernelForm::Elf | KernelForm::ElfPvh));
    if is_elf && builder.architecture() == Architecture::X86_64 {
        builder.refuse(
            "kernel",
            format!("boots bzImages only, and {kernel} is an ELF, which it would load as plain bytes"),
        );
    }
    // Without --nodefaults, kvmtool would add a root device to the command line, and would share the host's root
    // directory with a guest that has neither a disk nor an initrd.
    let words = ["run", "--nodefaults", "--name", &spec.name, "--console", "serial"];
    let mut arguments = words.map(str::to_owned).to_vec();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-m", &spec.memory.mem_mib.to_string(), "-c", &spec.vcpu.to_string(), "-k", kernel.as_str()]);
    if let Some(initrd) = builder.initrd_with_credentials() {
        add(&["-i", initrd.as_str()]);
    }
    add(&["-p", &command_line(&mut builder)]);
    if spec.memory.huge_pages {
        // It creates a file there.
        let directory = HostPath::from("/dev/hugepages");
        add(&["--hugetlbfs", directory.as_str()]);
        builder.need_file("hugepageMem", &directory, Access::WriteDirectory);
        builder.needs.hugetlbfs = Some(directory);
    }
    if spec.rng {
        add(&["--rng"]);
    }
    if spec.memory.balloon.is_some() {
        add(&["--balloon"]);
    }
    for disk in &spec.disks {
        add(&["-d", &disk_options(&mut builder, disk)]);
    }
    for (index, interface) in spec.interfaces.iter().enumerate() {
        add(&["-n", &network_options(&mut builder, index, interface)]);
    }
    // With mode=none, an interface that the user adds would not work.
    let adds_interface = |argument: &String| is_option(argument, "-n", "--network");
    if spec.interfaces.is_empty() && !spec.sections.kvmtool.extra_args.iter().any(adds_interface) {
        add(&["-n", "mode=none"]);
    }
    for (index, checked) in spec.shares.iter().enumerate() {
        if checked.share.proto == ShareProtocol::NineP {
            let source = Options::new(Dialect::Kvmtool).value(checked.share.source.as_str()).finish();
            let source = builder.written(&format!("shares[{index}].source"), source);
            add(&["--9p", &format!("{source},{}", checked.share.tag)]);
        }
    }
    if let Some(vsock) = &spec.vsock {
        add(&["--vsock", &vsock.cid.to_string()]);
    }
    for device in spec.devices.iter().filter(|device| device.bus == DeviceBus::Pci) {
        add(&["--vfio-pci", &device.path]);
    }
    check_abbreviations(&mut builder);
    let given = GivenArguments { option: "kvmtool.extraArgs", extra: &spec.sections.kvmtool.extra_args, own: &[] };
    check_conditions(&mut builder, &given, &CONDITIONS);
    if given.has_extra("--vsock") {
        builder.need_device("kvmtool.extraArgs", "/dev/vhost-vsock", "modprobe vhost_vsock");
    }
    if let Some(directory) = values(given.extra, "--hugetlbfs").last().map(HostPath::from) {
        builder.need_file("kvmtool.extraArgs", &directory, Access::WriteDirectory);
        builder.needs.hugetlbfs = Some(directory);
    }
    builder.add_extra_arguments(
        "kvmtool.extraArgs",
        &mut arguments,
        &spec.sections.kvmtool.extra_args,
        &UNIQUE_OPTIONS,
    );
    finish(builder, arguments)
}

/// Whether the argument is this option. The value of an option of one letter may follow it directly.
fn is_option(argument: &str, short: &str, long: &str) -> bool {
    let is_short = argument.starts_with(short) && !argument.starts_with("--");
    is_short || argument.split('=').next() == Some(long)
}

fn check_abbreviations(builder: &mut LaunchBuilder<'_>) {
    for argument in &builder.spec.sections.kvmtool.extra_args {
        let Some(given) = argument.strip_prefix("--").and_then(|rest| rest.split('=').next()) else { continue };
        let name = given.strip_prefix("no-").unwrap_or(given);
        // --debug is an option itself.
        let is_whole = |full: &str| full == name || name == "debug";
        let is_abbreviated = |full: &&&str| !name.is_empty() && full.starts_with(name) && !is_whole(full);
        if let Some(full) = NAMES.iter().find(is_abbreviated) {
            let reason =
                format!("would recognise --{given} as an abbreviation; write the name in full, such as --{full}");
            builder.refuse("kvmtool.extraArgs", reason);
        }
    }
}

fn command_line(builder: &mut LaunchBuilder<'_>) -> String {
    let machine_id = builder.machine_id_parameter();
    let own = match builder.architecture() {
        Architecture::X86_64 => X86_PARAMETERS.as_slice(),
        Architecture::Aarch64 => ARM_PARAMETERS.as_slice(),
    };
    // The stop sends magic system requests over the console, on which only the host can type.
    let parameters: Vec<_> = own.iter().copied().chain(["sysrq_always_enabled=1", &machine_id]).collect();
    builder.command_line(&parameters, 0)
}

fn check_limits(builder: &mut LaunchBuilder<'_>) {
    let spec = builder.spec;
    let is_disk = |argument: &&String| is_option(argument, "-d", "--disk");
    let disks = spec.disks.len() + spec.sections.kvmtool.extra_args.iter().filter(is_disk).count();
    if disks > MAX_DISKS {
        let reason = format!("supports at most {MAX_DISKS} disks, but this machine has {disks}");
        builder.refuse("volumes", reason);
    }
    builder.check_cpus(MAX_VCPUS);
    if spec.memory.mem_mib < MIN_MEMORY_MIB {
        builder.refuse("mem", format!("requires at least {MIN_MEMORY_MIB} MiB"));
    }
    let users = spec.interfaces.iter().filter(|interface| interface.kind == InterfaceKind::User).count();
    let extra = user_networks(&spec.sections.kvmtool.extra_args);
    if users > 1 || users + extra > 1 {
        let option = if extra == 0 { "interfaces" } else { "kvmtool.extraArgs" };
        builder.refuse(option, "supports at most one interface with user networking");
    }
    if spec.memory.balloon.as_ref().is_some_and(|balloon| balloon.deflate_on_oom) {
        builder.warn("deflateOnOOM", "kvmtool's balloon does not deflate by itself");
    }
}

fn disk_options(builder: &mut LaunchBuilder<'_>, disk: &Disk) -> String {
    // kvmtool takes a name that starts with `scsi:` for the address of a disk on the network.
    let image = disk.image.as_str();
    let image = if image.starts_with("scsi:") { format!("./{image}") } else { image.to_owned() };
    let mut options = Options::new(Dialect::Kvmtool).value(&image);
    if disk.read_only {
        options = options.word("ro");
    }
    if disk.direct {
        options = options.word("direct");
    }
    builder.written(&format!("{}.image", disk.option), options.finish())
}

/// Returns the number of interfaces with user networking among the user's arguments. This is the default mode.
fn user_networks(arguments: &[String]) -> usize {
    let is_user = |value: &str| {
        let mode = value.split(',').find_map(|option| option.strip_prefix("mode="));
        mode.unwrap_or("user") == "user"
    };
    let pairs = arguments.iter().zip(arguments.iter().skip(1).map(Some).chain([None]));
    pairs
        .filter(|(argument, next)| match argument.as_str() {
            "-n" | "--network" => next.is_some_and(|value| is_user(value)),
            argument => {
                argument.strip_prefix("--network=").or_else(|| argument.strip_prefix("-n")).is_some_and(is_user)
            }
        })
        .count()
}

fn network_options(builder: &mut LaunchBuilder<'_>, index: usize, interface: &CheckedInterface) -> String {
    let options = Options::new(Dialect::Kvmtool);
    let options = match &interface.kind {
        InterfaceKind::User => options.pair("mode", "user"),
        InterfaceKind::Tap { vhost } => {
            builder.need_tap(&interface.id, 1);
            let options = options.pair("mode", "tap").pair("tapif", &interface.id);
            if *vhost {
                builder.need_device(&format!("interfaces[{index}].tap.vhost"), "/dev/vhost-net", "modprobe vhost_net");
            }
            options.pair_if("vhost", vhost.then_some(1))
        }
        InterfaceKind::Macvtap { link, mode } => {
            let descriptors = builder.need_macvtap(interface, (link, *mode), 1);
            // With a slash in tapif, kvmtool does not configure the descriptor as a tap.
            options.pair("mode", "tap").pair("tapif", "/dev/macvtap").pair_if("fd", descriptors.first())
        }
        InterfaceKind::Bridge { .. } => return String::new(),
    };
    builder.written(&format!("interfaces[{index}]"), options.pair("guest_mac", &interface.mac).finish())
}

fn finish(builder: LaunchBuilder<'_>, arguments: Vec<String>) -> Result<Launch, Vec<Refusal>> {
    let (spec, home) = (builder.spec, builder.facts.state_directory.clone());
    // kvmtool always creates its socket below $HOME.
    let socket = HostPath::new(format!(".lkvm/{}.sock", spec.name)).below(&home);
    let command = Command {
        program: spec.sections.kvmtool.program.clone(),
        arguments,
        environment: BTreeMap::from([("HOME".to_owned(), home.as_str().to_owned())]),
        files: Vec::new(),
        control: socket,
        // Sync, remount read-only, reboot: kvmtool ends when its guest reboots. Without ACPI, the guest cannot power off.
        graceful: ['s', 'u', 'b'].map(GracefulStep::KvmtoolSysrq).to_vec(),
        forced: ForcedStop::KvmtoolStop,
        console_device: Some("ttyS0"),
        expected_configuration: None,
    };
    builder.finish(command)
}
