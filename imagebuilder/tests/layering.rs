//! Checks the layers of the crate by reading its sources: pure modules have no effects, and separate modules do not use
//! each other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;

/// Modules that use nothing outside of the process.
const PURE: [&str; 12] = [
    "block_map.rs",
    "closure/check.rs",
    "closure/graph.rs",
    "closure/path_list.rs",
    "closure/registration.rs",
    "nar_hash.rs",
    "plan.rs",
    "progress.rs",
    "report.rs",
    "settings.rs",
    "size.rs",
    "store_path.rs",
];

/// Paths that a pure module must not use.
const EFFECTS: [&str; 7] = ["std::fs", "std::process", "std::env", "std::io", "std::time", "std::thread", "nix::"];

/// Maximum number of lines of a file.
const MAX_LINES: usize = 700;

/// Returns the path below `src` and the code of every source file, without comments and tests.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut directories = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            sources.push((name, lines.collect::<Vec<_>>().join("\n")));
        }
    }
    sources.sort();
    sources
}

/// Returns the files selected by `chosen` that contain one of the words.
fn naming(words: &[&str], chosen: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (name, code) in sources().into_iter().filter(|(name, _)| chosen(name)) {
        found.extend(words.iter().filter(|word| code.contains(**word)).map(|word| (name.clone(), (*word).to_owned())));
    }
    found
}

fn is_command_line(name: &str) -> bool {
    name == "cli.rs" || name.starts_with("cli/")
}

const NOTHING: [(String, String); 0] = [];

#[test]
fn only_the_command_line_uses_clap_and_only_one_file_uses_indicatif() {
    assert_eq!(naming(&["clap::", "clap_complete", "clap_mangen"], |name| !is_command_line(name)), NOTHING);
    assert_eq!(naming(&["indicatif"], |name| name != "cli/progress.rs"), NOTHING);
    assert!(naming(&["clap::", "indicatif"], is_command_line).len() > 2, "the words are looked for");
}

#[test]
fn the_format_does_not_use_the_cache_and_nothing_uses_the_command_line() {
    let is_format = |name: &str| {
        ["squashfs", "erofs"]
            .iter()
            .any(|format| name == format!("{format}.rs") || name.starts_with(&format!("{format}/")))
    };
    assert!(sources().iter().any(|(name, _)| is_format(name)));
    assert_eq!(naming(&["crate::cache", "crate::build"], is_format), NOTHING);
    assert_eq!(naming(&["crate::cli"], |name| !is_command_line(name)), NOTHING);
}

#[test]
fn locks_are_released_by_closing_their_files() {
    // `nix::fcntl::Flock` panics if the kernel reports an error when it is dropped.
    assert_eq!(naming(&["Flock"], |_| true), NOTHING);
}

#[test]
fn pure_modules_have_no_effects() {
    let known: Vec<String> = sources().into_iter().map(|(name, _)| name).collect();
    for name in PURE {
        assert!(known.iter().any(|known| known == name), "{name} is gone: take it from the list");
    }
    assert_eq!(naming(&EFFECTS, |name| PURE.contains(&name)), NOTHING);
}

#[test]
fn no_file_is_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (name, _) in sources() {
        let lines = fs::read_to_string(root.join(&name)).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{name} has {lines} lines: time to split it");
    }
}
