//! Starts that fail, and starts without root: error messages, exit codes, and what is left behind.

use crate::lifecycle::{terminate, waiting_machine};
use crate::machine::{Running, TestMachine, use_program, without_kvm_warning};
use crate::probe::probe_guest;
use launcher::spec::{Hypervisor, MachineSpec};
use launcher::state::ProcessIdentity;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use testing::write_program;

/// Creates a machine whose firecracker is a shell script.
pub(crate) fn scripted_machine(script: &str, changes: Value) -> Option<TestMachine> {
    let machine = TestMachine::new("web")?;
    let program = write_script(&machine, "firecracker", script);
    fs::copy(&probe_guest().elf, machine.path("kernel")).unwrap();
    fs::write(machine.path("initrd"), "initrd").unwrap();
    let mut spec = json!({
        "version": 1, "name": "web", "hypervisor": "firecracker", "kernel": "kernel", "initrd": "initrd",
    });
    spec.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let mut spec: MachineSpec = serde_json::from_value(spec).unwrap();
    use_program(&mut spec, Hypervisor::Firecracker, &program);
    machine.write_spec(&spec);
    Some(machine)
}

pub(crate) fn write_script(machine: &TestMachine, name: &str, script: &str) -> PathBuf {
    let path = machine.path(name);
    // Responds immediately when asked for the version.
    let text = format!("#!/bin/sh\n[ \"$1\" != --version ] || {{ echo Firecracker v1.14.0; exit 0; }}\n{script}\n");
    write_program(&path, &text);
    path
}

pub(crate) fn printed(output: &Output) -> String {
    without_kvm_warning(&output.stderr)
}

/// Waits for the file in which a script writes its process id.
pub(crate) fn wait_for_file(path: &std::path::Path, running: &Running<'_>) -> String {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.ends_with('\n') {
            return text.trim().to_owned();
        }
        assert!(Instant::now() < end, "no {}: {}", path.display(), running.messages());
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn the_error_for_a_missing_hypervisor_names_its_package() {
    let Some(machine) = scripted_machine("", json!({"cloudHypervisor": {"program": "/nonexistent/cloud-hypervisor"}}))
    else {
        return;
    };
    let output = machine.output(&["run", "machine.json", "--hypervisor", "cloud-hypervisor"]);
    assert_eq!(output.status.code(), Some(1));
    let wanted = "error: /nonexistent/cloud-hypervisor is not installed: there is no such file; \
                  install it (nixpkgs: cloud-hypervisor), or set its program in the machine spec\n";
    assert!(printed(&output).ends_with(wanted), "{}", printed(&output));
}

#[test]
fn the_output_of_a_hypervisor_that_ends_immediately_is_printed() {
    let Some(machine) = scripted_machine("echo 'no such device' >&2; exit 7", json!({})) else { return };
    let output = machine.output(&["run", "machine.json"]);
    assert_eq!((output.status.code(), printed(&output).as_str()), (Some(7), "no such device\n"));
    let output = machine.output(&["run", "machine.json", "--supervise"]);
    assert_eq!(output.status.code(), Some(1));
    let text = printed(&output);
    assert!(text.starts_with("no such device\nerror: firecracker ended with exit status: 7 after "), "{text}");
    let status = machine.output(&["status", "web"]);
    let shown = String::from_utf8_lossy(&status.stdout);
    assert!(shown.starts_with("web  firecracker  failed: firecracker ended with exit status: 7 after "), "{shown}");
}

#[test]
fn status_shows_why_the_only_start_failed_until_the_machine_starts() {
    let changes = json!({"storeDisk": {"image": "no-image"}});
    let Some(machine) = scripted_machine("exit 0", changes) else { return };
    assert_eq!(machine.output(&["run", "machine.json"]).status.code(), Some(1));
    let status = machine.output(&["status", "web"]);
    assert_eq!(status.status.code(), Some(0));
    let path = machine.path("no-image");
    let reason = format!("storeDisk.image: {}: No such file or directory (os error 2)", path.display());
    assert_eq!(String::from_utf8_lossy(&status.stdout), format!("web  -  failed: {reason}\n"));
    let document: Value = serde_json::from_slice(&machine.output(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&document[0]["activity"], &document[0]["failure"]), (&json!("failed"), &json!([reason])));
    // Stopping it acknowledges the failure.
    assert!(machine.output(&["stop", "machine.json"]).status.success());
    assert_eq!(String::from_utf8_lossy(&machine.output(&["status", "web"]).stdout), "web  -  stopped\n");
    assert_eq!(machine.output(&["run", "machine.json"]).status.code(), Some(1));
    fs::write(&path, "image").unwrap();
    let started = machine.output(&["run", "machine.json", "--supervise"]);
    assert!(started.status.success(), "{}", printed(&started));
    let status = machine.output(&["status", "web"]);
    assert_eq!(String::from_utf8_lossy(&status.stdout), "web  firecracker  stopped\n");
}

#[test]
fn all_missing_files_are_reported_at_once() {
    let changes = json!({"storeDisk": {"image": "no-image"}, "credentialFiles": {"token": "no-token"}});
    let Some(machine) = scripted_machine("exit 0", changes) else { return };
    fs::remove_file(machine.path("kernel")).unwrap();
    fs::remove_file(machine.path("initrd")).unwrap();
    for command in [["run", "machine.json"].as_slice(), &["check", "--host", "machine.json"]] {
        let output = machine.output(command);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
        for option in ["kernel", "initrd", "storeDisk.image", "credentialFiles.token"] {
            assert!(printed(&output).contains(&format!("{option}: ")), "{command:?}, {option}: {}", printed(&output));
        }
    }
}

#[test]
fn a_failing_pre_start_command_ends_the_start() {
    let script = "echo the hypervisor runs";
    let Some(machine) = scripted_machine(script, json!({"preStart": [["sh", "-c", "echo out; exit 3"]]})) else {
        return;
    };
    let output = machine.output(&["run", "machine.json"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"".as_slice()));
    assert_eq!(printed(&output), "out\nerror: preStart: sh -c echo out; exit 3: ended with exit status: 3\n");
}

#[test]
fn the_output_of_extra_args_script_is_passed_to_the_hypervisor() {
    let changes = json!({"extraArgsScript": "arguments.sh"});
    let Some(machine) = scripted_machine("echo \"$@\"", changes) else { return };
    write_script(&machine, "arguments.sh", "echo --boot-timer  --id web");
    let output = machine.output(&["run", "machine.json"]);
    assert!(String::from_utf8_lossy(&output.stdout).ends_with(" --boot-timer --id web\n"), "{output:?}");
}

#[test]
fn an_option_of_ours_in_the_output_of_extra_args_script_is_refused_before_the_hypervisor_starts() {
    let changes = json!({"extraArgsScript": "arguments.sh"});
    let Some(machine) = scripted_machine("echo started > started", changes) else { return };
    write_script(&machine, "arguments.sh", "echo --api-sock /tmp/other --config-file=/tmp/other");
    let output = machine.output(&["run", "machine.json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = printed(&output);
    for option in ["--api-sock", "--config-file"] {
        let line = printed.lines().find(|line| line.contains(option)).unwrap_or_else(|| panic!("{option}: {printed}"));
        assert!(line.starts_with("error: extraArgsScript arguments.sh: firecracker cannot be given "), "{line}");
    }
    assert!(!machine.path("started").exists());
}

#[test]
fn sigterm_while_starting_ends_the_pre_start_commands() {
    let changes = json!({"preStart": [["sh", "-c", "sleep 300 & echo $! > sleeper; wait"]]});
    let Some(machine) = scripted_machine("exit 0", changes) else { return };
    let mut running = machine.start(&[]);
    let sleeper = wait_for_file(&machine.path("sleeper"), &running);
    terminate(&running);
    assert_eq!(running.end().code(), Some(130), "{}", running.messages());
    assert_eq!(running.messages(), "error: interrupted by SIGTERM\n");
    let end = Instant::now() + Duration::from_secs(60);
    while is_alive(&sleeper) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!is_alive(&sleeper), "the child of the command is still running");
}

#[test]
fn sigterm_while_starting_removes_daemons_sockets_and_interfaces() {
    let Some((machine, mut spec)) = waiting_machine(Hypervisor::Qemu) else { return };
    // The daemon is serving, the tap exists, and the last step before the hypervisor takes long.
    let daemon = "import os, socket, sys
path = next(a.split('=', 1)[1] for a in sys.argv if a.startswith('--socket-path='))
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
open('daemon', 'w').write(str(os.getpid()) + '\\n')
server.accept()
";
    let program = machine.path("virtiofsd");
    write_program(&program, &format!("#!/usr/bin/env python3\n{daemon}"));
    write_script(&machine, "arguments.sh", "echo $$ > script; exec sleep 300");
    let shares = json!([{"proto": "virtiofs", "tag": "home", "source": ".", "mountPoint": "/home"}]);
    spec.shares = serde_json::from_value(shares).unwrap();
    spec.virtiofsd.program = Some(program.to_str().unwrap().into());
    spec.extra_args_script = Some("arguments.sh".into());
    machine.write_spec(&spec);
    let mut running = machine.start(&["--supervise"]);
    let script = wait_for_file(&machine.path("script"), &running);
    let daemon = fs::read_to_string(machine.path("daemon")).unwrap().trim().to_owned();
    assert!(is_alive(&daemon));
    assert!(machine.namespace.run("ip", &["-o", "link"]).contains("vm-web"));
    terminate(&running);
    assert_eq!(running.end().code(), Some(130), "{}", running.messages());
    assert!(!is_alive(&daemon) && !is_alive(&script));
    let sockets = fs::read_dir(machine.directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let sockets: Vec<_> = sockets.filter(|name| name.to_string_lossy().ends_with(".sock")).collect();
    assert!(sockets.is_empty(), "{sockets:?}");
    assert!(!machine.namespace.run("ip", &["-o", "link"]).contains("vm-web"));
}

#[test]
fn names_that_point_outside_the_runtime_directory_are_refused() {
    let Some(machine) = scripted_machine("exit 0", json!({})) else { return };
    for name in ["..", ".hidden", "a b"] {
        let output = machine.output(&["stop", name]);
        assert_eq!(output.status.code(), Some(2), "{name}: {output:?}");
        assert!(printed(&output).contains("is not a machine name"), "{}", printed(&output));
    }
    let output = machine.output(&["stop", "wbe"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(printed(&output).starts_with("error: no machine `wbe` has been started\nhint: "), "{}", printed(&output));
}

/// Gives the machine to an ordinary user. Its kernel may be in a directory that only root can enter, so it is copied.
fn give_to_nobody(machine: &TestMachine, spec: &mut MachineSpec) {
    fs::copy(&probe_guest().bzimage, machine.path("kernel")).unwrap();
    spec.kernel = "kernel".into();
    machine.write_spec(spec);
    for path in ["", "store.img", "initrd", "kernel", "machine.json"] {
        fs::set_permissions(machine.path(path), fs::Permissions::from_mode(0o777)).unwrap();
    }
}

#[test]
fn a_machine_runs_without_root() {
    let Some((machine, mut spec)) = waiting_machine(Hypervisor::Qemu) else { return };
    give_to_nobody(&machine, &mut spec);
    // On some machines only root can open /dev/net/tun. `ip netns exec` has also created a mount namespace.
    let made = Command::new("mknod").args(["-m", "666"]).arg(machine.path("tun")).args(["c", "10", "200"]).status();
    assert!(made.unwrap().success());
    let as_nobody = |arguments: &[&str]| {
        let script = "mount --bind tun /dev/net/tun && exec setpriv --reuid=nobody --clear-groups \"$@\"";
        let mut command = machine.namespace.command("sh");
        command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_microvm")]).args(arguments);
        command.current_dir(machine.directory.path()).env("MICROVM_RUNTIME_DIR", machine.path("run"));
        command
    };
    // The user nobody cannot create the tap, and the error contains the command for root.
    let refused = as_nobody(&["run", "machine.json"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let wanted = "run: sudo ip tuntap add vm-web mode tap user nobody";
    assert!(printed(&refused).contains(wanted), "{}", printed(&refused));
    assert!(machine.output(&["tap", "up", "--owner", "nobody", "machine.json"]).status.success());
    let mut running = machine.start_command(as_nobody(&["run", "machine.json", "--supervise"]));
    running.wait_for("waiting");
    assert!(as_nobody(&["stop", "web"]).status().unwrap().success());
    running.end_well();
}

#[test]
fn a_hypervisor_started_by_root_runs_as_the_machines_user() {
    let Some((machine, mut spec)) = waiting_machine(Hypervisor::Qemu) else { return };
    give_to_nobody(&machine, &mut spec);
    spec.user = Some("nobody".to_owned());
    spec.interfaces.clear();
    spec.volumes = serde_json::from_value(json!([{"image": "var.img", "size": 8}])).unwrap();
    machine.write_spec(&spec);
    for options in [[].as_slice(), &["--supervise"]] {
        let mut running = machine.start(options);
        running.wait_for("waiting");
        let process = fs::read_to_string(machine.path("run/web/process.json")).unwrap();
        let process: Value = serde_json::from_str(&process).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", process["hypervisor"]["pid"])).unwrap();
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{options:?}: {status}");
        assert!(machine.output(&["stop", "web"]).status.success());
        running.end_well();
    }
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(machine.path("var.img")).unwrap().uid(), 65534);
}

#[test]
fn the_virtiofs_daemons_run_in_a_separate_service() {
    let share = json!([{"proto": "virtiofs", "tag": "home", "source": ".", "mountPoint": "/home"}]);
    let Some((machine, mut spec)) = waiting_machine(Hypervisor::Qemu) else { return };
    let daemon = "import socket, sys
path = next(a.split('=', 1)[1] for a in sys.argv if a.startswith('--socket-path='))
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
server.accept()
";
    let program = machine.path("virtiofsd");
    write_program(&program, &format!("#!/usr/bin/env python3\n{daemon}"));
    spec.shares = serde_json::from_value(share).unwrap();
    spec.virtiofsd.program = Some(program.to_str().unwrap().into());
    machine.write_spec(&spec);
    let manager = UnixDatagram::bind(machine.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = machine.microvm(&["virtiofsd", "machine.json"]);
    command.env("NOTIFY_SOCKET", machine.path("notify"));
    let mut running = machine.start_command(command);
    let mut buffer = [0; 256];
    let count = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"READY=1\nSTATUS=all shares are served");
    let socket = machine.path("web-virtiofs-home.sock");
    assert!(socket.exists());
    terminate(&running);
    assert!(running.end().success(), "{}", running.messages());
    assert!(!socket.exists());
}

#[test]
fn volumes_are_created_without_a_start() {
    let volumes = json!([{"image": "a.img", "size": 8}, {"image": "b.img", "autoCreate": false}]);
    let Some(machine) = scripted_machine("exit 0", json!({"volumes": volumes})) else { return };
    let output = machine.output(&["volumes", "--json", "machine.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output).contains("b.img does not exist, and `autoCreate` is off"), "{}", printed(&output));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((rows[0]["fsType"].as_str(), rows[0]["state"].as_str()), (Some("ext4"), Some("created")));
    let output = machine.output(&["volumes", "machine.json"]);
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("a.img  ext4  present\n"), "{output:?}");
}

/// crosvm does this when it ends while it still has children, such as the process that removes the tap.
#[test]
fn a_crosvm_that_kills_its_process_group_does_not_kill_the_script_that_runs_the_launcher() {
    let interfaces = json!([{"type": "tap", "id": "vm-web", "mac": "02:00:00:00:00:01"}]);
    let Some(machine) = scripted_machine("exit 0", json!({"hypervisor": "crosvm", "interfaces": interfaces})) else {
        return;
    };
    let program = write_script(&machine, "crosvm", "exec perl -e 'kill \"KILL\", 0'");
    let mut spec: MachineSpec = serde_json::from_slice(&fs::read(machine.path("machine.json")).unwrap()).unwrap();
    use_program(&mut spec, Hypervisor::Crosvm, &program);
    machine.write_spec(&spec);
    let mut script = machine.namespace.command("sh");
    script.args(["-c", "\"$@\"; echo \"the script goes on: $?\"", "sh", env!("CARGO_BIN_EXE_microvm")]);
    script.args(["run", "machine.json"]).current_dir(machine.directory.path());
    let script = script.env("MICROVM_RUNTIME_DIR", machine.path("run")).stdin(Stdio::null()).process_group(0);
    let output = script.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("the script goes on: 137"), "{output:?}");
}

#[test]
fn a_guest_that_panics_before_it_reports_that_it_has_booted_is_a_failed_start() {
    // A kernel that panics restarts, and each hypervisor then ends as after a reboot.
    let changes = |notify: bool| json!({"vsock": {"cid": 42, "notify": notify}});
    let Some(silent) = scripted_machine("exit 0", changes(true)) else { return };
    let failed = silent.output(&["run", "machine.json", "--supervise"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let text = printed(&failed);
    assert!(text.contains("had not reported that it had booted"), "{text}");
    // A guest that is not asked to report may end at any time.
    let Some(unasked) = scripted_machine("exit 0", changes(false)) else { return };
    let ended = unasked.output(&["run", "machine.json", "--supervise"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    // One that reports may too.
    let script = r#"python3 -c '
import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect("NAME.vsock_9999")
connection.sendall(b"READY=1\n")
connection.shutdown(socket.SHUT_WR)
connection.recv(1)'"#;
    let Some(ready) = scripted_machine("exit 0", changes(true)) else { return };
    let plain = ready.output(&["explain", "machine.json", "--json"]);
    let launch: Value = serde_json::from_slice(&plain.stdout).unwrap();
    let socket = launch["launch"]["notification"]["listen"]["unix"].as_str().unwrap();
    write_script(&ready, "firecracker", &script.replace("NAME.vsock_9999", socket));
    let ended = ready.output(&["run", "machine.json", "--supervise"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn a_guest_that_is_stopped_or_powers_off_before_it_reports_that_it_has_booted_has_not_failed() {
    let changes = || json!({"vsock": {"cid": 42, "notify": true}});
    // `stop` and SIGTERM end a hypervisor whose guest does not respond.
    for asks in ["stop", "SIGTERM"] {
        let Some(machine) = scripted_machine("echo $$ > pid; exec sleep 600", changes()) else { return };
        let mut running =
            machine.start_command(machine.microvm(&["run", "machine.json", "--stop-timeout", "0", "--supervise"]));
        wait_for_file(&machine.path("pid"), &running);
        if asks == "stop" {
            assert_eq!(machine.output(&["stop", "web", "--timeout", "0"]).status.code(), Some(0));
        } else {
            terminate(&running);
        }
        running.end_well();
    }
    // systemd 256 and later report the end of the guest: systemd(1), vmm.notify_socket.
    let script = r#"python3 -c '
import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect("SOCKET")
connection.sendall(b"EXIT_STATUS=0\nX_SYSTEMD_SHUTDOWN=poweroff")'"#;
    let Some(machine) = scripted_machine("exit 0", changes()) else { return };
    let explained = machine.output(&["explain", "machine.json", "--json"]);
    let launch: Value = serde_json::from_slice(&explained.stdout).unwrap();
    let socket = launch["launch"]["notification"]["listen"]["unix"].as_str().unwrap();
    write_script(&machine, "firecracker", &script.replace("SOCKET", socket));
    let ended = machine.output(&["run", "machine.json", "--supervise"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

/// Starts a machine with a supervisor, and returns it and its hypervisor's process id when both are recorded.
fn start_recorded(machine: &TestMachine) -> (Running<'_>, String) {
    let _ = fs::remove_file(machine.path("pid"));
    let running = machine.start_command(machine.microvm(&["run", "machine.json", "--supervise"]));
    let pid = wait_for_file(&machine.path("pid"), &running);
    wait_for_file(&machine.path("run/web/process.json"), &running);
    (running, pid)
}

fn kill(pid: &str) {
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_hypervisor_that_crashes_after_an_interrupted_stop_or_the_stop_of_an_earlier_run_has_failed() {
    let Some(machine) = scripted_machine("echo $$ > pid; exec sleep 600", json!({})) else { return };
    let request = machine.path("run/web/stop-requested");
    let (mut running, pid) = start_recorded(&machine);
    let mut stop = machine.microvm(&["stop", "web", "--timeout", "600"]).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(120);
    while !request.exists() {
        assert!(Instant::now() < end, "the stop does not begin: {}", running.messages());
        std::thread::sleep(Duration::from_millis(10));
    }
    stop.kill().unwrap();
    stop.wait().unwrap();
    assert!(is_alive(&pid));
    kill(&pid);
    assert_eq!(running.end().code(), Some(1), "{}", running.messages());
    assert!(running.messages().contains("signal: 9"), "{}", running.messages());
    drop(running);

    let (mut running, pid) = start_recorded(&machine);
    assert!(!request.exists());
    let own = ProcessIdentity::current().unwrap();
    let hypervisor = ProcessIdentity::of(pid.parse().unwrap()).unwrap();
    let earlier = ProcessIdentity { start_ticks: hypervisor.start_ticks - 1, ..hypervisor };
    fs::write(&request, json!({"requester": own, "hypervisor": earlier}).to_string()).unwrap();
    kill(&pid);
    assert_eq!(running.end().code(), Some(1), "{}", running.messages());
}

#[test]
fn a_machine_that_is_stopped_while_it_is_received_has_not_failed() {
    let Some(machine) = scripted_machine("exit 1", json!({"hypervisor": "cloud-hypervisor"})) else { return };
    let program = write_script(&machine, "cloud-hypervisor", "echo $$ > pid; exec sleep 600");
    let mut spec: MachineSpec = serde_json::from_slice(&fs::read(machine.path("machine.json")).unwrap()).unwrap();
    use_program(&mut spec, Hypervisor::CloudHypervisor, &program);
    machine.write_spec(&spec);
    fs::create_dir_all(machine.path("run/web")).unwrap();
    fs::write(machine.path("run/web/start-request.json"), r#"{"isIncoming": true, "bootsIfChanged": false}"#).unwrap();
    let (mut running, _) = start_recorded(&machine);
    let stopped = machine.output(&["stop", "web", "--timeout", "0"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", printed(&stopped));
    running.end_well();
}

#[test]
fn a_machine_whose_messages_nobody_reads_starts_and_ends_at_a_signal() {
    // The start reports the new volume.
    let changes = json!({"volumes": [{"image": "var.img", "size": 8, "mountPoint": "/var"}]});
    let Some(machine) = scripted_machine("echo $$ > pid; exec sleep 600", changes) else { return };
    let (unread, full) = std::io::pipe().unwrap();
    let writer = fs::File::from(std::os::fd::OwnedFd::from(full.try_clone().unwrap()));
    // Fills the pipe to the last byte.
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    for length in [4096, 1] {
        while let Ok(written) = (&writer).write(&[b'x'; 4096][..length]) {
            assert!(written > 0);
        }
    }
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    let inner = machine.microvm(&["run", "machine.json", "--supervise", "--stop-timeout", "0"]);
    // SIGINT must end it even if these tests run in the background of a script, where it is ignored.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(machine.path(""));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full);
    let mut child = command.spawn().unwrap();
    drop(command);
    let end = Instant::now() + Duration::from_secs(120);
    while fs::read_to_string(machine.path("pid")).unwrap_or_default().is_empty() {
        assert!(Instant::now() < end, "the start waits for a reader of its messages");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The reason is printed after an interruption, which nobody reads either.
    let process = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT).unwrap();
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the signal was not noticed");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(unread);
}
