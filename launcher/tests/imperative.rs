//! `microvm create|update|list|ssh|delete...` on a temporary state directory, with real Nix and a real flake. Only
//! systemctl, journalctl and ssh are replaced, by programs that record their arguments.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails, and a skipped one says so")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use testing::write_program;

struct Host {
    directory: TempDir,
    /// The system call, in strace's notation, or the run of Nix at which the next command is killed.
    kill_at: Option<String>,
}

impl Host {
    /// Returns `None` without Nix or root, which the tests require.
    fn new() -> Option<Self> {
        let has_nix = Command::new("nix").arg("--version").output().is_ok_and(|output| output.status.success());
        let is_usable = has_nix && nix::unistd::geteuid().is_root() && Path::new("/usr/bin/busybox").exists();
        if !is_usable {
            let reason = "nix, busybox-static and root are needed";
            testing::missing(reason);
            return None;
        }
        let host = Self { directory: tempfile::tempdir().unwrap(), kill_at: None };
        for directory in ["bin", "machines", "gcroots", "flake", "store"] {
            fs::create_dir(host.path(directory)).unwrap();
        }
        // A unit is active if a file with its name exists.
        host.recorder(
            "systemctl",
            "case $1 in show) [ ! -e \"$RECORDS/$4\" ] || echo active ;; cat) [ -e \"$RECORDS/$2\" ] ;; esac",
        );
        host.recorder("ssh", "");
        host.recorder("journalctl", "");
        host.recorder("busctl", "");
        Some(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn recorder(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        write_program(&path, &format!("#!/bin/sh\necho {name} \"$@\" >>\"$RECORDS/calls\"\n{script}\n"));
    }

    /// Writes a flake with these machines. An `Err` is an expression that cannot be evaluated.
    fn flake(&self, machines: &[(&str, Result<&str, &str>)]) {
        let machine = |(name, content): &(&str, Result<&str, &str>)| match content {
            Ok(content) => format!(
                r#""{name}".config.microvm.declaredRunner = derivation {{ name = "microvm-{name}"; system = "x86_64-linux";
                builder = "/bin/sh"; args = [ "-c" "mkdir $out; echo {content} > $out/content" ]; PATH = "/bin"; }};"#
            ),
            Err(expression) => format!(r#""{name}".config.microvm.declaredRunner = {expression};"#),
        };
        let machines: String = machines.iter().map(machine).collect();
        let text = format!("{{ outputs = _: {{ nixosConfigurations = {{ {machines} }}; }}; }}");
        fs::write(self.path("flake/flake.nix"), text).unwrap();
    }

    fn microvm(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let search_path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let configuration = format!(
            "store = {}\nsubstituters =\nbuild-users-group =\nbuilders =\nsandbox = true\n\
             sandbox-paths = /bin/sh=/usr/bin/busybox /bin/mkdir=/usr/bin/busybox\nflake-registry =\nfsync-metadata = false",
            self.path("store").display()
        );
        let mut command = match &self.kill_at {
            Some(call) if call.contains(':') => {
                let mut command = Command::new("strace");
                // Updates run in threads.
                command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={call}")]);
                command.arg(env!("CARGO_BIN_EXE_microvm"));
                command
            }
            _ => {
                // The tests may run below nohup(1), or in the background of a script, where these signals are ignored.
                let mut command = Command::new("env");
                command.args(["--default-signal=HUP,INT", env!("CARGO_BIN_EXE_microvm")]);
                command
            }
        };
        command
            .args(arguments)
            .env("KILL_AT", self.kill_at.as_deref().unwrap_or_default())
            .current_dir(self.directory.path())
            .env("PATH", search_path)
            .env("RECORDS", self.directory.path())
            .env("HOME", self.directory.path())
            .env("NIX_CONFIG", configuration)
            .env("NIX_CONF_DIR", "/var/empty")
            .env("NIX_USER_CONF_FILES", "/dev/null")
            .env("NIX_REMOTE", "")
            .env("MICROVM_STATE_DIR", self.path("machines"))
            .env("MICROVM_GCROOTS_DIR", self.path("gcroots"))
            .env("MICROVM_RUNTIME_DIR", self.path("run"));
        command
    }

    /// Runs a command that must succeed, and returns its stdout.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.microvm(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must exit with this code, and returns its stderr.
    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.microvm(arguments);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {printed}");
        printed
    }

    fn current(&self, name: &str) -> PathBuf {
        fs::read_link(self.path("machines").join(name).join("current")).unwrap()
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }
}

#[test]
fn a_machine_is_created_updated_listed_and_deleted() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("web", Ok("one"))]);

    // A relative path of a flake is stored as an absolute one.
    let directory = host.done(&["-f", "flake", "-c", "web"]);
    assert_eq!(directory.trim(), host.path("machines/web").to_str().unwrap());
    let flake = fs::read_to_string(host.path("machines/web/flake")).unwrap();
    assert_eq!(flake, host.path("flake").canonicalize().unwrap().to_str().unwrap());
    let first = host.current("web");
    assert_eq!(fs::read_link(host.path("gcroots/web")).unwrap(), host.path("machines/web/current"));
    assert_eq!(fs::read_link(host.path("gcroots/booted-web")).unwrap(), host.path("machines/web/booted"));
    assert!(host.refused(2, &["create", "web", "--flake", "flake"]).contains("already exists"));

    assert_eq!(host.done(&["list"]), "web  not booted, current\n");
    assert_eq!(host.done(&["status"]), "web  -  stopped\n");
    symlink(&first, host.path("machines/web/booted")).unwrap();
    host.flake(&[("web", Ok("two"))]);
    assert_eq!(host.done(&["list"]), "web  stopped unexpectedly, outdated: microvm update web\n");
    assert_eq!(host.done(&["list", "--offline"]), "web  stopped unexpectedly, not evaluated\n");

    fs::write(host.path("microvm@web.service"), "").unwrap();
    host.done(&["-Ru", "web"]);
    assert_ne!(host.current("web"), first);
    let restarts = || host.calls().matches("systemctl restart").count();
    assert_eq!(restarts(), 1);
    // A machine that does not run is started; one that runs the current system is not restarted.
    fs::remove_file(host.path("machines/web/booted")).unwrap();
    host.done(&["update", "web", "-R"]);
    assert_eq!(restarts(), 2);
    symlink(host.current("web"), host.path("machines/web/booted")).unwrap();
    host.done(&["update", "web", "-R"]);
    assert_eq!(restarts(), 2);
    fs::remove_file(host.path("machines/web/booted")).unwrap();
    symlink(&first, host.path("machines/web/booted")).unwrap();
    assert!(host.calls().contains("systemctl restart microvm@web.service"), "{}", host.calls());
    assert_eq!(host.done(&["list"]), "web  stale: runs an older system, current\n");
    assert_eq!(host.done(&["-l"]), host.done(&["list"]));
    assert!(host.done(&["list", "--json"]).contains("\"stale\": true"));

    assert!(host.refused(2, &["delete", "--yes", "web"]).contains("stop it first"));
    fs::remove_file(host.path("microvm@web.service")).unwrap();
    fs::write(host.path("machines/web/var.img"), "data").unwrap();
    assert!(host.refused(2, &["delete", "web"]).contains("var.img"));
    host.done(&["delete", "--yes", "web"]);
    assert!(!host.path("machines/web").exists());
    assert!(fs::read_dir(host.path("gcroots")).unwrap().next().is_none());
}

#[test]
fn one_broken_machine_does_not_hide_the_others() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("a", Ok("a")), ("b", Ok("b")), ("c", Ok("c"))]);
    for name in ["a", "b", "c"] {
        host.done(&["create", name, "--flake", "flake"]);
    }
    host.flake(&[("a", Ok("a")), ("b", Err("throw \"b is broken\""))]);
    fs::create_dir(host.path("machines/half")).unwrap();
    let rows: serde_json::Value = serde_json::from_str(&host.done(&["list", "--json"])).unwrap();
    let problems: Vec<_> =
        rows.as_array().unwrap().iter().map(|row| (row["name"].clone(), row["freshness"].clone())).collect();
    assert_eq!(
        problems,
        [("a", "current"), ("b", "broken"), ("c", "broken"), ("half", "unknown")]
            .map(|(name, freshness)| (name.into(), freshness.into()))
    );
    assert!(rows[1]["problem"].as_str().unwrap().contains("b is broken"), "{rows:#}");
    assert!(rows[3]["problem"].as_str().unwrap().contains("current"), "{rows:#}");

    // The machine that can be built is updated, and the others keep their runners.
    let before = host.current("b");
    let printed = host.refused(1, &["update", "b", "a"]);
    assert!(printed.contains("error: b: nix build failed") && printed.contains("a is current"), "{printed}");
    assert_eq!(host.current("b"), before);
}

#[test]
fn all_machines_with_a_flake_are_updated_and_those_that_run_an_older_system_restarted() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("a", Ok("a")), ("b", Ok("b")), ("c", Ok("c"))]);
    host.refused(2, &["update"]);
    for name in ["a", "b", "c"] {
        host.done(&["create", name, "--flake", "flake"]);
        symlink(host.current(name), host.path("machines").join(name).join("booted")).unwrap();
    }
    // Part of the host's configuration: it is updated with the host.
    fs::create_dir(host.path("machines/declared")).unwrap();
    symlink("gone", host.path("machines/declared/toplevel")).unwrap();
    // Installed with microvm.deploy.installOnHost from another computer.
    fs::create_dir(host.path("machines/installed")).unwrap();
    symlink(host.current("a"), host.path("machines/installed/current")).unwrap();
    let printed = host.refused(2, &["update", "installed"]);
    assert!(printed.starts_with("error: installed has no flake on this host; if it was installed from"), "{printed}");
    let rows: serde_json::Value = serde_json::from_str(&host.done(&["list", "--json"])).unwrap();
    assert_eq!((&rows[4]["name"], &rows[4]["problem"]), (&"installed".into(), &serde_json::Value::Null));
    assert_eq!((&rows[3]["declared"], &rows[4]["declared"]), (&true.into(), &false.into()));
    let listed = host.done(&["list", "--offline"]);
    assert!(listed.ends_with("\ninstalled  not booted, installed from another computer\n"), "{listed}");
    host.flake(&[("a", Ok("newer")), ("b", Err("throw \"b is broken\"")), ("c", Ok("c"))]);
    let printed = host.refused(1, &["update", "--all"]);
    assert!(
        printed.contains("a is updated, but runs an older system") && printed.contains("c is current"),
        "{printed}"
    );
    assert!(
        printed
            .contains("\n1 updated, 1 current, 1 failed\nerror: b: nix build failed with exit status: 1: b is broken"),
        "{printed}"
    );
    assert!(!printed.contains("declared") && !printed.contains("installed"), "{printed}");

    // It has stopped, so it does not run an older system.
    host.done(&["restart", "--outdated"]);
    assert!(!host.calls().contains("systemctl restart"), "{}", host.calls());
    for name in ["a", "c"] {
        fs::write(host.path(&format!("microvm@{name}.service")), "").unwrap();
    }
    host.done(&["restart", "--outdated"]);
    let calls = host.calls();
    assert_eq!(calls.matches("systemctl restart").count(), 1, "{calls}");
    assert!(calls.contains("systemctl restart microvm@a.service"), "{calls}");
}

#[test]
fn a_command_that_waits_for_another_one_names_its_process() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("web", Ok("one"))]);
    host.done(&["create", "web", "--flake", "flake"]);
    let file = fs::File::create(host.path("machines/.web.lock")).unwrap();
    file.lock().unwrap();
    let mut command = host.command(&["delete", "--yes", "web"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.as_mut().unwrap()), &mut line).unwrap();
    let process = format!("waiting for process {} (", std::process::id());
    assert!(line.starts_with(&process) && line.ends_with("), which is changing web\n"), "{line}");
    fs::remove_file(host.path("machines/.web.lock")).unwrap();
    drop(file);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_signal_that_ends_create_or_update_ends_nix() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("a", Ok("a")), ("b", Ok("b"))]);
    for name in ["a", "b"] {
        host.done(&["create", name, "--flake", "flake"]);
    }
    host.recorder("nix", "echo $$ >>\"$RECORDS/pids\"; exec sleep 600");
    let pids = || -> Vec<i32> {
        let text = fs::read_to_string(host.path("pids")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    let has_ended =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    let wait_until = |what: &str, reached: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !reached() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    // One machine with Nix on the terminal, and several in threads.
    for (signal, arguments, started) in [
        (Signal::SIGHUP, &["create", "c", "--flake", "flake"][..], 1),
        (Signal::SIGINT, &["update", "a"], 1),
        (Signal::SIGTERM, &["update", "a", "b"], 1),
    ] {
        let _ = fs::remove_file(host.path("pids"));
        let mut child = host.command(arguments).spawn().unwrap();
        wait_until("Nix has started", &|| pids().len() >= started);
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        assert!(!child.wait().unwrap().success());
        wait_until("Nix has ended", &|| pids().iter().all(has_ended));
    }
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("web", Err("throw \"no\""))]);
    host.refused(1, &["create", "web", "--flake", "flake"]);
    assert!(fs::read_dir(host.path("machines")).unwrap().next().is_none());
    // Remains of a killed creation do not get in the way.
    fs::create_dir(host.path("machines/.web.new")).unwrap();
    host.flake(&[("web", Ok("one"))]);
    host.done(&["create", "web", "--flake", "flake"]);
    assert_eq!(host.done(&["list", "--offline"]), "web  not booted, not evaluated\n");
}

#[test]
fn only_one_of_several_processes_that_create_a_machine_succeeds() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("web", Ok("one"))]);
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let create = || host.microvm(&["create", "web", "--flake", "flake"]);
        let creating: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
        creating.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1, "{outputs:?}");
    for output in outputs.iter().filter(|output| !output.status.success()) {
        assert!(String::from_utf8_lossy(&output.stderr).contains("already exists"), "{output:?}");
    }
    // The same for updates: each process sees a complete machine, and nothing else is left behind.
    host.flake(&[("web", Ok("two"))]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| host.done(&["update", "web"]));
        }
    });
    let names = |directory: &str| {
        let entries = fs::read_dir(host.path(directory)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("machines"), ["web"]);
    assert_eq!(names("gcroots"), ["booted-web", "web"]);
}

/// The system calls that change a directory, or make a change durable.
const CHANGES: [&str; 7] = ["mkdirat", "symlinkat", "linkat", "renameat", "fsync", "unlinkat", "rmdir"];

/// Runs the command on the machine `web`, killed at this step, and again if it was killed. Returns whether it was killed.
fn kill_and_repeat(host: &mut Host, command: &[&str], step: &str) -> bool {
    let (old, new) = (host.path("store/old"), host.path("store/new"));
    let choose = |host: &Host, runner: &Path| fs::write(host.path("runner"), runner.to_str().unwrap()).unwrap();
    choose(host, &old);
    if command[0] != "create" {
        host.done(&["create", "web", "--flake", "flake"]);
        fs::write(host.path("machines/web/var.img"), "data").unwrap();
    }
    choose(host, &new);
    host.kill_at = Some(step.to_owned());
    let output = host.microvm(command);
    let was_killed = !output.status.success();
    host.kill_at = None;
    let exists = |name: &str| fs::symlink_metadata(host.path(name)).is_ok();
    if exists("machines/web") {
        assert!(exists("gcroots/web") && exists("gcroots/booted-web"), "{command:?} at {step}: no roots");
        assert!([&old, &new].contains(&&host.current("web")), "{command:?} at {step}: no runner");
        assert!(command[0] == "create" || exists("machines/web/var.img"), "{command:?} at {step}: no volume");
    } else {
        assert_ne!(command[0], "update", "the machine is lost at {step}");
    }
    if step.contains("ENOSPC") && was_killed {
        let printed = String::from_utf8_lossy(&output.stderr);
        let is_named = printed.contains(&format!(" {}/", host.directory.path().display()));
        let is_named = is_named && printed.contains("No space left on device") && printed.contains("hint: free some");
        // Nix names the file itself.
        assert!(is_named || printed.contains("nix build failed"), "{command:?} at {step}: {printed}");
        // What is created last may be left: then the machine is complete.
        assert!(exists("machines/web") || !exists("machines/.web.new"), "{command:?} at {step}: {printed}");
        assert!(exists("machines/web") || !exists("gcroots/web"), "{command:?} at {step}: {printed}");
    }
    if was_killed {
        let again = host.microvm(command);
        let messages = String::from_utf8_lossy(&again.stderr).into_owned();
        // The process was killed when everything was done, but before it removed the lock.
        let done = HashMap::from([("create", "already exists"), ("delete", "there is no machine web")]);
        let is_done = done.get(command[0]).is_some_and(|message| messages.contains(message));
        assert!(again.status.success() || is_done, "{command:?} after {step}: {messages}");
    }
    let names = |directory: &str| {
        let entries = fs::read_dir(host.path(directory)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        // The next command takes over the locks of a killed process.
        names.retain(|name| ![".web.lock", ".names@.lock"].contains(&name.as_str()));
        names.sort();
        names
    };
    if command[0] == "delete" {
        assert_eq!((names("machines"), names("gcroots")), (vec![], vec![]), "delete at {step}");
    } else {
        assert_eq!(names("machines"), ["web"], "{command:?} at {step}");
        assert_eq!(names("gcroots"), ["booted-web", "web"], "{command:?} at {step}");
        assert_eq!(host.current("web"), new, "{command:?} at {step}");
        let unfinished = names("machines/web").into_iter().find(|name| name.ends_with(".new"));
        assert_eq!(unfinished, None, "{command:?} at {step}");
        host.done(&["delete", "--yes", "web"]);
    }
    was_killed
}

#[test]
fn a_command_that_was_killed_at_any_step_succeeds_when_it_is_repeated() {
    let Some(mut host) = Host::new() else { return };
    if Command::new("strace").arg("-V").output().is_err() {
        return testing::missing("strace is needed");
    }
    // Creates the link to the runner that Nix would build now.
    host.recorder(
        "nix",
        "[ \"$KILL_AT\" != 'nix, before' ] || kill -9 $PPID
        for last in \"$@\"; do :; done
        case $* in *--out-link*) ln -sfn \"$(cat \"$RECORDS/runner\")\" \"$last\" ;; esac
        [ \"$KILL_AT\" != 'nix, after' ] || kill -9 $PPID",
    );
    host.flake(&[("web", Ok("one"))]);
    for runner in ["store/old", "store/new"] {
        fs::create_dir(host.path(runner)).unwrap();
    }
    for command in [["create", "web", "--flake", "flake"].as_slice(), &["update", "web"], &["delete", "--yes", "web"]] {
        let mut killed = 0;
        for call in CHANGES {
            // The first, second, third ... call, until the command ends before that.
            let step = |count: &usize| format!("{call}:signal=KILL:when={count}");
            killed += (1..).take_while(|count| kill_and_repeat(&mut host, command, &step(count))).count();
        }
        for step in ["nix, before", "nix, after"] {
            killed += usize::from(kill_and_repeat(&mut host, command, step));
        }
        assert!(killed >= 10, "{command:?} was killed only {killed} times");
    }
}

#[test]
fn a_full_disk_at_any_step_of_create_or_update_is_named_and_loses_nothing() {
    let Some(mut host) = Host::new() else { return };
    if Command::new("strace").arg("-V").output().is_err() {
        return testing::missing("strace is needed");
    }
    host.recorder(
        "nix",
        "for last in \"$@\"; do :; done
        case $* in *--out-link*) ln -sfn \"$(cat \"$RECORDS/runner\")\" \"$last\" ;; esac",
    );
    host.flake(&[("web", Ok("one"))]);
    for runner in ["store/old", "store/new"] {
        fs::create_dir(host.path(runner)).unwrap();
    }
    for (command, least) in [(["create", "web", "--flake", "flake"].as_slice(), 6), (&["update", "web"], 3)] {
        let mut failed = 0;
        for call in ["mkdirat", "symlinkat", "linkat", "renameat", "fsync"] {
            let step = |count: &usize| format!("{call}:error=ENOSPC:when={count}");
            failed += (1..).take_while(|count| kill_and_repeat(&mut host, command, &step(count))).count();
        }
        assert!(failed >= least, "{command:?} failed only {failed} times");
    }
}

#[test]
fn create_and_update_on_a_full_disk_leave_the_machine_as_it_was() {
    let Some(host) = Host::new() else { return };
    let names = |directory: &str| {
        let entries = fs::read_dir(host.path(directory)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != ".fills-the-disk");
        names.sort();
        names
    };
    for place in ["machines", "gcroots"] {
        let Some(disk) = testing::SmallDisk::mount(&host.path(place), 256) else { return };
        host.flake(&[("web", Ok("one"))]);
        disk.fill_with_files();
        let printed = host.refused(1, &["create", "web", "--flake", "flake"]);
        assert!(printed.contains(host.path(place).to_str().unwrap()), "{printed}");
        assert!(printed.contains("No space left on device"), "{printed}");
        assert_eq!((names("machines"), names("gcroots")), (vec![], vec![]), "{printed}");
        disk.free();
        host.done(&["create", "web", "--flake", "flake"]);
        let (first, before) = (host.current("web"), (names("machines"), names("machines/web")));

        host.flake(&[("web", Ok("two"))]);
        // The roots exist already, so nothing is created in their directory.
        if place == "machines" {
            disk.fill_with_files();
            let printed = host.refused(1, &["update", "web"]);
            assert!(printed.contains("No space left on device"), "{printed}");
            assert_eq!((names("machines"), names("machines/web")), before, "{printed}");
            assert_eq!(host.current("web"), first, "{printed}");
            disk.free();
        }
        host.done(&["update", "web"]);
        assert_ne!(host.current("web"), first);
        host.done(&["delete", "--yes", "web"]);
    }
}

#[test]
fn a_machine_does_not_appear_before_its_runner_has_a_root() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("web", Ok("one"))]);
    fs::remove_dir(host.path("gcroots")).unwrap();
    fs::write(host.path("gcroots"), "in the way").unwrap();
    host.refused(1, &["create", "web", "--flake", "flake"]);
    assert!(fs::read_dir(host.path("machines")).unwrap().next().is_none());
    // The remains of an interrupted deletion do not reappear in a new machine.
    fs::remove_file(host.path("gcroots")).unwrap();
    fs::create_dir(host.path("machines/.web.new")).unwrap();
    fs::write(host.path("machines/.web.new/var.img"), "of a deleted machine").unwrap();
    host.done(&["create", "web", "--flake", "flake"]);
    assert!(!host.path("machines/web/var.img").exists());
}

#[test]
fn invalid_names_and_flakes_are_refused_before_any_change() {
    let Some(host) = Host::new() else { return };
    for name in ["../web", "a/b", ".", "a b", "a@b"] {
        assert!(host.refused(2, &["create", name, "--flake", "flake"]).contains("is not a machine name"), "{name}");
    }
    for flake in ["flake#web", "./nowhere"] {
        host.refused(2, &["create", "web", "--flake", flake]);
    }
    for command in ["run", "start", "restart", "logs", "ssh", "update"] {
        assert!(host.refused(2, &[command, "web"]).contains("there is no machine web"), "{command}");
    }
    assert_eq!(host.calls(), "");
}

#[test]
fn service_commands_are_passed_to_systemd() {
    let Some(host) = Host::new() else { return };
    let machine = host.path("machines/web");
    fs::create_dir_all(machine.join("runner/bin")).unwrap();
    symlink("runner", machine.join("current")).unwrap();
    symlink("gone", machine.join("toplevel")).unwrap();
    let run = machine.join("runner/bin/microvm-run");
    write_program(&run, "#!/bin/sh\necho runs in \"$PWD\"\n");

    assert_eq!(host.done(&["-r", "web"]), format!("runs in {}\n", machine.display()));
    host.done(&["start", "web"]);
    host.done(&["logs", "web", "--follow"]);
    fs::write(host.path("microvm@web.service"), "").unwrap();
    host.refused(2, &["run", "web"]);
    host.done(&["stop", "web"]);
    let calls = host.calls();
    for call in [
        "systemctl start microvm@web.service\n",
        "journalctl --unit microvm@web.service --unit microvm-root@web.service --unit microvm-set-booted@web.service \
         --unit microvm-tap-interfaces@web.service --unit microvm-macvtap-interfaces@web.service \
         --unit microvm-pci-devices@web.service --unit microvm-virtiofsd@web.service --follow\n",
        "systemctl stop microvm@web.service\n",
    ] {
        assert!(calls.contains(call), "{calls}");
    }

    // A machine of the host's configuration is updated with the host. After it was removed from the configuration,
    // prune stops and lists it.
    assert!(host.refused(2, &["update", "web"]).contains("nixos-rebuild"));
    fs::write(host.path("install-microvm-web.service"), "").unwrap();
    assert_eq!(host.done(&["prune"]), "");
    fs::remove_file(host.path("install-microvm-web.service")).unwrap();
    assert_eq!(host.done(&["prune"]), format!("{}\n", machine.display()));
    assert_eq!(host.calls().matches("systemctl stop").count(), 2);
}

#[test]
fn ssh_uses_this_program_as_its_proxy() {
    let Some(host) = Host::new() else { return };
    let facts = host.path("runner/share/microvm");
    fs::create_dir_all(&facts).unwrap();
    fs::create_dir(host.path("machines/web")).unwrap();
    symlink(host.path("runner"), host.path("machines/web/current")).unwrap();
    assert!(host.refused(2, &["ssh", "web"]).contains("vsock.cid"));
    fs::write(facts.join("vsock-cid"), "7\n").unwrap();
    fs::write(facts.join("hypervisor"), "qemu\n").unwrap();
    host.done(&["-s", "web", "--", "-v", "uname", "-a"]);
    fs::write(facts.join("hypervisor"), "firecracker\n").unwrap();
    host.done(&["ssh", "web"]);
    let calls = host.calls();
    let calls: Vec<_> = calls.lines().collect();
    assert!(calls[0].contains("vsock-connect '7' 22") && calls[0].ends_with("-v -l root web uname -a"), "{calls:?}");
    assert!(calls[1].contains("machines/web/web.vsock' 22"), "{calls:?}");
}

/// A user of this host who runs machines, and whom a guest may have taken control of.
const OTHER_USER: u32 = 65534;

#[test]
fn root_does_not_follow_links_of_another_user_in_a_machines_directory() {
    let Some(host) = Host::new() else { return };
    host.flake(&[("web", Ok("one"))]);
    host.done(&["create", "web", "--flake", "flake"]);
    let machine = host.path("machines/web");
    let runner = host.current("web");
    // Files that root would run or trust.
    let theirs = host.path("theirs");
    fs::create_dir_all(theirs.join("share/microvm")).unwrap();
    fs::create_dir(theirs.join("bin")).unwrap();
    write_program(&theirs.join("bin/microvm-run"), "#!/bin/sh\necho run >>\"$RECORDS/calls\"\n");
    fs::write(theirs.join("share/microvm/vsock-cid"), "7\n").unwrap();
    fs::write(theirs.join("share/microvm/hypervisor"), "qemu\n").unwrap();
    let put = |name: &str| {
        let link = machine.join(name);
        let _ = fs::remove_file(&link);
        symlink(&theirs, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    };
    let reason = "and root uses only files that no other user can change";
    let refused = |arguments: &[&str], name: &str| {
        let output = host.microvm(arguments);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(
            printed.contains(reason) && printed.contains(&format!("machines/web/{name}")),
            "{arguments:?}: {printed}"
        );
        assert!(arguments[0] == "list" || !output.status.success(), "{arguments:?}: {printed}");
    };

    put("booted");
    for command in [["update", "web"], ["ssh", "web"]] {
        refused(&command, "booted");
    }
    refused(&["list"], "booted");
    fs::remove_file(machine.join("booted")).unwrap();

    put("current");
    for command in [["update", "web"], ["ssh", "web"], ["run", "web"]] {
        refused(&command, "current");
    }
    refused(&["list", "--offline"], "current");
    assert_eq!(host.done(&["status"]), "web  -  stopped\n", "it reads neither");
    assert_eq!(host.current("web"), theirs, "nothing was changed");
    fs::remove_file(machine.join("current")).unwrap();
    symlink(&runner, machine.join("current")).unwrap();

    // A symbolic link, and a file of the other user.
    let flake = host.path("flake").canonicalize().unwrap();
    fs::remove_file(machine.join("flake")).unwrap();
    symlink(host.path("flake/flake.nix"), machine.join("flake")).unwrap();
    std::os::unix::fs::lchown(machine.join("flake"), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    assert!(host.refused(1, &["update", "web"]).contains("symbolic link"));
    fs::remove_file(machine.join("flake")).unwrap();
    fs::write(machine.join("flake"), flake.to_str().unwrap()).unwrap();
    std::os::unix::fs::chown(machine.join("flake"), Some(OTHER_USER), None).unwrap();
    assert!(host.refused(1, &["update", "web"]).contains(reason));
    assert!(host.done(&["list"]).contains(reason));
    assert_eq!(host.current("web"), runner);
    assert!(!host.calls().contains("run") && !host.calls().contains("ssh"), "{}", host.calls());

    std::os::unix::fs::chown(machine.join("flake"), Some(0), None).unwrap();
    host.done(&["update", "web"]);
}

#[test]
fn a_machine_is_registered_with_machined() {
    let Some(host) = Host::new() else { return };
    let spec = r#"{"version": 1, "name": "web", "kernel": "/k", "machineId": "0102030405060708090a0b0c0d0e0fff"}"#;
    fs::write(host.path("web.json"), spec).unwrap();
    assert!(host.refused(2, &["register", "web.json"]).contains("MAINPID"));
    host.done(&["register", "web.json", "--leader", "42"]);
    host.done(&["unregister", "web.json"]);
    let calls = host.calls();
    assert!(
        calls.contains("RegisterMachine sayssus web 16 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 255 microvm vm 42 \n"),
        "{calls}"
    );
    assert!(calls.contains("UnregisterMachine s web\n"), "{calls}");
}
