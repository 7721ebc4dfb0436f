//! The probe guest boots with every spec of fixtures/specs on every available hypervisor, and sees what the spec
//! describes.

use crate::machine::{TestMachine, find_on_path, kvm_opens, missing, program_of, skipped, use_program, write_disk};
use crate::probe::{ProbeReport, fnv1a64, probe_guest};
use crate::rows::passt_for;
use launcher::facts::HostFacts;
use launcher::hypervisor::lower;
use launcher::launch::{Access, Launch};
use launcher::path::HostPath;
use launcher::spec::{
    DeviceBus, ForwardFrom, GraphicsBackend, Hypervisor, ImageType, InterfaceType, MachineSpec, ShareProtocol,
    StoreTransport,
};
use launcher::validate::check;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testing::write_program;

const INITRD: &[u8] = b"070701 not really an archive: the probe guest only hashes it";
/// The size of the file that replaces a block device of a spec.
const DISK_SECTORS: u64 = 4096;

#[test]
fn the_guest_sees_every_spec_under_qemu_emulated() {
    run_all(Hypervisor::Qemu, &["--accel", "tcg"]);
}

#[test]
fn the_guest_sees_every_spec_under_qemu_with_kvm() {
    if !kvm_opens() {
        return skipped("/dev/kvm does not open");
    }
    run_all(Hypervisor::Qemu, &["--accel", "kvm"]);
}

#[test]
fn the_guest_sees_every_spec_under_cloud_hypervisor() {
    run_all(Hypervisor::CloudHypervisor, &[]);
}

#[test]
fn the_guest_sees_every_spec_under_firecracker() {
    run_all(Hypervisor::Firecracker, &[]);
}

#[test]
fn the_guest_sees_every_spec_under_crosvm() {
    run_all(Hypervisor::Crosvm, &[]);
}

#[test]
fn the_guest_sees_every_spec_under_kvmtool() {
    run_all(Hypervisor::Kvmtool, &[]);
}

fn run_all(hypervisor: Hypervisor, options: &[&str]) {
    let Some(program) = program_of(hypervisor) else {
        let why = format!("no {hypervisor}: it is not installed, or MICROVM_TEST_... does not name it");
        return if hypervisor == Hypervisor::Qemu { missing(&why) } else { skipped(&why) };
    };
    let mut paths: Vec<PathBuf> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/specs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let (mut seen, mut problems) = (0, Vec::new());
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let mut spec: MachineSpec = serde_json::from_str(&text).unwrap();
        spec.hypervisor = hypervisor;
        if options.contains(&"kvm") && spec.cpu.is_some() {
            continue;
        }
        let Some(machine) = TestMachine::new(&spec.name) else { return };
        use_program(&mut spec, hypervisor, &program);
        match adapt(&mut spec, &machine) {
            Err(why) => skipped(&format!("{hypervisor}, {}: {why}", spec.name)),
            Ok(()) if !is_accepted(&spec) => {}
            Ok(()) => {
                seen += 1;
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    boot_and_compare(&spec, &machine, options);
                }));
                problems.extend(outcome.err().map(|panic| (spec.name.clone(), message(&panic))));
            }
        }
    }
    let list: Vec<String> = problems.iter().map(|(name, message)| format!("{name}: {message}\n")).collect();
    assert!(problems.is_empty(), "{} of {seen} specs under {hypervisor}:\n{}", problems.len(), list.concat());
    assert!(seen >= 8, "only {seen} specs ran under {hypervisor}");
}

pub(crate) fn message(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Writes the initrd that [`boot_and_compare`] expects.
pub(crate) fn write_initrd(machine: &TestMachine) {
    fs::write(machine.path("initrd"), INITRD).unwrap();
}

/// Whether this hypervisor supports the machine. The goldens test the reason of a refusal.
fn is_accepted(spec: &MachineSpec) -> bool {
    let facts = HostFacts::assumed("/".into());
    let checked = check(spec).unwrap_or_else(|problems| panic!("{problems:?}"));
    lower(&checked, &facts, spec.hypervisor).is_ok()
}

/// Moves everything that the spec names into the machine's directory, and creates it.
fn adapt(spec: &mut MachineSpec, machine: &TestMachine) -> Result<(), String> {
    let guest = probe_guest();
    let moved = |path: &HostPath| {
        let name = path.as_path().file_name().and_then(|name| name.to_str()).unwrap_or("root").to_owned();
        if path.is_absolute() { HostPath::new(machine.path(&name).to_str().unwrap()) } else { path.clone() }
    };
    spec.kernel = HostPath::new(guest.bzimage.to_str().unwrap());
    spec.vmlinux = Some(HostPath::new(guest.elf.to_str().unwrap()));
    write_initrd(machine);
    spec.initrd = Some("initrd".into());
    // A model that every qemu supports.
    spec.cpu = spec.cpu.as_ref().map(|_| "EPYC".to_owned());
    for port in spec.forward_ports.iter().filter(|port| port.from == ForwardFrom::Guest) {
        machine.serve_http(&format!("{}:{}", port.host.address, port.host.port));
    }
    if !Path::new("/dev/vhost-net").exists() {
        spec.interfaces.iter_mut().for_each(|interface| interface.tap.vhost = false);
    }
    let program = spec.cloud_hypervisor.program.as_ref().filter(|_| spec.hypervisor == Hypervisor::CloudHypervisor);
    let has_monitor = spec.cloud_hypervisor.extra_args.iter().any(|argument| argument == "--event-monitor");
    if has_monitor && program.is_some_and(|program| checks_descriptors(program.as_path())) {
        skipped("--event-monitor of cloud-hypervisor: the program is built with debug assertions");
        spec.cloud_hypervisor.extra_args.clear();
    }
    // Firecracker refuses a metadata service without an interface.
    spec.firecracker.extra_config.remove("mmds-config");
    spec.user = None;
    spec.pre_start.clear();
    spec.console_socket = None;
    spec.extra_args_script = None;
    spec.crosvm.pivot_root = None;
    spec.socket = spec.socket.as_ref().map(moved);
    if !spec.devices.is_empty() {
        let kind = if spec.devices[0].bus == DeviceBus::Pci { "PCI" } else { "USB" };
        return Err(format!("no {kind} device to pass through"));
    }
    if spec.hugepage_mem {
        return Err("no huge pages are set aside".to_owned());
    }
    if spec.vsock.cid.is_some() && needs_vhost_vsock(spec.hypervisor) && !Path::new("/dev/vhost-vsock").exists() {
        return Err("no /dev/vhost-vsock".to_owned());
    }
    if spec.graphics.enable {
        adapt_graphics(spec)?;
    }
    adapt_disks(spec, machine, &moved)?;
    for path in spec.credential_files.values_mut() {
        *path = moved(path);
        fs::write(path.as_path(), "secret").unwrap();
    }
    if spec.shares.iter().any(|share| share.closure.is_some()) {
        return Err("linux.rs boots closure-only shares, with a real closure".to_owned());
    }
    for share in &mut spec.shares {
        share.source = moved(&share.source);
        fs::create_dir_all(share.source.below(&HostPath::new(machine.path("").to_str().unwrap())).as_path()).unwrap();
        if share.proto == ShareProtocol::Virtiofs {
            let daemon = std::env::var("MICROVM_TEST_VIRTIOFSD").map_err(|_| "no MICROVM_TEST_VIRTIOFSD")?;
            spec.virtiofsd.program = Some(HostPath::new(daemon));
            spec.virtiofsd.group = None;
        }
    }
    for interface in &spec.interfaces {
        match (interface.interface_type, &interface.macvtap) {
            (InterfaceType::Macvtap, Some(macvtap)) => {
                machine.namespace.run("ip", &["link", "add", &macvtap.link, "type", "bridge"]);
            }
            (InterfaceType::Bridge, _) => return Err("qemu's bridge helper is not set up".to_owned()),
            (InterfaceType::User, _) if spec.hypervisor == Hypervisor::CloudHypervisor => {
                passt_for(spec.hypervisor)?;
            }
            _ => {}
        }
    }
    machine.write_spec(spec);
    Ok(())
}

/// Whether a Rust program is built with debug assertions: the standard library then calls fcntl(2) before it closes a
/// descriptor. With Landlock, the thread of cloud-hypervisor's event monitor closes one, and its seccomp filter
/// (`event_monitor_thread_rules` in vmm/src/seccomp_filters.rs) does not allow the call, so the kernel ends the process.
fn checks_descriptors(program: &Path) -> bool {
    let function = b"debug_assert_fd_is_open";
    fs::read(program).unwrap().windows(function.len()).any(|bytes| bytes == function)
}

/// The host may have neither a desktop nor a graphics card, but crosvm requires a desktop.
fn adapt_graphics(spec: &mut MachineSpec) -> Result<(), String> {
    spec.graphics.backend = GraphicsBackend::Headless;
    spec.graphics.gl = Some(false);
    let Some(program) = spec.crosvm.program.as_ref().filter(|_| spec.hypervisor == Hypervisor::Crosvm) else {
        return Ok(());
    };
    let asked = Command::new(program.as_path()).args(["--no-syslog", "device", "gpu", "--help"]).output().unwrap();
    if !asked.status.success() {
        return Err("this crosvm is built without a graphics card".to_owned());
    }
    let session = std::env::var_os("WAYLAND_DISPLAY");
    session.map(|_| ()).ok_or_else(|| "no Wayland desktop to show a window on".to_owned())
}

fn needs_vhost_vsock(hypervisor: Hypervisor) -> bool {
    !matches!(hypervisor, Hypervisor::CloudHypervisor | Hypervisor::Firecracker)
}

fn adapt_disks(
    spec: &mut MachineSpec,
    machine: &TestMachine,
    moved: &dyn Fn(&HostPath) -> HostPath,
) -> Result<(), String> {
    if let Some(disk) = &mut spec.store_disk {
        if disk.live || disk.transport != StoreTransport::Block {
            return Err("rows.rs boots store disks that are served or mapped, with a real image".to_owned());
        }
        if disk.verity {
            return Err("linux.rs boots a sealed store disk, with a real image and its root hash".to_owned());
        }
        disk.image = disk.image.as_ref().map(moved);
        match (&mut disk.plan, &disk.image) {
            (Some(plan), _) => {
                *plan = moved(plan);
                fs::write(plan.as_path(), "{}").unwrap();
                disk.builder = Some(HostPath::new(fake_builder(machine).to_str().unwrap()));
                disk.cache = disk.cache.as_ref().map(moved);
            }
            (None, Some(image)) => write_disk(image.as_path(), "the store", DISK_SECTORS),
            (None, None) => {}
        }
    }
    for (index, volume) in spec.volumes.iter_mut().enumerate() {
        volume.image = moved(&volume.image);
        if volume.fs_type == "xfs" {
            // The smallest size that mkfs.xfs supports.
            volume.size_mib = Some(320);
        }
        let path = machine.path(volume.image.as_str());
        match volume.image_type {
            _ if volume.auto_create => {}
            ImageType::Raw => write_disk(&path, &format!("volume {index}"), DISK_SECTORS),
            other => {
                find_on_path("qemu-img").ok_or("no qemu-img")?;
                let format = if other == ImageType::Vhd { "vpc" } else { other.as_str() };
                let made = Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&path).arg("4M").status();
                assert!(made.unwrap().success());
            }
        }
    }
    Ok(())
}

/// A replacement for the image builder, which is a separate program with its own tests.
fn fake_builder(machine: &TestMachine) -> PathBuf {
    let path = machine.path("fake-builder");
    let script = "#!/bin/sh\nwhile [ \"$1\" != --output ]; do shift; done\n\
                  printf 'the store.......' > \"$2\" && truncate -s 2097152 \"$2\"\n";
    write_program(&path, script);
    path
}

pub(crate) fn boot_and_compare(spec: &MachineSpec, machine: &TestMachine, options: &[&str]) {
    let hypervisor = spec.hypervisor.as_str();
    let arguments = [&["--hypervisor", hypervisor], options].concat();
    let console = machine.start(&arguments).end_well();
    let report = ProbeReport::parse(&console);
    assert!(report.complete && report.end.is_some(), "the probe guest did not get to its end:\n{console}");
    let launch = machine.launch();
    compare_disks(spec, machine, &launch, &report);
    compare_interfaces(spec, &report);
    compare_shares(spec, &report);
    let (cards, inputs) = match (spec.graphics.enable, spec.hypervisor) {
        (false, _) => (0, 0),
        (true, Hypervisor::Qemu) => (1, 2),
        (true, _) => (1, 0),
    };
    let inputs = inputs + spec.qemu.extra_args.iter().filter(|argument| is_input(argument)).count();
    assert_eq!((report.named("gpu").len(), report.named("input").len()), (cards, inputs), "graphics");
    let expected: Vec<String> = spec.vsock.cid.iter().map(ToString::to_string).collect();
    let cids: Vec<&str> = report.named("vsock").iter().map(|device| device.field("cid")).collect();
    assert_eq!(cids, expected, "vsock");
    assert_eq!(report.cpus, spec.vcpu, "vcpus");
    let (wanted_bytes, found_bytes) = (spec.mem_mib << 20, report.memory_bytes);
    // Tables and firmware use a little memory.
    assert!(found_bytes <= wanted_bytes && found_bytes + (4 << 20) > wanted_bytes, "memory: {found_bytes}");
    let words: Vec<&str> = report.command_line.split(' ').collect();
    for parameter in &spec.kernel_params {
        assert!(words.contains(&parameter.as_str()), "{parameter} is not in {words:?}");
    }
    if launch.needs.initrd.is_none() {
        assert_eq!(report.initrd, Some((INITRD.len() as u64, fnv1a64(INITRD))), "initrd");
    } else {
        assert!(report.initrd.unwrap().0 > INITRD.len() as u64, "the initrd has no credentials");
    }
}

/// Whether an argument of the user is a virtio keyboard, or another device that the probe guest reports as one.
fn is_input(argument: &str) -> bool {
    ["virtio-keyboard", "virtio-mouse", "virtio-tablet", "virtio-multitouch", "virtio-input"]
        .iter()
        .any(|driver| argument.starts_with(driver))
}

fn compare_disks(spec: &MachineSpec, machine: &TestMachine, launch: &Launch, report: &ProbeReport) {
    let disks = report.named("blk");
    assert_eq!(disks.len(), launch.disks.len(), "disks: {disks:?}");
    let first_volume = launch.disks.len() - spec.volumes.len();
    for (index, (seen, wanted)) in disks.iter().zip(&launch.disks).enumerate() {
        let volume = index.checked_sub(first_volume).map(|index| &spec.volumes[index]);
        assert_eq!(seen.field("access"), if wanted.read_only { "ro" } else { "rw" }, "{}", wanted.device);
        if let Some(serial) = &wanted.serial {
            assert_eq!(seen.field("serial"), serial, "{}", wanted.device);
        }
        if volume.is_none_or(|volume| volume.image_type == ImageType::Raw) {
            let bytes = fs::metadata(machine.path(wanted.image.as_str())).unwrap().len();
            assert_eq!(seen.field("sectors"), (bytes / 512).to_string(), "{}", wanted.device);
        }
    }
    if spec.store_disk.is_some() {
        assert!(disks[0].field("first").starts_with("the store"), "/dev/vda is {:?}", disks[0]);
        assert_eq!((disks[0].field("access"), launch.disks[0].device.as_str()), ("ro", "/dev/vda"));
    }
    for (need, volume) in launch.needs.volumes.iter().zip(&spec.volumes) {
        assert_eq!(need.access == Access::Read, volume.read_only, "{}", volume.image);
    }
}

fn compare_interfaces(spec: &MachineSpec, report: &ProbeReport) {
    let mut seen: Vec<&str> = report.named("net").iter().map(|device| device.field("mac")).collect();
    // kvmtool's address for an interface that the user's arguments add.
    seen.retain(|mac| *mac != "02:15:15:15:15:15");
    let wanted: Vec<String> = spec.interfaces.iter().map(|interface| interface.mac.to_ascii_lowercase()).collect();
    assert_eq!(seen, wanted, "interfaces");
}

fn compare_shares(spec: &MachineSpec, report: &ProbeReport) {
    for (name, protocol) in [("9p", ShareProtocol::NineP), ("fs", ShareProtocol::Virtiofs)] {
        let mut seen: Vec<&str> = report.named(name).iter().map(|device| device.field("tag")).collect();
        let shares = spec.shares.iter().filter(|share| share.proto == protocol);
        let mut wanted: Vec<&str> = shares.map(|share| share.tag.as_str()).collect();
        // Found by their tags. kvmtool attaches the last one first.
        seen.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(seen, wanted, "shares by {name}");
    }
}
