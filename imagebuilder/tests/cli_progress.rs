//! Progress on a terminal: a bar that fits, is removed at the end, and does not write to stdout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use program::{Workspace, has_tool};
use std::fs;

const NOISE: &str = "3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-noise";

/// Returns the output of a build on a terminal with 60 columns.
fn on_a_terminal(workspace: &Workspace, setting: &str, options: &str) -> String {
    on_a_terminal_with(60, workspace, setting, options)
}

/// Returns the output of a build on a terminal with this many columns.
fn on_a_terminal_with(columns: u16, workspace: &Workspace, setting: &str, options: &str) -> String {
    fs::create_dir_all(workspace.path("store")).unwrap();
    let noise: Vec<u8> = (0..500_000_u64)
        .flat_map(|number| blake3::hash(&(number / 3).to_le_bytes()).as_bytes()[..16].to_vec())
        .collect();
    fs::write(workspace.path("store").join(NOISE), noise).unwrap();
    workspace.write("list", NOISE);
    let program = workspace.command([] as [&str; 0]).get_program().to_str().unwrap().to_owned();
    let line = format!(
        "stty cols {columns} rows 24; {setting} TERM=xterm {program} build --paths-from list --store-dir store \
         --no-cache --level 15 -j 1 -o image {options} > stdout"
    );
    let mut command = workspace.command([] as [&str; 0]);
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "typescript"]).current_dir(workspace.root());
    script.env_clear().envs(command.env("TERM", "xterm").get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = script.stdin(std::process::Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(workspace.read("stdout"), b"image\n");
    text
}

/// Removes escape sequences and splits the output where a line begins or is overwritten.
fn lines(text: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // A CSI sequence has a bracket, parameters, and a letter.
            characters.find(|character| character.is_ascii_alphabetic());
        } else {
            plain.push(character);
        }
    }
    plain.split(['\r', '\n']).filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_bar_fits_into_60_columns_and_contains_all_facts() {
    if !has_tool("script") || !has_tool("stty") {
        return;
    }
    let workspace = Workspace::new();
    let text = on_a_terminal(&workspace, "", "");
    let lines = lines(&text);
    let bars: Vec<&String> = lines.iter().filter(|line| line.starts_with("build ")).collect();
    assert!(!bars.is_empty(), "{lines:?}");
    for bar in &bars {
        assert!(bar.chars().count() <= 60, "{bar:?}");
    }
    for fact in ["/7.6 MiB, ", "% cached, ", "ratio ", " left"] {
        assert!(bars.iter().any(|bar| bar.contains(fact)), "{fact} is not in {bars:?}");
    }
    assert!(text.contains("\u{1b}[36m"), "a bar has a colour: {text:?}");
    assert!(lines.last().unwrap().starts_with("  time "), "the summary stays: {lines:?}");
}

#[test]
fn a_bar_has_no_colour_with_no_color_and_is_missing_with_quiet() {
    if !has_tool("script") || !has_tool("stty") {
        return;
    }
    let workspace = Workspace::new();
    let text = on_a_terminal(&workspace, "NO_COLOR=1", "");
    assert!(!text.contains("\u{1b}[36m"), "{text:?}");
    assert!(lines(&text).iter().any(|line| line.starts_with("build ")), "{text:?}");
    assert_eq!(on_a_terminal(&workspace, "", "--quiet"), "");
}

#[test]
fn a_terminal_without_a_size_as_that_of_a_nix_build_gets_lines() {
    if !has_tool("script") || !has_tool("stty") {
        return;
    }
    let workspace = Workspace::new();
    let text = on_a_terminal_with(0, &workspace, "", "").replace("\r\n", "\n");
    assert!(!text.contains(['\r', '\u{1b}']), "nothing is overwritten: {text:?}");
    assert!(text.contains("\n  time "), "{text:?}");
}
