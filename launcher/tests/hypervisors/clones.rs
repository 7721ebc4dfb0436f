//! Machines that were cloned from a suspended one: each continues its memory, under its own name.

use crate::lifecycle::waiting_machine;
use crate::machine::{Running, TestMachine, find_on_path, in_test_environment, missing, skipped};
use crate::suspend::{NOT_SAVED_HERE, cannot_be_saved_here};
use launcher::spec::{Hypervisor, MachineSpec};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use testing::SmallDisk;

#[test]
fn clones_run_at_the_same_time_as_each_other_and_the_original_on_qemu() {
    clone_and_resume(Hypervisor::Qemu);
}

#[test]
fn clones_run_at_the_same_time_as_each_other_and_the_original_on_firecracker() {
    clone_and_resume(Hypervisor::Firecracker);
}

#[test]
fn clones_run_at_the_same_time_as_each_other_and_the_original_on_crosvm() {
    clone_and_resume(Hypervisor::Crosvm);
}

#[test]
fn clones_run_at_the_same_time_as_each_other_and_the_original_on_cloud_hypervisor() {
    clone_and_resume(Hypervisor::CloudHypervisor);
}

/// Only a guest that boots prints it.
const BOOTED: &str = "probe format=1";

/// A host whose machine `web` was installed, as `microvm create` does.
struct Host(TestMachine);

impl Host {
    fn new(hypervisor: Hypervisor, change: impl FnOnce(&mut MachineSpec)) -> Option<Self> {
        let (machine, mut spec) = waiting_machine(hypervisor)?;
        spec.volumes = vec![serde_json::from_value(json!({"image": "disks/volume.img", "autoCreate": false})).unwrap()];
        spec.kernel_params.extend(["wait=long".to_owned(), "record=written".to_owned()]);
        spec.machine_id = Some("a7a5ef47-7ea0-47e6-8a1e-3c2b1e6f1f3d".to_owned());
        change(&mut spec);
        let (state, runner) = (machine.path("machines/web"), machine.path("runner"));
        for directory in [state.join("disks"), runner.join("bin"), runner.join("share/microvm")] {
            fs::create_dir_all(directory).unwrap();
        }
        for name in ["initrd", "store.img"] {
            fs::rename(machine.path(name), state.join(name)).unwrap();
        }
        crate::machine::write_disk(&state.join("disks/volume.img"), "a volume", 2048);
        symlink(&runner, state.join("current")).unwrap();
        let document = runner.join("share/microvm/machine.json");
        fs::write(&document, serde_json::to_string_pretty(&spec).unwrap()).unwrap();
        let microvm = env!("CARGO_BIN_EXE_microvm");
        let script = format!("#!/bin/sh\nexec {microvm} run {} \"$@\"\n", document.display());
        fs::write(runner.join("bin/microvm-run"), script).unwrap();
        fs::set_permissions(runner.join("bin/microvm-run"), fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self(machine))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.with_directories(self.0.microvm(arguments))
    }

    fn with_directories(&self, mut command: Command) -> Command {
        command.env("MICROVM_STATE_DIR", self.0.path("machines")).env("MICROVM_GCROOTS_DIR", self.0.path("roots"));
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and returns its messages.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    }

    /// Runs a command that must fail, and returns its exit code and its messages.
    fn fail(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.output(arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output));
        (output.status.code(), text(&output))
    }

    fn start(&self, name: &str) -> Running<'_> {
        self.0.start_command_as(name, self.command(&["run", name, "--supervise"]))
    }

    fn resume(&self, name: &str) -> Running<'_> {
        let mut running = self.start(name);
        running.wait_for_message(&format!("{name} was resumed"));
        running
    }

    fn type_line(&self, name: &str, line: &str) {
        let mut console = UnixStream::connect(self.0.path(&format!("run/{name}/console.sock"))).unwrap();
        console.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn volume(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.path(&format!("machines/{name}/disks/volume.img"))).unwrap()
    }

    /// Lets the host build the store disk, with a builder that always creates a new file.
    fn build_store_disk(&self, spec: &mut MachineSpec) {
        let (builder, plan) = (self.0.path("builder"), self.0.path("plan.json"));
        let content = self.0.path("machines/web/store.img");
        let script = format!("#!/bin/sh\nfor output; do :; done\nexec cp {} \"$output\"\n", content.display());
        testing::write_program(&builder, &script);
        fs::write(&plan, "a plan").unwrap();
        let built = json!({"plan": plan, "builder": builder, "serial": spec.store_disk.as_ref().unwrap().serial});
        spec.store_disk = serde_json::from_value(built).unwrap();
        fs::write(self.0.path("runner/share/microvm/machine.json"), serde_json::to_string(spec).unwrap()).unwrap();
    }

    fn cannot_save(&self) -> bool {
        let mut web = self.start("web");
        web.wait_for("waiting");
        if cannot_be_saved_here(|| self.output(&["suspend", "web"])) {
            return true;
        }
        web.end_well();
        self.run(&["resume", "--discard", "web"]);
        false
    }

    /// Suspends `web`, which has received one line.
    fn suspend_web(&self) {
        let mut web = self.start("web");
        web.wait_for("waiting");
        self.type_line("web", "first");
        web.wait_for("typed [first] line=1");
        let (code, printed) = self.fail(&["clone", "web", "early"]);
        assert_eq!(
            (code, printed.as_str()),
            (Some(1), "error: web is running\nhint: suspend it first: microvm suspend web\n")
        );
        self.run(&["suspend", "web"]);
        web.end_well();
    }
}

fn text(output: &Output) -> String {
    crate::machine::without_kvm_warning(&output.stderr)
}

fn has_vsock_socket(hypervisor: Hypervisor) -> bool {
    matches!(hypervisor, Hypervisor::CloudHypervisor | Hypervisor::Firecracker)
}

#[test]
fn a_clone_that_does_not_fit_on_the_disk_leaves_nothing_and_the_original_stays_suspended() {
    let Some(host) = Host::new(Hypervisor::Qemu, |_| {}) else { return };
    let machines = host.0.path("machines");
    let Some(disk) = SmallDisk::mount(&machines, 512 << 10) else { return };
    host.suspend_web();
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).into_iter().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    // While its record, its volume and its memory are copied.
    for left_bytes in [Some(0), Some(64 << 10), Some(1 << 20), None] {
        match left_bytes {
            Some(left_bytes) => disk.fill(left_bytes),
            None => disk.fill_with_files(),
        }
        let (code, printed) = host.fail(&["clone", "web", "one"]);
        assert_eq!(code, Some(1), "{printed}");
        assert!(printed.contains(&format!(" {}/", machines.display())), "{printed}");
        assert!(printed.contains("No space left on device"), "{printed}");
        assert!(printed.ends_with("hint: free some space there, or write to another file system\n"), "{printed}");
        disk.free();
        assert_eq!((names(&machines), names(&host.0.path("roots"))), (vec!["web".to_owned()], vec![]), "{printed}");
    }
    host.run(&["clone", "web", "one"]);
    let mut web = host.resume("web");
    host.type_line("web", "again");
    web.wait_for("typed [again] line=2");
    host.run(&["stop", "web", "--timeout", "60"]);
    web.end_well();
}

fn clone_and_resume(hypervisor: Hypervisor) {
    let mut written = None;
    let change = |spec: &mut MachineSpec| {
        // The others need the kernel's vsock.
        if has_vsock_socket(hypervisor) {
            spec.vsock.cid = Some(42);
        }
        written = Some(spec.clone());
    };
    let Some(host) = Host::new(hypervisor, change) else { return };
    host.build_store_disk(&mut written.unwrap());
    let (code, printed) = host.fail(&["clone", "web", "new"]);
    assert_eq!(
        (code, printed.as_str()),
        (Some(1), "error: web is not suspended\nhint: suspend it first: microvm suspend web\n")
    );
    if hypervisor == Hypervisor::CloudHypervisor && host.cannot_save() {
        return skipped(NOT_SAVED_HERE);
    }
    host.suspend_web();

    let printed = host.run(&["clone", "web", "one", "--allow-same-mac"]);
    assert!(printed.starts_with("one is a clone of web: ") && printed.ends_with("microvm resume one\n"), "{printed}");
    // A clone of a clone that has never run.
    host.run(&["clone", "one", "two", "--allow-same-mac"]);
    host.run(&["clone", "web", "strict"]);
    let (code, printed) = host.fail(&["clone", "web", "one"]);
    assert!(
        code == Some(2) && printed.contains("machines/one already exists, and a clone never replaces a machine"),
        "{printed}"
    );
    let printed = String::from_utf8(host.output(&["list", "--offline"]).stdout).unwrap();
    assert!(printed.contains("one     suspended, clone of web\n"), "{printed}");
    let status = host.output(&["status", "--json", "two"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status[0]["activity"], "suspended");

    let (mut one, mut two) = (host.resume("one"), host.resume("two"));
    for (name, running) in [("one", &mut one), ("two", &mut two)] {
        host.type_line(name, "again");
        running.wait_for("typed [again] line=2");
        host.0.namespace.run("ip", &["link", "show", &format!("vm-{name}")]);
        if has_vsock_socket(hypervisor) {
            assert!(has_vsock(&host, name));
        }
    }
    let disks =
        ["web-store.squashfs", "one-store.squashfs"].map(|name| host.0.path("machines/one").join(name).exists());
    assert_eq!(disks, [true, false], "the clone continues with the disk of the original, and no other one is built");
    host.type_line("one", "more");
    one.wait_for("typed [more] line=3");
    for (name, mut running) in [("one", one), ("two", two)] {
        host.run(&["stop", name, "--timeout", "60"]);
        let console = running.end_well();
        assert!(!console.contains(BOOTED) && console.contains("recorded"), "{console}");
    }
    assert!(host.volume("one").starts_with(b"written") && host.volume("two").starts_with(b"written"));
    assert!(host.volume("web").starts_with(b"a volume"), "the original has a volume of its own");
    start_beside_the_original(&host);
}

/// The guest of `strict` has the MAC address of the original, until it boots.
fn start_beside_the_original(host: &Host) {
    let mut web = host.resume("web");
    let (code, printed) = host.fail(&["run", "strict", "--supervise"]);
    let same =
        "error: strict: the guest of web has the same MAC address, 02:00:00:00:00:01, and may be on the same network";
    assert!(
        code == Some(1) && printed.contains(same) && printed.contains("hint: stop or suspend web first"),
        "{printed}"
    );
    host.type_line("web", "again");
    web.wait_for("typed [again] line=2");
    host.run(&["stop", "web", "--timeout", "60"]);
    web.end_well();
    let mut strict = host.resume("strict");
    let (_, printed) = host.fail(&["run", "web", "--supervise"]);
    assert!(printed.contains("error: web: the guest of strict has the same MAC address"), "{printed}");
    host.run(&["stop", "strict", "--timeout", "60"]);
    strict.end_well();
    // A clone that boots has an address of its own.
    let mut one = host.start("one");
    one.wait_for("waiting");
    let console = one.console();
    assert!(console.contains(BOOTED) && console.contains("name=net mac=02:"), "{console}");
    assert!(!console.contains("mac=02:00:00:00:00:01"), "{console}");
    host.run(&["stop", "one", "--timeout", "60"]);
    one.end_well();
}

/// Whether the socket of the guest's vsock is in the state directory of the clone.
fn has_vsock(host: &Host, name: &str) -> bool {
    let entries = fs::read_dir(host.0.path(&format!("machines/{name}"))).unwrap();
    entries.into_iter().any(|entry| entry.unwrap().file_name().to_string_lossy().contains("vsock"))
}

/// The command is killed wherever it changes something.
#[test]
fn an_interrupted_clone_leaves_no_incomplete_machine() {
    let Some(host) = Host::new(Hypervisor::Qemu, |_| {}) else { return };
    if find_on_path("strace").is_none() {
        return missing("strace is needed");
    }
    host.suspend_web();
    let mut killed = 0;
    for (call, count) in
        [("mkdirat", 4), ("symlinkat", 3), ("linkat", 4), ("renameat", 6), ("utimensat", 2), ("unlinkat", 3)]
    {
        for when in 1..=count {
            let mut command = host.0.namespace.command("strace");
            let inject = format!("inject={call}:signal=KILL:when={when}");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]).arg(env!("CARGO_BIN_EXE_microvm"));
            command.args(["clone", "web", "new"]).current_dir(host.0.path(""));
            in_test_environment(&mut command, &host.0);
            let is_killed = !host.with_directories(command).output().unwrap().status.success();
            killed += u32::from(is_killed);
            let state = host.0.path("machines/new");
            if state.exists() {
                let needed = ["clone.json", "current", "disks/volume.img", "new.suspended/complete/stamp.json"];
                assert!(needed.iter().all(|name| state.join(name).exists()), "{call} {when}: a half machine");
                host.run(&["delete", "--yes", "new"]);
            }
        }
    }
    assert!(killed > 8, "only {killed} of the calls are made");
    host.run(&["clone", "web", "new"]);
    let left: Vec<_> = fs::read_dir(host.0.path("machines")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    let mut new = host.resume("new");
    host.type_line("new", "again");
    new.wait_for("typed [again] line=2");
    host.run(&["stop", "new", "--timeout", "60"]);
    new.end_well();
}
