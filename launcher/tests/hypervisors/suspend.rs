//! A machine that is suspended continues where it was: its memory, its devices and its connections.

#![expect(clippy::print_stdout, reason = "the times of saving and resuming are part of the result")]

use crate::lifecycle::waiting_machine;
use crate::linux::{build_image, linux_machine};
use crate::machine::{Running, TestMachine, find_on_path, missing, skipped};
use launcher::spec::{Hypervisor, MachineSpec};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use testing::SmallDisk;

#[test]
fn a_suspended_machine_continues_where_it_was_on_qemu() {
    suspend_and_resume(Hypervisor::Qemu);
}

#[test]
fn a_suspended_machine_continues_where_it_was_on_cloud_hypervisor() {
    suspend_and_resume(Hypervisor::CloudHypervisor);
}

#[test]
fn a_suspended_machine_continues_where_it_was_on_firecracker() {
    suspend_and_resume(Hypervisor::Firecracker);
}

#[test]
fn a_suspended_machine_continues_where_it_was_on_crosvm() {
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
    assert!(suspended.status.success(), "{}\n{}\n{}", text(&suspended), running.messages(), running.console());
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

#[test]
fn a_stop_that_waited_while_another_command_suspended_the_machine_says_so() {
    let Some((machine, _)) = waiting_machine(Hypervisor::Firecracker) else { return };
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    // More connections than firecracker accepts, so that the request fails.
    let others: Vec<_> = (0..20).map(|_| UnixStream::connect(machine.path("web.sock")).unwrap()).collect();
    let mut stop = machine.microvm(&["stop", "web", "--timeout", "250"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut messages = stop.stderr.take().unwrap();
    assert!(messages.read(&mut [0; 512]).unwrap() > 0);
    let signal = |name: &str| Command::new("kill").args(["-s", name, &stop.id().to_string()]).status().unwrap();
    assert!(signal("STOP").success());
    drop(others);
    suspend(&machine, &mut running);
    assert!(signal("CONT").success());
    let mut last = String::new();
    messages.read_to_string(&mut last).unwrap();
    assert!(last.ends_with("web was suspended by another command\n"), "{last}");
    assert!(stop.wait().unwrap().success());
    assert!(machine.path(SAVED).exists());
}

#[test]
fn a_machine_whose_control_socket_is_busy_is_not_said_to_be_paused() {
    let Some((machine, _)) = waiting_machine(Hypervisor::Qemu) else { return };
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    let mut other = UnixStream::connect(machine.path("web.sock")).unwrap();
    assert!(other.read(&mut [0; 1024]).unwrap() > 0);
    let failed = machine.output(&["suspend", "web"]);
    assert_eq!(failed.status.code(), Some(1));
    let expected = "no answer in time; it may still be paused, because it could not be continued: ";
    assert!(text(&failed).contains(expected), "{}", text(&failed));
    drop(other);
    suspend(&machine, &mut running);
}

fn suspend_and_resume(hypervisor: Hypervisor) {
    let Some((machine, mut spec)) = machine_with_volume(hypervisor) else { return };
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    assert_eq!(text(&machine.output(&["resume", "web"])), "web is running\n");
    if hypervisor == Hypervisor::CloudHypervisor {
        if cannot_be_saved_here(|| machine.output(&["suspend", "web"])) {
            assert!(!machine.path("web.suspended/incomplete").exists());
            type_line(&machine, "again");
            running.wait_for("typed [again]");
            return skipped(NOT_SAVED_HERE);
        }
        running.end_well();
        running = resume(&machine);
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
    println!("{hypervisor}: {}", running.messages().trim());
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

/// Why cloud-hypervisor cannot save a machine on this host.
pub(crate) const NOT_SAVED_HERE: &str =
    "KVM of this host does not report the state of nested guests, which cloud-hypervisor saves";

/// Whether this host's KVM is one of those under which cloud-hypervisor saves no machine. The guest must run on then.
pub(crate) fn cannot_be_saved_here(suspend: impl FnOnce() -> Output) -> bool {
    let suspended = suspend();
    if suspended.status.success() {
        return false;
    }
    let printed = text(&suspended);
    assert!(Path::new("/sys/module/kvm_pvm").is_dir(), "{printed}");
    assert!(printed.contains("error: web keeps running, because it could not be saved: "), "{printed}");
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

/// The command is killed wherever it changes something. Afterwards, there is a machine that runs, or one that resumes.
#[test]
fn a_suspend_that_was_killed_leaves_a_machine_that_runs_or_resumes() {
    let Some((machine, _)) = machine_with_volume(Hypervisor::Qemu) else { return };
    if find_on_path("strace").is_none() {
        return missing("strace is needed");
    }
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    let (mut continued, mut resumed) = (0, 0);
    for (line, (call, when)) in (1..).zip([
        ("mkdirat", 1),
        ("renameat", 1),
        ("renameat", 2),
        ("renameat", 3),
        ("fsync", 1),
        ("fsync", 3),
        ("fsync", 5),
        ("fsync", 7),
        ("pidfd_send_signal", 1),
    ]) {
        let mut killed = machine.namespace.command("strace");
        let inject = format!("inject={call}:signal=KILL:when={when}");
        killed.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]);
        killed.arg(env!("CARGO_BIN_EXE_microvm")).args(["suspend", "web"]).current_dir(machine.path(""));
        crate::machine::in_test_environment(&mut killed, &machine);
        killed.output().unwrap();
        let status = machine.output(&["status", "--json", "web"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        if status[0]["activity"] == "suspended" {
            running.end_well();
            running = machine.start_command(machine.microvm(&["resume", "machine.json"]));
            running.wait_for_message("web was resumed");
            resumed += 1;
        } else {
            assert_eq!(status[0]["activity"], "running", "{call} {when}: {}", running.messages());
            let printed = text(&machine.output(&["resume", "web"]));
            assert!(
                printed == "web was paused, and runs again\n" || printed == "web is running\n",
                "{call} {when}: {printed}"
            );
            assert!(
                !machine.path(SAVED).exists(),
                "{call} {when}: the guest runs on with another memory than what was saved"
            );
            continued += 1;
        }
        type_line(&machine, "again");
        running.wait_for(&format!("typed [again] line={line}"));
    }
    assert!(continued > 3 && resumed > 0, "{continued} continued, {resumed} resumed");
    // What is left of the attempts does no harm.
    suspend(&machine, &mut running);
    let mut running = resume(&machine);
    assert!(machine.output(&["stop", "web", "--timeout", "60"]).status.success());
    running.end_well();
}

/// Runs `microvm suspend` until it makes a system call for the n-th time, and stops it there.
struct StoppedSuspend {
    strace: Child,
    pid: String,
}

impl StoppedSuspend {
    fn at(machine: &TestMachine, call: &str, when: u32) -> Self {
        let mut strace = machine.namespace.command("strace");
        let inject = format!("inject={call}:signal=STOP:when={when}");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]);
        strace.arg(env!("CARGO_BIN_EXE_microvm")).args(["suspend", "web"]).current_dir(machine.path(""));
        crate::machine::in_test_environment(&mut strace, machine);
        let mut strace = strace.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // strace stops it for a moment at every system call. A stop that lasts shows the same counters again and again.
        let (mut seen, mut times) = (String::new(), 0);
        let pid = loop {
            assert!(strace.try_wait().unwrap().is_none(), "{call} {when} never happened");
            std::thread::sleep(Duration::from_millis(20));
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", strace.id())).unwrap();
            let Some(pid) = children.split_whitespace().next() else { continue };
            let now = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let is_stopped = ["State:\tt", "State:\tT"].iter().any(|state| now.contains(state));
            times = if is_stopped && now == seen { times + 1 } else { 0 };
            if times == 15 {
                break pid.to_owned();
            }
            seen = now;
        };
        Self { strace, pid }
    }

    /// Lets it go on, and returns what it printed and its exit code.
    fn go_on(self) -> (String, Option<i32>) {
        assert!(Command::new("kill").args(["-CONT", &self.pid]).status().unwrap().success());
        let output = self.strace.wait_with_output().unwrap();
        (text(&output), output.status.code())
    }
}

/// The launcher is killed, and with it the hypervisor, and a service manager starts the machine again at once, while
/// the machine is still being saved.
#[test]
fn a_machine_whose_launcher_is_killed_while_it_is_saved_resumes_or_boots() {
    let Some((machine, _)) = machine_with_volume(Hypervisor::Qemu) else { return };
    if find_on_path("strace").is_none() {
        return missing("strace is needed");
    }
    let (mut booted, mut resumed) = (0, 0);
    // Before the memory is saved, while the files are synced, and when they have got their names.
    for (call, when) in [("mkdirat", 1), ("fsync", 1), ("fsync", 4), ("renameat", 2)] {
        let mut running = machine.start(&["--supervise"]);
        running.wait_for("waiting");
        let stopped = StoppedSuspend::at(&machine, call, when);
        running.child.kill().unwrap();
        running.end();
        wait_for_activity(&machine, "stopped");
        let mut next = machine.start(&["--supervise"]);
        wait_for_activity(&machine, "starting");
        let (printed, code) = stopped.go_on();
        while !next.messages().contains("web was resumed") && !next.console().contains(BOOTED) {
            assert!(next.child.try_wait().unwrap().is_none(), "{call} {when}: {printed}{}", next.messages());
            std::thread::sleep(Duration::from_millis(10));
        }
        if next.console().contains(BOOTED) {
            assert_eq!(code, Some(1), "{call} {when}: {printed}");
            assert!(printed.contains("error: web has ended and is not suspended: "), "{call} {when}: {printed}");
            booted += 1;
        } else {
            assert_eq!(code, Some(0), "{call} {when}: {printed}");
            resumed += 1;
        }
        assert!(machine.output(&["stop", "web", "--timeout", "60"]).status.success());
        next.end_well();
        assert!(!machine.path(SAVED).exists(), "{call} {when}: what was saved is still there");
    }
    assert!(booted > 0 && resumed > 0, "{booted} booted, {resumed} resumed");
}

fn wait_for_activity(machine: &TestMachine, expected: &str) {
    loop {
        let status = machine.output(&["status", "--json", "web"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        if status[0]["activity"] == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_disk_neither_ends_a_machine_that_is_suspended_nor_loses_what_was_saved() {
    let Some((machine, _)) = machine_with_volume(Hypervisor::Qemu) else { return };
    let small = machine.path("small");
    let Some(disk) = SmallDisk::mount(&small, 512 << 10) else { return };
    for name in ["initrd", "store.img", "volume.img"] {
        fs::copy(machine.path(name), small.join(name)).unwrap();
    }
    let in_small = |command: &[&str]| machine.microvm(&[command, &["machine.json", "--state-dir", "small"]].concat());
    let mut running = machine.start_command(in_small(&["run", "--supervise"]));
    running.wait_for("waiting");
    let directory = small.join("web.suspended");
    let fail = |left_bytes: Option<u64>| {
        match left_bytes {
            Some(left_bytes) => disk.fill(left_bytes),
            None => disk.fill_with_files(),
        }
        let suspended = machine.output(&["suspend", "web"]);
        let printed = text(&suspended);
        assert_eq!(suspended.status.code(), Some(1), "{printed}");
        let expected =
            format!("error: web keeps running, because it could not be saved: {}", directory.to_str().unwrap());
        assert!(printed.starts_with(&expected) && printed.contains("No space left on device"), "{printed}");
        assert!(printed.contains("free some space there"), "{printed}");
        assert!(!directory.exists(), "{:?} is left", fs::read_dir(&directory).unwrap().collect::<Vec<_>>());
        disk.free();
        printed
    };
    for left_bytes in [0, 8192, 1 << 20] {
        assert!(fail(Some(left_bytes)).contains("what is saved needs up to 256 MiB: "));
    }
    fail(None);
    type_line(&machine, "again");
    running.wait_for("typed [again]");

    suspend(&machine, &mut running);
    // No file can be created, so nothing could record that the guest runs again.
    disk.fill_with_files();
    let refused = in_small(&["resume"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains(small.to_str().unwrap()), "{}", text(&refused));
    assert!(text(&refused).contains("No space left on device"), "{}", text(&refused));
    disk.free();
    // Without space, but with room for the name of a file, it resumes.
    disk.fill(0);
    let mut running = machine.start_command(in_small(&["resume"]));
    running.wait_for_message("web was resumed");
    type_line(&machine, "again");
    running.wait_for("typed [again] line=2");
    assert!(machine.output(&["stop", "web", "--timeout", "60"]).status.success());
    assert!(!running.end_well().contains(BOOTED));
}

/// One machine of several cannot be suspended: the others are, and it runs on.
#[test]
fn a_machine_with_a_block_device_keeps_running_while_all_others_are_suspended() {
    let Some((machine, mut spec)) = machine_with_volume(Hypervisor::Qemu) else { return };
    crate::machine::write_disk(&machine.path("block.img"), "a block device", 2048);
    let attached = Command::new("losetup").args(["--find", "--show"]).arg(machine.path("block.img")).output().unwrap();
    if !attached.status.success() {
        return missing(&format!("no loop device: {}", text(&attached)));
    }
    let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
    spec.name = "block".to_owned();
    spec.interfaces.clear();
    spec.volumes = vec![serde_json::from_value(json!({"image": device, "autoCreate": false})).unwrap()];
    fs::write(machine.path("block.json"), serde_json::to_string(&spec).unwrap()).unwrap();
    let mut block = machine.start_command_as("block", machine.microvm(&["run", "block.json", "--supervise"]));
    let mut web = machine.start(&["--supervise"]);
    block.wait_for("waiting");
    web.wait_for("waiting");
    let suspended = machine.output(&["suspend", "--all"]);
    let printed = text(&suspended);
    assert_eq!(suspended.status.code(), Some(1), "{printed}");
    let refused = format!(
        "error: block: the volume {device} is a block device: changes to it while the machine is suspended could not be detected"
    );
    assert!(printed.contains("web is suspended: ") && printed.contains("1 of 2 machines are suspended\n"), "{printed}");
    assert!(printed.contains(&refused), "{printed}");
    web.end_well();
    let status = String::from_utf8(machine.output(&["status"]).stdout).unwrap();
    assert!(status.contains("block  qemu  running as ") && status.contains("web  qemu  suspended\n"), "{status}");
    let mut console = UnixStream::connect(machine.path("run/block/console.sock")).unwrap();
    console.write_all(b"again\n").unwrap();
    block.wait_for("typed [again]");
    let mut web = resume(&machine);
    for name in ["web", "block"] {
        assert!(machine.output(&["stop", name, "--timeout", "60"]).status.success());
    }
    web.end_well();
    block.end_well();
    assert!(Command::new("losetup").args(["--detach", &device]).status().unwrap().success());
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
    assert!(suspended.status.success(), "{}\n{}", text(&suspended), running.messages());
    println!("{}", text(&suspended).trim());
    running.end_well();

    let mut running = machine.start_command(machine.microvm(&["resume", "machine.json"]));
    running.wait_for_message("web was resumed");
    println!("{}", running.messages().trim());
    type_line(&machine, "counter=$((counter + 1)); echo after $counter >&5; exec 5>&-; echo sent=$counter");
    running.wait_for("sent=42");
    // The VM generation ID is another one.
    type_line(&machine, "dmesg | grep 'crng reseeded due to virtual machine'; echo ker'nel'");
    running.wait_for("kernel");
    assert!(running.console().contains("random: crng reseeded due to virtual machine fork"), "{}", running.console());
    server.wait().unwrap();
    assert_eq!(fs::read_to_string(machine.path("received")).unwrap(), "before\nafter 42\n");
    type_line(&machine, "exit");
    running.end_well();
}
