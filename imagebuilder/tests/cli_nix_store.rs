//! Store paths as arguments: a Nix store provides their closure. Tests use a real one if Nix is installed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use program::{GREETING, NIX_ENVIRONMENT, TOOLS, Workspace, has_tool};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

/// Creates a chroot store in `root` with three texts: `c` refers to `b` and `a`, `b` to `a`. Returns their base names.
fn real_store(workspace: &Workspace) -> Option<[String; 3]> {
    if !has_tool("nix-store") || !has_tool("nix-instantiate") {
        return None;
    }
    let expression = r#"let a = builtins.toFile "a" "hi"; b = builtins.toFile "b" "see ${a}";
                        c = builtins.toFile "c" "see ${b} and ${a}"; in "${a} ${b} ${c}""#;
    let output = Command::new("nix-instantiate")
        .args(["--store", "./root", "--eval", "--read-write-mode", "-E", expression])
        .current_dir(workspace.root())
        .envs(NIX_ENVIRONMENT)
        .output()
        .unwrap();
    if !output.status.success() {
        testing::missing(&format!("no store can be made: {}", String::from_utf8_lossy(&output.stderr)));
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names = text.trim().trim_matches('"').split(' ').map(|path| path.replace("/nix/store/", ""));
    Some([names.next().unwrap(), names.next().unwrap(), names.next().unwrap()])
}

#[test]
fn the_closure_of_a_store_path_is_read_from_the_store() {
    let workspace = Workspace::new();
    let Some([a, b, c]) = real_store(&workspace) else { return };
    let plan = workspace.run(&format!("plan --store root /nix/store/{c}")).success();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["storeDir"], workspace.path("root/nix/store").to_str().unwrap());
    let paths = plan["paths"].as_array().unwrap();
    let mut expected = [(&a, 120), (&b, 168), (&c, 216)];
    expected.sort();
    for (planned, (name, nar_size)) in paths.iter().zip(expected) {
        assert_eq!(planned["path"], name.as_str());
        assert_eq!(planned["narSize"], nar_size);
        assert!(planned["narHash"].as_str().unwrap().starts_with("sha256:"), "{planned}");
    }
    assert_eq!(paths.len(), 3);
}

#[test]
fn a_store_path_can_be_named_directly_or_by_links() {
    let workspace = Workspace::new();
    let Some([_, b, _]) = real_store(&workspace) else { return };
    let root = workspace.path("root").display().to_string();
    symlink(workspace.path("root/nix/store").join(&b), workspace.path("result")).unwrap();
    symlink("result", workspace.path("result-2")).unwrap();
    symlink(format!("/nix/store/{b}"), workspace.path("result-3")).unwrap();
    symlink("root", workspace.path("other-name")).unwrap();
    let first = workspace.run(&format!("plan --store root /nix/store/{b}")).success();
    for line in [
        format!("plan --store ./root/ /nix/store/{b}/"),
        format!("plan --store {root} root/nix/store/{b}"),
        format!("plan --store local?root={root} {root}/nix/store/{b}"),
        "plan --store root result".to_owned(),
        "plan --store root ./result-2".to_owned(),
        "plan --store root result-3".to_owned(),
        format!("plan --store root other-name/nix/store/{b}"),
    ] {
        assert_eq!(workspace.run(&line).success(), first, "{line}");
    }
}

#[test]
fn an_image_of_a_real_store_equals_that_of_its_plan() {
    let workspace = Workspace::new();
    let Some([a, _, c]) = real_store(&workspace) else { return };
    workspace.run(&format!("build --store root /nix/store/{c} /nix/store/{a} -q -o image")).success();
    workspace.run(&format!("plan --store root /nix/store/{c} -o plan.json")).success();
    workspace.run("build --plan plan.json -q --no-cache -o image-2").success();
    assert!(workspace.read("image") == workspace.read("image-2"));
}

#[test]
fn paths_that_are_not_in_a_real_store_are_refused() {
    let workspace = Workspace::new();
    if real_store(&workspace).is_none() {
        return;
    }
    workspace.run(&format!("build --store root /nix/store/{TOOLS} -o image")).failure(
        2,
        &format!(
            "error: nix-store --query --requisites failed (exit status: 1): path '/nix/store/{TOOLS}' is not valid\n"
        ),
    );
    assert_eq!(workspace.names(), ["root"]);
}

#[test]
fn all_arguments_that_are_not_store_paths_are_reported() {
    let workspace = Workspace::with_store();
    let hint =
        "hint: write store paths as /nix/store/HASH-NAME, or use links to them; for another store, use --store\n";
    workspace.write("file", "");
    symlink("loop", workspace.path("loop")).unwrap();
    workspace
        .run(&format!(
            "build -o image file absent missing/link loop /nix/store/{TOOLS}/bin /nix/store/short \
             /nix/store/{GREETING} /nix/store/{GREETING}/"
        ))
        .failure(
            2,
            &format!(
                "error: store paths: 7 problems\n  \
                 argument 1: \"file\" is not a store path: it is not in the store\n  \
                 argument 2: \"absent\" is not a store path: it is missing, and it is not in the store\n  \
                 argument 3: \"missing/link\" is not a store path: its directory is missing\n  \
                 argument 4: \"loop\" is not a store path: it is a chain of too many symbolic links\n  \
                 argument 5: \"/nix/store/{TOOLS}/bin\" is not a store path: it is inside a store path; name the store path itself\n  \
                 argument 6: \"/nix/store/short\" is not a store path: it is shorter than the 32 characters of the hash\n  \
                 argument 8: {GREETING} is listed twice, first at argument 7\n{hint}"
            ),
        );
}

#[test]
fn invalid_stores_are_refused() {
    let workspace = Workspace::with_store();
    fs::create_dir(workspace.path("root")).unwrap();
    workspace.run(&format!("build -o image --store root /nix/store/{TOOLS}")).failure(
        2,
        &format!(
            "error: {}/nix/store is not a directory, so root is not a store\n\
             hint: a store at DIR has its files at DIR/nix/store; if they are elsewhere, use --store-dir\n",
            workspace.path("root").display()
        ),
    );
    assert_eq!(fs::read_dir(workspace.path("root")).unwrap().count(), 0, "Nix has made a store there");
    workspace.run(&format!("build -o image --store ssh://builder /nix/store/{TOOLS}")).failure(
        2,
        "error: the files of the store ssh://builder are not on this machine\n\
         hint: copy the closure to this machine with `nix copy`, or specify the directory of its files with --store-dir\n",
    );
    let run = workspace.run("build -o image --closure-info info --store root");
    assert_eq!(run.code, 2);
    let expected = "error: --store can only be used with STORE_PATHs, and not with --closure-info\n";
    assert!(run.stderr.starts_with(expected), "{}", run.stderr);
}

/// Runs the program with a PATH that contains at most a fake `nix-store`.
fn run_with_path(workspace: &Workspace, nix_store: Option<&str>) -> (Option<i32>, String) {
    fs::create_dir_all(workspace.path("bin")).unwrap();
    if let Some(script) = nix_store {
        testing::write_program(&workspace.path("bin/nix-store"), script);
    }
    let line = format!("build --store-dir store /nix/store/{TOOLS} -o image");
    let output = workspace.command(line.split(' ')).env("PATH", workspace.path("bin")).output().unwrap();
    assert!(output.stdout.is_empty() && !workspace.path("image").exists());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_missing_nix_and_unexpected_output_of_nix_are_errors() {
    let workspace = Workspace::with_store();
    assert_eq!(
        run_with_path(&workspace, None),
        (
            Some(1),
            "error: the program nix-store is not installed\n\
             hint: install Nix, or give the closure with --closure-info, --graph, --paths-from or --plan\n"
                .to_owned()
        )
    );
    assert_eq!(
        run_with_path(&workspace, Some("#!/bin/sh\necho hello\n")),
        (
            Some(2),
            "error: nix-store --query --requisites printed something unexpected: nix-store --query --requisites: \
             line 1: \"hello\" is not a store path: it is shorter than the 32 characters of the hash\n"
                .to_owned()
        )
    );
    let script = format!("#!/bin/sh\n[ $1 = --dump-db ] || echo /nix/store/{TOOLS}\n");
    assert_eq!(
        run_with_path(&workspace, Some(&script)),
        (
            Some(2),
            "error: nix-store --dump-db printed something unexpected: nix-store --dump-db: it contains no store path\n"
                .to_owned()
        )
    );
}
