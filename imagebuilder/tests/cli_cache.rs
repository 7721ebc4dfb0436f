//! `microvm-image cache`: reports about a cache, and its maintenance.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use program::Workspace;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

const BUILD: &str = "build --closure-info info --store-dir store -q -o image";

fn json(workspace: &Workspace, line: &str) -> Value {
    serde_json::from_str(&workspace.run(line).success()).unwrap()
}

#[test]
fn the_printed_path_is_the_one_that_builds_use() {
    let workspace = Workspace::new();
    let path = workspace.path("cache");
    assert_eq!(workspace.run("cache path").success(), format!("{}\n", path.display()));
    assert_eq!(workspace.run("cache path --cache named").success(), "named\n");
    assert_eq!(json(&workspace, "cache path --json"), serde_json::json!({"version": 2, "path": path}));
    assert!(!path.exists(), "the command must not create it");
}

#[test]
fn a_missing_cache_is_reported_as_empty() {
    let workspace = Workspace::new();
    let stat = json(&workspace, "cache stat --json");
    assert_eq!((&stat["version"], &stat["totalBytes"], &stat["packs"]), (&2.into(), &0.into(), &0.into()));
    assert_eq!(workspace.run("cache gc --max-size 0").success(), "removed 0 entries, 0 B; 0 B remain\n");
    assert_eq!(workspace.run("cache fsck").success(), "read 0 packs; damaged and removed: 0\n");
    assert!(!workspace.path("cache").exists());
}

#[test]
fn a_misspelt_cache_directory_is_refused() {
    let workspace = Workspace::new();
    workspace.write("file", "");
    for command in ["cache stat", "cache gc --max-size 0", "cache fsck"] {
        for (directory, reason) in [
            ("typo", ": there is no such directory\nhint: a build with this --cache creates it"),
            ("file", " is not a directory"),
            ("file/cache", ": there is no such directory\nhint: a build with this --cache creates it"),
        ] {
            let run = workspace.run(&format!("{command} --cache {directory}"));
            assert_eq!((run.code, &*run.stdout), (2, ""), "{command}");
            assert_eq!(run.stderr, format!("error: --cache {directory}{reason}\n"), "{command}");
        }
    }
    assert!(!workspace.path("typo").exists());
}

#[test]
fn the_entries_of_a_build_are_counted_and_collected() {
    let workspace = Workspace::with_store();
    workspace.run(BUILD).success();
    let stat = json(&workspace, "cache stat --json");
    assert_eq!(stat["packs"], 3);
    let total = stat["totalBytes"].as_u64().unwrap();
    assert!(total > 0);
    assert!(workspace.run("cache stat").success().contains(" of 3 store paths\n"));
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
    let mut packs = vec![workspace.path("cache/v2/packs")];
    let damaged = loop {
        let path = packs.pop().unwrap();
        if path.is_file() {
            break path;
        }
        packs.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
    };
    fs::write(&damaged, "forged").unwrap();
    let run = workspace.run("cache fsck");
    assert_eq!(run.stderr, format!("damaged, removed: {}\n", damaged.display()));
    assert!(run.success().ends_with(" packs; damaged and removed: 1\n"));
    assert!(!damaged.exists());
}

#[test]
fn a_collection_without_a_limit_is_refused() {
    let workspace = Workspace::new();
    let run = workspace.run("cache gc");
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("--max-size <SIZE>"), "{}", run.stderr);
}

#[test]
fn a_cache_of_the_former_layout_is_removed_once_no_older_program_uses_it() {
    let workspace = Workspace::with_store();
    workspace.run(BUILD).success();
    fs::create_dir_all(workspace.path("cache/v1/segments/zstd8/ab")).unwrap();
    workspace.write("cache/v1/segments/zstd8/ab/cd", "a segment");
    let lock = fs::File::create(workspace.path("cache/v1/lock")).unwrap();
    lock.lock_shared().unwrap();
    workspace.run("cache gc --max-size 1G").success();
    assert!(workspace.path("cache/v1/segments").exists(), "an older program uses it");
    drop(lock);
    assert_eq!(json(&workspace, "cache gc --max-size 1G --dry-run --json")["removedBytes"], 9);
    assert!(workspace.path("cache/v1/segments").exists());
    assert_eq!(json(&workspace, "cache gc --max-size 1G --json")["removedBytes"], 9);
    assert!(!workspace.path("cache/v1").exists());
    assert_eq!(json(&workspace, "cache stat --json")["packs"], 3);
}

#[test]
fn users_with_any_umask_share_a_cache() {
    if !nix::unistd::geteuid().is_root() {
        testing::missing("only root can run the program as several users");
        return;
    }
    for umask in ["077", "027", "022"] {
        let workspace = Workspace::with_store();
        let run = |user: u32, umask: &str, output: &str| {
            let program = workspace.path("program");
            // Another process copies it: a test in another thread could start a program while the file is open for
            // writing, and the copy would be busy.
            let copy = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_microvm-image")).arg(&program).status();
            assert!(copy.unwrap().success());
            let script = format!("umask {umask}; exec {} {BUILD} -o {output} --cache cache", program.display());
            let mut command = std::process::Command::new("sh");
            command
                .args(["-c", &script.replace("-q -o image", "-q")])
                .current_dir(workspace.root())
                .uid(user)
                .gid(user);
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{user} {umask}: {output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        let shell = |user: u32, umask: &str, output: &str| assert_eq!(run(user, umask, output), "", "{user} {umask}");
        fs::set_permissions(workspace.root(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::create_dir(workspace.path("cache")).unwrap();
        fs::set_permissions(workspace.path("cache"), fs::Permissions::from_mode(0o777)).unwrap();
        // Root fills the cache, and two users use its entries.
        shell(0, umask, "of-root");
        let filled = json(&workspace, "cache stat --json");
        for user in [65534, 61234] {
            shell(user, umask, &format!("of-{user}"));
            assert_eq!(workspace.read(&format!("of-{user}")), workspace.read("of-root"));
        }
        assert_eq!(json(&workspace, "cache stat --json")["packs"], filled["packs"], "all came from the cache");
        // Packs that a user cannot read, as older versions left them: they are replaced.
        for settings in fs::read_dir(workspace.path("cache/v2/packs")).unwrap() {
            for pack in fs::read_dir(settings.unwrap().path()).unwrap() {
                fs::set_permissions(pack.unwrap().path(), fs::Permissions::from_mode(0o600)).unwrap();
            }
        }
        fs::remove_file(workspace.path("of-65534")).unwrap();
        let stderr = run(65534, umask, "of-65534");
        assert!(stderr.starts_with("warning: cannot open a pack in the cache, "), "{stderr}");
        assert_eq!(workspace.read("of-65534"), workspace.read("of-root"));
        shell(61234, umask, "of-61234");
    }
}

#[test]
fn a_closure_of_more_packs_than_files_may_be_open_is_built_from_the_cache() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("store")).unwrap();
    let mut list = String::new();
    // Too large for packs that are held in memory.
    for number in 0..300_u32 {
        let name = format!("{number:032}-path");
        let noise: Vec<u8> = (0..1200_u32)
            .flat_map(|block| *blake3::hash(&[number.to_le_bytes(), block.to_le_bytes()].concat()).as_bytes())
            .collect();
        fs::write(workspace.path("store").join(&name), noise).unwrap();
        list.push_str(&format!("{name}\n"));
    }
    workspace.write("list", &list);
    let plan = workspace.run("plan --paths-from list --store-dir store").success();
    let mut plan: Value = serde_json::from_str(&plan).unwrap();
    for path in plan["paths"].as_array_mut().unwrap() {
        let location = workspace.path("store").join(path["path"].as_str().unwrap());
        path["narHash"] = imagebuilder::nar_hash::print(&testing::nar_sha256(&location)).into();
    }
    workspace.write("plan.json", &plan.to_string());
    workspace.run("build --plan plan.json --no-cache -q -o reference").success();
    let build = |limit: &str| {
        let script = format!("{limit}; exec \"$0\" build --plan plan.json --cache own --json -j2 -o image");
        let program = workspace.command([] as [&str; 0]);
        let mut shell = std::process::Command::new("sh");
        shell.args(["-ec", &script]).arg(program.get_program()).current_dir(workspace.root());
        let output = shell.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(workspace.read("image") == workspace.read("reference"), "{limit}");
        fs::remove_file(workspace.path("image")).unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["cache"]["hitPaths"].as_u64().unwrap(), stderr)
    };
    assert_eq!(build("true").0, 0);
    // A limit that can be raised.
    let (known, stderr) = build("ulimit -Sn 100");
    assert!(known == 300 && !stderr.contains("warning"), "{known}: {stderr}");
    // One that cannot.
    let (known, stderr) = build("ulimit -n 100");
    assert!((1..300).contains(&known) && stderr.contains("warning: cannot open more packs"), "{known}: {stderr}");
}
