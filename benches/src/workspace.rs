//! What the benchmarks use from the work tree: fixtures, peers, and this program linked statically.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, file};

/// Returns the work tree that this program was compiled from.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the directory of a fixture closure (`small`, `system`), which `fixtures/closure/build.sh` builds if
/// necessary.
///
/// # Errors
/// When it can't be built.
pub fn fixture(size: &str) -> Result<PathBuf, Error> {
    run_loudly(Command::new(root().join("fixtures/closure/build.sh")).arg(size))?;
    Ok(fixtures().join(size))
}

/// Returns the directory of the fixtures: `$MICROVM_FIXTURES`, otherwise `target/fixtures` of the work tree.
#[must_use]
pub fn fixtures() -> PathBuf {
    std::env::var_os("MICROVM_FIXTURES").map_or_else(|| root().join("target/fixtures"), PathBuf::from)
}

/// Builds a program of this workspace as it is shipped, and returns its path.
///
/// # Errors
/// When cargo fails.
pub fn release_program(package: &str, name: &str) -> Result<PathBuf, Error> {
    let directory = target_directory()?;
    run_loudly(
        Command::new("cargo")
            .args(["build", "--quiet", "--release", "-p", package, "--bin", name, "--target-dir"])
            .arg(&directory)
            .current_dir(root()),
    )?;
    Ok(directory.join("release").join(name))
}

/// Builds a program of this package without any shared library, so that it runs in an initrd, and returns its path.
///
/// # Errors
/// When cargo fails.
pub fn static_program(name: &str) -> Result<PathBuf, Error> {
    let target = "x86_64-unknown-linux-gnu"; // with an explicit target, the flags below do not apply to procedural macros
    let directory = target_directory()?.join("static");
    run_loudly(
        Command::new("cargo")
            .args(["build", "--quiet", "--release", "-p", "benches", "--bin", name, "--target", target, "--target-dir"])
            .arg(&directory)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .current_dir(root()),
    )?;
    Ok(directory.join(target).join("release").join(name))
}

/// Cargo's target directory that this program was built in.
fn target_directory() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(file("find", "this program"))?;
    Ok(own.ancestors().nth(2).map_or_else(|| PathBuf::from("target"), Path::to_owned))
}

/// Returns the host's time stamp counter in kHz. An emulated guest sees the host's counter and, on a busy machine,
/// fails to calibrate it; with `tsc_early_khz=` it does not have to.
///
/// # Errors
/// When `/proc/cpuinfo` names no clock.
pub fn tsc_khz() -> Result<u64, Error> {
    let path = "/proc/cpuinfo";
    let text = fs::read_to_string(path).map_err(file("read", path))?;
    let megahertz = text
        .lines()
        .find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':')?.1.trim().parse::<f64>().ok())
        .ok_or_else(|| Error::Unexpected(format!("{path} has no `cpu MHz`")))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a clock rate is positive and small")]
    Ok((megahertz * 1000.0) as u64)
}

/// Runs a program to its end; its stderr becomes part of the error.
///
/// # Errors
/// When it can't be started or fails.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let output = command
        .output()
        .map_err(|source| Error::Start { program: command.get_program().to_string_lossy().into_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Program { program: format!("{command:?}"), status: output.status, stderr })
}

/// Runs a program to its end, with its messages on our stderr.
///
/// # Errors
/// When it can't be started or fails.
pub fn run_loudly(command: &mut Command) -> Result<(), Error> {
    let status = command
        .stdout(Stdio::null())
        .status()
        .map_err(|source| Error::Start { program: command.get_program().to_string_lossy().into_owned(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Program { program: format!("{command:?}"), status, stderr: "see above".into() })
}
