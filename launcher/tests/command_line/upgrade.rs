//! What release 0.1 wrote works with this one. The files in `fixtures/releases/0.1` were written by that release.

use crate::{repository, stderr, stdout};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

fn fixtures() -> PathBuf {
    repository().join("fixtures/releases/0.1")
}

/// Adds the fields and the named values of a schema, each with the fields around it.
fn add_names(schema: &Value, place: &str, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value) {
                    ("properties", Value::Object(properties)) => {
                        for (name, property) in properties {
                            names.insert(format!("{place}/{name}"));
                            add_names(property, &format!("{place}/{name}"), names);
                        }
                    }
                    ("enum", Value::Array(values)) => {
                        names.extend(values.iter().map(|value| format!("{place}={value}")))
                    }
                    ("const", value) => _ = names.insert(format!("{place}={value}")),
                    ("$defs", Value::Object(definitions)) => {
                        for (name, definition) in definitions {
                            add_names(definition, &format!("{place}#{name}"), names);
                        }
                    }
                    _ => add_names(value, place, names),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| add_names(value, place, names)),
        _ => {}
    }
}

#[test]
fn every_field_and_value_of_release_0_1_is_still_part_of_the_machine_spec() {
    let names = |schema: &Value| {
        let mut names = BTreeSet::new();
        add_names(schema, "", &mut names);
        names
    };
    let earlier = fs::read(fixtures().join("machine-spec.schema.json")).unwrap();
    let earlier = names(&serde_json::from_slice(&earlier).unwrap());
    let now = names(&serde_json::from_str(&stdout(&crate::microvm(&["schema"]))).unwrap());
    assert!(earlier.contains("/storeDisk") && earlier.contains("#Accelerator=\"kvm\""), "{earlier:?}");
    assert_eq!(earlier.difference(&now).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// Writes the record of a running machine as release 0.1 did.
fn write_process(directory: &Path, pid: u32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let process = json!({
        "hypervisor": {"pid": pid, "startTicks": ticks}, "supervisor": null, "startedUnixSeconds": 1_764_000_000,
        "consoleSocket": null, "guestReady": null,
    });
    fs::write(directory.join("process.json"), process.to_string()).unwrap();
}

#[test]
fn a_machine_that_release_0_1_started_is_shown_and_stopped() {
    for hypervisor in ["qemu", "cloud-hypervisor", "firecracker", "crosvm", "kvmtool"] {
        let runtime = tempfile::tempdir().unwrap();
        let directory = runtime.path().join("web");
        fs::create_dir(&directory).unwrap();
        // Left by an earlier start with this release: it does not describe what 0.1 has started.
        let stamp = directory.join("stamp.json");
        fs::write(&stamp, "{}").unwrap();
        let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(&stamp).unwrap().set_modified(an_hour_ago).unwrap();
        let mut launch: Value =
            serde_json::from_slice(&fs::read(fixtures().join(format!("launches/{hypervisor}.json"))).unwrap()).unwrap();
        launch["name"] = json!("web");
        launch["workingDirectory"] = json!(runtime.path());
        launch["user"] = Value::Null;
        fs::write(directory.join("launch.json"), launch.to_string()).unwrap();
        let mut machine = Command::new("sleep").arg("600").spawn().unwrap();
        write_process(&directory, machine.id());
        let microvm = |arguments: &[&str]| -> Output {
            let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
            command.args(arguments).env("MICROVM_RUNTIME_DIR", runtime.path());
            command.env("MICROVM_STATE_DIR", runtime.path().join("machines")).output().unwrap()
        };
        let status = microvm(&["status", "--json"]);
        let shown: Value = serde_json::from_str(&stdout(&status)).unwrap_or_default();
        assert_eq!(shown[0]["activity"], "running", "{hypervisor}: {}", stderr(&status));
        assert_eq!(shown[0]["hypervisor"], hypervisor);
        let suspended = microvm(&["suspend", "web"]);
        let reason = "web was started by another release of microvm; restart it before you suspend it";
        assert_eq!(
            (stderr(&suspended), suspended.status.code()),
            (format!("error: {reason}\n"), Some(1)),
            "{hypervisor}"
        );
        let stopped = microvm(&["stop", "web", "--timeout", "0"]);
        assert!(stopped.status.success(), "{hypervisor}: {}", stderr(&stopped));
        assert!(machine.wait().unwrap().signal().is_some(), "{hypervisor}");
    }
}

#[test]
fn root_stops_what_root_started_with_release_0_1_in_the_runtime_directory_of_a_service() {
    use std::os::unix::fs::chown;
    if !nix::unistd::geteuid().is_root() {
        return testing::skipped("only root can give directories away");
    }
    let runtime = tempfile::tempdir().unwrap();
    let directory = runtime.path().join("web");
    fs::create_dir(&directory).unwrap();
    let mut launch: Value =
        serde_json::from_slice(&fs::read(fixtures().join("launches/kvmtool.json")).unwrap()).unwrap();
    launch["name"] = json!("web");
    launch["workingDirectory"] = json!(runtime.path());
    launch["user"] = Value::Null;
    fs::write(directory.join("launch.json"), launch.to_string()).unwrap();
    let mut machine = Command::new("sleep").arg("600").spawn().unwrap();
    write_process(&directory, machine.id());
    let stranger = Some(65534);
    let stop = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(["stop", "web", "--timeout", "0"]).env("MICROVM_RUNTIME_DIR", runtime.path());
        command.env("MICROVM_STATE_DIR", runtime.path().join("machines")).output().unwrap()
    };
    // A record that this user has written is not root's, so root uses it with this user's rights only.
    chown(&directory, stranger, None).unwrap();
    chown(directory.join("launch.json"), stranger, None).unwrap();
    assert_eq!(stop().status.code(), Some(1));
    assert!(machine.try_wait().unwrap().is_none());
    chown(directory.join("launch.json"), Some(0), None).unwrap();
    let stopped = stop();
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
    assert!(machine.wait().unwrap().signal().is_some());
}
