//! The resource agent as Pacemaker runs it, for machines of the probe guest on qemu. Two nodes are two state
//! directories and two runtime directories. `tests/cluster` runs it in a real cluster.

#![expect(clippy::print_stdout, reason = "what ocf-tester prints is part of the result")]

use crate::lifecycle::waiting_machine;
use crate::machine::{
    TIMEOUT, TestMachine, find_on_path, in_test_environment, missing, skipped, without_kvm_warning, write_disk,
};
use launcher::launch::{Access, VolumeNeed};
use launcher::path::HostPath;
use launcher::spec::{Hypervisor, ImageType};
use launcher::state::{MachineState, ProcessIdentity, RuntimeDirectory};
use launcher::volumes::{ImageLock, LockRequest, LockTime, lock_volumes};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Exit codes of the resource agent API.
const SUCCESS: i32 = 0;
const GENERIC: i32 = 1;
const UNIMPLEMENTED: i32 = 3;
const INSTALLED: i32 = 5;
const CONFIGURED: i32 = 6;
const NOT_RUNNING: i32 = 7;

/// A machine with a volume that both nodes share, and its runner in a store.
struct Cluster {
    machine: TestMachine,
}

impl Cluster {
    fn new() -> Option<Self> {
        Self::of(Hypervisor::Qemu)
    }

    fn of(hypervisor: Hypervisor) -> Option<Self> {
        let (machine, mut spec) = waiting_machine(hypervisor)?;
        write_disk(&machine.path("volume.img"), "a volume", 2048);
        let absolute = |name: &str| machine.path(name).to_str().unwrap().to_owned();
        spec.volumes =
            vec![serde_json::from_value(json!({"image": absolute("volume.img"), "autoCreate": false})).unwrap()];
        spec.initrd = Some(HostPath::new(absolute("initrd")));
        spec.store_disk = Some(serde_json::from_value(json!({"image": absolute("store.img")})).unwrap());
        spec.kernel_params.extend(["wait=long".to_owned(), "record=written".to_owned()]);
        // The taps of both nodes would be in one network namespace.
        spec.interfaces.clear();
        let runner = machine.path("store/web-runner");
        fs::create_dir_all(runner.join("bin")).unwrap();
        fs::create_dir_all(runner.join("share/microvm")).unwrap();
        let document = runner.join("share/microvm/machine.json");
        fs::write(&document, serde_json::to_string(&spec).unwrap()).unwrap();
        let program = env!("CARGO_BIN_EXE_microvm");
        write_program(&runner.join("bin/microvm-run"), &format!("exec {program} run {} \"$@\"", document.display()));
        fs::create_dir_all(machine.path("agent")).unwrap();
        symlink(program, machine.path("agent/MicroVM")).unwrap();
        Some(Self { machine })
    }

    /// Returns the agent with this action on a node, as Pacemaker runs it.
    fn agent(&self, node: &str, action: &str) -> Command {
        self.agent_in(self.on(node, self.machine.path("agent/MicroVM").to_str().unwrap()), action)
    }

    /// The same, on a host that systemd runs. `systemctl` is a shell script in which `$1` is the verb, and `$state` a
    /// file with the state of the machine's service.
    fn agent_under_systemd(&self, node: &str, action: &str, systemctl: &str) -> Command {
        let directory = self.machine.path("systemd");
        fs::create_dir_all(&directory).unwrap();
        let script = format!(
            "state={}/state\ncase $1:$2 in\n{systemctl}\nshow:*LoadState) echo loaded ;;\n\
             show:*ActiveState) cat \"$state\" 2>/dev/null || echo inactive ;;\nesac",
            directory.display()
        );
        write_program(&directory.join("systemctl"), &script);
        let agent = self.machine.path("agent/MicroVM");
        // sd_booted(3)
        let prepare = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system";
        let mut command = self.agent_in(self.on_host(node, agent.to_str().unwrap(), prepare), action);
        command.env("PATH", format!("{}:{}", directory.display(), std::env::var("PATH").unwrap()));
        command
    }

    fn agent_in(&self, mut command: Command, action: &str) -> Command {
        command.arg(action);
        command.env("OCF_RESKEY_name", "web").env("OCF_RESKEY_runner", self.machine.path("store/web-runner"));
        command.env("OCF_RESKEY_state_dir", self.machine.path("machines"));
        command.env("OCF_RESKEY_CRM_meta_timeout", "240000");
        command
    }

    /// Returns a command on a node. All nodes have their state directories at the same path, so each command gets
    /// namespaces with the name and the directory of its node.
    fn on(&self, node: &str, program: &str) -> Command {
        self.on_host(node, program, "true")
    }

    /// The same, on a host where `prepare` has been run by a shell.
    fn on_host(&self, node: &str, program: &str, prepare: &str) -> Command {
        let path = |name: &str| self.machine.path(name);
        for directory in [path("machines"), path(node).join("machines")] {
            fs::create_dir_all(directory).unwrap();
        }
        let mut command = self.machine.namespace.command("unshare");
        let script = format!("{prepare} && hostname \"$0\" && mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"");
        command.args(["--mount", "--uts", "sh", "-c", &script, node]);
        command.arg(path(node).join("machines")).arg(path("machines")).arg(program);
        command.stdin(Stdio::null()).current_dir("/");
        in_test_environment(&mut command, &self.machine);
        command.env("MICROVM_STATE_DIR", path("machines"));
        command.env("MICROVM_RUNTIME_DIR", path(node).join("run"));
        command.env("MICROVM_GCROOTS_DIR", path(node).join("gcroots"));
        command.env("NIX_STORE_DIR", path("store"));
        command
    }

    /// Writes the configuration of the cluster, for `CIB_file`.
    fn write_cluster(&self, machine: &str, migrate: &str) {
        let pairs = [("name", machine.to_owned()), ("migrate", migrate.to_owned())].into_iter().chain(
            [("runner", "store/web-runner"), ("state_dir", "machines")]
                .map(|(name, path)| (name, self.machine.path(path).display().to_string())),
        );
        let pairs: String =
            pairs.map(|(name, value)| format!(r#"<nvpair id="{name}" name="{name}" value="{value}"/>"#)).collect();
        let text = format!(
            r#"<cib validate-with="pacemaker-3.0" admin_epoch="0" epoch="1" num_updates="0"><configuration><crm_config/><nodes/>
            <resources><primitive id="one" class="ocf" provider="microvm" type="MicroVM"><instance_attributes id="set">{pairs}
            </instance_attributes></primitive></resources><constraints/></configuration><status/></cib>"#
        );
        fs::write(self.machine.path("cib.xml"), text).unwrap();
    }

    /// Returns what receives a machine on a node.
    fn receiver(&self, node: &str) -> Command {
        let mut receiver = self.on(node, env!("CARGO_BIN_EXE_microvm"));
        receiver.args(["ocf", "receive"]).env("CIB_file", self.machine.path("cib.xml"));
        receiver
    }

    fn offer(&self, runner: &Path) -> String {
        format!("{{\"version\":2,\"name\":\"web\",\"runner\":\"{}\",\"timeoutSeconds\":240}}", runner.display())
    }

    fn run(&self, node: &str, action: &str) -> Output {
        self.agent(node, action).output().unwrap()
    }

    #[track_caller]
    fn expect(&self, node: &str, action: &str, code: i32) -> String {
        expect(&mut self.agent(node, action), code)
    }

    fn state(&self, node: &str) -> MachineState {
        RuntimeDirectory::at(self.machine.path(&format!("{node}/run"))).machine("web").unwrap()
    }

    fn type_line(&self, node: &str, line: &str) -> UnixStream {
        let mut console = UnixStream::connect(self.state(node).file("console.sock")).unwrap();
        console.write_all(format!("{line}\n").as_bytes()).unwrap();
        console
    }

    /// Waits until the console of a node has printed the text, and returns what it has printed.
    fn wait_for_console(&self, node: &str, line: &str, text: &str) -> String {
        let mut console = self.type_line(node, line);
        console.set_read_timeout(Some(TIMEOUT)).unwrap();
        let (mut printed, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let printed_text = String::from_utf8_lossy(&printed).into_owned();
            if printed_text.contains(text) {
                return printed_text;
            }
            let count = console.read(&mut buffer).unwrap();
            assert!(count > 0, "no {text:?} on the console: {printed_text}");
            printed.extend_from_slice(&buffer[..count]);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in ["n1", "n2"] {
            if let Ok(Some(running)) = self.state(node).running() {
                let processes = std::iter::once(running.hypervisor).chain(running.supervisor);
                processes.for_each(|process| process.signal(Signal::SIGKILL).unwrap_or_default());
            }
        }
    }
}

#[track_caller]
fn expect(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let printed = without_kvm_warning(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {printed}");
    printed
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn quoted(word: &str) -> String {
    format!("'{word}'")
}

fn wait_until(is_so: impl Fn() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_wrong_configuration_is_distinguished_from_a_wrong_node() {
    let Some(cluster) = Cluster::new() else { return };
    let printed =
        expect(cluster.agent("n1", "start").env_remove("OCF_RESKEY_runner").env("OCF_RESKEY_name", "a/b"), CONFIGURED);
    assert!(
        printed.starts_with("ocf-exit-reason:parameter name: ") && printed.contains("; parameter runner: "),
        "{printed}"
    );
    cluster.expect("n1", "reload", UNIMPLEMENTED);
    let gone = |action| {
        let mut command = cluster.agent("n1", action);
        command.env("OCF_RESKEY_runner", "/nix/store/gone").env("OCF_CHECK_LEVEL", "10");
        command
    };
    let printed = expect(&mut gone("start"), INSTALLED);
    assert!(printed.contains("the runner /nix/store/gone is not on this node"), "{printed}");
    expect(&mut gone("validate-all"), INSTALLED);
    let printed = expect(gone("start").env("OCF_RESKEY_cache", "file:///nonexistent"), INSTALLED);
    assert!(printed.contains("cannot be copied from file:///nonexistent: nix copy failed"), "{printed}");
    // A node that has never had the runner can say that the machine does not run, and stop it.
    expect(&mut gone("monitor"), NOT_RUNNING);
    expect(&mut gone("stop"), SUCCESS);
    expect(cluster.agent("n1", "validate-all").env("OCF_CHECK_LEVEL", "10"), SUCCESS);
    // Nothing has migrated: this must fail, and must not wait.
    fs::create_dir(cluster.machine.path("shared")).unwrap();
    for mode in ["live", "suspend"] {
        let mut command = cluster.agent("n1", "migrate_from");
        command.env("OCF_RESKEY_migrate", mode).env("OCF_RESKEY_migrate_dir", cluster.machine.path("shared"));
        let printed = expect(&mut command, GENERIC);
        assert!(printed.contains("no machine web has migrated to this node"), "{printed}");
    }
    let printed = expect(&mut cluster.agent("n1", "migrate_to"), GENERIC);
    assert!(printed.contains("it does not run on this node"), "{printed}");
    cluster.expect("n1", "migrate_from", CONFIGURED);
}

#[test]
fn a_machine_outlives_the_agent_and_its_stop_is_verified() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.expect("n1", "monitor", NOT_RUNNING);
    cluster.expect("n1", "stop", SUCCESS);
    cluster.expect("n1", "start", SUCCESS);
    cluster.expect("n1", "start", SUCCESS);
    cluster.expect("n1", "monitor", SUCCESS);
    expect(cluster.agent("n1", "monitor").env("OCF_CHECK_LEVEL", "10"), SUCCESS);
    let link = |name: &str| fs::read_link(cluster.machine.path(name)).unwrap();
    assert_eq!(link("n1/machines/web/current"), cluster.machine.path("store/web-runner"));
    assert_eq!(link("n1/gcroots/web"), cluster.machine.path("machines/web/current"));

    // The volume's lock keeps another node from starting it.
    let printed = expect(cluster.agent("n2", "start").env("OCF_RESKEY_CRM_meta_timeout", "1500"), GENERIC);
    assert!(printed.contains("volume.img is in use by machine web, process "), "{printed}");
    cluster.expect("n2", "monitor", NOT_RUNNING);

    // The record of the process is lost; the control socket is not.
    let record = cluster.state("n1").file("process.json");
    let kept = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    cluster.expect("n1", "monitor", SUCCESS);
    fs::write(&record, kept).unwrap();

    cluster.wait_for_console("n1", "before", "typed [before]");
    cluster.expect("n1", "stop", SUCCESS);
    cluster.expect("n1", "monitor", NOT_RUNNING);
    let volume = fs::read(cluster.machine.path("volume.img")).unwrap();
    assert!(volume.starts_with(b"written"), "the guest has shut down");

    // A hypervisor that was killed is not running, and its volume is free.
    cluster.expect("n2", "start", SUCCESS);
    cluster.state("n2").running().unwrap().unwrap().hypervisor.signal(Signal::SIGKILL).unwrap();
    wait_until(|| cluster.run("n2", "monitor").status.code() == Some(NOT_RUNNING));
    cluster.expect("n2", "stop", SUCCESS);

    // A process of this host that still has the volume keeps a stop from succeeding; another host does not.
    let held = hold_volume(&cluster.machine.path("volume.img"));
    let short = |action| {
        let mut command = cluster.agent("n1", action);
        command.env("OCF_RESKEY_CRM_meta_timeout", "1500");
        command
    };
    let lock = cluster.machine.path("volume.img.lock");
    fs::write(&lock, "machine web, process 7 on n1\n").unwrap();
    let printed = expect(&mut short("stop"), GENERIC);
    assert!(printed.contains("web may still be running: volume "), "{printed}");
    fs::write(&lock, "machine web, process 7 on n2\n").unwrap();
    expect(&mut short("stop"), SUCCESS);

    // A storage server releases the locks of a host that was fenced later: a start waits for that.
    let mut start = cluster.agent("n1", "start").spawn().unwrap();
    let log = cluster.machine.path("n1/machines/web/microvm.log");
    wait_until(|| fs::read_to_string(&log).is_ok_and(|text| text.contains("process 7 on n2")));
    drop(held);
    assert!(start.wait().unwrap().success());
    cluster.expect("n1", "stop", SUCCESS);
}

fn hold_volume(image: &Path) -> impl Drop + use<> {
    let need = VolumeNeed {
        image: HostPath::new(image.to_str().unwrap()),
        fs_type: "ext4".to_owned(),
        label: None,
        access: Access::ReadWrite,
        image_type: ImageType::Raw,
        mount_point: None,
        creation: None,
    };
    let runtime = RuntimeDirectory::at("/nonexistent");
    let home = HostPath::from("/");
    let request = LockRequest {
        machine: "other",
        working_directory: &home,
        runtime: &runtime,
        owner: None,
        image_lock: ImageLock::Held,
        time: LockTime::Now,
    };
    lock_volumes(&[need], request).unwrap()
}

#[test]
fn only_what_the_cluster_of_the_target_says_is_received() {
    if find_on_path("cibadmin").is_none() {
        return missing("cibadmin is needed: package pacemaker-cli-utils");
    }
    let Some(cluster) = Cluster::new() else { return };
    let runner = cluster.machine.path("store/web-runner");
    let refused = |offer: &str, reason: &str| {
        let mut receiver = cluster.receiver("n2").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        writeln!(receiver.stdin.take().unwrap(), "{offer}").unwrap();
        let output = receiver.wait_with_output().unwrap();
        let printed = without_kvm_warning(&output.stderr);
        assert!(output.status.code() == Some(GENERIC) && printed.contains(reason), "{offer}: {printed}");
        assert!(!cluster.machine.path("n2/machines/web").exists(), "nothing was started for {offer}");
    };
    let offer = cluster.offer(&runner);
    refused(&offer, "this node cannot ask its cluster");
    cluster.write_cluster("db", "live");
    refused(&offer, "cannot receive the machine: the cluster has no machine web");
    cluster.write_cluster("web", "cold");
    refused(&offer, "the cluster does not migrate web live");
    cluster.write_cluster("web", "live");
    refused(&cluster.offer(Path::new("/etc")), "its runner is /etc, but that in the cluster is ");
    refused(&offer.replace("web\",", "web\",\"stateDir\":\"/\","), "unknown field");
}

#[test]
fn a_receiver_that_fails_after_the_cluster_has_started_the_machine_leaves_it_running() {
    if find_on_path("cibadmin").is_none() {
        return missing("cibadmin is needed: package pacemaker-cli-utils");
    }
    let Some(cluster) = Cluster::new() else { return };
    cluster.write_cluster("web", "live");
    // A full pipe keeps the receiver from saying that it is ready, after its hypervisor waits for the guest.
    let (mut output, full) = io::pipe().unwrap();
    let count = fill(&full);
    let mut receiver = cluster.receiver("n2");
    let receiver = receiver.stdin(Stdio::piped()).stdout(full).stderr(Stdio::null()).spawn();
    let mut receiver = receiver.unwrap();
    let mut input = receiver.stdin.take().unwrap();
    writeln!(input, "{}", cluster.offer(&cluster.machine.path("store/web-runner"))).unwrap();
    // proc(5): the number of the system call, which is write, and its first argument.
    let call = format!("/proc/{}/syscall", receiver.id());
    let writes = format!("{} ", nix::libc::SYS_write);
    wait_until(|| cluster.state("n2").running().unwrap().is_some());
    wait_until(|| fs::read_to_string(&call).is_ok_and(|text| text.starts_with(&writes)));
    // The hypervisor that waits for the guest does not count as a running machine.
    cluster.expect("n2", "monitor", NOT_RUNNING);
    cluster.expect("n2", "start", SUCCESS);
    let mut filling = vec![0; count];
    output.read_exact(&mut filling).unwrap();
    assert!(!receiver.wait().unwrap().success(), "the machine that runs has not arrived");
    cluster.expect("n2", "monitor", SUCCESS);
    cluster.wait_for_console("n2", "after", "typed [after]");
    cluster.expect("n2", "stop", SUCCESS);
}

/// Offers the machine to a node, and sends something else. Returns the supervisor that has waited for the machine.
fn send_no_machine(cluster: &Cluster, sent: &[u8]) -> ProcessIdentity {
    let mut receiver = cluster.receiver("n2");
    let receiver = receiver.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut receiver = receiver.unwrap();
    let mut input = receiver.stdin.take().unwrap();
    writeln!(input, "{}", cluster.offer(&cluster.machine.path("store/web-runner"))).unwrap();
    let mut ready = [0; 6];
    receiver.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    let supervisor = cluster.state("n2").running().unwrap().unwrap().supervisor.unwrap();
    input.write_all(sent).unwrap();
    drop(input);
    let output = receiver.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(GENERIC), "{output:?}");
    supervisor
}

#[test]
fn a_cancelled_migration_was_shown_as_a_failure_of_the_machine_on_its_target() {
    if find_on_path("cibadmin").is_none() {
        return missing("cibadmin is needed: package pacemaker-cli-utils");
    }
    let Some(cluster) = Cluster::new() else { return };
    cluster.write_cluster("web", "live");
    let log = || fs::read_to_string(cluster.machine.path("n2/machines/web/microvm.log")).unwrap();
    let expect_stopped = |supervisor: ProcessIdentity| {
        wait_until(|| !supervisor.is_alive());
        assert_eq!(cluster.state("n2").failure().unwrap(), None, "{}", log());
        let status = expect_printed(cluster.on("n2", env!("CARGO_BIN_EXE_microvm")).args(["status", "web"]));
        assert_eq!(status, "web  qemu  stopped\n");
    };
    // The hypervisor ends when the stream does.
    expect_stopped(send_no_machine(&cluster, b"no machine"));
    assert!(log().contains("error: web has not arrived: its migration to this host was cancelled"), "{}", log());
    // qemu waited for ever for the first byte.
    expect_stopped(send_no_machine(&cluster, b""));
    assert!(!log().contains("error: "), "{}", log());
}

#[track_caller]
fn expect_printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(SUCCESS), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Fills a pipe, and returns the number of bytes.
fn fill(pipe: &io::PipeWriter) -> usize {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let (mut writer, mut count) = (pipe, 0);
    while let Ok(written) = writer.write(&[0; 4096]) {
        count += written;
    }
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    count
}

/// Runs the agent, which must not wait until Pacemaker ends it.
#[track_caller]
fn expect_before_the_timeout(mut agent: Command, code: i32) -> String {
    let mut running = agent.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + TIMEOUT;
    while running.try_wait().unwrap().is_none() {
        if Instant::now() >= end {
            running.kill().unwrap();
            panic!("{agent:?} waits");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = running.wait_with_output().unwrap();
    let printed = without_kvm_warning(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{agent:?}: {printed}");
    printed
}

#[test]
fn a_service_that_fails_fails_the_start_at_once_and_nothing_starts_outside_of_it() {
    let Some(cluster) = Cluster::new() else { return };
    for (systemctl, reason) in [
        // It starts, and ends at once: systemctl succeeds if the service has no start to wait for.
        ("start:*) echo failed >\"$state\" ;;", "web has not started: it has ended; see its journal"),
        ("start:*) exit 1 ;;", "web has not started: systemctl ended with exit status: 1; the journal of its service"),
        // systemd does not answer. It may know the service, so the machine must not run without it.
        ("*) exit 1 ;;", "web has not started: systemctl ended with exit status: 1; the journal of its service"),
    ] {
        let printed = expect_before_the_timeout(cluster.agent_under_systemd("n1", "start", systemctl), GENERIC);
        assert!(printed.contains(reason), "{systemctl}: {printed}");
        assert!(
            !cluster.machine.path("n1/machines/web/microvm.log").exists(),
            "{systemctl}: started without the service"
        );
        assert!(cluster.state("n1").running().unwrap().is_none(), "{systemctl}");
    }
}

#[test]
fn a_machine_stops_before_pacemaker_while_pacemaker_alone_is_stopped_or_restarted() {
    let Some(cluster) = Cluster::new() else { return };
    let calls = cluster.machine.path("systemd/calls");
    for (pacemaker, mode) in [
        ("Job=217\\nActiveState=active", "ignore-dependencies"),
        ("ActiveState=deactivating", "ignore-dependencies"),
        ("Job=0\\nActiveState=active", "replace"),
    ] {
        // After a stop in another mode than `replace`, systemd leaves the units around the service active.
        let systemctl = format!(
            "show:*Job,ActiveState) printf '{pacemaker}\\n' ;;\n\
             stop:*) echo \"$*\" >>{calls}; echo inactive >\"$state\" ;;\n\
             show:*ActiveState) cat \"$state\" 2>/dev/null || echo activating ;;",
            calls = calls.display()
        );
        expect(&mut cluster.agent_under_systemd("n1", "stop", &systemctl), SUCCESS);
        let expected = format!(
            "stop --job-mode={mode} microvm@web.service\nstop microvm-root@web.service microvm-set-booted@web.service \
             microvm-tap-interfaces@web.service microvm-macvtap-interfaces@web.service \
             microvm-pci-devices@web.service microvm-virtiofsd@web.service\n"
        );
        assert_eq!(fs::read_to_string(&calls).unwrap(), expected, "{pacemaker}");
        fs::remove_file(&calls).unwrap();
        fs::remove_file(cluster.machine.path("systemd/state")).unwrap();
    }
}

#[test]
fn a_process_that_the_user_of_a_service_has_recorded_is_neither_asked_nor_ended_by_root() {
    let Some(cluster) = Cluster::new() else { return };
    cluster.expect("n1", "start", SUCCESS);
    let hypervisor = cluster.state("n1").running().unwrap().unwrap().hypervisor;
    // The same machine as a victim: its records are those that the user of an inactive service wrote.
    let records = fs::read_dir(cluster.state("n1").directory()).unwrap().map(|entry| entry.unwrap().path());
    records.for_each(|record| std::os::unix::fs::lchown(record, Some(4321), Some(4321)).unwrap());
    let mut stop = cluster.agent_under_systemd("n1", "stop", "stop:*) ;;");
    stop.env("OCF_RESKEY_CRM_meta_timeout", "1500");
    let printed = expect(&mut stop, GENERIC);
    assert!(printed.contains("web may still be running: a process still uses "), "{printed}");
    assert!(hypervisor.is_alive(), "root has ended a process that another user had recorded");
    let printed = expect(&mut cluster.agent_under_systemd("n1", "monitor", "stop:*) ;;"), GENERIC);
    assert!(printed.contains("a process that this node does not record uses "), "{printed}");
}

#[test]
fn a_running_machine_migrates_and_keeps_running_on_qemu() {
    a_running_machine_migrates(Hypervisor::Qemu);
}

#[test]
fn a_running_machine_migrates_and_keeps_running_on_cloud_hypervisor() {
    a_running_machine_migrates(Hypervisor::CloudHypervisor);
}

fn a_running_machine_migrates(hypervisor: Hypervisor) {
    if find_on_path("cibadmin").is_none() {
        return missing("cibadmin is needed: package pacemaker-cli-utils");
    }
    let Some(cluster) = Cluster::of(hypervisor) else { return };
    cluster.expect("n1", "start", SUCCESS);
    cluster.wait_for_console("n1", "before", "typed [before]");
    // What ssh does in a real cluster: it runs the receiver on the other node.
    cluster.write_cluster("web", "live");
    let receiver = cluster.receiver("n2");
    let words = receiver.get_args().skip_while(|word| *word != "unshare").map(|word| quoted(word.to_str().unwrap()));
    let settings = receiver.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    let settings = settings.filter(|(name, _)| *name != "PATH").map(|(name, value)| quoted(&format!("{name}={value}")));
    let words: Vec<_> = settings.chain(words).collect();
    let command = cluster.machine.path("receiver");
    write_program(&command, &format!("exec env {}", words.join(" ")));
    let command = format!("{} NODE", command.display());
    let migrate = |node: &str, action: &str, command: &str| {
        let mut agent = cluster.agent(node, action);
        agent.env("OCF_RESKEY_migrate", "live").env("OCF_RESKEY_migrate_command", command);
        agent.env("OCF_RESKEY_CRM_meta_migrate_target", "n2");
        agent
    };
    // A target that cannot receive it leaves it where it is.
    let printed = expect(&mut migrate("n1", "migrate_to", "false NODE"), GENERIC);
    assert!(printed.contains("n2 cannot receive web: "), "{printed}");
    cluster.expect("n1", "monitor", SUCCESS);

    // So does one that is frozen while the machine comes, or before.
    let frozen = cluster.machine.path("frozen");
    for (answer, reason) in [
        ("echo ready", "web could not be sent: it was not finished within "),
        ("true", "n2 cannot receive web: it does not answer"),
    ] {
        write_program(&frozen, &format!("{answer}; exec sleep 1000"));
        let mut migration = migrate("n1", "migrate_to", &format!("{} NODE", frozen.display()));
        let printed = expect(migration.env("OCF_RESKEY_CRM_meta_timeout", "20000"), GENERIC);
        assert!(printed.contains(reason), "{printed}");
        cluster.expect("n1", "monitor", SUCCESS);
        cluster.wait_for_console("n1", "still here", "typed [still here]");
    }

    let moved = migrate("n1", "migrate_to", &command).output().unwrap();
    let printed = without_kvm_warning(&moved.stderr);
    if hypervisor == Hypervisor::CloudHypervisor && !moved.status.success() && kvm_saves_no_guests(&cluster) {
        assert!(printed.contains("its hypervisor has cancelled it"), "{printed}");
        cluster.expect("n1", "monitor", SUCCESS);
        cluster.wait_for_console("n1", "after", "typed [after]");
        cluster.expect("n1", "stop", SUCCESS);
        return skipped("KVM of this host does not report the state of nested guests, which cloud-hypervisor sends");
    }
    assert!(moved.status.success(), "{printed}");
    expect(&mut migrate("n2", "migrate_from", &command), SUCCESS);
    let console = cluster.wait_for_console("n2", "after", "typed [after]");
    assert!(!console.contains("probe format=1"), "the guest has not booted: {console}");
    // The source has been ended at once, although the target has the volume.
    cluster.expect("n1", "monitor", NOT_RUNNING);
    cluster.expect("n1", "stop", SUCCESS);
    let printed = expect(cluster.agent("n1", "start").env("OCF_RESKEY_CRM_meta_timeout", "1500"), GENERIC);
    assert!(printed.contains("volume.img is in use by machine web, process "), "the target has the lock: {printed}");
    cluster.expect("n2", "stop", SUCCESS);
}

/// Whether the hypervisor on the first node could not read the state of its guest.
fn kvm_saves_no_guests(cluster: &Cluster) -> bool {
    let log = fs::read_to_string(cluster.machine.path("n1/machines/web/microvm.log"));
    log.is_ok_and(|log| log.contains("GetNestedState"))
}

#[test]
fn a_machine_is_suspended_into_a_shared_directory_and_resumed_from_it() {
    let Some(cluster) = Cluster::new() else { return };
    let agent = |node: &str, action: &str| {
        let mut agent = cluster.agent(node, action);
        agent.env("OCF_RESKEY_migrate", "suspend").env("OCF_RESKEY_migrate_dir", cluster.machine.path("shared"));
        agent
    };
    fs::create_dir(cluster.machine.path("shared")).unwrap();
    expect(&mut agent("n1", "start"), SUCCESS);
    cluster.wait_for_console("n1", "before", "typed [before]");
    // Where others may write, they could place another memory for root to resume.
    let set_mode = |mode| {
        fs::set_permissions(cluster.machine.path("shared"), fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(0o777);
    let printed = expect(&mut agent("n1", "migrate_to"), INSTALLED);
    assert!(printed.contains("others may write to it"), "{printed}");
    expect(&mut agent("n1", "monitor"), SUCCESS);
    set_mode(0o700);
    expect(&mut agent("n1", "migrate_to"), SUCCESS);
    expect(&mut agent("n1", "monitor"), NOT_RUNNING);
    assert!(cluster.machine.path("shared/web.suspended/complete/stamp.json").exists());
    expect(&mut agent("n2", "migrate_from"), SUCCESS);
    let console = cluster.wait_for_console("n2", "after", "typed [after]");
    assert!(!console.contains("probe format=1"), "the guest has not booted: {console}");
    wait_until(|| !cluster.machine.path("n2/machines/web/web.suspended").exists());
    expect(&mut agent("n1", "stop"), SUCCESS);
    // A machine that was suspended on a node, and has run on another one since, boots there.
    expect(cluster.on("n2", env!("CARGO_BIN_EXE_microvm")).args(["suspend", "web"]), SUCCESS);
    let mut volume = fs::File::options().write(true).open(cluster.machine.path("volume.img")).unwrap();
    volume.write_all(b"changed").unwrap();
    expect(&mut agent("n2", "start"), SUCCESS);
    cluster.wait_for_console("n2", "again", "typed [again]");
    expect(&mut agent("n2", "stop"), SUCCESS);
}

#[test]
fn the_agent_conforms_to_the_resource_agent_api() {
    let Some(cluster) = Cluster::new() else { return };
    let schema = Path::new("/usr/share/resource-agents/ra-api-1.dtd");
    let (Some(xmllint), Some(tester)) = (find_on_path("xmllint"), find_on_path("ocf-tester")) else {
        return missing("xmllint and ocf-tester are needed: packages libxml2-utils and resource-agents");
    };
    let described = cluster.run("n1", "meta-data");
    assert!(described.status.success(), "{described:?}");
    fs::write(cluster.machine.path("meta-data.xml"), &described.stdout).unwrap();
    let mut check = Command::new(xmllint);
    check.args(["--noout", "--nonet", "--dtdvalid"]).arg(schema).arg(cluster.machine.path("meta-data.xml"));
    let check = check.output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));

    let parameter = |name: &str, path: &str| format!("{name}={}", cluster.machine.path(path).display());
    let mut test = cluster.on("n1", tester.to_str().unwrap());
    test.args(["-n", "web", "-o", "name=web", "-o"]).arg(parameter("runner", "store/web-runner"));
    test.arg("-o").arg(parameter("state_dir", "machines")).arg(cluster.machine.path("agent/MicroVM"));
    let tested = test.output().unwrap();
    let printed = String::from_utf8_lossy(&tested.stdout) + String::from_utf8_lossy(&tested.stderr);
    println!("{printed}");
    assert!(tested.status.success() && printed.contains("passed all tests"), "{printed}");
}
