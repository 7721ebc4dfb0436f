//! Help, completions and manual pages.

mod program;

use program::{Workspace, has_tool};
use std::fs;
use std::process::Command;

/// All commands, in the order of the help text.
const COMMANDS: [&str; 13] = [
    "",
    "build",
    "plan",
    "verify",
    "inspect",
    "extract",
    "cache",
    "cache gc",
    "cache stat",
    "cache serve",
    "volume create",
    "completions",
    "man",
];

#[test]
fn control_characters_in_a_usage_error_are_escaped() {
    let workspace = Workspace::new();
    for arguments in
        [&["in\u{1b}[31mspect\nerror: no"][..], &["inspect", "a", "b\u{9b}\r\nhint: x"], &["build", "--\u{7}x"]]
    {
        let output = workspace.command(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(!stderr.contains(|character: char| character.is_control() && character != '\n'), "{stderr:?}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr:?}");
        assert!(!stderr.lines().any(|line| line.starts_with("hint: ")), "{stderr:?}");
    }
}

#[test]
fn help_fits_into_60_columns() {
    let workspace = Workspace::new();
    for command in COMMANDS {
        for flag in ["--help", "-h"] {
            let line = format!("{command} {flag}");
            let output = workspace.command(line.split_whitespace()).env("COLUMNS", "60").output().unwrap();
            assert!(output.status.success(), "{line}");
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("Usage: microvm-image"), "{line}: {text}");
            for line in text.lines() {
                assert!(line.chars().count() <= 60, "{command} {flag}: {line:?}");
            }
        }
    }
}

#[test]
fn the_program_without_a_command_shows_the_help() {
    let workspace = Workspace::new();
    let run = workspace.run("");
    assert_eq!((run.code, run.stdout.as_str()), (2, ""));
    assert!(run.stderr.contains("Usage: microvm-image <COMMAND>"), "{}", run.stderr);
    let run = workspace.run("bulid");
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("tip: a similar subcommand exists: 'build'"), "{}", run.stderr);
    assert_eq!(workspace.run("--version").success(), format!("microvm-image {}\n", ::program::version::version()));
}

#[test]
fn completions_are_generated_for_every_shell() {
    let workspace = Workspace::new();
    for (shell, mark) in [
        ("bash", "complete -F _microvm__image"),
        ("zsh", "#compdef microvm-image"),
        ("fish", "complete -c microvm-image"),
        ("elvish", "set edit:completion:arg-completer[microvm-image]"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let script = workspace.run(&format!("completions {shell}")).success();
        assert!(script.contains(mark), "{shell}: {script}");
        assert!(script.contains("closure-info"), "{shell}");
    }
    if has_tool("bash") {
        workspace.write("completions", &workspace.run("completions bash").success());
        let script = "source completions; COMP_WORDS=(microvm-image build --comp); COMP_CWORD=2; \
                      _microvm__image microvm-image --comp build; echo \"${COMPREPLY[@]}\"";
        let output = Command::new("bash").args(["-c", script]).current_dir(workspace.root()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "--compression\n");
    }
}

#[test]
fn manual_pages_are_generated_for_every_command() {
    let workspace = Workspace::new();
    let page = workspace.run("man").success();
    assert!(page.contains(".TH microvm-image 1"), "{page}");
    for section in ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"] {
        assert!(page.contains(&format!(".SH \"{section}\"\n")), "{section}");
    }
    fs::create_dir(workspace.path("man1")).unwrap();
    assert_eq!(workspace.run("man -o man1").success(), "");
    let build = String::from_utf8(workspace.read("man1/microvm-image-build.1")).unwrap();
    for option in [r"\-\-closure\-info", r"\-\-block\-size", r"\-\-cache\-verify", "128K"] {
        assert!(build.contains(option), "{option} is not in {build}");
    }
    for command in COMMANDS {
        let name = format!("man1/microvm-image {command}").trim().replace(' ', "-");
        assert!(workspace.path(&format!("{name}.1")).is_file(), "{name}.1");
    }
    let run = workspace.run("man -o missing");
    run.failure(2, "error: cannot write the manual pages to missing: No such file or directory (os error 2)\n");
}
