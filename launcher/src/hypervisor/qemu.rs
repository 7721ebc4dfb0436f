//! qemu, which supports nearly all features and is the only hypervisor that runs without KVM. Written against 7.2 and
//! 9.

mod devices;
mod extra;
mod machine;
mod screen;
mod slots;

use super::description::{CredentialTransport, Description, HypervisorProgram, VsockTransport};
use super::launch_builder::{Command, LaunchBuilder};
use crate::capability::{Feature, Support};
use crate::facts::{Architecture, KernelForm};
use crate::keyval::{Dialect, Options};
use crate::launch::{ControlProtocol, ForcedStop, GracefulStep, Launch};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::spec::Hypervisor;
use crate::validate::{CheckedSpec, InterfaceKind};
use machine::{Bus, Machine, own_id};
use std::collections::BTreeMap;

/// The prefix under which systemd finds credentials in qemu's fw_cfg.
const CREDENTIAL_PREFIX: &str = "opt/io.systemd.credentials/";
/// `FW_CFG_MAX_FILE_PATH` without the final NUL.
const FW_CFG_NAME_BYTES: usize = 55;

pub(super) const DESCRIPTION: Description = Description {
    hypervisor: Hypervisor::Qemu,
    programs: &[
        HypervisorProgram {
            architecture: Some(Architecture::X86_64),
            name: "qemu-system-x86_64",
            debian_package: Some("qemu-system-x86"),
            nix_package: "qemu_kvm",
        },
        HypervisorProgram {
            architecture: Some(Architecture::Aarch64),
            name: "qemu-system-aarch64",
            debian_package: Some("qemu-system-arm"),
            nix_package: "qemu_kvm",
        },
    ],
    version_option: Some("--version"),
    vsock: VsockTransport::Kernel,
    protocol: ControlProtocol::Qmp,
    credentials: CredentialTransport::Hypervisor,
    image_limits: None,
    needs_empty_directory: false,
    uses_tsc_frequency: true,
    reconnects_disks: true,
    support,
    suspend_obstacle,
    clone_obstacle: |_| None,
    resume,
    lower,
};

/// The supported features. `tests/hypervisors/rows.rs` has verified all supported ones with version 7.2.22, except for
/// host devices, vhost-net and vsock, which the test host did not have, and other architectures.
fn support(feature: Feature) -> Support {
    match feature {
        Feature::InitialBalloon => Support::No("starts with an empty balloon; fill it with `microvm balloon`"),
        Feature::WithoutKvm | Feature::OtherArchitecture => Support::With("emulated, and many times slower"),
        Feature::HotplugMemory | Feature::PmemStoreDisk => Support::With("not with the machine model microvm"),
        _ => Support::Yes,
    }
}

/// What qemu does not save, or refuses to save: host devices, devices whose state is in another process, and image
/// formats whose drivers block migration.
fn suspend_obstacle(feature: Feature) -> Option<&'static str> {
    match feature {
        Feature::NineP => Some("does not save the open files of a 9p share"),
        Feature::Virtiofs => Some("does not save the state of virtiofsd"),
        Feature::LiveStoreDisk => Some("does not save the state of the server of a store disk without an image"),
        Feature::PmemStoreDisk => Some("would overwrite the image of a store disk that is persistent memory"),
        Feature::VolumeVhd | Feature::VolumeVhdx => Some("does not save machines with images of this format"),
        Feature::DevicePci | Feature::DeviceUsb => Some("cannot save the state of a device of the host"),
        Feature::Graphics => Some("does not save the state of the screen"),
        _ => None,
    }
}

/// The saved machine is passed over the control socket.
fn resume(launch: &mut Launch, _: &HostPath) {
    launch.arguments.extend(["-incoming".to_owned(), "defer".to_owned()]);
}

fn lower(mut builder: LaunchBuilder<'_>) -> Result<Launch, Vec<Refusal>> {
    let spec = builder.spec;
    let machine = machine::choose(&mut builder);
    extra::check(&mut builder);
    let screen = screen::choose(&mut builder);
    let kernel = builder.boot_image();
    check_kernel(&mut builder, &kernel);
    let guest_name = Options::new(Dialect::Qemu).pair("guest", &spec.name).finish();
    let guest_name = builder.written("name", guest_name);
    let words = ["-name", &guest_name, "-no-user-config", "-nodefaults", "-no-reboot", "-display", &screen.display];
    let mut arguments = words.map(str::to_owned).to_vec();
    machine::write(&mut builder, &machine, &mut arguments);
    arguments.extend(["-kernel".to_owned(), kernel.as_str().to_owned()]);
    if let Some(initrd) = builder.plain_initrd() {
        arguments.extend(["-initrd".to_owned(), initrd.as_str().to_owned()]);
    }
    let parameters = kernel_parameters(&builder, &machine);
    let parameters: Vec<_> = parameters.iter().map(String::as_str).collect();
    arguments.extend(["-append".to_owned(), builder.command_line(&parameters, 0)]);
    write_ports(&mut builder, &mut arguments);
    let extra = devices::write(&mut builder, &machine, &screen, &mut arguments);
    write_identity(&mut builder, &machine, &mut arguments);
    let uses_helper = spec.interfaces.iter().any(|interface| matches!(interface.kind, InterfaceKind::Bridge { .. }))
        && !builder.facts.is_confined;
    if !uses_helper {
        // The bridge helper needs additional privileges, which a sandboxed process cannot give to its children.
        arguments.extend(["-sandbox".to_owned(), sandbox(spec)]);
    }
    arguments.extend(extra);
    finish(builder, &machine, arguments)
}

/// Words in the user's arguments with which qemu starts another program.
const STARTS_PROGRAMS: [&str; 5] = ["cmd:", "exec:", "smb=", "script=", "helper="];
/// Options in the user's arguments with which qemu changes its user or root directory.
const CHANGES_USER: [&str; 4] = ["-runas", "-run-with", "-chroot", "-daemonize"];

/// Returns the seccomp options: they forbid as much as the machine's features allow.
fn sandbox(spec: &CheckedSpec) -> String {
    // The host's desktop libraries start processes and set CPU affinities.
    let has_desktop = spec.graphics.is_some();
    let given = |words: &[&str]| {
        spec.sections.qemu.extra_args.iter().any(|argument| words.iter().any(|word| argument.contains(word)))
    };
    let mut sandbox = "on,obsolete=deny".to_owned();
    if !given(&CHANGES_USER) {
        sandbox.push_str(",elevateprivileges=deny");
    }
    if !has_desktop && !given(&STARTS_PROGRAMS) {
        sandbox.push_str(",spawn=deny");
    }
    if !has_desktop {
        sandbox.push_str(",resourcecontrol=deny");
    }
    sandbox
}

fn check_kernel(builder: &mut LaunchBuilder<'_>, kernel: &HostPath) {
    if builder.kernel_form(kernel) == Some(KernelForm::Elf) {
        builder.refuse(
            "kernel",
            format!("boots an ELF kernel only if it has a PVH note, and {kernel} has none; set kernel to the bzImage"),
        );
    }
}

fn kernel_parameters(builder: &LaunchBuilder<'_>, machine: &Machine) -> Vec<String> {
    let mut parameters = Vec::new();
    let mut add = |parameter: &str| parameters.push(parameter.to_owned());
    if builder.spec.graphics.is_some() {
        // Before the serial console: the last console is /dev/console, which programs write to.
        add("console=tty0");
    }
    if builder.spec.sections.qemu.serial_console {
        match builder.architecture() {
            Architecture::X86_64 => {
                add("earlyprintk=ttyS0");
                add("console=ttyS0");
            }
            Architecture::Aarch64 => add("console=ttyAMA0"),
        }
    }
    add("reboot=t");
    add("panic=-1");
    if machine.is_emulated && builder.architecture() == Architecture::X86_64 {
        // On a busy host, too few ticks of an emulated timer arrive in time, and the guest's kernel panics.
        add("no_timer_check");
        // There, an emulated guest also often fails to calibrate its time stamp counter, and hangs.
        let is_hosts = builder.spec.architecture.is_none_or(|guest| guest == builder.facts.architecture);
        if let Some(khz) = builder.facts.tsc_khz.filter(|_| is_hosts) {
            add(&format!("tsc_early_khz={khz}"));
        }
    }
    if machine.bus == Bus::Mmio {
        // The machine model microvm has no SMBIOS tables.
        add(&builder.machine_id_parameter());
    }
    parameters
}

/// Writes the control socket and the console.
fn write_ports(builder: &mut LaunchBuilder<'_>, arguments: &mut Vec<String>) {
    let socket = Options::new(Dialect::Qemu)
        .word("socket")
        .pair("id", own_id("control"))
        .pair("path", &builder.spec.control_socket)
        .pair("server", "on")
        .pair("wait", "off")
        .finish();
    let socket = builder.written("socket", socket);
    let monitor = format!("chardev={},mode=control", own_id("control"));
    let words = ["-chardev", &socket, "-mon", &monitor];
    arguments.extend(words.map(str::to_owned));
    if builder.spec.sections.qemu.serial_console {
        // Without signal=off, Ctrl-C would end qemu instead of reaching the guest.
        let console = own_id("console");
        let (terminal, serial) = (format!("stdio,id={console},signal=off"), format!("chardev:{console}"));
        let words = ["-chardev", &terminal, "-serial", &serial];
        arguments.extend(words.map(str::to_owned));
    }
}

/// Writes the machine id and the credentials.
fn write_identity(builder: &mut LaunchBuilder<'_>, machine: &Machine, arguments: &mut Vec<String>) {
    // The VM generation ID is new at each start, so that a guest that is resumed renews its random numbers. Of the
    // machine models, only those with a chip set describe it to the guest: hw/i386/acpi-build.c.
    let has_chip_set = builder.architecture() == Architecture::X86_64 && machine.model != "microvm";
    let is_given = |argument: &String| argument.contains("vmgenid");
    if has_chip_set && !builder.spec.sections.qemu.extra_args.iter().any(is_given) {
        arguments.extend(["-device".to_owned(), "vmgenid,guid=auto".to_owned()]);
    }
    if let Some(id) = &builder.spec.machine_id {
        arguments.extend(["-smbios".to_owned(), format!("type=1,uuid={id}")]);
    }
    for (name, path) in &builder.spec.credential_files {
        let option = format!("credentialFiles.{name}");
        let entry = format!("{CREDENTIAL_PREFIX}{name}");
        if entry.len() > FW_CFG_NAME_BYTES {
            let most = FW_CFG_NAME_BYTES - CREDENTIAL_PREFIX.len();
            builder.refuse(&option, format!("supports credential names of at most {most} bytes"));
        }
        let options = Options::new(Dialect::Qemu).pair("name", &entry).pair("file", path).finish();
        arguments.extend(["-fw_cfg".to_owned(), builder.written(&option, options)]);
    }
}

fn finish(builder: LaunchBuilder<'_>, machine: &Machine, arguments: Vec<String>) -> Result<Launch, Vec<Refusal>> {
    let (spec, architecture) = (builder.spec, builder.architecture());
    let mut graceful = vec![GracefulStep::QmpSystemPowerdown];
    if machine.has_keyboard {
        graceful.push(GracefulStep::QmpCtrlAltDelete);
    }
    let console_device = match architecture {
        Architecture::X86_64 => "ttyS0",
        Architecture::Aarch64 => "ttyAMA0",
    };
    let command = Command {
        program: spec.sections.qemu.program.clone(),
        arguments,
        environment: BTreeMap::new(),
        files: Vec::new(),
        control: spec.control_socket.clone(),
        graceful,
        forced: ForcedStop::QmpQuit,
        console_device: spec.sections.qemu.serial_console.then_some(console_device),
        expected_configuration: None,
    };
    builder.finish(command)
}
