//! Running Nix to build runners, evaluate flakes and compare closures.

use super::{FlakeReference, ImperativeError, MachineName};
use program::child::{OnParentDeath, prepare};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The longest part of a program's output that is used in an error message, in bytes.
const ERROR_TAIL_BYTES: usize = 800;

fn nix(verb: &[&str]) -> Command {
    let mut command = Command::new("nix");
    command.args(["--extra-experimental-features", "nix-command flakes"]).args(verb);
    // A signal that ends this program ends Nix, whichever thread waits for it.
    prepare(&mut command, OnParentDeath::Terminate, None);
    command
}

/// Where the messages of a build go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildOutput {
    /// To the terminal, with the progress of Nix.
    Terminal,
    /// Into the error if the build fails, because several builds run at the same time.
    Captured,
}

/// Builds the machine's runner, registers the link as its root, and returns its store path.
pub(super) fn build(
    (flake, name): (&FlakeReference, &MachineName),
    link: &Path,
    output: BuildOutput,
) -> Result<PathBuf, ImperativeError> {
    let mut command = nix(&["build"]);
    command.arg(flake.runner_of(name)).arg("--out-link").arg(link);
    match output {
        BuildOutput::Captured => output_of("nix build", command).map(drop)?,
        BuildOutput::Terminal => {
            let status = command.stdout(Stdio::null()).status();
            let status = status.map_err(|source| ImperativeError::NoProgram { program: "nix", source })?;
            if !status.success() {
                return Err(ImperativeError::Program {
                    program: "nix build".to_owned(),
                    status,
                    output: String::new(),
                });
            }
        }
    }
    std::fs::read_link(link).map_err(ImperativeError::file(link))
}

/// Returns the store path that the machine's runner would have if it were built now.
pub(super) fn evaluate(flake: &FlakeReference, name: &MachineName) -> Result<PathBuf, ImperativeError> {
    let mut command = nix(&["eval", "--raw"]);
    command.arg(format!("{}.outPath", flake.runner_of(name)));
    output_of("nix eval", command).map(PathBuf::from)
}

/// Copies the closure of a store path from another store. Nix verifies the signatures.
pub(super) fn copy_from(store: &str, path: &Path) -> Result<(), ImperativeError> {
    let mut command = nix(&["copy", "--from", store]);
    command.arg(path);
    output_of("nix copy", command).map(drop)
}

/// Returns the difference between two closures, as lines of text.
pub(super) fn difference(old: &Path, new: &Path) -> Result<String, ImperativeError> {
    let mut command = nix(&["store", "diff-closures"]);
    command.arg(old).arg(new);
    output_of("nix store diff-closures", command)
}

/// Returns the size of the closure of a store path in bytes; `None` if it is not valid in this host's store.
pub(super) fn closure_bytes(path: &Path) -> Option<u64> {
    let mut command = nix(&["path-info", "--closure-size"]);
    command.arg(path);
    let text = output_of("nix path-info", command).ok()?;
    // The path and the size. As JSON, the format differs between versions of Nix.
    text.lines().find_map(|line| line.split_whitespace().last()?.parse().ok())
}

/// Runs a command of Nix and returns its stdout.
fn output_of(program: &str, mut command: Command) -> Result<String, ImperativeError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ImperativeError::NoProgram { program: "nix", source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(ImperativeError::Program { program: program.to_owned(), status: output.status, output: error_tail(&words) })
}

/// Finds the error in a program's output: Nix prints it first or last, between traces and warnings.
fn error_tail(text: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| line.starts_with("error: ") && *line != "error:");
    let line = line.or_else(|| text.lines().rfind(|line| !line.trim().is_empty())).unwrap_or_default().trim();
    let end = (0..=ERROR_TAIL_BYTES.min(line.len())).rev().find(|end| line.is_char_boundary(*end)).unwrap_or_default();
    let line = line[..end].trim_start_matches("error: ");
    // Nix lists all attribute paths that it has tried; the last one is the one that was requested.
    match line.split_once(" does not provide attribute ").map(|(flake, tried)| (flake, tried.rsplit_once(" or "))) {
        Some((flake, Some((_, meant)))) => format!("{flake} does not provide attribute {meant}"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_found_between_traces_and_warnings() {
        let text = "warning: dirty\nerror: attribute 'web' missing\n\n   at a:1:2:\n  (use --show-trace)\n";
        assert_eq!(error_tail(text), "attribute 'web' missing");
        assert_eq!(error_tail("killed\n\n"), "killed");
        assert_eq!(error_tail(""), "");
        let tried = "error: flake 'path:/f' does not provide attribute 'packages.a', 'legacyPackages.a' or 'a'";
        assert_eq!(error_tail(tried), "flake 'path:/f' does not provide attribute 'a'");
    }
}
