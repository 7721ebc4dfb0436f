//! Malicious names in the sources of a closure: each is refused before anything is read or written, in a message that
//! is safe to print.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use program::{GREETING, Workspace};
use std::fs;
use std::os::unix::fs::symlink;

const HASH: &str = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv";
const NAR_HASH: &str = "sha256:0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv0c0wqvhs4gn6a6ps1q4a";

/// Returns malicious names below `/nix/store/`.
fn hostile_names() -> Vec<String> {
    let behind_the_hash =
        ["..", "a/../../../etc", "a\u{1b}[2J", "a\u{202e}b", "a b", "$(touch pwned)", "a;b", "ü", "a\\b", ""];
    let mut names: Vec<String> = behind_the_hash.iter().map(|name| format!("{HASH}-{name}")).collect();
    names.extend(["../../etc/passwd", "..", ".", "-rf", "--help"].map(str::to_owned));
    names.push(format!("{HASH}-{}", "x".repeat(300)));
    names
}

/// Runs the program with a source that contains the name, and expects a refusal.
#[track_caller]
fn assert_refused(source: &str, name: &str, write: impl FnOnce(&Workspace)) {
    let workspace = Workspace::with_store();
    fs::create_dir(workspace.path("victim")).unwrap();
    write(&workspace);
    let names = workspace.names();
    let run = workspace.run(&format!("build {source} --store-dir store --quiet -o image"));
    assert_eq!(run.code, 2, "{source} {name:?}: {}", run.stderr);
    assert!(run.stderr.starts_with("error: ") && !run.stderr.contains('\u{1b}'), "{source} {name:?}: {}", run.stderr);
    assert_eq!(workspace.names(), names, "{source} {name:?}");
}

#[test]
fn paths_options_and_control_characters_in_registrations_are_refused() {
    for name in hostile_names() {
        assert_refused("--closure-info info", &name, |workspace| {
            workspace.write("info/registration", &format!("/nix/store/{name}\n{NAR_HASH}\n120\n\n0\n"));
            workspace.write("info/store-paths", &format!("/nix/store/{name}\n"));
        });
        assert_refused("--closure-info info", &name, |workspace| {
            let text = format!("/nix/store/{GREETING}\n{NAR_HASH}\n120\n\n1\n/nix/store/{name}\n");
            workspace.write("info/registration", &text);
            workspace.write("info/store-paths", &format!("/nix/store/{GREETING}\n"));
        });
    }
}

#[test]
fn paths_options_and_control_characters_in_graphs_are_refused() {
    for name in hostile_names() {
        for (path, references) in [(&name, vec![]), (&GREETING.to_owned(), vec![format!("/nix/store/{name}")])] {
            assert_refused("--graph graph.json", &name, |workspace| {
                let path = format!("/nix/store/{path}");
                let entry = serde_json::json!({
                    "path": path, "narHash": NAR_HASH, "narSize": 120, "references": references,
                });
                workspace.write("graph.json", &serde_json::json!([entry]).to_string());
            });
        }
    }
}

#[test]
fn paths_options_and_control_characters_in_lists_and_plans_are_refused() {
    for name in hostile_names() {
        assert_refused("--paths-from list", &name, |workspace| workspace.write("list", &format!("{name}\n")));
        let workspace = Workspace::with_store();
        let settings = serde_json::json!({
            "compression": "zstd", "level": 3, "blockSizeBytes": 4096, "fragmentBlockSizeBytes": 4096,
        });
        let plan = serde_json::json!({
            "version": 1, "storeDir": workspace.path("store"), "settings": settings, "paths": [{"path": name}],
        });
        workspace.write("plan.json", &plan.to_string());
        let run = workspace.run("build --plan plan.json --quiet -o image");
        assert_eq!(run.code, 2, "{name:?}: {}", run.stderr);
        assert!(!run.stderr.contains('\u{1b}') && !workspace.path("image").exists(), "{name:?}: {}", run.stderr);
    }
}

#[test]
fn a_store_path_that_is_a_symlink_is_stored_as_one_and_its_target_is_not_read() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("store")).unwrap();
    workspace.write("secret", "do not read this");
    let name = format!("{HASH}-link");
    symlink(workspace.path("secret"), workspace.path("store").join(&name)).unwrap();
    workspace.write("list", &name);
    workspace.run("build --paths-from list --store-dir store --compression none --quiet -o image").success();
    let image = workspace.read("image");
    assert!(!image.windows(16).any(|window| window == b"do not read this"));
    assert!(workspace.run("inspect --tree image").success().contains(&name));
}
