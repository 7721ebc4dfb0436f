//! The command line as a user sees it: output, error messages and exit codes.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test reports by failing")]

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use testing::write_program;

#[path = "command_line/cluster.rs"]
mod cluster;
#[path = "command_line/numbers.rs"]
mod numbers;
#[path = "command_line/records.rs"]
mod records;
#[path = "command_line/upgrade.rs"]
mod upgrade;
#[path = "command_line/volumes.rs"]
mod volumes;

fn microvm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_microvm")).args(arguments).output().expect("microvm runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn fixture(name: &str) -> String {
    repository().join("fixtures/specs").join(format!("{name}.json")).display().to_string()
}

/// A machine whose name is longer than a row, on a terminal with 60 columns.
#[test]
fn the_table_of_machines_is_redrawn_in_place_on_a_terminal() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["web".to_owned(), "n".repeat(64), "third".to_owned()] {
        fs::create_dir_all(directory.path().join("machines").join(name)).unwrap();
    }
    let program = env!("CARGO_BIN_EXE_microvm");
    // Ctrl-C must work even if these tests run in the background of a script, where SIGINT is ignored.
    let inside = format!("stty cols 60 rows 4; exec env --default-signal=INT {program} status --watch");
    let mut script = Command::new("script");
    script.args(["-qfec", &inside, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    script.env("MICROVM_STATE_DIR", directory.path().join("machines"));
    script.env("MICROVM_RUNTIME_DIR", directory.path().join("run"));
    let Ok(mut script) = script.spawn() else { return testing::missing("script (util-linux) is needed") };
    let (mut terminal, mut seen) = (script.stdout.take().unwrap(), Vec::new());
    while seen.windows(3).filter(|bytes| bytes == b"\x1b[J").count() < 2 {
        let mut bytes = [0; 4096];
        let length = terminal.read(&mut bytes).unwrap();
        assert!(length > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        seen.extend(&bytes[..length]);
    }
    // Ctrl-C
    script.stdin.take().unwrap().write_all(b"\x03").unwrap();
    script.wait().unwrap();
    let row = |name: &str| format!("{name:18} {:9} {:>5} {:>11} {:>6} {:>6}\x1b[K\r\n", "stopped", "-", "-", "-", "-");
    let heading =
        format!("{:18} {:9} {:>5} {:>11} {:>6} {:>6}\x1b[K\r\n", "machine", "state", "cpu", "memory", "disk", "uptime");
    let screen = format!("\x1b[H{heading}{}2 more; specify which to show\x1b[K\r\n\x1b[J", row(&"n".repeat(18)));
    assert!(row("web").chars().count() <= 60 + "\x1b[K\r\n".len());
    let seen = String::from_utf8(seen).unwrap();
    assert_eq!(&seen[..2 * screen.len()], screen.repeat(2));
}

/// Root's view and another user's, in a user namespace. It cannot be made where no namespace is allowed.
#[test]
fn a_view_has_the_listed_store_paths_only_and_is_read_only() {
    if !nix::unistd::geteuid().is_root() {
        return testing::skipped("only root can become another user");
    }
    let directory = tempfile::Builder::new().prefix("view").tempdir_in("/tmp").unwrap();
    let here = directory.path();
    let store = here.join("store");
    let name = |letter: &str| format!("{}-{letter}", "0".repeat(32));
    for letter in ["shown", "hidden"] {
        fs::create_dir_all(store.join(name(letter))).unwrap();
    }
    fs::write(store.join(name("file")), "text").unwrap();
    fs::set_permissions(store.join(name("file")), fs::Permissions::from_mode(0o666)).unwrap();
    std::os::unix::fs::symlink(name("hidden"), store.join(name("link"))).unwrap();
    fs::write(here.join("list"), ["shown", "file", "link"].map(|letter| format!("/s/{}\n", name(letter))).concat())
        .unwrap();
    fs::set_permissions(here, fs::Permissions::from_mode(0o777)).unwrap();
    let script = "exec 2>&1; cd /sys/kernel; echo *; cat *-file; cat *-link; for d in *-shown; do touch $d/x; done; touch *-file; touch new";
    let view = |before: &[&str], words: &[&str]| {
        let serve = ["serve-view", "--source", "store", "--closure", "list", "--control", "control", "--"];
        let program = [env!("CARGO_BIN_EXE_microvm")];
        let all = [before, &program, &serve, words].concat();
        Command::new(all[0]).args(&all[1..]).current_dir(here).output().unwrap()
    };
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    for before in [&["env"][..], &nobody] {
        let output = stdout(&view(before, &["sh", "-c", script]));
        let listed = format!("{} {} {}\ntext", name("file"), name("link"), name("shown"));
        assert!(output.starts_with(&listed), "{output}");
        assert!(output.contains("No such file") && output.matches("Read-only file system").count() == 3, "{output}");
        assert_eq!(fs::read_to_string(store.join(name("file"))).unwrap(), "text");
        let _ = fs::remove_file(here.join("control"));
    }
    // The handle of a file outside the view, opened where its file system is mounted.
    let program = testing::file_handles(here);
    let program = program.to_str().unwrap();
    let hidden = store.join(name("hidden"));
    let found = Command::new(program).arg("of").arg(&hidden).output().unwrap();
    assert!(found.status.success(), "{}", stderr(&found));
    let shown = format!("/sys/kernel/{}", name("shown"));
    let open = [program, "open", &shown, stdout(&found).trim()].map(str::to_owned);
    let on_the_host = Command::new(program).arg("open").arg(&store).arg(&open[3]).output().unwrap();
    assert!(stdout(&on_the_host).starts_with("guest: opened="), "{on_the_host:?}");
    for before in [&["env"][..], &nobody] {
        let output = view(before, &open.each_ref().map(String::as_str));
        assert!(stdout(&output).starts_with("guest: refused="), "{output:?}");
        let _ = fs::remove_file(here.join("control"));
    }
    let none = "echo 0 >/proc/sys/user/max_mnt_namespaces; echo 0 >/proc/sys/user/max_user_namespaces; exec \"$@\"";
    let refused = view(&["unshare", "--user", "--map-root-user", "sh", "-c", none, "sh"], &["true"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).starts_with("error: closureOnly: this user cannot create a mount namespace: "),
        "{refused:?}"
    );
    fs::write(here.join("list"), "/nix/store/../etc\n").unwrap();
    assert!(stderr(&view(&["env"], &["true"])).contains("list: line 1: `/nix/store/../etc` is not a store path"));
    fs::write(here.join("list"), format!("/s/{}", name("none"))).unwrap();
    assert!(stderr(&view(&["env"], &["true"])).contains("there is no such store path on this host"));
}

/// A directory that contains one spec.
struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("machine.json"), text).expect("a file");
        Self { directory }
    }

    /// Writes the smallest machine spec, with these fields added or replaced.
    fn machine(fields: Value) -> Self {
        let mut document = json!({"version": 1, "name": "web", "kernel": "/k/bzImage"});
        if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
            document.extend(fields);
        }
        Self::new(&document.to_string())
    }

    fn spec(&self) -> String {
        self.directory.path().join("machine.json").display().to_string()
    }
}

#[test]
fn bad_input_exits_with_2_and_the_error_names_the_remedy() {
    let long_name = "x".repeat(109);
    for (fields, expected) in [
        (json!({"vpcu": 2}), "vpcu: unknown field; did you mean `vcpu`?"),
        (json!({"mem": "512"}), "mem: must be a whole number, but is the string \"512\""),
        (json!({"hypervisor": "xen"}), "hypervisor: must be one of qemu, cloud-hypervisor, firecracker"),
        (json!({"version": 7}), "this program reads machine specs of version 1, but this one has 7"),
        (json!({"name": "../../etc/passwd"}), "name: `../../etc/passwd` must start with a letter, a digit or `_`"),
        (
            json!({"shares": [{"tag": "t".repeat(32), "source": "/s", "mountPoint": "/s"}]}),
            "has 32 bytes, but the tag of such a share has at most 31",
        ),
        (
            json!({"interfaces": [{"type": "tap", "id": "sixteen-bytes-xx", "mac": "02:00:00:00:00:01"}]}),
            "`sixteen-bytes-xx` has 16 bytes, but the name of a network interface has at most 15",
        ),
        (
            json!({"volumes": [{"image": "a", "size": 1, "label": "seventeen-bytes-x"}]}),
            "has 17 bytes, but a label of ext4 has at most 16",
        ),
        (
            json!({"volumes": [{"image": "a", "size": 1}, {"image": "./a", "size": 1}]}),
            "volumes[1].image: the image `a` is already used by volumes[0].image",
        ),
        (json!({"volumes": [{"image": "a", "size": 1u64 << 44}]}), "17592186044416 MiB is more than a file can have"),
        (json!({"socket": long_name}), "has 109 bytes, but the path of a unix socket has at most 107"),
        (json!({"graphics": {"enable": true, "backend": "cocoa"}}), "\"cocoa\" is supported on macOS only"),
        (
            json!({
                "interfaces": [{"type": "user", "id": "net", "mac": "02:00:00:00:00:01"}],
                "forwardPorts": [{"from": "guest", "proto": "udp", "host": {"port": 1}, "guest": {"port": 2, "address": "10.0.2.10"}}],
            }),
            "no other hypervisor supports it",
        ),
    ] {
        let scratch = Scratch::machine(fields);
        for command in ["check", "explain"] {
            let output = microvm(&[command, &scratch.spec()]);
            let printed = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{command}: {printed}");
            assert!(
                printed.starts_with("error: ") && printed.contains(expected),
                "{command}: wanted {expected}\n{printed}"
            );
            assert_eq!(stdout(&output), "");
        }
    }
}

#[test]
fn malformed_json_is_reported_with_file_line_and_column() {
    let scratch = Scratch::new("{\n  \"version\": 1,\n  \"name\" \"web\"\n}\n");
    let printed = stderr(&microvm(&["check", &scratch.spec()]));
    assert_eq!(
        printed.lines().next(),
        Some(format!("error: {}: line 3, column 10: expected `:`", scratch.spec()).as_str())
    );
}

#[test]
fn the_error_for_an_unreadable_spec_names_it() {
    let output = microvm(&["check", "/nowhere/machine.json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).starts_with("error: cannot read the machine spec /nowhere/machine.json: No such file"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_file_that_is_not_text_is_refused_without_naming_a_stream() {
    let scratch = Scratch::new("");
    fs::write(scratch.spec(), [0xff, 0xfe]).unwrap();
    let expected = format!("error: cannot read the machine spec {}: the file is not UTF-8 text\n", scratch.spec());
    assert_eq!(stderr(&microvm(&["check", &scratch.spec()])), expected);
}

#[test]
fn a_machine_whose_only_start_failed_is_known_to_stop() {
    let runtime = tempfile::tempdir().unwrap();
    let runtime = runtime.path().join("runtime");
    for directory in [&runtime, &runtime.join("web")] {
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let stop = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(["stop", name]).env("MICROVM_RUNTIME_DIR", &runtime);
        let output = command.output().expect("microvm runs");
        (output.status.code(), stderr(&output))
    };
    let (code, printed) = stop("wbe");
    assert_eq!(code, Some(2));
    assert!(printed.ends_with("\nhint: did you mean `web`?\n"), "{printed}");
    assert_eq!(stop("web"), (Some(0), "web is not running\n".to_owned()));
}

#[test]
fn commands_for_an_existing_machine_refuse_a_misspelt_state_directory_and_do_not_create_it() {
    let directory = tempfile::tempdir().unwrap();
    let (typo, backup) = (directory.path().join("typo"), directory.path().join("backup"));
    fs::write(&backup, "a volume").unwrap();
    let backup = backup.to_str().unwrap();
    let machine = Scratch::machine(json!({"volumes": [{"image": "var.img", "size": 8, "mountPoint": "/var"}]}));
    let spec = machine.spec();
    for arguments in [
        &["volumes", &spec][..],
        &["volume", "backup", &spec, "/var", "copy"],
        &["volume", "restore", &spec, "/var", backup],
        &["volume", "grow", &spec, "/var", "1G"],
        &["resume", &spec],
    ] {
        let output = microvm(&[arguments, &["--state-dir", typo.to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("typo: there is no such directory"), "{arguments:?}: {}", stderr(&output));
        assert!(!typo.exists(), "{arguments:?}");
        let output = microvm(&[arguments, &["--state-dir", backup]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("backup is not a directory"), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn files_that_cannot_be_a_backup_are_bad_input_and_reported_as_the_system_does() {
    let machine = Scratch::machine(json!({"volumes": [{"image": "var.img", "size": 8, "mountPoint": "/var"}]}));
    let (spec, directory) = (machine.spec(), tempfile::tempdir().unwrap());
    let missing = "No such file or directory (os error 2)";
    for (action, file, expected) in [
        ("restore", ".", "cannot read .: Is a directory (os error 21)".to_owned()),
        ("restore", "missing", format!("cannot read missing: {missing}")),
        ("backup", "missing", format!("var.img: {missing}")),
        ("grow", "1G", format!("var.img: {missing}")),
    ] {
        let state = directory.path().to_str().unwrap();
        let output = microvm(&["volume", action, &spec, "/var", file, "--state-dir", state]);
        assert_eq!(output.status.code(), Some(2), "{action}: {}", stderr(&output));
        assert!(stderr(&output).contains(&expected), "{action}: {}", stderr(&output));
    }
}

#[test]
fn a_machine_without_a_runner_and_an_unknown_one_are_reported_once_and_in_words() {
    let state = tempfile::tempdir().unwrap();
    fs::create_dir(state.path().join("web")).unwrap();
    let printed = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        stderr(&command.args(arguments).env("MICROVM_STATE_DIR", state.path()).output().expect("microvm runs"))
    };
    let printed_of_web = printed(&["volume", "grow", "web", "/var", "1G"]);
    assert!(printed_of_web.contains("web/current: No such file or directory (os error 2)"), "{printed_of_web}");
    assert!(
        printed(&["update", "wbe"]).starts_with("error: there is no machine wbe: "),
        "{}",
        printed(&["update", "wbe"])
    );
}

#[test]
fn sigterm_was_not_heard_while_a_spec_was_read_from_stdin() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [
        &["run", "-"][..],
        &["volumes", "-"],
        &["volume", "grow", "-", "/var", "1G"],
        &["tap", "up", "-"],
        &["virtiofsd", "-"],
        &["check", "-"],
        &["suspend", "-"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvm"));
        command.args(arguments).env("MICROVM_RUNTIME_DIR", directory.path()).current_dir(directory.path());
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"{").unwrap();
        let process = child.id().to_string();
        // It may not have begun to read yet: each further signal is for a later moment.
        let ended = (0..600).find_map(|_| {
            Command::new("kill").args(["-TERM", &process]).status().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(100));
            child.try_wait().unwrap()
        });
        child.kill().unwrap();
        assert!(ended.is_some_and(|status| !status.success()), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn a_missing_name_is_reported_with_the_option_for_all_machines() {
    for (command, expected, usage) in [
        ("suspend", "<MACHINES|--all>", "[OPTIONS] <MACHINES...|--all>"),
        ("update", "<NAMES|--all>", "[OPTIONS] <NAMES...|--all>"),
        ("restart", "<NAMES|--outdated>", "<NAMES...|--outdated>"),
    ] {
        let output = microvm(&[command]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(&format!("were not provided:\n  {expected}\n")), "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("Usage: microvm {command} {usage}\n")), "{}", stderr(&output));
        let option = expected.trim_end_matches('>').rsplit('|').next().unwrap();
        let output = microvm(&[command, option, "web"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(&format!("'{option}' cannot be used with")), "{}", stderr(&output));
    }
}

#[test]
fn an_invalid_command_line_exits_with_2() {
    let endless = "18446744073709551615";
    for arguments in [
        ["explain", "--hypervisor"].as_slice(),
        &["check"],
        &["explain", "--hypervisor", "xen", "x"],
        &[],
        &["stop", "web", "--timeout", endless],
        &["run", "machine.json", "--supervise", "--stop-timeout", endless],
        &["install", "--user", "machine.json", "--stop-timeout", endless],
        &["cluster", "drain", "host1", "--wait", endless],
    ] {
        assert_eq!(microvm(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(microvm(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_usage_error_escapes_control_characters() {
    for arguments in
        [&["che\u{1b}[31mck\nerror: no"][..], &["explain", "a", "b\u{9b}\r\nhint: x"], &["run", "--\u{7}x"]]
    {
        let output = microvm(arguments);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(!stderr.contains(|character: char| character.is_control() && character != '\n'), "{stderr:?}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr:?}");
        assert!(!stderr.lines().any(|line| line.starts_with("hint: ")), "{stderr:?}");
    }
}

#[test]
fn check_prints_the_hypervisors_that_support_a_machine() {
    let output = microvm(&["check", &fixture("store-disk"), &fixture("store-share")]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "store-disk: runs on qemu; also on cloud-hypervisor, firecracker, crosvm and kvmtool\n\
         store-share: runs on qemu; also on crosvm and kvmtool\n"
    );
}

#[test]
fn check_reports_conflicts_and_refusals_together_as_json() {
    let specs = [fixture("network-tap"), fixture("everything"), fixture("shares-9p")];
    let specs: Vec<_> = specs.iter().map(String::as_str).collect();
    let output = microvm(&[&["check", "--json", "--hypervisor", "firecracker"], specs.as_slice()].concat());
    assert_eq!(output.status.code(), Some(2));
    let document: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let problems = document["problems"].as_array().expect("problems");
    let of = |option: &str| problems.iter().filter(|problem| problem["option"] == option).count();
    assert_eq!((of("shares[0].proto"), of("interfaces[0].mac"), of("interfaces[0].id")), (2, 1, 1), "{document:#}");
    let refusal = problems.iter().find(|problem| problem["machine"] == "shares-9p").expect("a refusal");
    assert_eq!(refusal["hypervisor"], "firecracker");
    assert_eq!(refusal["supportedBy"], json!(["qemu", "crosvm", "kvmtool"]));
    assert_eq!(document["machines"][0]["name"], "network-tap");
}

#[test]
fn a_spec_is_read_from_standard_input() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_microvm"))
        .args(["check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("microvm runs");
    let text = fs::read(fixture("minimal")).expect("a spec");
    child.stdin.take().expect("a pipe").write_all(&text).expect("written");
    let output = child.wait_with_output().expect("an end");
    assert!(stdout(&output).starts_with("minimal: runs on qemu"), "{}", stdout(&output));
}

/// `MICROVM_TEST_BLESS=1` rewrites the goldens.
#[test]
fn explanations_equal_their_goldens() {
    for (name, hypervisor) in [
        ("everything", "qemu"),
        ("settings", "firecracker"),
        ("network-macvtap", "crosvm"),
        ("network-user", "cloud-hypervisor"),
        ("volumes", "kvmtool"),
        ("store-share", "crosvm"),
    ] {
        let state = format!("/var/lib/microvms/{name}");
        let output = microvm(&["explain", &fixture(name), "--hypervisor", hypervisor, "--state-dir", &state]);
        let found = stdout(&output) + &stderr(&output);
        let golden = repository().join("fixtures/explanations").join(format!("{name}-{hypervisor}.txt"));
        if std::env::var_os("MICROVM_TEST_BLESS").is_some() {
            fs::create_dir_all(golden.parent().expect("a directory")).expect("a directory");
            fs::write(&golden, &found).expect("a golden");
        }
        assert_eq!(found, fs::read_to_string(&golden).expect("a golden"), "{}", golden.display());
    }
}

/// Runs the explained command in a shell, with a program that prints its arguments instead of the hypervisor.
#[test]
fn the_explained_command_can_be_copied_into_a_shell() {
    for name in ["everything", "quotes", "commas", "settings", "network-tap-queues", "store-disk"] {
        for hypervisor in ["qemu", "firecracker", "crosvm", "kvmtool", "cloud-hypervisor"] {
            let directory = tempfile::tempdir().expect("a directory");
            let program = directory.path().join("hyper visor");
            write_program(&program, "#!/bin/sh\nprintf '%s\\0' \"$PWD\" \"$@\"\n");
            let mut spec: Value =
                serde_json::from_str(&fs::read_to_string(fixture(name)).expect("a spec")).expect("JSON");
            let section = if hypervisor == "cloud-hypervisor" { "cloudHypervisor" } else { hypervisor };
            spec[section]["program"] = json!(program);
            let path = directory.path().join("machine.json");
            fs::write(&path, spec.to_string()).expect("a spec");
            let (path, state) = (path.display().to_string(), directory.path().display().to_string());
            let arguments = ["explain", &path, "--hypervisor", hypervisor, "--state-dir", &state];
            let explained = microvm(&arguments);
            if !explained.status.success() {
                continue;
            }
            let text = stdout(&explained);
            let section = text.split("\nCommand:\n").nth(1).expect("a command").split("\n\n").next().expect("its end");
            let printed = Command::new("sh").args(["-eu", "-c", section]).output().expect("a shell");
            assert!(printed.status.success(), "{section}\n{}", stderr(&printed));
            let mut words = stdout(&printed).split_terminator('\0').map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words.remove(0), state, "it starts in the state directory");
            let document = stdout(&microvm(&[arguments.as_slice(), &["--json"]].concat()));
            let document: Value = serde_json::from_str(&document).expect("JSON");
            assert_eq!(json!(words), document["launch"]["arguments"], "{name} on {hypervisor}");
        }
    }
}

/// Returns a spec of the fixtures whose store disk is the image `store.img`, explained in the directory.
fn explained_with_store(directory: &Path, name: &str) -> Output {
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(fixture(name)).expect("a spec")).expect("JSON");
    spec["storeDisk"]["image"] = json!("store.img");
    spec["storeDisk"].as_object_mut().expect("a store disk").remove("plan");
    let path = directory.join("machine.json");
    fs::write(&path, spec.to_string()).expect("a spec");
    microvm(&["explain", path.to_str().expect("UTF-8"), "--state-dir", directory.to_str().expect("UTF-8")])
}

#[test]
fn the_explained_command_has_the_length_and_the_seal_of_the_image_that_exists() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("store.img");
    let text = stdout(&explained_with_store(directory.path(), "store-pmem"));
    assert!(text.contains("warning: storeDisk.image: the length of store.img is unknown (No such file"), "{text}");

    fs::File::create(&image).expect("an image").set_len(6 << 20).expect("a length");
    let text = stdout(&explained_with_store(directory.path(), "store-pmem"));
    assert!(text.contains("mem-path=store.img,size=6291456,") && text.contains(",maxmem=518M"), "{text}");
    assert!(!text.contains("warning"), "{text}");

    fs::File::create(&image).expect("an image").set_len(6 << 10).expect("a length");
    let refused = explained_with_store(directory.path(), "store-pmem");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("store.img has 6144 bytes"), "{}", stderr(&refused));

    // One block of zeros and dm-verity's superblock.
    let mut superblock = [b"verity\0\0", [1, 0, 0, 0].repeat(2).as_slice(), &[0; 16], b"sha256"].concat();
    superblock.resize(64, 0);
    superblock.extend([4096_u32.to_le_bytes(), 4096_u32.to_le_bytes()].concat());
    superblock.extend(1_u64.to_le_bytes());
    superblock.resize(4096, 0);
    fs::write(&image, [vec![0; 4096], superblock].concat()).expect("an image");
    let root_hash = "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7";
    let mut seal = json!({
        "version": 1, "rootHash": root_hash, "hashOffsetBytes": 4096, "blockSizeBytes": 4096, "algorithm": "sha256",
        "salt": "",
    });
    let document = directory.path().join("store.img.verity.json");
    fs::write(&document, seal.to_string()).expect("a document");
    let text = stdout(&explained_with_store(directory.path(), "store-sealed"));
    assert!(text.contains(&format!("={root_hash}:4096")), "{text}");
    seal["rootHash"] = json!("0".repeat(64));
    fs::write(&document, seal.to_string()).expect("a document");
    let text = stdout(&explained_with_store(directory.path(), "store-sealed"));
    assert!(text.contains("warning: storeDisk.verity: ") && text.contains("the root hash differs"), "{text}");
}

#[test]
fn the_printed_schema_accepts_every_spec_and_refuses_a_misspelt_field() {
    let schema: Value = serde_json::from_str(&stdout(&microvm(&["schema"]))).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    for entry in fs::read_dir(repository().join("fixtures/specs")).expect("specs") {
        let path = entry.expect("an entry").path();
        let mut document: Value = serde_json::from_str(&fs::read_to_string(&path).expect("a spec")).expect("JSON");
        let errors: Vec<_> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        document["vsock"] = json!({"cdi": 3});
        assert!(!validator.is_valid(&document));
    }
}

/// `MICROVM_TEST_BLESS=1` rewrites the pages.
#[test]
fn the_reference_pages_equal_those_generated_from_the_schemas() {
    for (options, page) in [(&[][..], "docs/machine-spec.md"), (&["--cluster"][..], "docs/cluster-spec.md")] {
        let path = repository().join(page);
        let found = stdout(&microvm(&[&["schema", "--markdown"], options].concat()));
        if std::env::var_os("MICROVM_TEST_BLESS").is_some() {
            fs::write(&path, &found).expect("a page");
        }
        assert_eq!(found, fs::read_to_string(&path).expect("a page"), "{page}");
        let schema: Value = serde_json::from_str(&stdout(&microvm(&[&["schema"], options].concat()))).expect("JSON");
        for field in schema["properties"].as_object().expect("fields").keys() {
            assert!(found.contains(&format!("| `{field}` |")), "{field} is described in {page}");
        }
    }
}

#[test]
fn the_capability_table_has_a_row_for_each_feature() {
    let table = stdout(&microvm(&["capabilities"]));
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows.iter().all(|row| row.matches('|').count() == 7), "{table}");
    let document: Value = serde_json::from_str(&stdout(&microvm(&["capabilities", "--json"]))).expect("JSON");
    assert_eq!(document.as_array().expect("a list").len(), rows.len() - 1);
}

/// `MICROVM_TEST_BLESS=1` rewrites the README's table.
#[test]
fn the_readme_has_the_capability_summary() {
    const START: &str = "<!-- made by: microvm capabilities --summary -->\n";
    const END: &str = "<!-- end of: microvm capabilities --summary -->";
    let path = repository().join("README.md");
    let readme = fs::read_to_string(&path).expect("a README");
    let (before, rest) = readme.split_once(START).expect("the table's start");
    let (found, after) = rest.split_once(END).expect("the table's end");
    let table = stdout(&microvm(&["capabilities", "--summary"]));
    if std::env::var_os("MICROVM_TEST_BLESS").is_some() {
        fs::write(&path, format!("{before}{START}{table}{END}{after}")).expect("a README");
        return;
    }
    assert_eq!(found, table);
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let text = stdout(&microvm(&["completions", shell]));
        assert!(text.contains("explain") && text.contains("hypervisor"), "{shell}");
    }
    let bash = stdout(&microvm(&["completions", "bash"]));
    assert!(bash.contains("qemu cloud-hypervisor firecracker") && bash.contains("auto kvm tcg"), "{bash}");
    for internal in ["clean-up-after", "vsock-connect"] {
        assert!(!bash.contains(internal), "{internal} is offered");
    }
    let pages = tempfile::tempdir().expect("a directory");
    let written = microvm(&["man", "--output", &pages.path().display().to_string()]);
    assert!(written.status.success(), "{}", stderr(&written));
    let page = stdout(&microvm(&["man"]));
    let sections = |page: &str| page.split_once(".SH \"EXIT STATUS\"").map(|(_, sections)| sections.to_owned());
    assert_eq!(sections(&fs::read_to_string(pages.path().join("microvm.1")).expect("a page")), sections(&page));
    assert!(pages.path().join("microvm-run.1").is_file() && !pages.path().join("microvm-clean-up-after.1").exists());
    assert!(page.contains(".TH microvm 1"));
    for section in ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"] {
        assert!(page.contains(&format!(".SH \"{section}\"\n")), "{section}");
    }
    assert!(stdout(&microvm(&["man", "check"])).contains("microvm\\-check"));
    let output = microvm(&["man", "fly"]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(2), "error: there is no command `fly`\n"));
}

#[test]
fn bash_completes_the_names_of_machines_but_not_for_a_new_one_or_a_value() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["mail", "web", "web-2"] {
        fs::create_dir_all(directory.path().join("machines").join(name)).expect("a machine");
    }
    let complete = |words: &[&str]| {
        let script = "source <(\"$0\" completions bash); COMP_WORDS=(\"$0\" \"$@\"); COMP_CWORD=$#\n\
                      _microvm_with_machines \"$0\" \"${COMP_WORDS[-1]}\" \"${COMP_WORDS[-2]}\"; echo \"${COMPREPLY[@]}\"";
        let output = Command::new("bash")
            .args(["-c", script, env!("CARGO_BIN_EXE_microvm")])
            .args(words)
            .env("MICROVM_STATE_DIR", directory.path().join("machines"))
            .env("MICROVM_RUNTIME_DIR", directory.path().join("run"))
            .output()
            .expect("bash");
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).trim().to_owned()
    };
    assert_eq!(complete(&["start", ""]), "mail web web-2");
    assert_eq!(complete(&["update", "-R", "web", "we"]), "web web-2");
    assert_eq!(complete(&["stop", "ma"]), "mail");
    assert_eq!(complete(&["suspend", ""]), "mail web web-2");
    assert_eq!(complete(&["resume", "w"]), "web web-2");
    assert_eq!(complete(&["volume", "backup", "m"]), "mail");
    // A volume, or a file.
    assert!(!complete(&["volume", "backup", "web", ""]).contains("mail"));
    assert!(!complete(&["stop", "--timeout", "w"]).contains("web"));
    assert!(complete(&["stop", "--time"]).contains("--timeout"));
    assert!(!complete(&["create", ""]).contains("web"));
    assert_eq!(complete(&["stat"]), "status");
}

#[test]
fn a_failed_command_with_json_prints_an_error_object_and_nothing_else_on_stdout() {
    let scratch = Scratch::machine(json!({"hypervisor": "kvmtool", "vsock": {"cid": 3}, "tpm": {"enable": true}}));
    let spec = scratch.spec();
    for (arguments, code) in [
        (&["check", "--json", "/nowhere/machine.json"][..], 2),
        // Reading this file fails with EIO, which is not bad input.
        (&["check", "--json", "/proc/self/mem"], 1),
        (&["explain", "--json", "--hypervisor", "xen", &spec], 2),
        (&["volumes", "--json", "/nowhere/machine.json"], 2),
        (&["status", "--json", "nobody-has-this-name"], 2),
        (&["list", "--json"], 1),
        (&["capabilities", "--json", "--bogus"], 2),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_microvm"))
            .args(arguments)
            // Not a directory, so it cannot be listed.
            .env("MICROVM_STATE_DIR", if arguments[0] == "list" { &spec } else { "/nowhere" })
            .env("XDG_RUNTIME_DIR", scratch.directory.path())
            .output()
            .expect("microvm runs");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        let document: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!((&document["version"], &document["error"]["exitCode"]), (&json!(1), &json!(code)));
        let problem = document["error"]["problems"][0].as_str().expect("a problem");
        assert!(stderr(&output).starts_with(&format!("error: {problem}")), "{arguments:?}: {problem}");
    }
}
