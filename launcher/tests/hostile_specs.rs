//! Malicious machine specs and machine names. Each one is refused, or leads to a command in which its text is exactly
//! one word. None of them sends control characters to the terminal of a user who reads the errors.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test reports by failing")]

use launcher::explain::command;
use launcher::facts::HostFacts;
use launcher::hypervisor::lower;
use launcher::launch::Launch;
use launcher::path::HostPath;
use launcher::spec::{Hypervisor, MachineSpec, parse::parse};
use launcher::validate::check;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testing::write_program;

/// Each text would have an effect if it reached a shell, a terminal, an option parser or a file system unescaped.
const HOSTILE: [&str; 9] = [
    "$(touch pwned)`touch pwned`;touch pwned|touch pwned&touch pwned\\",
    "'\"; touch pwned; '\" #",
    "a,b=c,file=/etc/passwd,,on",
    "-hello --help",
    "../../etc/passwd",
    "a\nb\n; touch pwned",
    "a\u{1b}[2Jb\u{7}\u{9b}31m",
    "zero\0byte",
    "Grüße \u{202e}\u{1f427} %s %n ~ * ?",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/specs")
}

fn documents() -> Vec<Value> {
    let mut paths: Vec<_> = fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()).collect()
}

/// Collects the JSON pointers of all strings in a document.
fn strings(value: &Value, place: &str, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(place.to_owned()),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| strings(item, &format!("{place}/{index}"), found));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| strings(field, &format!("{place}/{name}"), found));
        }
        _ => {}
    }
}

/// Returns every fixture with each of its strings replaced by each hostile text: the place, the text, and the document.
fn hostile_documents() -> Vec<(String, &'static str, String)> {
    let mut hostile = Vec::new();
    for document in documents() {
        let mut places = Vec::new();
        strings(&document, "", &mut places);
        for place in places {
            for text in HOSTILE {
                let mut changed = document.clone();
                *changed.pointer_mut(&place).unwrap() = Value::from(text);
                hostile.push((format!("{}{place}", document["name"].as_str().unwrap()), text, changed.to_string()));
            }
        }
    }
    hostile
}

/// Returns the launches of a spec on all hypervisors that support it. All error messages must be safe to print.
fn launches(place: &str, text: &str) -> Vec<Launch> {
    let assert_fit = |printed: String| assert!(!printed.contains(char::is_control), "{place}: {printed:?}");
    let spec: MachineSpec = match parse(text) {
        Ok(spec) => spec,
        Err(errors) => {
            errors.iter().for_each(|error| assert_fit(error.to_string()));
            return Vec::new();
        }
    };
    let checked = match check(&spec) {
        Ok(checked) => checked,
        Err(problems) => {
            problems.iter().for_each(|problem| assert_fit(problem.to_string()));
            return Vec::new();
        }
    };
    let facts = HostFacts::assumed(HostPath::new("/tmp"));
    Hypervisor::ALL.into_iter().filter_map(|hypervisor| lower(&checked, &facts, hypervisor).ok()).collect()
}

#[test]
fn every_string_of_a_spec_stays_one_word_of_the_command() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("printer");
    write_program(&program, "#!/bin/sh\nprintf '%s\\0' \"$@\" end\n");
    let (mut expected, mut script) = (Vec::new(), String::new());
    for (place, hostile, text) in hostile_documents() {
        for mut launch in launches(&place, &text) {
            // The command would open the device of a macvtap first, which does not exist.
            if !launch.needs.macvtaps.is_empty() {
                continue;
            }
            assert!(!launch.arguments.iter().any(|word| word.contains('\0')), "{place}: {hostile:?}");
            launch.program = HostPath::new(program.to_str().unwrap());
            launch.working_directory = HostPath::new(directory.path().to_str().unwrap());
            script += &format!("{}\n", command(&launch));
            expected.extend(launch.arguments.iter().cloned().chain(["end".to_owned()]));
        }
    }
    assert!(expected.len() > 1000, "some are accepted");
    fs::write(directory.path().join("script"), script).unwrap();
    let printed = Command::new("sh").arg("-eu").arg(directory.path().join("script")).output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8(printed.stdout).unwrap();
    let words: Vec<_> = printed.split_terminator('\0').collect();
    let difference = words.iter().zip(&expected).position(|(word, expected)| word != expected);
    assert_eq!(difference.map(|at| (words[at], &expected[at])), None);
    assert_eq!(words.len(), expected.len());
    assert!(!directory.path().join("pwned").exists(), "a shell executed a part of a spec");
}

#[test]
fn names_that_are_paths_options_or_lines_are_refused_by_every_hypervisor() {
    for name in HOSTILE.into_iter().chain(["", ".", "..", "-web", ".web", "a/b", "a b", "ü", &"x".repeat(65)]) {
        let text = json!({"version": 1, "name": name, "kernel": "/k"}).to_string();
        assert!(launches("name", &text).is_empty(), "{name:?}");
    }
}

#[test]
fn endless_strings_and_deep_documents_cause_no_panic() {
    let long = "x".repeat(1 << 20);
    let deep = "[".repeat(100_000);
    for text in [
        json!({"version": 1, "name": long, "kernel": "/k"}).to_string(),
        json!({"version": 1, "name": "web", "kernel": format!("/{long}"), "kernelParams": [long]}).to_string(),
        json!({"version": 1, "name": "web", "kernel": "/k", "socket": long}).to_string(),
        format!(r#"{{"version": 1, "name": "web", "kernel": "/k", "volumes": {deep}"#),
        format!(r#"{{"version": 1, "name": "web", "kernel": "/k", "vcpu": 1{}}}"#, "0".repeat(100_000)),
    ] {
        let _ = launches("endless", &text);
    }
}

#[test]
fn socket_paths_longer_than_the_kernel_supports_are_refused() {
    let long = format!("/run/{}", "s".repeat(103));
    let shares = json!([{"proto": "virtiofs", "tag": "t", "source": "/s", "mountPoint": "/s", "socket": long}]);
    for (field, fields) in [
        ("socket", json!({"socket": long})),
        ("consoleSocket", json!({"consoleSocket": long})),
        ("shares[0].socket", json!({"shares": shares})),
    ] {
        let mut document = json!({"version": 1, "name": "web", "kernel": "/k"});
        document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let problems = check(&parse(&document.to_string()).unwrap()).unwrap_err();
        let printed: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(
            printed.iter().any(|printed| printed.contains(field) && printed.contains("at most 107")),
            "{field}: {printed:?}"
        );
    }
}

#[test]
fn duplicate_images_tags_ids_and_sockets_are_refused() {
    let volume = json!({"image": "a.img", "size": 1, "mountPoint": "/a"});
    let share = json!({"tag": "t", "source": "/s", "mountPoint": "/s"});
    let interface = json!({"type": "tap", "id": "tap0", "mac": "02:00:00:00:00:01"});
    for (fields, option) in [
        (json!({"volumes": [volume, volume]}), "volumes[1].image"),
        (json!({"shares": [share, share]}), "shares[1].tag"),
        (json!({"interfaces": [interface, interface]}), "interfaces[1].id"),
        (json!({"socket": "a", "consoleSocket": "./a"}), "consoleSocket"),
    ] {
        let mut document = json!({"version": 1, "name": "web", "kernel": "/k"});
        document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let problems = check(&parse(&document.to_string()).unwrap()).unwrap_err();
        assert!(problems.iter().any(|problem| problem.option == option), "{option}: {problems:?}");
    }
    // Different parsers would interpret JSON with a duplicate field differently.
    assert!(parse(r#"{"version": 1, "name": "web", "kernel": "/k", "name": "db"}"#).is_err());
}

struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["run", "machines", "gcroots", "victim"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("victim/precious"), "precious").unwrap();
        Self { directory }
    }

    fn microvm(&self, arguments: &[&str]) -> Output {
        let path = |name: &str| self.directory.path().join(name);
        Command::new(env!("CARGO_BIN_EXE_microvm"))
            .args(arguments)
            .current_dir(path("run"))
            .env("MICROVM_RUNTIME_DIR", path("run"))
            .env("MICROVM_STATE_DIR", path("machines"))
            .env("MICROVM_GCROOTS_DIR", path("gcroots"))
            .output()
            .unwrap()
    }

    fn assert_empty(&self) {
        for name in ["run", "machines", "gcroots"] {
            assert_eq!(fs::read_dir(self.directory.path().join(name)).unwrap().count(), 0, "{name}");
        }
        assert!(self.directory.path().join("victim/precious").exists());
    }
}

#[test]
fn commands_refuse_names_that_are_paths_options_or_several_lines() {
    let host = Host::new();
    let long = "x".repeat(10_000);
    let names = ["", ".", "..", "../victim", "-rf", "a\nerror: b", "a\u{1b}[2J", "ü", "a b", "$(touch pwned)", &long];
    for command in ["stop", "console", "status", "balloon", "delete", "update", "start", "restart", "logs", "ssh"] {
        for name in names {
            let output = host.microvm(&[command, "--", name]);
            let printed = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} {name:?}: {printed}");
            assert!(printed.starts_with("error: ") && !printed.contains('\u{1b}'), "{command} {name:?}: {printed}");
            host.assert_empty();
        }
    }
}

#[test]
fn errors_escape_control_characters_in_a_spec() {
    let host = Host::new();
    let spec = host.directory.path().join("machine.json");
    for text in [
        json!({"version": 1, "name": "a\u{1b}[2J\nerror: forged", "kernel": "/k"}),
        json!({"version": 1, "name": "web", "kernel": "/k\u{1b}[2J\nerror: forged"}),
        json!({"version": 1, "name": "web", "kernel": "/k", "a\u{1b}[2J\nerror: forged": 1}),
        json!({"version": 1, "name": "web", "kernel": "/k", "volumes": [{"image": "a", "fsType": "\u{1b}[2J\nerror: forged"}]}),
        json!({"version": 1, "name": "web", "kernel": "/k", "hypervisor": "\u{1b}[2J\nerror: forged"}),
    ] {
        fs::write(&spec, text.to_string()).unwrap();
        for command in ["check", "explain", "run", "stop", "console", "volumes"] {
            let output = host.microvm(&[command, spec.to_str().unwrap()]);
            // Remembered facts about the host are kept here and do no harm.
            let _ = fs::remove_file(host.directory.path().join("run/host-facts.json"));
            let printed = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} {text}: {printed}");
            assert!(!printed.contains('\u{1b}') && !printed.contains("\nerror: forged"), "{command} {text}: {printed}");
        }
    }
    // The refused start is recorded, and shown with the same care.
    let status = String::from_utf8(host.microvm(&["status"]).stdout).unwrap();
    assert!(status.starts_with("web  -  failed: "), "{status}");
    assert!(!status.contains('\u{1b}') && !status.contains("\nerror: forged"), "{status}");
    fs::remove_dir_all(host.directory.path().join("run/web")).unwrap();
    host.assert_empty();
}
