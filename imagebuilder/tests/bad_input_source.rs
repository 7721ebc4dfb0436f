//! Invalid closures are refused with exit code 2. All problems are reported at once, and nothing is written.

mod program;

use program::{ABSENT, GREETING, LINK, TOOLS, Workspace, graph, registration, store_paths};
use std::fs;

/// Builds with these arguments and expects a refusal with this message, no image and no cache.
#[track_caller]
fn refused(workspace: &Workspace, arguments: &str, stderr: &str) {
    let names = workspace.names();
    workspace.run(&format!("build -o image {arguments}")).failure(2, stderr);
    assert_eq!(workspace.names(), names);
}

#[test]
fn no_source_and_two_sources_are_refused() {
    let workspace = Workspace::with_store();
    refused(
        &workspace,
        "",
        "error: no closure was given\n\
         hint: specify store paths, or one of --closure-info, --graph, --paths-from and --plan\n",
    );
    for (arguments, names) in [
        ("--closure-info info --graph attrs.json", "--closure-info and --graph"),
        ("--paths-from list --plan plan.json", "--paths-from and --plan"),
        (&format!("/nix/store/{TOOLS} --closure-info info"), "STORE_PATH and --closure-info"),
        ("--graph attrs.json --closure-info info --plan p", "--closure-info and --graph and --plan"),
    ] {
        let stderr = format!("error: the closure comes from exactly one source, but {names} were given\n");
        refused(&workspace, arguments, &stderr);
    }
}

#[test]
fn a_nix_store_without_store_paths_is_refused() {
    let workspace = Workspace::with_store();
    for (arguments, message) in [
        ("--store root", "--store can only be used with STORE_PATHs"),
        ("--store root --closure-info info", "--store can only be used with STORE_PATHs, and not with --closure-info"),
    ] {
        let hint = "hint: use --store-dir DIR to specify the directory that contains the files of the store paths";
        refused(&workspace, arguments, &format!("error: {message}\n{hint}\n"));
    }
}

#[test]
fn options_that_a_plan_determines_are_refused() {
    let workspace = Workspace::with_store();
    workspace.run("plan --closure-info info -o plan.json").success();
    for option in ["--compression gzip", "--level 3", "--block-size 4K", "--fragment-block-size 4K"] {
        let name = option.split(' ').next().unwrap();
        let stderr = format!(
            "error: --plan and {name} were given, but the plan already determines it\n\
             hint: make another plan from the same closure: microvm-image plan\n"
        );
        refused(&workspace, &format!("--plan plan.json {option}"), &stderr);
    }
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let workspace = Workspace::new();
    let cause = "No such file or directory (os error 2)";
    for (arguments, what) in [
        ("--closure-info info", "cannot read info/registration"),
        ("--graph attrs.json", "cannot read attrs.json"),
        ("--paths-from list", "cannot read list"),
        ("--plan plan.json", "cannot read the plan plan.json"),
        ("--machine machine.json", "cannot read the machine machine.json"),
    ] {
        refused(&workspace, arguments, &format!("error: {what}: {cause}\n"));
    }
    fs::write(workspace.path("list"), b"/nix/store\n\n\xff\n").unwrap();
    refused(&workspace, "--paths-from list", "error: list: line 3 is not UTF-8\n");
}

#[test]
fn all_missing_store_paths_are_reported() {
    let workspace = Workspace::with_store();
    let another = "3zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-another";
    workspace.write("list", &format!("{}{ABSENT}\n{another}\n", store_paths()));
    refused(
        &workspace,
        "--paths-from list --store-dir store",
        &format!(
            "error: 2 of 5 store paths cannot be read in {}:\n  \
             {ABSENT}: No such file or directory (os error 2)\n  \
             {another}: No such file or directory (os error 2)\n\
             hint: use --store-dir DIR if the store paths are in another directory\n",
            workspace.path("store").display()
        ),
    );
}

#[test]
fn all_names_that_are_not_store_paths_are_reported() {
    let workspace = Workspace::with_store();
    workspace.write("list", &format!("/nix/store/{GREETING}\r\n\r\n/etc/passwd\r\n/nix/store/{TOOLS}/bin\r\n"));
    refused(
        &workspace,
        "--paths-from list",
        &format!(
            "error: list: 2 problems\n  \
             line 3: \"/etc/passwd\" is not a store path: it is shorter than the 32 characters of the hash\n  \
             line 4: \"/nix/store/{TOOLS}/bin\" is not a store path: it is inside a store path; name the store path itself\n"
        ),
    );
}

#[test]
fn a_path_that_is_listed_twice_is_refused() {
    let workspace = Workspace::with_store();
    workspace.write("list", &format!("{}\n/nix/store/{GREETING}/\n", store_paths()));
    refused(
        &workspace,
        "--paths-from list",
        &format!("error: list: line 5: {GREETING} is listed twice, first at line 1\n"),
    );
    let record = registration();
    workspace.write("info/registration", &format!("{record}{record}"));
    refused(
        &workspace,
        "--closure-info info",
        &format!(
            "error: info/registration: 3 problems\n  \
             line 19: {GREETING} is listed twice, first at line 1\n  \
             line 24: {TOOLS} is listed twice, first at line 6\n  \
             line 31: {LINK} is listed twice, first at line 13\n"
        ),
    );
}

#[test]
fn paths_of_two_stores_are_refused() {
    let workspace = Workspace::with_store();
    workspace.write("list", &format!("/nix/store/{GREETING}\n/gnu/store/{TOOLS}\n"));
    refused(
        &workspace,
        "--paths-from list",
        &format!(
            "error: list: line 2: {TOOLS} is in /gnu/store, but the paths before it are in /nix/store\n\
             hint: an image contains the paths of one store: list only those\n"
        ),
    );
}

#[test]
fn an_empty_closure_is_refused() {
    let workspace = Workspace::with_store();
    workspace.write("list", "\r\n \n");
    refused(&workspace, "--paths-from list", "error: list: it contains no store path\n");
    workspace.write("info/registration", "");
    refused(&workspace, "--closure-info info", "error: info/registration: it contains no store path\n");
    workspace.write("attrs.json", r#"{"exportReferencesGraph":{"g":[]},"g":[]}"#);
    refused(&workspace, "--graph attrs.json", "error: attrs.json: it contains no store path\n");
}

#[test]
fn a_closure_with_missing_references_is_refused() {
    let workspace = Workspace::with_store();
    let absent = format!("/nix/store/{ABSENT}\n");
    let stderr = |origin: &str, first: &str, second: &str| {
        format!(
            "error: {origin}: 2 problems\n  \
             {first}: {TOOLS} refers to {ABSENT}, which is missing: the closure is incomplete\n  \
             {second}: {LINK} refers to {ABSENT}, which is missing: the closure is incomplete\n\
             hint: list all store paths that the system needs, as closureInfo and `nix-store -qR` do\n"
        )
    };
    // The greeting is unchanged, but the two others refer to something else.
    let text = registration().replace(&format!("\n2\n/nix/store/{GREETING}\n"), &format!("\n2\n{absent}"));
    let text = text.replace(&format!("\n1\n/nix/store/{GREETING}\n"), &format!("\n1\n{absent}"));
    workspace.write("info/registration", &text);
    refused(&workspace, "--closure-info info", &stderr("info/registration", "line 6", "line 13"));
    let mut attributes: serde_json::Value = serde_json::from_str(&graph()).unwrap();
    for entry in [1, 2] {
        attributes["closure"][entry]["references"][0] = absent.trim().into();
    }
    workspace.write("attrs.json", &attributes.to_string());
    refused(&workspace, "--graph attrs.json", &stderr("attrs.json", "entry 2", "entry 3"));
}

#[test]
fn all_wrong_lines_of_a_registration_are_reported() {
    let workspace = Workspace::with_store();
    let text = registration().replace("sha256:04", "md5:04").replace("\n1104\n", "\n1k\n").replace("\n168\n", "\n\n");
    workspace.write("info/registration", &text);
    refused(
        &workspace,
        "--closure-info info",
        "error: info/registration: 3 problems\n  \
         line 2: \"md5:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\" is not a NAR hash \
         (`sha256:` and Nix base 32 or hex, or bare hex)\n  \
         line 8: \"1k\" is not a NAR size (a number of bytes)\n  \
         line 15: \"\" is not a NAR size (a number of bytes)\n",
    );
    let text = registration();
    workspace.write("info/registration", &text[..text.rfind("/nix/store").unwrap()]);
    refused(
        &workspace,
        "--closure-info info",
        "error: info/registration: line 18: the text ends where a reference is expected\n",
    );
}

#[test]
fn a_registration_and_a_list_of_different_closures_are_refused() {
    let workspace = Workspace::with_store();
    workspace.write("info/store-paths", &format!("/nix/store/{GREETING}\n/nix/store/{LINK}\n"));
    refused(
        &workspace,
        "--closure-info info",
        &format!(
            "error: info: `registration` and `store-paths` belong to different closures: \
             {TOOLS} is in only one of them\n"
        ),
    );
}

#[test]
fn invalid_graphs_are_refused() {
    let workspace = Workspace::with_store();
    let cannot = "error: cannot read a graph from attrs.json";
    for (text, message) in [
        ("{", "it is not JSON: EOF while parsing an object at line 1 column 1\n"),
        ("[1", "it is not JSON: EOF while parsing a list at line 1 column 2\n"),
        ("{}", "it contains no graph: the attribute `exportReferencesGraph` names none\n"),
        (
            r#"{"exportReferencesGraph":{"a":[],"b":[]},"a":[],"b":[]}"#,
            "it contains 2 graphs: a, b\nhint: select the graph with --graph-key\n",
        ),
        (
            "/nix/store/x\n\n0\n",
            "it is a graph in the older text form, which has no hashes\n\
             hint: set `__structuredAttrs = true` in the derivation and use its .attrs.json\n",
        ),
    ] {
        workspace.write("attrs.json", text);
        refused(&workspace, "--graph attrs.json", &format!("{cannot}: {message}"));
    }
}

#[test]
fn invalid_plans_are_refused() {
    let workspace = Workspace::with_store();
    workspace.run("plan --closure-info info -o plan.json").success();
    let plan = String::from_utf8(workspace.read("plan.json")).unwrap();
    for (text, message) in [
        ("{".to_owned(), "EOF while parsing an object at line 1 column 1"),
        (
            plan.replace("\"version\": 1", "\"version\": 2"),
            "its version is 2, but this program supports only version 1",
        ),
        (
            plan.replace("\"level\": 8", "\"level\": 99"),
            "level 99 is out of range for zstd: it supports 1 to 22 at line 9 column 3",
        ),
        (
            plan.replace("narSize", "narSise"),
            "unknown field `narSise`, expected one of `path`, `narHash`, `narSize` at line 14 column 15",
        ),
        (plan.replace(TOOLS, GREETING), &format!("it lists these store paths twice: {GREETING}")),
    ] {
        workspace.write("plan.json", &text);
        refused(&workspace, "--plan plan.json", &format!("error: plan.json is not a plan: {message}\n"));
    }
}

#[test]
fn invalid_machines_are_refused() {
    let workspace = Workspace::with_store();
    for (text, message) in [
        ("{", "EOF while parsing an object at line 1 column 1"),
        (r#"{"shares":[{"tag":"x"}]}"#, "missing field `source` at line 1 column 22"),
    ] {
        workspace.write("machine.json", text);
        let stderr = format!("error: cannot read the shares of the machine machine.json: {message}\n");
        refused(&workspace, "--machine machine.json --closure-info info", &stderr);
    }
    refused(
        &workspace,
        "--force --closure-info info",
        "error: the following required arguments were not provided:\n  --machine <FILE>\n\n\
         Usage: microvm-image build [OPTIONS] --output <IMAGE>\n           [STORE_PATH]...\n\n\
         For more information, try '--help'.\n",
    );
}

#[test]
fn a_plan_of_a_squashfs_or_of_a_sealed_image_is_not_served_as_an_erofs() {
    let workspace = Workspace::with_store();
    for (options, what, nixos) in [
        ("", "a squashfs", "microvm.storeDiskType = \"erofs\""),
        ("--verity", "a sealed squashfs", "microvm.storeDiskType = \"erofs\" and microvm.storeDiskVerity = false"),
        ("--format erofs --verity", "a sealed erofs", "microvm.storeDiskVerity = false"),
    ] {
        workspace.run(&format!("plan --closure-info info -o plan.json {options}")).success();
        let names = workspace.names();
        workspace.run("serve --plan plan.json --socket disk.sock").failure(
            2,
            &format!(
                "error: plan.json is the plan of {what}, but a disk without an image is an erofs that is not sealed\n\
                 hint: make a plan with `microvm-image plan --format erofs` and without --verity; with NixOS, set \
                 {nixos}\n"
            ),
        );
        assert_eq!(workspace.names(), names);
    }
}
