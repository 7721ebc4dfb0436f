//! Runs programs of this project, and the shell, as a reader of the manual would.

use crate::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The width of help texts and messages.
pub const COLUMNS: &str = "100";

/// Returns the search path, with the directory of this program first, which also contains the project's programs.
///
/// # Errors
/// The system does not report the path of this program.
pub fn search_path() -> Result<String, Error> {
    let own = std::env::current_exe()
        .map_err(|error| Error::Program { command: "manual".to_owned(), reason: error.to_string() })?;
    let directory = own.parent().map_or_else(PathBuf::new, Path::to_owned);
    let usual = std::env::var("PATH").unwrap_or_default();
    Ok(format!("{}:{usual}", directory.display()))
}

/// Runs a program, which must succeed, and returns its stdout.
///
/// # Errors
/// When it can't be started or fails.
pub fn output(program: &str, arguments: &[&str]) -> Result<String, Error> {
    let command = format!("{program} {}", arguments.join(" "));
    let failed = |reason: String| Error::Program { command: command.clone(), reason };
    let mut words = Command::new("env");
    words.arg(format!("PATH={}", search_path()?)).arg(program).args(arguments).env("COLUMNS", COLUMNS);
    let output = words.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command with a shell in a directory that is also its home; stderr goes to stdout, as on a terminal.
///
/// # Errors
/// When bash can't be started.
pub fn in_shell(command: &str, directory: &Path, environment: &[(&str, String)]) -> Result<Output, Error> {
    let script = format!("exec 2>&1; {command}");
    let mut shell = Command::new("bash");
    shell.args(["--norc", "-c", &script]).current_dir(directory).stdin(std::process::Stdio::null());
    for variable in ["MICROVM_IMAGE_CACHE", "XDG_CACHE_HOME", "MICROVM_TEST_BLESS"] {
        shell.env_remove(variable);
    }
    shell.env("HOME", directory).env("PATH", search_path()?).env("COLUMNS", COLUMNS).env("LC_ALL", "C.UTF-8");
    // A page may set variables for all its commands by writing this file.
    shell.env("BASH_ENV", directory.join("environment"));
    shell.env("NO_COLOR", "1").envs(environment.iter().map(|(name, value)| (name, value)));
    shell.output().map_err(|error| Error::Program { command: command.to_owned(), reason: error.to_string() })
}
