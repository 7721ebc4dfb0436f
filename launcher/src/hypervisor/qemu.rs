//! qemu, which supports nearly all features and is the only hypervisor that runs without KVM. Written against 7.2 and
//! 9.

mod devices;
mod extra;
mod machine;
mod screen;
mod slots;

use super::frame::{Command, Frame, VsockTransport};
use crate::capability::{Feature, Support};
use crate::facts::{Architecture, KernelForm};
use crate::keyval::{Dialect, Options};
use crate::launch::{ControlProtocol, ControlSocket, ForcedStop, GracefulStep, Launch};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::validate::{CheckedSpec, InterfaceKind};
use machine::{Bus, Machine, own_id};
use std::collections::BTreeMap;

/// The prefix under which systemd finds credentials in qemu's fw_cfg.
const CREDENTIAL_PREFIX: &str = "opt/io.systemd.credentials/";
/// `FW_CFG_MAX_FILE_PATH` without the final NUL.
const FW_CFG_NAME_BYTES: usize = 55;

/// The supported features. `tests/hypervisors/rows.rs` has verified all supported ones with version 7.2.22, except for
/// host devices, vhost-net and vsock, which the test host did not have, and other architectures.
pub(super) fn support(feature: Feature) -> Support {
    match feature {
        Feature::InitialBalloon => Support::No("starts with an empty balloon; fill it with `microvm balloon`"),
        Feature::WithoutKvm | Feature::OtherArchitecture => Support::With("emulated, and many times slower"),
        Feature::HotplugMemory => Support::With("not with the machine model microvm"),
        _ => Support::Yes,
    }
}

pub(super) fn lower(mut frame: Frame<'_>) -> Result<Launch, Vec<Refusal>> {
    let spec = frame.spec;
    let machine = machine::choose(&mut frame);
    extra::check(&mut frame);
    let screen = screen::choose(&mut frame);
    let kernel = frame.boot_image();
    check_kernel(&mut frame, &kernel);
    let guest_name = Options::new(Dialect::Qemu).pair("guest", &spec.name).finish();
    let guest_name = frame.written("name", guest_name);
    let words = ["-name", &guest_name, "-no-user-config", "-nodefaults", "-no-reboot", "-display", &screen.display];
    let mut arguments = words.map(str::to_owned).to_vec();
    machine::write(&mut frame, &machine, &mut arguments);
    arguments.extend(["-kernel".to_owned(), kernel.as_str().to_owned()]);
    if let Some(initrd) = frame.plain_initrd() {
        arguments.extend(["-initrd".to_owned(), initrd.as_str().to_owned()]);
    }
    let parameters = kernel_parameters(&frame, &machine);
    let parameters: Vec<_> = parameters.iter().map(String::as_str).collect();
    arguments.extend(["-append".to_owned(), frame.command_line(&parameters, 0)]);
    write_ports(&mut frame, &mut arguments);
    let extra = devices::write(&mut frame, &machine, &screen, &mut arguments);
    write_identity(&mut frame, &mut arguments);
    let uses_helper = spec.interfaces.iter().any(|interface| matches!(interface.kind, InterfaceKind::Bridge { .. }))
        && !frame.facts.is_confined;
    if !uses_helper {
        // The bridge helper needs additional privileges, which a sandboxed process cannot give to its children.
        arguments.extend(["-sandbox".to_owned(), sandbox(spec)]);
    }
    arguments.extend(extra);
    finish(frame, &machine, arguments)
}

/// Words in the user's arguments with which qemu starts another program.
const STARTS_PROGRAMS: [&str; 5] = ["cmd:", "exec:", "smb=", "script=", "helper="];
/// Options in the user's arguments with which qemu changes its user or root directory.
const CHANGES_USER: [&str; 4] = ["-runas", "-run-with", "-chroot", "-daemonize"];

/// Returns the seccomp options: they forbid as much as the machine's features allow.
fn sandbox(spec: &CheckedSpec) -> String {
    // The host's desktop libraries start processes and set CPU affinities.
    let has_desktop = spec.graphics.is_some();
    // Its output is not known yet.
    let has_script = spec.extra_args_script.is_some();
    let given =
        |words: &[&str]| spec.qemu.extra_args.iter().any(|argument| words.iter().any(|word| argument.contains(word)));
    let mut sandbox = "on,obsolete=deny".to_owned();
    if !has_script && !given(&CHANGES_USER) {
        sandbox.push_str(",elevateprivileges=deny");
    }
    if !has_desktop && !has_script && !given(&STARTS_PROGRAMS) {
        sandbox.push_str(",spawn=deny");
    }
    if !has_desktop {
        sandbox.push_str(",resourcecontrol=deny");
    }
    sandbox
}

fn check_kernel(frame: &mut Frame<'_>, kernel: &HostPath) {
    if frame.kernel_form(kernel) == Some(KernelForm::Elf) {
        frame.refuse(
            "kernel",
            format!("boots an ELF kernel only if it has a PVH note, and {kernel} has none; set kernel to the bzImage"),
        );
    }
}

fn kernel_parameters(frame: &Frame<'_>, machine: &Machine) -> Vec<String> {
    let mut parameters = Vec::new();
    let mut add = |parameter: &str| parameters.push(parameter.to_owned());
    if frame.spec.graphics.is_some() {
        // Before the serial console: the last console is /dev/console, which programs write to.
        add("console=tty0");
    }
    if frame.spec.qemu.serial_console {
        match frame.architecture() {
            Architecture::X86_64 => {
                add("earlyprintk=ttyS0");
                add("console=ttyS0");
            }
            Architecture::Aarch64 => add("console=ttyAMA0"),
        }
    }
    add("reboot=t");
    add("panic=-1");
    if machine.is_emulated
        && frame.architecture() == Architecture::X86_64
        && frame.spec.architecture.is_none_or(|guest| guest == frame.facts.architecture)
    {
        // On a busy host, an emulated guest often fails to calibrate its time stamp counter, and hangs.
        if let Some(khz) = frame.facts.tsc_khz {
            add(&format!("tsc_early_khz={khz}"));
        }
    }
    if machine.bus == Bus::Mmio {
        // The machine model microvm has no SMBIOS tables.
        add(&frame.machine_id_parameter());
    }
    parameters
}

/// Writes the control socket and the console.
fn write_ports(frame: &mut Frame<'_>, arguments: &mut Vec<String>) {
    let socket = Options::new(Dialect::Qemu)
        .word("socket")
        .pair("id", own_id("control"))
        .pair("path", &frame.spec.control_socket)
        .pair("server", "on")
        .pair("wait", "off")
        .finish();
    let socket = frame.written("socket", socket);
    let monitor = format!("chardev={},mode=control", own_id("control"));
    let words = ["-chardev", &socket, "-mon", &monitor];
    arguments.extend(words.map(str::to_owned));
    if frame.spec.qemu.serial_console {
        // Without signal=off, Ctrl-C would end qemu instead of reaching the guest.
        let console = own_id("console");
        let (terminal, serial) = (format!("stdio,id={console},signal=off"), format!("chardev:{console}"));
        let words = ["-chardev", &terminal, "-serial", &serial];
        arguments.extend(words.map(str::to_owned));
    }
}

/// Writes the machine id and the credentials.
fn write_identity(frame: &mut Frame<'_>, arguments: &mut Vec<String>) {
    if let Some(id) = &frame.spec.machine_id {
        arguments.extend(["-smbios".to_owned(), format!("type=1,uuid={id}")]);
    }
    for (name, path) in &frame.spec.credential_files {
        let option = format!("credentialFiles.{name}");
        let entry = format!("{CREDENTIAL_PREFIX}{name}");
        if entry.len() > FW_CFG_NAME_BYTES {
            let most = FW_CFG_NAME_BYTES - CREDENTIAL_PREFIX.len();
            frame.refuse(&option, format!("supports credential names of at most {most} bytes"));
        }
        let options = Options::new(Dialect::Qemu).pair("name", &entry).pair("file", path).finish();
        arguments.extend(["-fw_cfg".to_owned(), frame.written(&option, options)]);
    }
}

fn finish(frame: Frame<'_>, machine: &Machine, arguments: Vec<String>) -> Result<Launch, Vec<Refusal>> {
    let (spec, architecture) = (frame.spec, frame.architecture());
    let mut graceful = vec![GracefulStep::QmpSystemPowerdown];
    if machine.has_keyboard {
        graceful.push(GracefulStep::QmpCtrlAltDelete);
    }
    let default_program = || HostPath::new(format!("qemu-system-{}", architecture.as_str()));
    let console_device = match architecture {
        Architecture::X86_64 => "ttyS0",
        Architecture::Aarch64 => "ttyAMA0",
    };
    let command = Command {
        program: spec.qemu.program.clone().unwrap_or_else(default_program),
        arguments,
        environment: BTreeMap::new(),
        files: Vec::new(),
        control: ControlSocket { protocol: ControlProtocol::Qmp, path: spec.control_socket.clone() },
        graceful,
        forced: ForcedStop::QmpQuit,
        console_device: spec.qemu.serial_console.then_some(console_device),
        expected_configuration: None,
    };
    frame.finish(command, VsockTransport::Kernel)
}
