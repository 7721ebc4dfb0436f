//! A store disk without an image: the guest reads it again and again while its server is killed.

use crate::failures::{is_alive, wait_for_file};
use crate::linux::{process_of, wait_until};
use crate::machine::{Running, TestMachine, kvm_opens, program_of, usable_program_of};
use crate::probe::{ProbeReport, fnv1a64};
use crate::rows::{prepare, write_spec};
use launcher::capability::Feature;
use launcher::spec::Hypervisor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use testing::write_program;

/// Small, because on hosts with an emulated KVM a guest computes slowly.
const REREAD_BYTES: usize = 8 << 10;

#[test]
fn a_guest_reads_on_when_the_server_of_its_store_disk_was_killed_under_qemu() {
    read_on(Hypervisor::Qemu, &["--accel", "tcg"]);
}

#[test]
fn a_guest_reads_on_when_the_server_of_its_store_disk_was_killed_under_cloud_hypervisor() {
    read_on(Hypervisor::CloudHypervisor, &[]);
}

/// Kills the server three times, at moments that have nothing to do with the guest's requests.
fn read_on(hypervisor: Hypervisor, options: &[&str]) {
    let Some(program) = usable_program_of(hypervisor) else { return };
    let Some(machine) = TestMachine::new("row") else { return };
    write_rereading_spec(&machine, hypervisor, &program);
    let mut running = machine.start_command(supervised(&machine, options));
    running.wait_for("waiting");
    for round in 0..3 {
        read_once(&machine, &mut running, round);
        let server = server_of(&machine).expect("the server of the store disk runs");
        kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
        wait_until("another server of the store disk", || server_of(&machine).is_some_and(|other| other != server));
    }
    read_once(&machine, &mut running, 3);
    type_line(&machine, "quit");
    let console = running.end_well();
    assert!(console.contains("reread same times="), "{console}\n{}", running.messages());
    let built = fs::read(machine.path("store.erofs")).unwrap();
    let hash = format!("{:016x}", fnv1a64(&built[..REREAD_BYTES]));
    assert_eq!(ProbeReport::parse(&console).named("blk")[0].field("fnv1a64"), hash);
}

/// Firecracker and crosvm do not connect to another server of the store disk. The message must name the machine and say what
/// to do. The launcher does not end the hypervisor. Firecracker runs on, and its guest gets no answer; crosvm ends by itself,
/// without an error, and the machine has failed all the same.
#[test]
fn a_killed_server_of_the_store_disk_is_reported_where_the_hypervisor_does_not_connect_again() {
    for hypervisor in [Hypervisor::Firecracker, Hypervisor::Crosvm] {
        let Some(machine) = TestMachine::new("row") else { return };
        let real = program_of(hypervisor).filter(|_| kvm_opens());
        // Without the hypervisor, a script takes its place, because only the launcher is tested.
        let script = "[ \"$1\" != --version ] || { echo Firecracker v1.14.0; exit 0; }\necho started; exec sleep 600\n";
        let program = real.clone().unwrap_or_else(|| {
            write_program(&machine.path("hypervisor"), &format!("#!/bin/sh\n{script}"));
            machine.path("hypervisor")
        });
        write_rereading_spec(&machine, hypervisor, &program);
        let mut running = machine.start_command(supervised(&machine, &[]));
        running.wait_for(if real.is_some() { "waiting" } else { "started" });
        let server = server_of(&machine).expect("the server of the store disk runs");
        kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
        let message = "the server of the store disk of `row` ended with signal: 9 (SIGKILL), and this hypervisor does not \
                       reconnect: the guest cannot read its store any more; stop the machine and start it again";
        wait_until("report", || running.messages().contains(message));
        assert_eq!(server_of(&machine), None, "another server was started");
        if real.is_some() && hypervisor == Hypervisor::Crosvm {
            assert_eq!(running.end().code(), Some(1), "{}", running.messages());
            assert!(running.messages().contains("error: crosvm ended after "), "{}", running.messages());
            continue;
        }
        if real.is_some() {
            running.wait_for("reread failed times=");
        }
        let stop = machine.output(&["stop", "row", "--timeout", "0"]);
        assert!(stop.status.success(), "{}", String::from_utf8_lossy(&stop.stderr));
        running.end();
    }
}

/// Both ended between two turns of the supervisor's loop, and the machine had ended well.
#[test]
fn a_server_of_the_store_disk_that_failed_together_with_the_hypervisor_was_not_reported() {
    let Some(machine) = TestMachine::new("row") else { return };
    let program = scripted(&machine, "Firecracker v1.14.0");
    write_rereading_spec(&machine, Hypervisor::Firecracker, &program);
    let mut running = machine.start_command(supervised(&machine, &[]));
    running.wait_for("started");
    let hypervisor = wait_for_file(&machine.path("pid"), &running);
    let server = server_of(&machine).expect("the server of the store disk runs");
    let supervisor = Pid::from_raw(running.child.id().try_into().unwrap());
    kill(supervisor, Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    fs::write(machine.path("end"), "").unwrap();
    wait_until("end of both", || !is_alive(&hypervisor) && !is_alive(&server.to_string()));
    kill(supervisor, Signal::SIGCONT).unwrap();
    assert_eq!(running.end().code(), Some(1), "{}", running.messages());
    let failure = "the server of the store disk of `row` ended with signal: 9 (SIGKILL)";
    let messages = running.messages();
    assert!(messages.contains(&format!("{failure}, and this hypervisor does not reconnect")), "{messages}");
    let status = machine.output(&["status", "row"]);
    let status = String::from_utf8_lossy(&status.stdout);
    assert!(status.contains(&format!(" s, and a process beside it has failed: {failure}")), "{status}");
}

/// The guest can go on without it, so its power-off ends the machine well.
#[test]
fn a_machine_whose_view_of_a_share_was_killed_had_failed_when_its_guest_powered_off() {
    let Some(machine) = TestMachine::new("row") else { return };
    let program = scripted(&machine, "QEMU emulator version 8.2.2");
    let name = format!("{}-shown", "0".repeat(32));
    fs::create_dir_all(machine.path("store").join(&name)).unwrap();
    fs::write(machine.path("closure"), format!("/nix/store/{name}\n")).unwrap();
    let share = json!({
        "proto": "9p", "tag": "ro-store", "source": machine.path("store"), "closure": "closure",
        "mountPoint": "/nix/store", "readOnly": true,
    });
    write_spec(&machine, &json!({"shares": [share]}), (Hypervisor::Qemu, &program));
    let mut running = machine.start_command(supervised(&machine, &["--accel", "tcg"]));
    running.wait_for("started");
    let view = process_of(&machine, "serve-view --source").expect("the view is served");
    kill(Pid::from_raw(view), Signal::SIGKILL).unwrap();
    running.wait_for_message(
        "the view of share `ro-store` ended with signal: 9 (SIGKILL), and no path can be added to it",
    );
    fs::write(machine.path("end"), "").unwrap();
    running.end_well();
}

/// Writes a hypervisor that ends without an error once there is the file `end`.
fn scripted(machine: &TestMachine, version: &str) -> PathBuf {
    let wait = "echo $$ > pid; echo started; until [ -e end ]; do sleep 0.1; done";
    let program = machine.path("hypervisor");
    write_program(&program, &format!("#!/bin/sh\n[ \"$1\" != --version ] || {{ echo {version}; exit 0; }}\n{wait}\n"));
    program
}

fn write_rereading_spec(machine: &TestMachine, hypervisor: Hypervisor, program: &Path) {
    let mut fields = prepare(hypervisor, Feature::LiveStoreDisk, machine).unwrap();
    fields["kernelParams"] = json!([format!("hash={REREAD_BYTES}"), "reread=on", "probe=wait", "wait=long"]);
    write_spec(machine, &fields, (hypervisor, program));
}

fn supervised(machine: &TestMachine, options: &[&str]) -> Command {
    machine.microvm(&[&["run", "machine.json", "--supervise"], options].concat())
}

fn server_of(machine: &TestMachine) -> Option<i32> {
    process_of(machine, "serve --plan plan.json")
}

fn type_line(machine: &TestMachine, line: &str) {
    let mut console = UnixStream::connect(machine.path("run/row/console.sock")).unwrap();
    console.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Returns when the guest has read the disk at least once. Between two lines that it receives, it does so.
fn read_once(machine: &TestMachine, running: &mut Running<'_>, round: u32) {
    for name in ["first", "second"] {
        type_line(machine, &format!("{name}-{round}"));
        running.wait_for(&format!("typed [{name}-{round}]"));
    }
}
