//! The sockets of a machine, and the records beside them, are removed however it ends, and those of a newer start stay.

use crate::failures::is_alive;
use crate::linux::{process_of, wait_until};
use crate::machine::{Running, TestMachine, usable_program_of};
use crate::rows::{prepare, write_spec};
use launcher::capability::Feature;
use launcher::hypervisor::support;
use launcher::spec::Hypervisor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// Returns a machine with as many sockets as the hypervisor supports, whose guest waits.
fn machine_with_sockets(hypervisor: Hypervisor) -> Option<TestMachine> {
    let program = usable_program_of(hypervisor)?;
    let machine = TestMachine::new("row")?;
    let mut fields = json!({});
    for feature in [Feature::LiveStoreDisk, Feature::Virtiofs, Feature::InterfaceUser, Feature::Vsock] {
        if !support(hypervisor, feature).is_supported() {
            continue;
        }
        match prepare(hypervisor, feature, &machine) {
            Ok(Value::Object(found)) => fields.as_object_mut().unwrap().extend(found),
            other => testing::skipped(&format!("{feature:?} under {hypervisor}: {other:?}")),
        }
    }
    fields["kernelParams"] = json!(["probe=wait", "wait=long"]);
    fields["qemu"] = json!({"accelerator": "tcg"});
    write_spec(&machine, &fields, (hypervisor, &program));
    Some(machine)
}

/// Returns the machine's sockets, and the records beside them, that are there.
fn left(machine: &TestMachine) -> Vec<PathBuf> {
    let launch = machine.launch();
    let own = launch.machine_files().into_iter().map(|file| machine.directory.path().join(file.path.as_path()));
    let records = [machine.directory.path().to_owned(), machine.path("run/row")]
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>());
    let is_socket = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        [".command", ".sock", ".vsock"].iter().any(|ending| name.ends_with(ending))
    };
    let mut found: Vec<_> = own.chain(records).filter(|path| is_socket(path) && path.exists()).collect();
    found.sort();
    found.dedup();
    found
}

fn started<'machine>(machine: &'machine TestMachine, options: &[&str]) -> (Running<'machine>, Pid) {
    let mut running = machine.start(options);
    running.wait_for("waiting");
    let process = fs::read(machine.path("run/row/process.json")).unwrap();
    let process: Value = serde_json::from_slice(&process).unwrap();
    let pid = process["hypervisor"]["pid"].as_i64().unwrap();
    (running, Pid::from_raw(pid.try_into().unwrap()))
}

fn leaves_nothing(hypervisor: Hypervisor) {
    let Some(machine) = machine_with_sockets(hypervisor) else { return };
    // kvmtool shuts a guest down only through its console.
    let timeout = if hypervisor == Hypervisor::Kvmtool { "0" } else { "60" };
    for options in [[].as_slice(), &["--supervise"]] {
        for way in ["stop", "kill the hypervisor", "kill the launcher"] {
            let (mut running, pid) = started(&machine, options);
            assert!(!left(&machine).is_empty());
            match way {
                "stop" => assert!(machine.output(&["stop", "row", "--timeout", timeout]).status.success()),
                "kill the hypervisor" => kill(pid, Signal::SIGKILL).unwrap(),
                _ => kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGKILL).unwrap(),
            }
            running.end();
            if way == "kill the launcher" && !options.is_empty() {
                // Nothing is left that could clean up. The hypervisor and the processes beside it end with the launcher.
                wait_until("the end of the hypervisor", || !is_alive(&pid.to_string()));
                let words = ["serve --plan", "--shared-dir", "passt"];
                wait_until("the end of all processes", || {
                    words.iter().all(|words| process_of(&machine, words).is_none())
                });
                assert!(machine.output(&["stop", "row"]).status.success());
                assert!(left(&machine).is_empty(), "{hypervisor}: {:?}", left(&machine));
            }
            wait_until(&format!("nothing is left by {hypervisor} {options:?} after {way}"), || {
                left(&machine).is_empty()
            });
        }
    }
}

#[test]
fn sockets_and_records_stayed_after_qemu_ended() {
    leaves_nothing(Hypervisor::Qemu);
}

#[test]
fn sockets_and_records_stayed_after_cloud_hypervisor_ended() {
    leaves_nothing(Hypervisor::CloudHypervisor);
}

#[test]
fn sockets_and_records_stayed_after_firecracker_ended() {
    leaves_nothing(Hypervisor::Firecracker);
}

#[test]
fn sockets_and_records_stayed_after_crosvm_ended() {
    leaves_nothing(Hypervisor::Crosvm);
}

#[test]
fn sockets_and_records_stayed_after_kvmtool_ended() {
    leaves_nothing(Hypervisor::Kvmtool);
}

/// The process that cleans up is stopped until another start has made its own sockets.
fn keeps_those_of_a_newer_start(hypervisor: Hypervisor, options: &[&str]) {
    let Some(machine) = machine_with_sockets(hypervisor) else { return };
    let (mut running, pid) = started(&machine, &[]);
    let directory = fs::canonicalize(machine.path("")).unwrap();
    let words = format!("clean-up-after --state-dir {}", directory.display());
    let cleaner = process_of(&machine, &words).expect("the process that cleans up");
    kill(Pid::from_raw(cleaner), Signal::SIGSTOP).unwrap();
    kill(pid, Signal::SIGKILL).unwrap();
    running.end();
    let (mut newer, _) = started(&machine, options);
    let own = left(&machine);
    kill(Pid::from_raw(cleaner), Signal::SIGCONT).unwrap();
    wait_until("the end of the process that cleans up", || !is_alive(&cleaner.to_string()));
    assert_eq!(left(&machine), own);
    assert!(machine.output(&["stop", "row", "--timeout", "60"]).status.success());
    newer.end();
    wait_until("nothing is left", || left(&machine).is_empty());
}

#[test]
fn the_sockets_of_a_newer_start_are_not_removed_under_qemu() {
    keeps_those_of_a_newer_start(Hypervisor::Qemu, &[]);
    keeps_those_of_a_newer_start(Hypervisor::Qemu, &["--supervise"]);
}

#[test]
fn the_sockets_of_a_newer_start_are_not_removed_under_firecracker() {
    keeps_those_of_a_newer_start(Hypervisor::Firecracker, &[]);
}
