//! A machine's guest or user may have prepared files for the next start. None of them gives access to the host's files.

use crate::failures::{is_alive, printed, scripted_machine, wait_for_file, write_script};
use crate::lifecycle::waiting_machine;
use crate::machine::{TIMEOUT, TestMachine, kvm_opens, program_of, skipped, use_program};
use crate::probe::probe_guest;
use launcher::control::{ControlError, Controller, HttpAnswer};
use launcher::launch::HttpRequest;
use launcher::spec::{Hypervisor, MachineSpec};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;
use testing::write_program;

/// The user `nobody`, who is used as a machine's user.
const NOBODY: u32 = 65534;

fn kill(pid: &str, signal: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

fn wait_until_gone(pid: &str) {
    let end = Instant::now() + TIMEOUT;
    while is_alive(pid) && Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(!is_alive(pid), "process {pid} is still running");
}

/// Returns the program, or a script if the test only checks what the launcher prints before the start.
fn program_or_script(machine: &TestMachine, hypervisor: Hypervisor) -> std::path::PathBuf {
    program_of(hypervisor).unwrap_or_else(|| {
        skipped(&format!("no {hypervisor}: a script takes its place"));
        write_script(machine, hypervisor.as_str(), "echo started >started")
    })
}

/// Runs the machine where every user can open /dev/kvm, in the mount namespace that `ip netns exec` has created.
fn run_with_open_kvm(machine: &TestMachine) -> Output {
    let script = "mknod -m 666 kvm c 10 232 && mount --bind kvm /dev/kvm && exec \"$@\"";
    let mut command = machine.namespace.command("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_microvm"), "run", "machine.json"]);
    command.current_dir(machine.directory.path()).env("MICROVM_RUNTIME_DIR", machine.path("run"));
    command.stdin(Stdio::null()).output().unwrap()
}

/// Returns a qcow2 header that names a file of the host as its backing file.
fn qcow2_header(backing_file: &str) -> Vec<u8> {
    let mut header = vec![0; 1 << 16];
    header[..4].copy_from_slice(b"QFI\xfb");
    header[4..8].copy_from_slice(&3u32.to_be_bytes());
    header[8..16].copy_from_slice(&512u64.to_be_bytes());
    header[16..20].copy_from_slice(&(backing_file.len() as u32).to_be_bytes());
    header[20..24].copy_from_slice(&16u32.to_be_bytes());
    header[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
    header[512..512 + backing_file.len()].copy_from_slice(backing_file.as_bytes());
    header
}

#[test]
fn a_raw_disk_on_which_the_guest_wrote_another_header_is_refused() {
    if !kvm_opens() {
        return skipped("these hypervisors need KVM");
    }
    for hypervisor in [Hypervisor::Crosvm, Hypervisor::Kvmtool, Hypervisor::CloudHypervisor] {
        for read_only in [false, true] {
            let Some(machine) = TestMachine::new("web") else { return };
            let mut spec: MachineSpec = serde_json::from_value(json!({
                "version": 1, "name": "web", "hypervisor": hypervisor, "mem": 256, "kernel": probe_guest().bzimage,
                "vmlinux": probe_guest().elf,
                "volumes": [{"image": "var.img", "autoCreate": false, "readOnly": read_only}],
            }))
            .unwrap();
            let program = program_or_script(&machine, hypervisor);
            use_program(&mut spec, hypervisor, &program);
            fs::create_dir(machine.path("empty")).unwrap();
            spec.crosvm.pivot_root = Some(machine.path("empty").to_str().unwrap().into());
            machine.write_spec(&spec);
            fs::write(machine.path("secret"), "secret").unwrap();
            fs::write(machine.path("var.img"), qcow2_header(machine.path("secret").to_str().unwrap())).unwrap();
            let output = machine.output(&["run", "machine.json"]);
            let text = printed(&output);
            if text.contains("detects the format of a disk before version") {
                // The script has no version, so it counts as an old cloud-hypervisor, which opens any file without landlock.
                assert!(hypervisor == Hypervisor::CloudHypervisor && !read_only, "{text}");
                assert_eq!(output.status.code(), Some(2), "{text}");
            } else {
                assert_eq!(output.status.code(), Some(1), "{hypervisor}: {output:?}");
                assert!(text.contains("error: volumes[0]: ") && text.contains("looks like a qcow2 image"), "{text}");
            }
            assert!(!machine.path("started").exists() && !text.contains("secret"), "{text}");
        }
    }
}

#[test]
fn a_disk_with_another_header_is_accepted_if_the_format_is_set_explicitly() {
    let Some(machine) = scripted_machine("exit 0", json!({"volumes": [{"image": "var.img", "autoCreate": false}]}))
    else {
        return;
    };
    fs::write(machine.path("var.img"), qcow2_header("/etc/shadow")).unwrap();
    let output = machine.output(&["run", "machine.json"]);
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn files_for_the_hypervisor_are_not_written_through_links() {
    let Some(machine) = scripted_machine("exit 0", json!({"user": "nobody"})) else { return };
    fs::set_permissions(machine.directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(machine.path("victim"), "untouched").unwrap();
    let configuration = machine.path("web-firecracker.json");
    symlink("victim", &configuration).unwrap();
    lchown(&configuration, Some(NOBODY), Some(NOBODY)).unwrap();
    let output = run_with_open_kvm(&machine);
    assert_eq!(fs::read_to_string(machine.path("victim")).unwrap(), "untouched");
    assert_eq!(fs::metadata(machine.path("victim")).unwrap().uid(), 0);
    let written = fs::symlink_metadata(&configuration).unwrap();
    assert!(written.is_file(), "{}", printed(&output));
    assert_eq!((written.uid(), written.mode() & 0o777), (NOBODY, 0o600));
}

#[test]
fn root_refuses_to_run_a_script_that_the_machines_user_can_change() {
    for changes in [
        json!({"user": "nobody", "extraArgsScript": "script.sh"}),
        json!({"user": "nobody", "preStart": [["./script.sh"]]}),
    ] {
        let Some(machine) = scripted_machine("exit 0", changes) else { return };
        write_script(&machine, "script.sh", "echo changed >victim");
        fs::set_permissions(machine.directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        lchown(machine.path("script.sh"), Some(NOBODY), Some(NOBODY)).unwrap();
        let output = run_with_open_kvm(&machine);
        assert_eq!(output.status.code(), Some(1));
        assert!(printed(&output).contains("root does not run it, because nobody can change"), "{}", printed(&output));
        assert!(!machine.path("victim").exists());
    }
}

#[test]
fn an_initrd_with_credentials_is_open_only_in_the_hypervisor() {
    let list = "ls -l /proc/self/fd | grep -c memfd:initrd";
    let changes = json!({
        "credentialFiles": {"token": "token"}, "extraArgsScript": "arguments.sh",
        "preStart": [["sh", "-c", format!("{list} >before; true")]],
    });
    for options in [[].as_slice(), &["--supervise"]] {
        let Some(machine) = scripted_machine(&format!("{list} >hypervisor; true"), changes.clone()) else { return };
        fs::write(machine.path("token"), "hunter2").unwrap();
        write_script(&machine, "arguments.sh", &format!("{list} >script; true"));
        let output = machine.output(&[["run", "machine.json"].as_slice(), options].concat());
        assert!(output.status.success(), "{}", printed(&output));
        let counts = ["before", "script", "hypervisor"].map(|name| fs::read_to_string(machine.path(name)).unwrap());
        assert_eq!(counts.each_ref().map(|count| count.trim()), ["0", "0", "1"], "{options:?}");
    }
}

#[test]
fn a_volume_is_locked_while_its_hypervisor_runs() {
    let volumes = json!({"volumes": [{"image": "var.img", "size": 8}]});
    for options in [[].as_slice(), &["--supervise"]] {
        // The script does not end when its supervisor does.
        let Some(machine) = scripted_machine("trap '' TERM; echo $$ >pid; exec sleep 600", volumes.clone()) else {
            return;
        };
        let text = fs::read_to_string(machine.path("machine.json")).unwrap();
        let mut other: MachineSpec = serde_json::from_str(&text).unwrap();
        other.name = "db".to_owned();
        symlink("var.img", machine.path("link.img")).unwrap();
        other.volumes[0].image = "link.img".into();
        fs::write(machine.path("other.json"), serde_json::to_string(&other).unwrap()).unwrap();
        let mut running = machine.start(options);
        let hypervisor = wait_for_file(&machine.path("pid"), &running);
        let refused = || {
            let output = machine.output(&["run", "other.json"]);
            assert_eq!(output.status.code(), Some(1));
            let text = printed(&output);
            assert!(text.contains("link.img is in use by machine web, process "), "{text}");
        };
        refused();
        if !options.is_empty() {
            running.child.kill().unwrap();
            running.child.wait().unwrap();
            assert!(is_alive(&hypervisor));
            refused();
        }
        kill(&hypervisor, "-KILL");
        wait_until_gone(&hypervisor);
        running.child.wait().unwrap();
        fs::remove_file(machine.path("pid")).unwrap();
        let mut command = machine.microvm(&["run", "other.json"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut second = command.spawn().unwrap();
        let hypervisor = wait_for_file(&machine.path("pid"), &running);
        kill(&hypervisor, "-KILL");
        second.wait().unwrap();
    }
}

#[test]
fn a_failed_start_leaves_no_daemon_and_a_daemon_with_another_command_is_not_used() {
    let Some(machine) = TestMachine::new("web") else { return };
    // While `outlives` exists, the kernel does not end it with its parent, as it does not end passt, which changes its user.
    let daemon = "import ctypes, os, socket, sys
if os.path.exists('outlives'): ctypes.CDLL(None).prctl(1, 0)
path = next(a.split('=', 1)[1] for a in sys.argv if a.startswith('--socket-path='))
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
open('daemon', 'w').write(str(os.getpid()) + '\\n')
server.accept()
";
    write_program(&machine.path("virtiofsd"), &format!("#!/usr/bin/env python3\n{daemon}"));
    let qemu = write_script(&machine, "qemu", "exit 3");
    fs::write(machine.path("kernel"), "kernel").unwrap();
    let share = |read_only: bool| {
        let mut spec: MachineSpec = serde_json::from_value(json!({
            "version": 1, "name": "web", "hypervisor": "qemu", "mem": 256, "kernel": probe_guest().bzimage,
            "virtiofsd": {"program": machine.path("virtiofsd")}, "qemu": {"accelerator": "tcg"},
            "shares": [{"proto": "virtiofs", "tag": "home", "source": ".", "mountPoint": "/home", "readOnly": read_only}],
        }))
        .unwrap();
        use_program(&mut spec, Hypervisor::Qemu, &qemu);
        machine.write_spec(&spec);
    };
    share(false);
    fs::write(machine.path("outlives"), "").unwrap();
    let output = machine.output(&["run", "machine.json"]);
    assert_eq!(output.status.code(), Some(3), "{}", printed(&output));
    let read_pid = || fs::read_to_string(machine.path("daemon")).unwrap().trim().to_owned();
    wait_until_gone(&read_pid());

    // A daemon of the service is used by a start with the same command, but not by one with another command.
    fs::remove_file(machine.path("daemon")).unwrap();
    fs::remove_file(machine.path("outlives")).unwrap();
    let mut running = machine.start_command(machine.microvm(&["virtiofsd", "machine.json"]));
    let pid = wait_for_file(&machine.path("daemon"), &running);
    share(true);
    let output = machine.output(&["run", "machine.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(printed(&output).contains("nothing proves that it was started with this command"), "{}", printed(&output));
    share(false);
    let output = machine.output(&["run", "machine.json"]);
    assert_eq!(output.status.code(), Some(3), "{}", printed(&output));
    assert_eq!(read_pid(), pid);
    kill(&running.child.id().to_string(), "-KILL");
    running.child.wait().unwrap();
    wait_until_gone(&pid);
}

#[test]
fn check_reports_two_paths_to_the_same_file() {
    let volumes = json!([{"image": "a.img", "autoCreate": false}, {"image": "b.img", "autoCreate": false}]);
    let Some(machine) = scripted_machine("exit 0", json!({"volumes": volumes})) else { return };
    fs::write(machine.path("a.img"), "").unwrap();
    symlink("a.img", machine.path("b.img")).unwrap();
    let refused = |arguments: &[&str]| {
        let output = machine.output(&[["check"].as_slice(), arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(printed(&output).contains("are the same file"), "{}", printed(&output));
    };
    refused(&["machine.json"]);
    let output = machine.output(&["run", "machine.json"]);
    assert!(printed(&output).contains("are the same file"), "{}", printed(&output));
    let write = |name: &str, image: &Path| {
        let text = fs::read_to_string(machine.path("machine.json")).unwrap();
        let mut spec: MachineSpec = serde_json::from_str(&text).unwrap();
        spec.volumes.truncate(1);
        name.clone_into(&mut spec.name);
        spec.volumes[0].image = image.to_str().unwrap().into();
        fs::write(machine.path(&format!("{name}.json")), serde_json::to_string(&spec).unwrap()).unwrap();
    };
    write("db", &machine.path("a.img"));
    write("mail", &machine.path("b.img"));
    refused(&["db.json", "mail.json"]);
}

#[test]
fn every_hypervisor_holds_the_lock_on_its_volume() {
    for hypervisor in Hypervisor::ALL {
        let Some((machine, mut spec)) = waiting_machine(hypervisor) else { continue };
        spec.interfaces.clear();
        spec.volumes = serde_json::from_value(json!([{"image": "var.img", "size": 8}])).unwrap();
        machine.write_spec(&spec);
        let mut running = machine.start(&["--supervise"]);
        running.wait_for("waiting");
        let process = fs::read_to_string(machine.path("run/web/process.json")).unwrap();
        let process: serde_json::Value = serde_json::from_str(&process).unwrap();
        let descriptors = fs::read_dir(format!("/proc/{}/fd", process["hypervisor"]["pid"])).unwrap();
        let lock = machine.path("var.img.lock");
        let held = descriptors.filter(|entry| fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|to| to == lock));
        assert_eq!(held.count(), 1, "{hypervisor}");
        spec.name = "db".to_owned();
        spec.socket = None;
        fs::write(machine.path("other.json"), serde_json::to_string(&spec).unwrap()).unwrap();
        for other in [hypervisor, Hypervisor::Qemu] {
            let output = machine.output(&["run", "other.json", "--hypervisor", other.as_str()]);
            assert!(printed(&output).contains("is in use by machine web, process "), "{other}: {}", printed(&output));
        }
        fs::hard_link(machine.path("var.img"), machine.path("hard.img")).unwrap();
        spec.volumes[0].image = "hard.img".into();
        fs::write(machine.path("other.json"), serde_json::to_string(&spec).unwrap()).unwrap();
        for other in [hypervisor, Hypervisor::Qemu] {
            let output = machine.output(&["run", "other.json", "--hypervisor", other.as_str()]);
            let expected = "hard.img is in use by another process, which may use another name of this file";
            assert!(printed(&output).contains(expected), "{hypervisor}, {other}: {}", printed(&output));
        }
        assert!(machine.output(&["stop", "web", "--timeout", "60"]).status.success());
        running.end();
    }
}

/// Asks a running cloud-hypervisor for one more disk.
fn add_disk(machine: &TestMachine, path: &Path) -> Result<HttpAnswer, ControlError> {
    let launch = machine.launch();
    let controller = Controller::new(launch.control.as_ref().unwrap(), &launch.working_directory);
    let body = Some(json!({"path": path, "image_type": "Raw"}));
    let (method, path) = ("PUT".to_owned(), "/api/v1/vm.add-disk".to_owned());
    controller.http(&HttpRequest { method, path, body })
}

#[test]
fn cloud_hypervisor_opens_only_what_its_options_name() {
    let outside = tempfile::tempdir().unwrap();
    let disk = outside.path().join("disk.img");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    for is_allowed in [false, true] {
        let Some((machine, mut spec)) = waiting_machine(Hypervisor::CloudHypervisor) else { return };
        spec.vsock.cid = Some(42);
        spec.credential_files = [("token".to_owned(), "token".into())].into();
        fs::write(machine.path("token"), "hunter2").unwrap();
        if is_allowed {
            let rule = format!("path={},access=rw", outside.path().display());
            spec.cloud_hypervisor.extra_args = vec!["--landlock-rules".to_owned(), rule];
        }
        machine.write_spec(&spec);
        let mut running = machine.start(&["--supervise"]);
        running.wait_for("waiting");
        let launch = machine.launch();
        let has_landlock = launch.arguments.contains(&"--landlock".to_owned());
        if !has_landlock {
            assert!(launch.warnings.iter().any(|warning| warning.contains("runs without landlock")), "{launch:?}");
            skipped(&launch.warnings.join("\n"));
        }
        let answer = add_disk(&machine, &disk);
        match answer {
            Ok(_) => assert!(is_allowed || !has_landlock),
            Err(error) => assert!(!is_allowed && error.to_string().contains("Permission denied"), "{error}"),
        }
        // What it was started with it has still, its own end included.
        assert!(machine.output(&["stop", "web", "--timeout", "60"]).status.success());
        running.end_well();
    }
}
