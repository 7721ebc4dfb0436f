//! `microvm-image cache`: what builds leave in it, and how it is kept in order.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use program::Workspace;
use serde_json::Value;
use std::fs;

const BUILD: &str = "build --closure-info info --store-dir store -q -o image";

fn json(workspace: &Workspace, line: &str) -> Value {
    serde_json::from_str(&workspace.run(line).success()).unwrap()
}

#[test]
fn the_path_is_the_one_builds_use() {
    let workspace = Workspace::new();
    let path = workspace.path("cache");
    assert_eq!(workspace.run("cache path").success(), format!("{}\n", path.display()));
    assert_eq!(workspace.run("cache path --cache named").success(), "named\n");
    assert_eq!(json(&workspace, "cache path --json"), serde_json::json!({"version": 1, "path": path}));
    assert!(!path.exists(), "asking makes nothing");
}

#[test]
fn a_cache_that_is_not_there_is_empty() {
    let workspace = Workspace::new();
    let stat = json(&workspace, "cache stat --json");
    assert_eq!((&stat["version"], &stat["totalBytes"], &stat["segments"]), (&1.into(), &0.into(), &0.into()));
    assert_eq!(workspace.run("cache gc --max-size 0").success(), "removed 0 entries, 0 B; 0 B remain\n");
    assert_eq!(workspace.run("cache fsck").success(), "read 0 entries, removed 0 damaged ones\n");
    assert!(!workspace.path("cache").exists());
}

#[test]
fn what_a_build_leaves_is_counted_and_collected() {
    let workspace = Workspace::with_store();
    workspace.run(BUILD).success();
    let stat = json(&workspace, "cache stat --json");
    assert_eq!(stat["manifests"], 3);
    let total = stat["totalBytes"].as_u64().unwrap();
    assert!(total > 0);
    assert!(workspace.run("cache stat").success().contains(" in 3 entries\n"));
    let foretold = json(&workspace, "cache gc --max-size 0 --dry-run --json");
    assert_eq!(foretold["removedBytes"], total);
    assert_eq!(json(&workspace, "cache stat --json"), stat, "a dry run removes nothing");
    assert_eq!(json(&workspace, "cache gc --max-size 0 --json"), foretold);
    assert_eq!(json(&workspace, "cache stat --json")["totalBytes"], 0);
}

#[test]
fn damage_is_found_and_removed() {
    let workspace = Workspace::with_store();
    workspace.run(BUILD).success();
    assert_eq!(json(&workspace, "cache fsck --json")["damaged"], serde_json::json!([]));
    let mut manifests = vec![workspace.path("cache/v1/manifests")];
    let damaged = loop {
        let path = manifests.pop().unwrap();
        if path.is_file() {
            break path;
        }
        manifests.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
    };
    fs::write(&damaged, "forged").unwrap();
    let run = workspace.run("cache fsck");
    assert_eq!(run.stderr, format!("damaged, removed: {}\n", damaged.display()));
    assert!(run.success().ends_with(", removed 1 damaged ones\n"));
    assert!(!damaged.exists());
}

#[test]
fn a_limit_is_needed() {
    let workspace = Workspace::new();
    let run = workspace.run("cache gc");
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("--max-size <SIZE>"), "{}", run.stderr);
}
