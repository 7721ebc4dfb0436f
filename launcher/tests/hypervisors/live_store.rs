//! A store disk without an image: the guest reads it again and again while its server is killed.

use crate::linux::{process_of, wait_until};
use crate::machine::{Running, TestMachine, kvm_opens, missing, program_of, skipped};
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
use std::path::Path;
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
    let Some(program) = program_of(hypervisor) else {
        let why = format!("no {hypervisor}: it is not installed, or MICROVM_TEST_... does not name it");
        return if hypervisor == Hypervisor::Qemu { missing(&why) } else { skipped(&why) };
    };
    if !kvm_opens() && hypervisor != Hypervisor::Qemu {
        return skipped("/dev/kvm does not open");
    }
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
