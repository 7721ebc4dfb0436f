//! The layers of the crate, checked in the source text: pure modules have no effects, and separate modules do not use
//! each other.

#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by failing")]

use launcher::spec::Hypervisor;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the pure parts: from text to launch, and from text to the configuration of a cluster.
const PURE: [&str; 25] = [
    "capability",
    "cluster/check",
    "cluster/checked",
    "cluster/cib",
    "cluster/corosync",
    "cluster/merge",
    "cluster/migration",
    "cluster/placement",
    "cluster/secrets",
    "cluster/spec",
    "cluster/status",
    "cmdline",
    "explain",
    "facts",
    "hypervisor",
    "identity",
    "keyval",
    "launch",
    "name",
    "path",
    "refusal",
    "reference",
    "shell",
    "spec",
    "validate",
];

/// Text that indicates access to files, processes, the environment, the network or the clock.
const EFFECTS: [&str; 13] = [
    "std::fs",
    "std::process",
    "std::env",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os",
    "std::io",
    "std::time",
    "std::thread",
    "nix::",
    "libc::",
    ".exists()",
    ".metadata()",
];

/// Calls that follow a path which another user may have changed in the meantime. std's `remove_dir_all` is not among
/// them, because it does not follow symbolic links.
const BY_PATH: [&str; 17] = [
    "fs::write(",
    "File::create",
    "fs::rename",
    "::chown",
    " chown(",
    "lchown",
    "create_dir",
    "DirBuilder",
    "fs::remove_file",
    "set_permissions",
    "hard_link(",
    "unix::fs::symlink",
    "fs::copy(",
    ".create(true)",
    ".create_new(",
    "program::atomic_file",
    "program::unnamed_file",
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns the Rust files of a module and its submodules.
fn files_of_module(directory: &Path, name: &str) -> Vec<(PathBuf, String)> {
    let places = [directory.join(format!("{name}.rs")), directory.join(name)];
    places.iter().filter(|path| path.exists()).flat_map(|path| files_at(path)).collect()
}

/// Returns the Rust files at and below the path, without their tests.
fn files_at(path: &Path) -> Vec<(PathBuf, String)> {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a directory of sources");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        return paths.iter().flat_map(|path| files_at(path)).collect();
    }
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if path.extension().is_none_or(|extension| extension != "rs") || path.ends_with("tests.rs") {
        return Vec::new();
    }
    let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    vec![(path.to_owned(), code)]
}

fn uses_of<'word>(files: &[(PathBuf, String)], words: &[&'word str]) -> Vec<(PathBuf, &'word str)> {
    let mut found = Vec::new();
    for (path, code) in files {
        let code_lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code: String = code_lines.collect::<Vec<_>>().join("\n");
        found.extend(words.iter().filter(|word| code.contains(**word)).map(|word| (path.clone(), *word)));
    }
    found
}

#[test]
fn pure_modules_have_no_effects() {
    for name in PURE {
        let files = files_of_module(&sources(), name);
        assert!(!files.is_empty(), "{name} no longer exists: remove it from the list");
        assert_eq!(uses_of(&files, &EFFECTS), [], "{name} is pure");
    }
}

#[test]
fn files_are_created_changed_and_removed_by_descriptor_only() {
    let mut files = files_at(&sources());
    assert!(files.len() > 20, "the sources are found");
    // Root's work in directories that only root can change: the directory of all machines, and a machine's root
    // directory while it is built. These modules, too, reach the content of a state directory through descriptors.
    let in_roots_directories = [
        "isolation/contents.rs",
        "isolation/directory.rs",
        "isolation/locks.rs",
        "isolation/mounts.rs",
        "cli/imperative/unit.rs",
    ];
    files.retain(|(path, _)| !in_roots_directories.iter().any(|name| path.ends_with(name)));
    assert_eq!(uses_of(&files, &BY_PATH), [], "program::place does this");
    let binds: Vec<_> = files.iter().flat_map(|(_, code)| code.lines()).filter(|line| binds_a_path(line)).collect();
    assert!(binds.is_empty(), "program::place binds sockets: {binds:?}");
}

/// Addresses of netlink, of vsock and of the network are not paths.
fn binds_a_path(line: &str) -> bool {
    let is_call = line.contains("::bind(") || (line.contains(" bind(") && !line.contains("fn bind("));
    let others = ["&NetlinkAddr::new(", "&VsockAddr::new(", "TcpListener::bind(", "UdpSocket::bind("];
    is_call && !others.iter().any(|other| line.contains(other))
}

#[test]
fn the_library_does_not_use_the_command_line() {
    let entries = fs::read_dir(sources()).expect("the sources");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let library = paths.filter(|path| !["cli", "cli.rs", "main.rs"].iter().any(|name| path.ends_with(name)));
    let files: Vec<_> = library.flat_map(|path| files_at(&path)).collect();
    assert!(files.len() > 20, "the sources are found");
    assert_eq!(uses_of(&files, &["clap", "indicatif", "crate::cli"]), []);
}

#[test]
fn hypervisor_modules_do_not_use_each_other() {
    let names = Hypervisor::ALL.map(|hypervisor| hypervisor.as_str().replace('-', "_"));
    for name in &names {
        let files = files_of_module(&sources().join("hypervisor"), name);
        assert!(!files.is_empty(), "{name} has sources");
        for other in names.iter().filter(|other| *other != name) {
            let uses = [format!("super::{other}"), format!("hypervisor::{other}")];
            assert_eq!(uses_of(&files, &uses.each_ref().map(String::as_str)), [], "{name} uses {other}");
        }
    }
}
