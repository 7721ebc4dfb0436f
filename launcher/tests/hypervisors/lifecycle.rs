//! A machine from start to stop on every available hypervisor: the supervisor's console, the API, the balloon, traffic
//! through a tap, and the shutdown request that the guest receives.

use crate::machine::{Running, TestMachine, missing, program_of, skipped, use_program, write_disk};
use crate::probe::{ProbeReport, probe_guest};
use launcher::control::Controller;
use launcher::launch::Launch;
use launcher::path::HostPath;
use launcher::spec::{Hypervisor, MachineSpec};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// Returns the request that the guest receives from `microvm stop`.
fn request_of(hypervisor: Hypervisor) -> &'static str {
    match hypervisor {
        Hypervisor::Firecracker => "ctrl-alt-delete",
        Hypervisor::Kvmtool => "magic-key",
        _ => "power-button",
    }
}

#[test]
fn a_machine_starts_serves_and_stops_on_qemu() {
    live(Hypervisor::Qemu);
}

#[test]
fn a_machine_starts_serves_and_stops_on_cloud_hypervisor() {
    live(Hypervisor::CloudHypervisor);
}

#[test]
fn a_machine_starts_serves_and_stops_on_firecracker() {
    live(Hypervisor::Firecracker);
}

#[test]
fn a_machine_starts_serves_and_stops_on_crosvm() {
    live(Hypervisor::Crosvm);
}

#[test]
fn a_machine_starts_serves_and_stops_on_kvmtool() {
    live(Hypervisor::Kvmtool);
}

/// Returns a machine that waits, with a tap, a balloon and a disk. It has one CPU, because the probe guest uses one
/// queue of a tap, and crosvm opens one per CPU and would leave frames in the others.
pub(crate) fn waiting_machine(hypervisor: Hypervisor) -> Option<(TestMachine, MachineSpec)> {
    let Some(program) = program_of(hypervisor) else {
        let why = format!("no {hypervisor}: it is not installed, or MICROVM_TEST_... does not name it");
        match hypervisor {
            Hypervisor::Qemu => missing(&why),
            _ => skipped(&why),
        }
        return None;
    };
    let machine = TestMachine::new("web")?;
    let guest = probe_guest();
    let mut spec: MachineSpec = serde_json::from_value(json!({
        "version": 1, "name": "web", "hypervisor": hypervisor, "mem": 256, "balloon": true,
        "kernel": guest.bzimage.to_str().unwrap(), "vmlinux": guest.elf.to_str().unwrap(), "initrd": "initrd",
        "kernelParams": ["probe=wait", "answer=10.77.0.2"],
        "storeDisk": {"image": "store.img"},
        "interfaces": [{"type": "tap", "id": "vm-web", "mac": "02:00:00:00:00:01"}],
        "qemu": {"accelerator": "tcg"},
    }))
    .unwrap();
    use_program(&mut spec, hypervisor, &program);
    fs::write(machine.path("initrd"), "initrd").unwrap();
    write_disk(&machine.path("store.img"), "the store", 2048);
    machine.write_spec(&spec);
    Some((machine, spec))
}

fn live(hypervisor: Hypervisor) {
    let Some((machine, spec)) = waiting_machine(hypervisor) else { return };
    // The tap, created by its command as the hypervisor needs it.
    let queues = machine.output(&["tap", "up", "machine.json"]);
    assert_eq!(String::from_utf8_lossy(&queues.stdout), "vm-web\n", "{queues:?}");
    machine.namespace.run("ip", &["addr", "add", "10.77.0.1/24", "dev", "vm-web"]);
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    let again = machine.output(&["run", "machine.json"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("web is already running"), "{again:?}");

    let launch = machine.launch();
    compare_api(&launch);
    machine.namespace.run("ping", &["-c", "2", "-i", "0.2", "-W", "20", "10.77.0.2"]);
    type_on_console(&machine, &mut running);
    resize_balloon(&machine, &mut running, hypervisor);
    let status = machine.output(&["status", "--json", "web"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status[0]["running"], &status[0]["hypervisor"]), (&json!(true), &json!(hypervisor)));

    let stop = machine.output(&["stop", "web", "--timeout", "60"]);
    assert_eq!(String::from_utf8_lossy(&stop.stderr), "web has shut down\n");
    let report = ProbeReport::parse(&running.end_well());
    assert_eq!(report.request.as_deref(), Some(request_of(hypervisor)));
    assert_eq!(report.cpus, spec.vcpu);
    assert_eq!(report.typed, ["hello"]);
    assert_no_leftovers(&machine);
    let stop = machine.output(&["stop", "machine.json"]);
    assert_eq!(String::from_utf8_lossy(&stop.stderr), "web is not running\n", "stopping twice is not a failure");
    assert!(stop.status.success());
    assert!(machine.output(&["tap", "down", "machine.json"]).status.success());
    assert!(!machine.namespace.run("ip", &["-o", "link"]).contains("vm-web"));
}

/// Compares the configuration that the hypervisor reports with the expected one.
fn compare_api(launch: &Launch) {
    let socket = launch.control.as_ref().unwrap();
    let controller = Controller::new(socket, &launch.working_directory);
    let state = controller.status().unwrap().to_lowercase();
    assert_eq!(state, "running");
    let Some(expected) = &launch.expected_configuration else { return };
    let answer = match launch.hypervisor {
        Hypervisor::CloudHypervisor => controller.get("/api/v1/vm.info").unwrap()["config"].clone(),
        Hypervisor::Firecracker => controller.get("/vm/config").unwrap(),
        other => panic!("{other} has no API that returns its configuration"),
    };
    assert_contains(&answer, expected, "");
}

/// Asserts that everything expected is present. Additions of the hypervisor are ignored.
fn assert_contains(found: &Value, expected: &Value, place: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            for (name, value) in expected {
                let there = found.get(name).unwrap_or(&Value::Null);
                assert_contains(there, value, &format!("{place}/{name}"));
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{place}");
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_contains(found, expected, &format!("{place}/{index}"));
            }
        }
        (Value::Null, Value::Object(expected)) if expected.is_empty() => {}
        (Value::Null, Value::Array(expected)) if expected.is_empty() => {}
        _ => assert_eq!(found, expected, "{place}"),
    }
}

/// Asserts that a new client receives the earlier output, and that its input reaches the guest.
fn type_on_console(machine: &TestMachine, running: &mut Running<'_>) {
    let mut console = UnixStream::connect(machine.path("run/web/console.sock")).unwrap();
    console.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains("waiting") {
        let count = console.read(&mut buffer).unwrap();
        assert!(count > 0, "the console ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(seen.contains("probe format=1"), "no scrollback: {seen}");
    console.write_all(b"hello\n").unwrap();
    running.wait_for("typed [hello]");
}

fn resize_balloon(machine: &TestMachine, running: &mut Running<'_>, hypervisor: Hypervisor) {
    let is_kvmtool = hypervisor == Hypervisor::Kvmtool;
    let resized = machine.output(&["balloon", "web", if is_kvmtool { "+64" } else { "64" }]);
    assert!(resized.status.success(), "{resized:?}");
    // 64 MiB in pages of 4 KiB.
    running.wait_for("balloon target_pages=16384");
    let too_much = machine.output(&["balloon", "web", "100000"]);
    assert!(!too_much.status.success());
    let size = machine.output(&["balloon", "web"]);
    match hypervisor {
        Hypervisor::Kvmtool => assert!(!size.status.success()),
        // Firecracker reports the target size; the others report what the guest has returned, and this guest returns
        // nothing.
        Hypervisor::Firecracker => assert_eq!(String::from_utf8_lossy(&size.stdout), "64\n"),
        Hypervisor::Crosvm => {}
        _ => assert_eq!(String::from_utf8_lossy(&size.stdout), "0\n", "{size:?}"),
    }
}

fn assert_no_leftovers(machine: &TestMachine) {
    let files: Vec<String> = fs::read_dir(machine.directory.path())
        .unwrap()
        .chain(fs::read_dir(machine.path("run/web")).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".sock") || name == "process.json")
        .collect();
    assert_eq!(files, [""; 0]);
}

#[test]
fn a_machine_without_a_supervisor_is_stopped() {
    let Some((machine, _)) = waiting_machine(Hypervisor::Qemu) else { return };
    let mut running = machine.start(&[]);
    running.wait_for("waiting");
    let pid = running.child.id();
    let name = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(name.starts_with("microvm@web\0"), "the same process is the hypervisor: {name}");
    let console = machine.output(&["console", "web"]);
    assert!(String::from_utf8_lossy(&console.stderr).contains("hint: start it with `microvm run --supervise`"));
    let stop = machine.output(&["stop", "machine.json"]);
    assert_eq!(String::from_utf8_lossy(&stop.stderr), "web has shut down\n");
    let report = ProbeReport::parse(&running.end_well());
    assert_eq!(report.request.as_deref(), Some("power-button"));
    assert_no_leftovers(&machine);
}

#[test]
fn a_service_manager_is_notified_and_its_sigterm_shuts_the_guest_down() {
    let Some((machine, _)) = waiting_machine(Hypervisor::Qemu) else { return };
    let manager = UnixDatagram::bind(machine.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = machine.microvm(&["run", "machine.json", "--supervise"]);
    command.env("NOTIFY_SOCKET", machine.path("notify"));
    let mut running = machine.start_command(command);
    let receive = || {
        let mut buffer = [0; 1024];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    assert_eq!(receive(), "READY=1\nSTATUS=running");
    running.wait_for("waiting");
    terminate(&running);
    assert_eq!(receive(), "STOPPING=1\nSTATUS=stopping");
    let report = ProbeReport::parse(&running.end_well());
    assert_eq!(report.request.as_deref(), Some("power-button"));
    assert_no_leftovers(&machine);
}

#[test]
fn a_guest_that_does_not_respond_is_ended_after_the_timeout() {
    let Some((machine, mut spec)) = waiting_machine(Hypervisor::Qemu) else { return };
    // The guest is paused, so it does not receive the request.
    spec.qemu.extra_args = vec!["-S".to_owned()];
    machine.write_spec(&spec);
    let mut running = machine.start(&["--supervise"]);
    let end = Instant::now() + Duration::from_secs(60);
    while !machine.path("web.sock").exists() {
        assert!(Instant::now() < end, "{}", running.messages());
        std::thread::sleep(Duration::from_millis(10));
    }
    let stop = machine.output(&["stop", "web", "--timeout", "20"]);
    let printed = String::from_utf8_lossy(&stop.stderr).into_owned();
    assert!(printed.contains("the guest has not shut down within 20 s; ending qemu\nweb was ended"), "{printed}");
    running.end();
    assert_no_leftovers(&machine);
}

/// Sends SIGTERM to the launcher, which replaced `ip netns exec` by exec.
pub(crate) fn terminate(running: &Running<'_>) {
    let sent = Command::new("kill").arg(running.child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_guest_that_reports_over_vsock_makes_the_service_ready() {
    // Firecracker and cloud-hypervisor connect the guest's vsock to a Unix socket; here the test acts as the guest.
    let Some((machine, mut spec)) = waiting_machine(Hypervisor::Firecracker) else { return };
    spec.vsock.cid = Some(42);
    spec.vsock.notify = true;
    machine.write_spec(&spec);
    let manager = UnixDatagram::bind(machine.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = machine.microvm(&["run", "machine.json", "--supervise"]);
    command.env("NOTIFY_SOCKET", machine.path("notify"));
    let mut running = machine.start_command(command);
    running.wait_for("waiting");
    let receive = || {
        let mut buffer = [0; 1024];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    assert_eq!(receive(), "STATUS=the guest is booting");
    let launch = machine.launch();
    let listens = &launch.notification.as_ref().unwrap().listen;
    let launcher::launch::NotificationSocket::Unix(path) = listens else { panic!("{listens:?}") };
    let path = path.below(&HostPath::new(machine.path("").to_str().unwrap()));
    UnixStream::connect(path.as_path()).unwrap().write_all(b"READY=1\nMAINPID=1\n").unwrap();
    assert_eq!(receive(), "READY=1\nSTATUS=the guest has booted");
    let status = machine.output(&["status", "web"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains(", guest ready"), "{status:?}");
    assert!(machine.output(&["stop", "web"]).status.success());
    running.end_well();
}
