//! A machine that is suspended goes on where it was: its memory, its devices and its connections.

#![expect(clippy::print_stdout, reason = "the times of saving and resuming are part of the result")]

use crate::lifecycle::waiting_machine;
use crate::linux::{build_image, linux_machine};
use crate::machine::{Running, TestMachine, find_on_path, missing, skipped};
use launcher::spec::{Hypervisor, MachineSpec};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;

#[test]
fn a_suspended_machine_goes_on_where_it_was_on_qemu() {
    suspend_and_resume(Hypervisor::Qemu);
}

#[test]
fn a_suspended_machine_goes_on_where_it_was_on_cloud_hypervisor() {
    suspend_and_resume(Hypervisor::CloudHypervisor);
}

#[test]
fn a_suspended_machine_goes_on_where_it_was_on_firecracker() {
    suspend_and_resume(Hypervisor::Firecracker);
}

#[test]
fn a_suspended_machine_goes_on_where_it_was_on_crosvm() {
    suspend_and_resume(Hypervisor::Crosvm);
}

/// The directory of a suspended machine.
const SAVED: &str = "web.suspended/complete";
/// Only a guest that boots prints it.
const BOOTED: &str = "probe format=1";

/// Returns a waiting machine with a volume and a tap that stays when the hypervisor ends.
fn machine_with_volume(hypervisor: Hypervisor) -> Option<(TestMachine, MachineSpec)> {
    let (machine, mut spec) = waiting_machine(hypervisor)?;
    crate::machine::write_disk(&machine.path("volume.img"), "a volume", 2048);
    let volume = json!({"image": "volume.img", "autoCreate": false});
    spec.volumes = vec![serde_json::from_value(volume).unwrap()];
    spec.kernel_params.extend(["wait=long".to_owned(), "record=written".to_owned()]);
    machine.write_spec(&spec);
    assert!(machine.output(&["tap", "up", "machine.json"]).status.success());
    machine.namespace.run("ip", &["addr", "add", "10.77.0.1/24", "dev", "vm-web"]);
    Some((machine, spec))
}

fn type_line(machine: &TestMachine, line: &str) {
    let mut console = UnixStream::connect(machine.path("run/web/console.sock")).unwrap();
    console.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn text(output: &Output) -> String {
    crate::machine::without_kvm_warning(&output.stderr)
}

/// Suspends the machine, and waits until its launcher has ended.
fn suspend(machine: &TestMachine, running: &mut Running<'_>) {
    let suspended = machine.output(&["suspend", "web"]);
    assert!(suspended.status.success(), "{}\n{}\n{}", text(&suspended), running.talk(), running.console());
    assert!(text(&suspended).starts_with("web is suspended: "), "{}", text(&suspended));
    running.end_well();
}

/// Resumes the machine, and returns when the guest has received a line that is typed on its console.
fn resume(machine: &TestMachine) -> Running<'_> {
    let mut running = machine.start_command(machine.microvm(&["resume", "machine.json"]));
    running.wait_for_message("web was resumed");
    type_line(machine, "again");
    running.wait_for("typed [again]");
    running
}

fn suspend_and_resume(hypervisor: Hypervisor) {
    let Some((machine, mut spec)) = machine_with_volume(hypervisor) else { return };
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    assert_eq!(text(&machine.output(&["resume", "web"])), "web is running\n");
    if hypervisor == Hypervisor::CloudHypervisor && cannot_be_saved_here(&machine, &mut running) {
        return skipped("KVM of this host does not report the state of nested guests, which cloud-hypervisor saves");
    }
    suspend(&machine, &mut running);
    check_saved_files(&machine);
    let status = machine.output(&["status", "--json", "web"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status[0]["activity"], &status[0]["running"]), (&json!("suspended"), &json!(false)));

    // A changed machine is refused, and stays suspended.
    spec.mem_mib = 288;
    machine.write_spec(&spec);
    let refused = machine.output(&["run", "machine.json"]);
    let changed = "error: web has changed since it was suspended: machineSpec: mem: was 256, is 288\n";
    assert!(text(&refused).contains(changed), "{}", text(&refused));
    assert_eq!(refused.status.code(), Some(1));
    spec.mem_mib = 256;
    machine.write_spec(&spec);

    let mut running = resume(&machine);
    println!("{hypervisor}: {}", running.talk().trim());
    assert!(!machine.path(SAVED).exists(), "what was saved is removed");
    machine.namespace.run("ping", &["-c", "2", "-i", "0.2", "-W", "20", "10.77.0.2"]);
    // A machine that was resumed can be suspended again. A plain start resumes it as well.
    suspend(&machine, &mut running);
    let mut running = machine.start(&[]);
    running.wait_for_message("web was resumed");
    assert!(machine.output(&["stop", "web", "--timeout", "60"]).status.success());
    let console = running.end_well();
    assert!(!console.contains(BOOTED), "{console}");
    assert!(console.contains("recorded"), "the guest can still write to its volume: {console}");
    assert!(fs::read(machine.path("volume.img")).unwrap().starts_with(b"written"));

    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    assert!(running.console().contains(BOOTED), "a machine that has shut down boots");
    suspend(&machine, &mut running);
    // A volume that was written to meanwhile would not fit the guest's memory.
    let mut volume = File::options().write(true).open(machine.path("volume.img")).unwrap();
    volume.write_all(b"changed").unwrap();
    let refused = machine.output(&["resume", "machine.json"]);
    let changed = "error: web has changed since it was suspended: volumes: volume.img: modified: was ";
    assert!(text(&refused).contains(changed), "{}", text(&refused));
    assert!(text(&refused).contains("microvm resume --discard"), "{}", text(&refused));
    let discarded = machine.output(&["resume", "machine.json", "--discard"]);
    assert_eq!(text(&discarded), "web is no longer suspended, and boots at its next start\n");
    let nothing = machine.output(&["resume", "machine.json"]);
    assert_eq!((nothing.status.code(), text(&nothing)), (Some(1), "error: web is not suspended\n".to_owned()));
}

/// Whether this host's KVM is one of those under which cloud-hypervisor saves no machine. The guest must run on then.
fn cannot_be_saved_here(machine: &TestMachine, running: &mut Running<'_>) -> bool {
    if !Path::new("/sys/module/kvm_pvm").is_dir() {
        return false;
    }
    let suspended = machine.output(&["suspend", "web"]);
    if suspended.status.success() {
        return false;
    }
    assert!(
        text(&suspended).contains("error: web keeps running, because it could not be saved: "),
        "{}",
        text(&suspended)
    );
    assert!(!machine.path("web.suspended/incomplete").exists());
    type_line(machine, "again");
    running.wait_for("typed [again]");
    true
}

/// Nobody else may read the memory of a machine.
fn check_saved_files(machine: &TestMachine) {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&machine.path(SAVED)), 0o700);
    assert!(!machine.path("web.suspended/incomplete").exists());
    let stamp: Value = serde_json::from_slice(&fs::read(machine.path(SAVED).join("stamp.json")).unwrap()).unwrap();
    for (field, place) in
        [("machineSpec", "kernel"), ("hypervisor", "program"), ("files", "store.img"), ("volumes", "volume.img")]
    {
        assert!(!stamp[field][place].is_null(), "{field} without {place}: {stamp:#}");
    }
}

/// The command is killed where the guest is paused and what was saved has not got its name yet.
#[test]
fn a_machine_whose_suspend_was_killed_can_continue() {
    let Some((machine, _)) = machine_with_volume(Hypervisor::Qemu) else { return };
    if find_on_path("strace").is_none() {
        return missing("strace is needed");
    }
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    let mut killed = machine.namespace.command("strace");
    killed.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=renameat:signal=KILL:when=3"]);
    killed.arg(env!("CARGO_BIN_EXE_microvm")).args(["suspend", "web"]).current_dir(machine.path(""));
    crate::machine::in_test_environment(&mut killed, &machine);
    let killed = killed.output().unwrap();
    assert!(!killed.status.success(), "{}", text(&killed));
    assert!(machine.path("web.suspended/incomplete/state").exists() && !machine.path(SAVED).exists());
    assert_eq!(text(&machine.output(&["resume", "web"])), "web was paused, and runs again\n");
    type_line(&machine, "again");
    running.wait_for("typed [again]");
    // What is left of the first attempt does no harm.
    suspend(&machine, &mut running);
    let mut running = resume(&machine);
    assert!(machine.output(&["stop", "web", "--timeout", "60"]).status.success());
    running.end_well();
}

#[test]
fn linux_keeps_its_memory_and_its_tcp_connection() {
    let spec = json!({
        "storeDisk": {"image": "store.squashfs"},
        "interfaces": [{"type": "tap", "id": "vm-web", "mac": "02:00:00:00:00:01"}],
    });
    let parameters = ["guest.actions=network,shell", "guest.address=10.77.0.2/24"];
    let Some((machine, closure)) = linux_machine("web", &parameters, spec) else { return };
    build_image(&machine, closure);
    assert!(machine.output(&["tap", "up", "machine.json"]).status.success());
    machine.namespace.run("ip", &["addr", "add", "10.77.0.1/24", "dev", "vm-web"]);
    machine.namespace.run("ip", &["link", "set", "vm-web", "up"]);
    let mut server = machine.namespace.command("busybox");
    server.args(["nc", "-l", "-p", "9000"]).stdout(File::create(machine.path("received")).unwrap());
    let mut server = server.spawn().unwrap();
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("guest: interface=");
    // The quotes keep the console's echo from being taken for the answer.
    type_line(&machine, "counter=41; exec 5<>/dev/tcp/10.77.0.1/9000; echo before >&5; echo con'nected'");
    running.wait_for("connected");
    let suspended = machine.output(&["suspend", "--all"]);
    assert!(suspended.status.success(), "{}\n{}", text(&suspended), running.talk());
    println!("{}", text(&suspended).trim());
    running.end_well();

    let mut running = machine.start_command(machine.microvm(&["resume", "machine.json"]));
    running.wait_for_message("web was resumed");
    println!("{}", running.talk().trim());
    type_line(&machine, "counter=$((counter + 1)); echo after $counter >&5; exec 5>&-; echo sent=$counter");
    running.wait_for("sent=42");
    server.wait().unwrap();
    assert_eq!(fs::read_to_string(machine.path("received")).unwrap(), "before\nafter 42\n");
    type_line(&machine, "exit");
    running.end_well();
}
