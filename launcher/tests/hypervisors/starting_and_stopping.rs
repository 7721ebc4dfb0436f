//! Ending a start, stopping several machines at once, duplicate names, and what is left behind.

use crate::failures::{is_alive, scripted_machine, wait_for_file, write_script};
use crate::lifecycle::waiting_machine;
use crate::machine::{Running, TIMEOUT, TestMachine, use_program, write_disk};
use crate::probe::{ProbeReport, probe_guest};
use launcher::spec::Hypervisor;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn messages(output: &Output) -> String {
    crate::machine::without_kvm_warning(&output.stderr)
}

fn status_of(machine: &TestMachine, name: &str) -> String {
    String::from_utf8_lossy(&machine.output(&["status", name]).stdout).into_owned()
}

/// Waits until the condition is true.
fn wait_until(what: &str, is_done: impl Fn() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !is_done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(process: &str, signal: &str) {
    assert!(Command::new("kill").args(["-s", signal, process]).status().unwrap().success());
}

fn end_the_start(changes: Value) {
    let Some(machine) = scripted_machine("echo the hypervisor runs > started", changes) else { return };
    let slow = format!("#!/bin/sh\necho $$ > {}\nexec sleep 600\n", machine.path("step").display());
    fs::create_dir(machine.path("bin")).unwrap();
    testing::write_program(&machine.path("builder"), &slow);
    testing::write_program(&machine.path("bin/mkfs.ext4"), &slow);
    fs::write(machine.path("plan.json"), "{}").unwrap();
    let path = format!("{}:{}", machine.path("bin").display(), std::env::var("PATH").unwrap());
    for options in [[].as_slice(), &["--supervise"]] {
        let mut command = machine.microvm(&[["run", "machine.json"].as_slice(), options].concat());
        command.env("PATH", &path);
        let mut running = machine.start_command(command);
        let step = wait_for_file(&machine.path("step"), &running);
        let status = status_of(&machine, "web");
        assert!(status.ends_with(&format!("starting, by process {}\n", running.child.id())), "{status}");
        let console = machine.output(&["console", "web"]);
        assert_eq!(messages(&console), "error: web is still being started\n");
        let again = machine.output(&["run", "machine.json"]);
        assert_eq!(messages(&again), "error: web is being started by another process\n");
        let stop = machine.output(&["stop", "web"]);
        assert_eq!(messages(&stop), "web was starting; its start was cancelled\n");
        assert!(stop.status.success());
        assert_eq!(running.end().code(), Some(130), "{}", running.messages());
        assert!(!is_alive(&step), "the step of the start is still running");
        assert!(!machine.path("started").exists(), "the hypervisor was started");
        assert!(status_of(&machine, "web").ends_with("stopped\n"));
        let left = fs::read_dir(machine.directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let volumes: Vec<_> = left.filter(|name| name.to_string_lossy().contains("var.img")).collect();
        assert!(volumes.iter().all(|name| name == "var.img.lock"), "an unfinished volume stays: {volumes:?}");
        fs::remove_file(machine.path("step")).unwrap();
    }
}

#[test]
fn a_stop_while_a_command_runs_before_the_start_ends_the_start() {
    end_the_start(json!({"preStart": [["sh", "-c", "echo $$ > step; exec sleep 600"]]}));
}

#[test]
fn a_stop_with_a_timeout_of_zero_leaves_no_step_of_the_start_and_a_second_one_succeeds() {
    let before = json!({"preStart": [["sh", "-c", "trap '' TERM; echo $$ > step; while :; do sleep 1; done"]]});
    let Some(machine) = scripted_machine("echo the hypervisor runs > started", before) else { return };
    let mut running = machine.start(&["--supervise"]);
    let step = wait_for_file(&machine.path("step"), &running);
    let stop = machine.output(&["stop", "web", "--timeout", "0"]);
    assert_eq!(messages(&stop), "web was starting; its start was cancelled\n");
    assert_eq!(running.end().code(), Some(130), "{}", running.messages());
    assert!(!is_alive(&step) && !machine.path("started").exists());
    let again = machine.output(&["stop", "web"]);
    assert_eq!((again.status.code(), messages(&again).as_str()), (Some(0), "web is not running\n"));
}

#[test]
fn a_stop_while_a_start_waited_for_the_supervisor_of_the_last_run_was_lost() {
    let Some(machine) = scripted_machine("echo the hypervisor runs > started", json!({})) else { return };
    let records = machine.path("run/web");
    fs::create_dir_all(&records).unwrap();
    for directory in [machine.path("run"), records.clone()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    }
    // As a supervisor that still cleans up.
    let lock = Flock::lock(File::create(records.join("lock")).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    let mut running = machine.start(&["--supervise"]);
    let starting = format!("starting, by process {}\n", running.child.id());
    wait_until("the start waits", || status_of(&machine, "web").ends_with(&starting));
    let stop = machine.output(&["stop", "web"]);
    assert_eq!(
        (stop.status.code(), messages(&stop).as_str()),
        (Some(0), "web was starting; its start was cancelled\n")
    );
    assert_eq!(running.end().code(), Some(130), "{}", running.messages());
    drop(lock);
    assert!(!machine.path("started").exists(), "the hypervisor was started");
    assert!(status_of(&machine, "web").ends_with("stopped\n"));
}

#[test]
fn a_stop_while_the_store_disk_is_built_ends_the_start() {
    end_the_start(json!({"storeDisk": {"plan": "plan.json", "builder": "./builder"}}));
}

#[test]
fn a_stop_while_mkfs_runs_ends_the_start() {
    end_the_start(json!({"volumes": [{"image": "var.img", "size": 8, "fsType": "ext4"}]}));
}

#[test]
fn twenty_machines_stopped_together_all_shut_down_cleanly() {
    let machines: Vec<_> = (0..20).map_while(|_| waiting_machine(Hypervisor::Qemu)).collect();
    let mut running = Vec::new();
    for (index, (machine, spec)) in machines.iter().enumerate() {
        let mut spec = spec.clone();
        spec.mem_mib = 64;
        spec.interfaces.clear();
        spec.volumes = serde_json::from_value(json!([{"image": "var.img", "autoCreate": false}])).unwrap();
        write_disk(&machine.path("var.img"), "before", 2048);
        spec.kernel_params.extend(["wait=long".to_owned(), format!("record=guest-{index}-shut-down")]);
        machine.write_spec(&spec);
        running.push(machine.start(&["--supervise"]));
        running.last_mut().unwrap().wait_for("waiting");
    }
    let stop = |(machine, _): &(TestMachine, _)| {
        let mut command = machine.microvm(&["stop", "web", "--timeout", "250"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // All machines receive their request before the first one is waited for.
    let stops: Vec<_> = machines.iter().map(stop).collect();
    for stop in stops {
        let stop = stop.wait_with_output().unwrap();
        assert!(messages(&stop).ends_with("web has shut down\n"), "{stop:?}");
    }
    for (index, mut running) in running.into_iter().enumerate() {
        let report = ProbeReport::parse(&running.end_well());
        assert_eq!(report.request.as_deref(), Some("power-button"));
        assert!(report.end.is_some(), "a guest did not get to its last line");
        // Written by the guest after the request, and flushed.
        let volume = fs::read(running.machine.path("var.img")).unwrap();
        let record = format!("guest-{index}-shut-down\0");
        assert!(
            volume.starts_with(record.as_bytes()),
            "guest {index} did not write to its volume: {:?}",
            &volume[..32]
        );
    }
}

#[test]
fn a_guest_shuts_down_although_another_client_is_connected_to_the_monitor() {
    let Some((machine, _)) = waiting_machine(Hypervisor::Qemu) else { return };
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    let mut other = UnixStream::connect(machine.path("web.sock")).unwrap();
    // qemu sends it the greeting, and serves no one else until it disconnects.
    assert!(other.read(&mut [0; 1024]).unwrap() > 0);
    let mut command = machine.microvm(&["stop", "web", "--timeout", "250"]);
    let mut stop = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut first_message = [0; 512];
    let mut reading = stop.stderr.take().unwrap();
    assert!(reading.read(&mut first_message).unwrap() > 0);
    drop(other);
    let mut rest = String::new();
    reading.read_to_string(&mut rest).unwrap();
    assert!(stop.wait().unwrap().success());
    assert_eq!(rest.trim_start(), "web has shut down\n");
    assert_eq!(ProbeReport::parse(&running.end_well()).request.as_deref(), Some("power-button"));
}

#[test]
fn a_guest_of_kvmtool_survives_clients_that_gave_up_and_shuts_down_although_another_one_was_served() {
    let Some((machine, _)) = waiting_machine(Hypervisor::Kvmtool) else { return };
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    let socket = machine.launch().control.unwrap().path;
    let connect = || UnixStream::connect(socket.as_path()).unwrap();
    // kvmtool reads from this client until it leaves.
    let served = connect();
    // These ask for the state, and leave before there is an answer.
    for _ in 0..3 {
        connect().write_all(&[8, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    }
    let mut command = machine.microvm(&["stop", "web", "--timeout", "250"]);
    let mut stop = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut reading = stop.stderr.take().unwrap();
    let mut first_message = [0; 512];
    let count = reading.read(&mut first_message).unwrap();
    let first_message = String::from_utf8_lossy(&first_message[..count]);
    assert!(first_message.contains("does not answer: no answer in time; asking again"), "{first_message}");
    drop(served);
    let mut rest = String::new();
    reading.read_to_string(&mut rest).unwrap();
    assert!(stop.wait().unwrap().success());
    assert_eq!(rest.trim_start(), "web has shut down\n");
    assert_eq!(ProbeReport::parse(&running.end_well()).request.as_deref(), Some("magic-key"));
}

/// Returns how often the threads of the process have waited and been woken.
fn wake_ups(process: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let of_task = |task: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    tasks.map(of_task).sum()
}

#[test]
fn a_supervisor_sleeps_after_a_console_client_has_left() {
    let Some(machine) = scripted_machine("echo $$ > hypervisor; exec sleep 600", json!({})) else { return };
    let mut running = machine.start(&["--supervise"]);
    wait_for_file(&machine.path("hypervisor"), &running);
    let socket = machine.path("run/web/console.sock");
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"hello\n").unwrap();
    drop(client);
    // A client that only reads stays connected.
    let reader = UnixStream::connect(&socket).unwrap();
    reader.shutdown(std::net::Shutdown::Write).unwrap();
    let process = running.child.id();
    // Until it has handled both clients: then nothing changes within a second.
    let is_asleep = || {
        let before = wake_ups(process);
        std::thread::sleep(Duration::from_secs(1));
        wake_ups(process) == before
    };
    wait_until("the supervisor sleeps", is_asleep);
    let before = wake_ups(process);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(wake_ups(process) - before, 0, "without an event the supervisor does not wake up");
    drop(reader);
    stop_hypervisor(&machine, &mut running);
}

/// Ends a machine whose hypervisor is a script without a control socket.
fn stop_hypervisor(machine: &TestMachine, running: &mut Running<'_>) {
    let stop = machine.output(&["stop", "web", "--timeout", "0"]);
    assert!(stop.status.success(), "{stop:?}");
    running.end();
}

#[test]
fn a_supervisor_whose_output_is_not_read_still_serves_its_console_and_handles_sigterm() {
    let script = "i=0; while [ $i -lt 3000 ]; do echo 'a line of the console that nobody reads, far too long for a pipe'; \
                  i=$((i+1)); done; echo $$ > hypervisor; exec sleep 600";
    let Some(machine) = scripted_machine(script, json!({})) else { return };
    let mut command = machine.microvm(&["run", "machine.json", "--supervise", "--stop-timeout", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // The script can finish its output only if something reads it.
    wait_until("the hypervisor has written everything", || {
        fs::read_to_string(machine.path("hypervisor")).is_ok_and(|text| text.ends_with('\n'))
    });
    let mut console = UnixStream::connect(machine.path("run/web/console.sock")).unwrap();
    console.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert!(console.read(&mut [0; 1024]).unwrap() > 0);
    signal(&child.id().to_string(), "TERM");
    wait_until("the supervisor ends", || !is_alive(&child.id().to_string()));
    assert!(child.wait().unwrap().success());
}

/// Checks that the tap of a machine exists while it runs, and is removed however it ends.
fn end_with_a_tap(hypervisor: Hypervisor, options: &[&str]) {
    let Some((machine, _)) = waiting_machine(hypervisor) else { return };
    end_with_an_interface(&machine, options);
}

fn end_with_an_interface(machine: &TestMachine, options: &[&str]) {
    let is_there = || machine.namespace.run("ip", &["-o", "link"]).contains("vm-web");
    for way in ["stop", "TERM", "INT", "HUP", "KILL"] {
        let mut running = machine.start(&[options, &["--stop-timeout", "30"]].concat());
        running.wait_for("waiting");
        assert!(is_there());
        let process = fs::read_to_string(machine.path("run/web/process.json")).unwrap();
        let process: Value = serde_json::from_str(&process).unwrap();
        match way {
            "stop" => assert!(machine.output(&["stop", "web"]).status.success()),
            "KILL" => signal(&process["hypervisor"]["pid"].to_string(), "KILL"),
            way => signal(&running.child.id().to_string(), way),
        }
        running.end();
        wait_until(&format!("the interface is removed after {way} {options:?}"), || !is_there());
    }
}

#[test]
fn a_tap_that_was_made_for_qemu_is_removed_after_every_kind_of_end() {
    end_with_a_tap(Hypervisor::Qemu, &["--supervise"]);
    end_with_a_tap(Hypervisor::Qemu, &[]);
}

#[test]
fn a_tap_that_was_made_for_cloud_hypervisor_is_removed_after_every_kind_of_end() {
    end_with_a_tap(Hypervisor::CloudHypervisor, &[]);
}

#[test]
fn a_tap_that_was_made_for_firecracker_is_removed_after_every_kind_of_end() {
    end_with_a_tap(Hypervisor::Firecracker, &[]);
}

#[test]
fn a_tap_that_was_made_for_crosvm_is_removed_after_every_kind_of_end() {
    end_with_a_tap(Hypervisor::Crosvm, &[]);
}

#[test]
fn a_tap_that_was_made_for_kvmtool_is_removed_after_every_kind_of_end() {
    end_with_a_tap(Hypervisor::Kvmtool, &["--supervise"]);
}

/// Checks that the macvtap of a machine is removed however it ends.
fn end_with_a_macvtap(hypervisor: Hypervisor) {
    let Some((machine, mut spec)) = waiting_machine(hypervisor) else { return };
    spec.interfaces = macvtap(&machine);
    machine.write_spec(&spec);
    end_with_an_interface(&machine, &["--supervise"]);
    // kvmtool shuts a guest down only through its console.
    if hypervisor != Hypervisor::Kvmtool {
        end_with_an_interface(&machine, &[]);
    }
    let is_there = || machine.namespace.run("ip", &["-o", "link"]).contains("vm-web");
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    signal(&running.child.id().to_string(), "KILL");
    running.end();
    assert!(machine.output(&["stop", "web"]).status.success());
    assert!(!is_there(), "stop removes what a launcher that was killed has left");
    // The guest powers off by itself.
    spec.kernel_params.retain(|parameter| parameter.as_str() != "probe=wait");
    machine.write_spec(&spec);
    let fails = write_script(&machine, "fails", "exit 1");
    for options in [[].as_slice(), &["--supervise"]] {
        machine.start(options).end_well();
        wait_until("the macvtap is removed after a power-off", || !is_there());
    }
    use_program(&mut spec, hypervisor, &fails);
    machine.write_spec(&spec);
    for options in [[].as_slice(), &["--supervise"]] {
        let failed = machine.output(&[["run", "machine.json"].as_slice(), options].concat());
        assert_eq!(failed.status.code(), Some(1), "{}", messages(&failed));
        wait_until("the macvtap is removed after a failed start", || !is_there());
    }
}

#[test]
fn a_macvtap_that_was_made_for_qemu_is_removed_after_every_kind_of_end() {
    end_with_a_macvtap(Hypervisor::Qemu);
}

#[test]
fn a_macvtap_that_was_made_for_cloud_hypervisor_is_removed_after_every_kind_of_end() {
    end_with_a_macvtap(Hypervisor::CloudHypervisor);
}

#[test]
fn a_macvtap_that_was_made_for_crosvm_is_removed_after_every_kind_of_end() {
    end_with_a_macvtap(Hypervisor::Crosvm);
}

#[test]
fn a_macvtap_that_was_made_for_kvmtool_is_removed_after_every_kind_of_end() {
    end_with_a_macvtap(Hypervisor::Kvmtool);
}

/// Returns a macvtap on a new lower interface of the machine's namespace.
fn macvtap(machine: &TestMachine) -> Vec<launcher::spec::Interface> {
    machine.namespace.run("ip", &["link", "add", "lower", "type", "bridge"]);
    let macvtap = json!({"link": "lower", "mode": "bridge"});
    let interface = json!([{"type": "macvtap", "id": "vm-web", "mac": "02:00:00:00:00:01", "macvtap": macvtap}]);
    serde_json::from_value(interface).unwrap()
}

/// Returns a machine whose qemu, builder, daemon and scripts each write the output of a command to a file of their name.
fn machine_of_reporting_programs(report: &str) -> Option<TestMachine> {
    let machine = TestMachine::new("web")?;
    let place = machine.directory.path().display().to_string();
    let to = |name: &str| format!("{report} > {place}/{name}.txt; true");
    let builder = format!("{}\nwhile [ \"$1\" != --output ]; do shift; done; truncate -s 1M \"$2\"", to("builder"));
    write_script(&machine, "builder", &builder);
    write_script(&machine, "arguments.sh", &to("script"));
    let daemon = "import socket, sys
path = next(a.split('=', 1)[1] for a in sys.argv if a.startswith('--socket-path='))
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
server.accept()";
    fs::write(machine.path("daemon.py"), daemon).unwrap();
    let serve = format!("{}\nexec python3 {place}/daemon.py \"$@\"", to("daemon"));
    let virtiofsd = write_script(&machine, "virtiofsd", &serve);
    let qemu = write_script(&machine, "qemu", &to("hypervisor"));
    fs::write(machine.path("plan.json"), "{}").unwrap();
    let mut spec: launcher::spec::MachineSpec = serde_json::from_value(json!({
        "version": 1, "name": "web", "hypervisor": "qemu", "mem": 256, "kernel": probe_guest().bzimage,
        "qemu": {"accelerator": "tcg"}, "virtiofsd": {"program": virtiofsd},
        "shares": [{"proto": "virtiofs", "tag": "home", "source": ".", "mountPoint": "/home"}],
        "storeDisk": {"plan": "plan.json", "builder": "./builder"},
        "preStart": [["sh", "-c", to("before")]], "extraArgsScript": "arguments.sh",
    }))
    .unwrap();
    spec.interfaces = macvtap(&machine);
    use_program(&mut spec, Hypervisor::Qemu, &qemu);
    machine.write_spec(&spec);
    Some(machine)
}

fn reports(machine: &TestMachine) -> [(&'static str, String); 5] {
    ["before", "builder", "daemon", "script", "hypervisor"]
        .map(|name| (name, fs::read_to_string(machine.path(&format!("{name}.txt"))).unwrap()))
}

#[test]
fn a_macvtap_is_open_only_in_the_hypervisor() {
    // A macvtap's descriptor has a number from 100 on.
    let Some(machine) = machine_of_reporting_programs("ls -l /proc/self/fd | grep -cE ' 1[0-9][0-9] -> /dev/tap'")
    else {
        return;
    };
    for options in [[].as_slice(), &["--supervise"]] {
        let output = machine.output(&[["run", "machine.json"].as_slice(), options].concat());
        assert!(output.status.success(), "{options:?}: {}", messages(&output));
        for (name, count) in reports(&machine) {
            assert_eq!(count.trim(), if name == "hypervisor" { "1" } else { "0" }, "{name}, {options:?}");
        }
    }
}

#[test]
fn a_service_manager_extends_the_timeout_while_disks_are_created_and_no_other_program_gets_its_socket() {
    let Some(machine) = machine_of_reporting_programs("env") else { return };
    for options in [[].as_slice(), &["--supervise"]] {
        let manager = UnixDatagram::bind(machine.path("notify")).unwrap();
        manager.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut command = machine.microvm(&[["run", "machine.json"].as_slice(), options].concat());
        command.env("NOTIFY_SOCKET", machine.path("notify"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{options:?}: {}", messages(&output));
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).unwrap();
        let first = String::from_utf8_lossy(&buffer[..length]);
        assert!(first.starts_with("EXTEND_TIMEOUT_USEC=60000000\n"), "{options:?}: {first}");
        for (name, environment) in reports(&machine) {
            assert!(environment.contains("PATH="), "{name}: {environment}");
            assert!(!environment.contains("NOTIFY_SOCKET"), "{name}, {options:?}: {environment}");
        }
        fs::remove_file(machine.path("notify")).unwrap();
    }
}

#[test]
fn a_tap_of_a_supervisor_that_was_killed_is_removed_by_stop_and_by_the_next_start() {
    let Some((machine, _)) = waiting_machine(Hypervisor::Qemu) else { return };
    let index = || machine.namespace.run("sh", &["-c", "cat /sys/class/net/vm-web/ifindex || echo none"]);
    let has_tap = || machine.namespace.run("ip", &["-o", "link"]).contains("vm-web");
    for _ in 0..2 {
        let mut running = machine.start(&["--supervise"]);
        running.wait_for("waiting");
        signal(&running.child.id().to_string(), "KILL");
        running.end();
        wait_until("the hypervisor ends with its supervisor", || status_of(&machine, "web").ends_with("stopped\n"));
        assert!(has_tap(), "{}", index());
    }
    let stop = machine.output(&["stop", "web"]);
    assert_eq!(messages(&stop), "web is not running\n");
    assert!(!has_tap());
}

/// Creates a machine of a host whose machines are all built from one flake without a host name.
fn machine_of_host(machine: &TestMachine, spec: &launcher::spec::MachineSpec, name: &str) -> std::path::PathBuf {
    let directory = machine.path("machines").join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::copy(machine.path("initrd"), directory.join("initrd")).unwrap();
    fs::copy(machine.path("store.img"), directory.join("store.img")).unwrap();
    let mut spec = spec.clone();
    spec.name = "nixos".to_owned();
    spec.interfaces.clear();
    fs::write(directory.join("machine.json"), serde_json::to_string(&spec).unwrap()).unwrap();
    directory
}

#[test]
fn two_machines_without_a_host_name_are_identified_by_their_directories() {
    let Some((machine, spec)) = waiting_machine(Hypervisor::Qemu) else { return };
    let directories = ["a", "b"].map(|name| machine_of_host(&machine, &spec, name));
    let microvm = |directory: &std::path::Path, arguments: &[&str]| {
        let mut command = machine.microvm(arguments);
        command.current_dir(directory).env("MICROVM_STATE_DIR", machine.path("machines"));
        command
    };
    let mut started: Vec<_> = directories
        .iter()
        .map(|directory| {
            microvm(directory, &["run", "--supervise", "machine.json"]).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let output = |arguments: &[&str]| microvm(machine.directory.path(), arguments).output().unwrap();
    let status = || String::from_utf8_lossy(&output(&["status"]).stdout).into_owned();
    wait_until("both run", || status().matches("running as process").count() == 2);
    assert!(status().starts_with("a  qemu  running") && status().contains("\nb  qemu  running"), "{}", status());
    for name in ["a", "b"] {
        assert!(machine.path("run").join(name).join("console.sock").exists());
        wait_until("the guest waits", || {
            let mut console = UnixStream::connect(machine.path("run").join(name).join("console.sock")).unwrap();
            console.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let mut seen = Vec::new();
            let _ = console.read_to_end(&mut seen);
            String::from_utf8_lossy(&seen).contains("waiting")
        });
    }
    // By its spec in its own directory, and by its name.
    let stop = microvm(&directories[0], &["stop", "machine.json"]).output().unwrap();
    assert_eq!(messages(&stop), "a has shut down\n");
    assert!(status().starts_with("a  qemu  stopped\nb  qemu  running"), "{}", status());
    assert!(messages(&output(&["delete", "--yes", "b"])).contains("b is running; stop it first: microvm stop b"));
    assert_eq!(messages(&output(&["stop", "b"])), "b has shut down\n");
    started.iter_mut().for_each(|child| assert!(child.wait().unwrap().success()));
}

#[test]
fn stopping_a_spec_in_another_directory_does_not_stop_a_machine_of_the_same_name() {
    let Some((machine, _)) = waiting_machine(Hypervisor::Qemu) else { return };
    let mut running = machine.start(&["--supervise"]);
    running.wait_for("waiting");
    fs::create_dir(machine.path("other")).unwrap();
    fs::copy(machine.path("machine.json"), machine.path("other/machine.json")).unwrap();
    let other = |arguments: &[&str]| machine.microvm(arguments).current_dir(machine.path("other")).output().unwrap();
    let stop = other(&["stop", "machine.json"]);
    assert!(stop.status.success());
    assert!(messages(&stop).starts_with("web is not running in "), "{stop:?}");
    assert!(messages(&stop).contains("`microvm stop web` stops that one"), "{stop:?}");
    let start = other(&["run", "machine.json"]);
    assert!(messages(&start).contains("web is already running, as process "), "{start:?}");
    assert!(messages(&start).contains("give this one another name with --name"), "{start:?}");
    assert!(status_of(&machine, "web").contains("running as process"));
    assert!(machine.output(&["stop", "machine.json"]).status.success());
    running.end_well();
}

#[test]
fn a_machine_that_was_started_by_hand_is_not_deleted_with_any_runtime_directory() {
    for (runtime, options) in
        [("run", [].as_slice()), ("elsewhere", &[]), ("run", &["--supervise"]), ("elsewhere", &["--supervise"])]
    {
        let Some(machine) = scripted_machine("echo $$ > hypervisor; exec sleep 600", json!({})) else { return };
        let state = machine.path("machines/web");
        fs::create_dir_all(&state).unwrap();
        for file in ["machine.json", "kernel", "initrd"] {
            fs::copy(machine.path(file), state.join(file)).unwrap();
        }
        fs::write(state.join("var.img"), "data").unwrap();
        let microvm = |arguments: &[&str]| {
            let mut command = machine.microvm(arguments);
            command.current_dir(&state).env("MICROVM_STATE_DIR", machine.path("machines"));
            command
        };
        let mut command = microvm(&[&["run", "machine.json"], options].concat());
        let mut child = command.env("MICROVM_RUNTIME_DIR", machine.path(runtime)).spawn().unwrap();
        wait_until("the hypervisor runs", || {
            fs::read_to_string(state.join("hypervisor")).is_ok_and(|text| text.ends_with('\n'))
        });
        let delete = microvm(&["delete", "--yes", "web"]).output().unwrap();
        assert_eq!(delete.status.code(), Some(2), "{delete:?}");
        assert!(messages(&delete).contains("web is running; stop it first: microvm stop web"), "{delete:?}");
        assert_eq!(fs::read_to_string(state.join("var.img")).unwrap(), "data");
        let list = microvm(&["list", "--offline"]).output().unwrap();
        assert!(String::from_utf8_lossy(&list.stdout).starts_with("web  running, "), "{list:?}");
        let pid = fs::read_to_string(state.join("hypervisor")).unwrap();
        signal(pid.trim(), "TERM");
        child.wait().unwrap();
        // Only a supervisor learns that the hypervisor was killed.
        let ended = if (runtime, options.len()) == ("run", 1) { "web  failed, " } else { "web  not booted, " };
        wait_until("the machine has ended", || {
            let list = microvm(&["list", "--offline"]).output().unwrap();
            String::from_utf8_lossy(&list.stdout).starts_with(ended)
        });
    }
}
