//! Side processes that need a user namespace.

use super::{Host, is_root};
use serde_json::json;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs microvm with these arguments as that user, in a user namespace in which no other one can be created. Returns its
/// messages.
fn say_without_namespaces(host: &Host, user: &str, arguments: &[&str]) -> String {
    let mut holder = Command::new("unshare");
    let mut holder = holder.args(["--user", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let process = holder.id().to_string();
    let own = Path::new("/proc").join(&process);
    while fs::read_link(own.join("ns/user")).unwrap() == fs::read_link("/proc/self/ns/user").unwrap() {
        std::thread::sleep(Duration::from_millis(10));
    }
    for map in ["uid_map", "gid_map"] {
        fs::write(own.join(map), "0 0 65536").unwrap();
    }
    let script = "echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --clear-groups --reuid=\"$@\"";
    let mut command = Command::new("nsenter");
    command.args(["--user", "--target", &process, "sh", "-ec", script, "sh", user, env!("CARGO_BIN_EXE_microvm")]);
    let path = format!("{}:{}", host.path("bin").display(), std::env::var("PATH").unwrap());
    command.args(arguments).arg("web.json").current_dir(host.path("")).env("PATH", path).env_remove("MICROVM_NAME");
    let output = command.env("MICROVM_RUNTIME_DIR", host.path("run")).env_remove("NOTIFY_SOCKET").output().unwrap();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn check_reports_side_processes_that_may_not_create_their_namespaces_as_run_does() {
    if !is_root() {
        return;
    }
    let host = Host::new();
    testing::write_program(&host.path("bin/passt"), "#!/bin/sh\necho --vhost-user\n");
    testing::write_program(&host.path("bin/virtiofsd"), "#!/bin/sh\n");
    let name = "0123456789abcdfghijklmnpqrsvwxyz-a";
    fs::create_dir_all(host.path("store").join(name)).unwrap();
    fs::write(host.path("closure"), format!("/nix/store/{name}\n")).unwrap();
    let share = json!({"proto": "virtiofs", "tag": "t", "source": "bin", "mountPoint": "/t"});
    let view = json!({
        "proto": "virtiofs", "tag": "t", "source": "store", "mountPoint": "/t", "closure": "closure", "readOnly": true,
    });
    for share in [share, view] {
        let is_view = share["closure"].is_string();
        let reason = if is_view { "cannot create a mount namespace" } else { "virtiofsd needs a user namespace" };
        host.check(json!({"shares": [share], "virtiofsd": {"group": null}}));
        give_all(host.directory.path());
        for command in [["check", "--host"].as_slice(), &["run"]] {
            let printed = say_without_namespaces(&host, "65534", command);
            assert!(
                printed.contains(reason) && printed.contains("sysctl user.max_user_namespaces"),
                "{command:?}: {printed}"
            );
        }
    }
    let user_network = json!([{"type": "user", "id": "lan", "mac": "02:00:00:00:00:01"}]);
    let fields = json!({"hypervisor": "cloud-hypervisor", "interfaces": user_network});
    host.check(fields);
    let printed = say_without_namespaces(&host, "0", &["check", "--host"]);
    assert!(
        printed.contains("passt needs a user namespace, and the kernel does not allow one: No space left"),
        "{printed}"
    );
}

/// Gives a directory with all its files to the user nobody.
fn give_all(directory: &Path) {
    chown(directory, Some(65534), Some(65534)).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { give_all(&path) } else { chown(&path, Some(65534), Some(65534)).unwrap() }
    }
}
