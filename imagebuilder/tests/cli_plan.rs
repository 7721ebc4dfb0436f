//! `microvm-image plan`: the same closure gives the same plan from every source.

mod program;

use program::{GREETING, LINK, TOOLS, Workspace, registration, store_paths};
use std::fs;

/// The plan of the three store paths with their hashes.
const WITH_HASHES: &str = include_str!("golden/plan-closure-info.json");
/// The plan of the same store paths from a list, which has no hashes, with other settings.
const FROM_A_LIST: &str = include_str!("golden/plan-list.json");

#[test]
fn closure_info_and_graph_give_the_golden_plan() {
    let workspace = Workspace::with_store();
    assert_eq!(workspace.run("plan --closure-info info").success(), WITH_HASHES);
    assert_eq!(workspace.run("plan --graph attrs.json").success(), WITH_HASHES);
    assert_eq!(workspace.run("plan --graph attrs.json --graph-key closure").success(), WITH_HASHES);
}

#[test]
fn a_list_gives_the_golden_plan_without_hashes() {
    let workspace = Workspace::with_store();
    let line = "plan --paths-from - --store-dir /srv/store --compression gzip --level 3 --block-size 128K";
    assert_eq!(workspace.run_with_stdin(line, &store_paths()).success(), FROM_A_LIST);
    workspace.write("list", &store_paths());
    let line = line.replace("--paths-from -", "--paths-from list");
    assert_eq!(workspace.run(&line).success(), FROM_A_LIST);
}

#[test]
fn a_plan_that_is_read_and_written_is_unchanged() {
    let workspace = Workspace::new();
    workspace.write("plan.json", WITH_HASHES);
    assert_eq!(workspace.run("plan --plan plan.json").success(), WITH_HASHES);
    let moved = workspace.run("plan --plan plan.json --store-dir /srv/store").success();
    assert_eq!(moved, WITH_HASHES.replace("/nix/store", "/srv/store"));
}

#[test]
fn order_line_ends_and_slashes_of_a_list_do_not_matter() {
    let workspace = Workspace::new();
    let plain = workspace.run_with_stdin("plan --paths-from -", &store_paths()).success();
    for list in [
        format!("/nix/store/{LINK}\n/nix/store/{TOOLS}\n/nix/store/{GREETING}\n"),
        format!("\r\n/nix/store/{LINK}/\r\n\r\n/nix/store/{TOOLS}//\r\n  /nix/store/{GREETING}\r\n"),
        format!("{LINK}\n{GREETING}\n{TOOLS}"),
    ] {
        assert_eq!(workspace.run_with_stdin("plan --paths-from -", &list).success(), plain, "{list:?}");
    }
}

#[test]
fn the_order_of_a_registration_does_not_matter() {
    let workspace = Workspace::with_store();
    let text = registration();
    let second = text.find(&format!("/nix/store/{TOOLS}\nsha256")).unwrap();
    workspace.write("info/registration", &format!("{}{}", &text[second..], &text[..second]));
    assert_eq!(workspace.run("plan --closure-info info").success(), WITH_HASHES);
}

#[test]
fn an_existing_output_is_replaced_by_a_complete_plan() {
    let workspace = Workspace::with_store();
    for _ in 0..2 {
        assert_eq!(workspace.run("plan --closure-info info -o plan.json").success(), "");
        assert_eq!(workspace.read("plan.json"), WITH_HASHES.as_bytes());
    }
    assert_eq!(workspace.names(), ["attrs.json", "info", "plan.json", "store"]);
}

#[test]
fn a_plan_does_not_depend_on_the_files_of_the_store() {
    let workspace = Workspace::with_store();
    fs::rename(workspace.path("store"), workspace.path("elsewhere")).unwrap();
    let plan = workspace.run("plan --closure-info info --store-dir store").success();
    assert!(plan.contains(&format!("\"storeDir\": \"{}\"", workspace.path("store").display())), "{plan}");
}

#[test]
fn the_directory_of_another_store_is_in_the_plan() {
    let workspace = Workspace::new();
    let list = store_paths().replace("/nix/store", "/mnt//nix/store/");
    let plan = workspace.run_with_stdin("plan --paths-from -", &list).success();
    assert!(plan.contains("\"storeDir\": \"/mnt/nix/store\""), "{plan}");
}

#[test]
fn a_reader_that_closes_the_pipe_is_not_a_failure() {
    let workspace = Workspace::with_store();
    let mut command = workspace.command(["plan", "--closure-info", "info"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn a_full_stdout_is_a_failure() {
    let workspace = Workspace::with_store();
    let mut command = workspace.command(["plan", "--closure-info", "info"]);
    let output = command.stdout(fs::File::options().write(true).open("/dev/full").unwrap()).output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()),
        (
            Some(1),
            "error: cannot write to stdout: No space left on device (os error 28)\nhint: free some space there, or write to another file system\n"
        )
    );
}
