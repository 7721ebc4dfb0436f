//! Records of machines that are damaged, or that another user has written.

use crate::{stderr, stdout};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// The directories of a host.
struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new(machines: &[&str]) -> Self {
        let host = Self { directory: tempfile::tempdir().expect("a directory") };
        for name in machines {
            fs::create_dir_all(host.path("machines").join(name)).expect("a state directory");
            fs::create_dir_all(host.path("run").join(name)).expect("a runtime directory");
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn microvm(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("microvm runs")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(arguments).env("MICROVM_STATE_DIR", self.path("machines"));
        command.env("MICROVM_RUNTIME_DIR", self.path("run")).stdin(Stdio::null());
        command
    }
}

/// Returns a function that runs microvm with this script as systemctl, and returns what a successful command prints.
fn with_systemctl(host: &Host, script: &str) -> impl Fn(&[&str]) -> String {
    fs::create_dir(host.path("bin")).expect("a directory");
    testing::write_program(&host.path("bin/systemctl"), script);
    |arguments| {
        let search_path = format!("{}:/usr/bin:/bin", host.path("bin").display());
        let output = host.command(arguments).env("PATH", search_path).output().expect("microvm runs");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    }
}

#[test]
fn a_machine_whose_unit_failed_is_shown_with_the_unit() {
    let host = Host::new(&["web"]);
    symlink("/nix/store/runner", host.path("machines/web/current")).expect("a link");
    // Answers as systemd does if the unit that creates the root directory has failed.
    let shown = "Id=microvm@web.service\\nActiveState=inactive\\nResult=dependency\\n\\n\
                 Id=microvm-root@web.service\\nActiveState=failed\\nResult=exit-code\\n";
    let script = format!("#!/bin/sh\ncase $* in *Result*) printf '{shown}' ;; esac\n");
    let microvm = with_systemctl(&host, &script);
    let reason = "microvm-root@web.service has failed: exit-code";
    assert_eq!(microvm(&["status"]), format!("web  -  failed: {reason}\n"));
    let listed = microvm(&["list", "--offline"]);
    assert_eq!(listed, format!("web  failed, installed from another computer: {reason}\n"));
    let rows: Value = serde_json::from_str(&microvm(&["list", "--offline", "--json"])).expect("JSON");
    assert_eq!((&rows[0]["activity"], &rows[0]["failure"]), (&json!("failed"), &json!([reason])));
}

/// Writes the record of a failure at that time of the monotonic clock.
fn write_failure(host: &Host, directory: &str, microseconds: u64) {
    let directory = host.path(directory);
    let record =
        json!({"problems": ["no kernel"], "monotonicMicroseconds": microseconds, "workingDirectory": directory});
    fs::write(host.path("run/web/failures.json"), json!([record]).to_string()).expect("a record");
}

#[test]
fn a_recorded_failure_hid_newer_ones_and_stop_and_delete_left_the_failed_units() {
    let host = Host::new(&["web"]);
    symlink("/nix/store/runner", host.path("machines/web/current")).expect("a link");
    // Until the units are reset, they have failed.
    let shown = "Id=microvm@web.service\\nActiveState=failed\\nResult=exit-code\\nExecMainStartTimestampMonotonic=1000\\n\\n\
                 Id=microvm-virtiofsd@web.service\\nActiveState=failed\\nResult=signal\\n";
    let reset = host.path("reset");
    let script = format!(
        "#!/bin/sh\ncase $* in *Result*) [ -e {0} ] || printf '{shown}' ;; reset-failed*) echo \"$*\" >{0} ;; esac\n",
        reset.display()
    );
    let microvm = with_systemctl(&host, &script);
    let helper = "microvm-virtiofsd@web.service has failed: signal";
    write_failure(&host, "machines/web", 999);
    let both = format!("web  -  failed: microvm@web.service has failed: exit-code; {helper}\n");
    assert_eq!(microvm(&["status"]), both);
    // The clock does not go on while the host sleeps, so the time since the start is no measure.
    write_failure(&host, "machines/web", 1001);
    assert_eq!(microvm(&["status"]), format!("web  -  failed: no kernel; {helper}\n"));

    let units = "reset-failed --no-ask-password microvm@web.service microvm-virtiofsd@web.service\n";
    microvm(&["stop", "web"]);
    assert_eq!(microvm(&["status"]), "web  -  stopped\n");
    assert_eq!(fs::read_to_string(&reset).expect("the units are reset"), units);
    fs::remove_file(&reset).expect("they have failed again");
    // The record of a machine of this name in another directory is not that of the deleted one.
    write_failure(&host, "elsewhere", 1);
    microvm(&["delete", "--yes", "web"]);
    assert_eq!(fs::read_to_string(&reset).expect("the units are reset"), units);
    assert!(host.path("run/web/failures.json").exists());
}

#[test]
fn an_unreadable_record_of_a_failure_made_status_fail() {
    let host = Host::new(&["web"]);
    fs::write(host.path("run/web/failures.json"), "[").expect("a record");
    let status = host.microvm(&["status"]);
    assert_eq!((status.status.code(), stdout(&status).as_str()), (Some(0), "web  -  stopped\n"));
    let printed = stderr(&status);
    assert!(printed.starts_with("warning: web: ") && printed.contains("failures.json: EOF while parsing"), "{printed}");
    let document: Value = serde_json::from_slice(&host.microvm(&["status", "--json"]).stdout).expect("JSON");
    assert!(document[0]["problem"].as_str().expect("a problem").contains("failures.json"), "{document}");
}

#[test]
fn a_start_with_an_invalid_spec_left_the_reason_of_an_earlier_failure() {
    let host = Host::new(&["web"]);
    let directory = host.path("machines/web");
    let (spec, state) = (host.path("web.json"), directory.to_str().expect("UTF-8").to_owned());
    let spec = spec.to_str().expect("UTF-8");
    for (text, code, reason) in
        [(r#"{"version": 1, "name": "web", "kernel": "/k/bzImage", "mem": 0}"#, 2, "mem: "), ("{", 2, "web.json: ")]
    {
        fs::write(spec, text).expect("a spec");
        write_failure(&host, "machines/web", 1);
        let started = host.microvm(&["run", spec, "--name", "web", "--state-dir", &state]);
        assert_eq!(started.status.code(), Some(code), "{}", stderr(&started));
        let record: Value =
            serde_json::from_slice(&fs::read(host.path("run/web/failures.json")).expect("a record")).expect("JSON");
        let problem = record[0]["problems"][0].as_str().expect("a reason");
        assert!(problem.contains(reason) && stderr(&started).contains(problem), "{problem}: {}", stderr(&started));
    }
}

#[test]
fn one_damaged_record_does_not_hide_the_other_machines() {
    let host = Host::new(&["broken", "cut", "web"]);
    fs::write(host.path("run/broken/process.json"), "{").expect("a record");
    fs::create_dir_all(host.path("machines/cut/cut.suspended/complete")).expect("a directory");
    fs::write(host.path("machines/cut/cut.suspended/complete/stamp.json"), "").expect("a record");
    let status = host.microvm(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert_eq!(stdout(&status), "broken  -  unknown\ncut  -  stopped\nweb  -  stopped\n");
    for named in ["broken/process.json", "cut.suspended/complete/stamp.json"] {
        assert!(stderr(&status).contains(named), "{}", stderr(&status));
    }
    let document: Value = serde_json::from_slice(&host.microvm(&["status", "--json"]).stdout).expect("JSON");
    assert_eq!(document[0]["activity"], "unknown");
    assert_eq!((&document[0]["running"], &document[2]["running"]), (&Value::Null, &json!(false)));
    assert!(document[0]["problem"].as_str().expect("a problem").contains("process.json"));
    let list = host.microvm(&["list", "--offline", "--json"]);
    assert_eq!(list.status.code(), Some(1));
    let rows: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let activities: Vec<_> = (0..3).map(|row| rows[row]["activity"].as_str().expect("text")).collect();
    assert_eq!(activities, ["unknown", "unknown", "not-booted"]);
    // Commands on other machines do not need the record, and those on all machines report it.
    assert!(stderr(&host.microvm(&["console", "web"])).contains("web is not running"));
    let suspend = host.microvm(&["suspend", "--all"]);
    assert_eq!(suspend.status.code(), Some(1));
    assert!(stderr(&suspend).contains("broken/process.json"), "{}", stderr(&suspend));
    // A machine that cannot be resumed because its description is damaged can be discarded.
    assert_eq!(host.microvm(&["resume", "--discard", "cut"]).status.code(), Some(0));
    assert!(!host.path("machines/cut/cut.suspended/complete").exists());
}

#[test]
fn a_volume_of_a_suspended_machine_is_neither_grown_nor_restored() {
    let host = Host::new(&["web"]);
    let state = host.path("machines/web");
    let spec = json!({
        "version": 1, "name": "web", "kernel": "/k/bzImage",
        "volumes": [{"image": "var.img", "size": 8, "mountPoint": "/var"}],
    });
    fs::write(host.path("web.json"), spec.to_string()).expect("a spec");
    fs::write(state.join("var.img"), vec![0; 1 << 20]).expect("a volume");
    let stamp = json!({
        "version": 1, "suspendedUnixSeconds": 5, "machineSpec": {"mem": 64}, "cpu": null, "files": {}, "volumes": {},
        "hypervisor": {
            "version": "1.0.0", "program": "/bin/qemu", "arguments": [],
            "file": {"sizeBytes": 1, "modified": "1.000000000"},
        },
    });
    fs::create_dir_all(state.join("web.suspended/complete")).expect("a directory");
    fs::write(state.join("web.suspended/complete/stamp.json"), stamp.to_string()).expect("a record");
    let (spec, directory) = (host.path("web.json"), state.to_str().expect("UTF-8").to_owned());
    let spec = spec.to_str().expect("UTF-8");
    let backup = host.path("var.backup");
    let backup = backup.to_str().expect("UTF-8");
    let volume = |words: &[&str]| {
        let (action, rest) = words.split_first().expect("an action");
        host.microvm(&[&["volume", action, "--state-dir", &directory, spec, "var.img"], rest].concat())
    };
    assert_eq!(volume(&["backup", backup]).status.code(), Some(0));
    fs::rename(state.join("var.img"), state.join("var.old")).expect("it is moved away");
    let restored = volume(&["restore", backup]);
    assert_eq!(restored.status.code(), Some(1), "{restored:?}");
    assert!(!state.join("var.img").exists());
    fs::rename(state.join("var.old"), state.join("var.img")).expect("it is moved back");
    let grown = volume(&["grow", "2M"]);
    assert!(stderr(&grown).contains("web is suspended"), "{}", stderr(&grown));
    assert_eq!(fs::metadata(state.join("var.img")).expect("a volume").len(), 1 << 20);
    // What a deletion would take with it is listed.
    let deletion = stderr(&host.microvm(&["delete", "web"]));
    assert!(deletion.contains("/web/var.img\n") && deletion.contains("/web/web.suspended\n"), "{deletion}");
    fs::remove_dir_all(state.join("web.suspended")).expect("discarded");
    assert_eq!(volume(&["grow", "2M"]).status.code(), Some(0));
}

/// Ends a process when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().expect("it is a child");
        self.0.wait().expect("it is a child");
    }
}

#[test]
fn root_does_not_connect_to_what_the_user_of_a_machine_has_recorded() {
    if !nix::unistd::geteuid().is_root() {
        return testing::skipped("needs root: the test shows that root is not tricked by another user's files");
    }
    let host = Host::new(&["web"]);
    fs::set_permissions(host.directory.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    // The console of another machine, which the user of this one cannot reach.
    fs::create_dir(host.path("other")).expect("a directory");
    fs::set_permissions(host.path("other"), fs::Permissions::from_mode(0o700)).expect("permissions");
    let console = UnixListener::bind(host.path("other/console.sock")).expect("a socket");
    console.set_nonblocking(true).expect("non-blocking");
    let stranger = 65534;
    let hypervisor = Running(Command::new("sleep").arg("600").uid(stranger).gid(stranger).spawn().expect("sleep"));
    let pid = hypervisor.0.id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process");
    let (_, fields) = stat.rsplit_once(") ").expect("proc_pid_stat(5)");
    let start_ticks: u64 = fields.split(' ').nth(19).expect("field 22").parse().expect("a number");
    let record = json!({
        "hypervisor": {"pid": pid, "startTicks": start_ticks}, "supervisor": null, "startedUnixSeconds": 1,
        "consoleSocket": host.path("other/console.sock"), "guestReady": null,
    });
    let path = host.path("run/web/process.json");
    fs::write(&path, record.to_string()).expect("a record");
    for given in [&host.path("run/web"), &path] {
        chown(given, Some(stranger), Some(stranger)).expect("a new owner");
    }
    let refused = host.microvm(&["console", "web"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(stderr(&refused).contains("Permission denied"), "{}", stderr(&refused));
    // The spec of the machine is root's own, but what was started is what its user has recorded.
    let spec = json!({"version": 1, "name": "web", "kernel": "bzImage"});
    fs::write(host.path("web.json"), spec.to_string()).expect("a spec");
    let spec = launcher::validate::check(&serde_json::from_value(spec).expect("a spec")).expect("a valid spec");
    let facts = launcher::facts::HostFacts::assumed(host.path("machines/web").to_str().expect("UTF-8").into());
    let mut launch = launcher::hypervisor::lower(&spec, &facts, spec.hypervisor).expect("a launch");
    launch.control.as_mut().expect("qemu has one").path =
        host.path("other/console.sock").to_str().expect("UTF-8").into();
    fs::write(host.path("run/web/launch.json"), serde_json::to_string(&launch).expect("JSON")).expect("a record");
    // As if a suspend was killed while the guest was paused.
    fs::write(host.path("run/web/suspend.lock"), "").expect("a lock");
    for given in ["launch.json", "suspend.lock"] {
        chown(host.path("run/web").join(given), Some(stranger), Some(stranger)).expect("a new owner");
    }
    let (spec, state) = (host.path("web.json"), host.path("machines/web"));
    let [spec, state] = [&spec, &state].map(|path| path.to_str().expect("UTF-8"));
    for machine in [["web"].as_slice(), &[spec, "--state-dir", state]] {
        let refused = host.microvm(&[&["resume"], machine].concat());
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let printed = stderr(&refused);
        assert!(printed.contains("other/console.sock") && printed.contains("Permission denied"), "{printed}");
    }
    assert_eq!(console.accept().expect_err("nothing connected").kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn a_client_that_sends_nothing_does_not_keep_others_from_adding_store_paths() {
    let directory = tempfile::tempdir().expect("a directory");
    let name = format!("{}-bash-5.2", "0".repeat(32));
    fs::create_dir_all(directory.path().join("store").join(&name)).expect("a store path");
    let first = format!("/nix/store/{}-first", "1".repeat(32));
    fs::create_dir(directory.path().join("store").join(&first["/nix/store/".len()..])).expect("a store path");
    fs::write(directory.path().join("closure"), first).expect("a list");
    let control = directory.path().join("view.sock");
    let serve = Command::new(env!("CARGO_BIN_EXE_microvm"))
        .args(["serve-view", "--source"])
        .arg(directory.path().join("store"))
        .arg("--closure")
        .arg(directory.path().join("closure"))
        .arg("--control")
        .arg(&control)
        .stderr(Stdio::piped())
        .spawn();
    let mut serve = Running(serve.expect("microvm runs"));
    let silent = loop {
        match UnixStream::connect(&control) {
            Ok(stream) => break stream,
            Err(_) if serve.0.try_wait().expect("it is a child").is_none() => std::thread::yield_now(),
            Err(_) => {
                let mut text = String::new();
                serve.0.stderr.take().expect("a pipe").read_to_string(&mut text).expect("text");
                return testing::missing(&format!("a mount namespace is needed: {text}"));
            }
        }
    };
    let mut asking = UnixStream::connect(&control).expect("a second client");
    asking.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a time limit");
    std::io::Write::write_all(&mut asking, format!("/nix/store/{name}\n").as_bytes()).expect("a request");
    asking.shutdown(std::net::Shutdown::Write).expect("the end of the request");
    let mut answer = String::new();
    asking.read_to_string(&mut answer).expect("an answer while the first client is connected");
    assert_eq!(answer, "ok\n");
    drop(silent);
}
