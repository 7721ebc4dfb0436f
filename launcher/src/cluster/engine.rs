//! Runs the tools of Pacemaker. Their failures are reported with their own messages.

use super::status::Status;
use super::xml::{Element, XmlError};
use program::child::{OnParentDeath, prepare};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, ExitStatus, Output, Stdio};

/// The exit codes of Pacemaker's tools that have a meaning here: `crm_exit_t` in crm/common/results.h.
mod exit {
    pub(super) const INSUFFICIENT_PRIVILEGES: i32 = 4;
    pub(super) const NO_PERMISSION: i32 = 77;
    pub(super) const DISCONNECTED: i32 = 102;
    pub(super) const OLD: i32 = 103;
    pub(super) const NO_QUORUM: i32 = 106;
    pub(super) const TIMEOUT: i32 = 124;
}

/// The longest part of a tool's messages that is used in an error message, in bytes.
const MESSAGE_BYTES: usize = 800;

/// Why a tool of the cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The tool is not installed.
    #[error("{0} is not installed; install Pacemaker (Debian: pacemaker-cli-utils, nixpkgs: pacemaker)")]
    NotInstalled(String),
    /// A tool cannot be started.
    #[error("{program} cannot be started: {source}")]
    NoProgram {
        /// The tool.
        program: String,
        /// The error of the system.
        source: io::Error,
    },
    /// Pacemaker does not run on this host.
    #[error("the cluster is not running on this host: {0} cannot connect to Pacemaker")]
    NotRunning(String),
    /// The user may not access the cluster.
    #[error("{0} is not allowed to access the cluster: only root and members of the group haclient are")]
    NoPermission(String),
    /// This part of the cluster has no majority.
    #[error("this part of the cluster has no quorum, so nothing can be changed")]
    NoQuorum,
    /// The cluster has a newer configuration than the one that was read.
    #[error("another program changed the configuration of the cluster at the same time")]
    Outdated,
    /// The tool timed out.
    #[error("{0} timed out waiting for the cluster")]
    Timeout(String),
    /// The tool failed for another reason.
    #[error("{program} failed with {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Failed {
        /// The tool.
        program: String,
        /// Its exit status.
        status: ExitStatus,
        /// Its messages.
        message: String,
    },
    /// The output of a tool is not the expected XML.
    #[error("cannot parse the output of {program}: {source}")]
    Output {
        /// The tool.
        program: String,
        /// The problem.
        source: XmlError,
    },
}

/// Runs a tool and returns its stdout. `input` becomes its stdin.
///
/// # Errors
/// Returns [`EngineError`] if the tool is missing or fails.
pub fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, EngineError> {
    let output = output_of(program, arguments, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failure(program, &output))
}

/// Runs a tool that prints XML.
///
/// # Errors
/// The same as for [`run`], and [`EngineError::Output`].
pub fn run_for_xml(program: &str, arguments: &[&str], input: Option<&str>) -> Result<Element, EngineError> {
    let text = run(program, arguments, input)?;
    Element::parse(&text).map_err(|source| EngineError::Output { program: program.to_owned(), source })
}

/// Returns the difference of two configurations, for `cibadmin --patch`; `None` if they are equal.
///
/// # Errors
/// The same as for [`run`].
pub fn difference(original: &str, new: &str) -> Result<Option<String>, EngineError> {
    const PROGRAM: &str = "crm_diff";
    let no_file = |source: io::Error| EngineError::NoProgram { program: PROGRAM.to_owned(), source };
    // The tool inherits it.
    let file = memfd_create("original", MemfdFlags::empty()).map_err(|error| no_file(error.into()))?;
    let mut file = File::from(file);
    file.write_all(original.as_bytes()).map_err(no_file)?;
    let original = format!("--original=/proc/self/fd/{}", file.as_raw_fd());
    let output = output_of(PROGRAM, &[&original, "--new=/proc/self/fd/0"], Some(new))?;
    match output.status.code() {
        Some(0) => Ok(None),
        // As diff does.
        Some(1) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        _ => Err(failure(PROGRAM, &output)),
    }
}

/// Returns the status of the cluster.
///
/// # Errors
/// The same as for [`run_for_xml`].
pub fn status() -> Result<Status, EngineError> {
    // `--fence-history` needs the fencer, which does not run for an offline file.
    let arguments = ["--output-as=xml", "--one-shot", "--inactive", "--operations"];
    let history = if is_offline() { &[][..] } else { &["--fence-history=3"][..] };
    run_for_xml("crm_mon", &[&arguments[..], history].concat(), None).map(|document| Status::of(&document))
}

/// Returns the cluster's name of this host. It can differ from the host name, which may have a domain.
///
/// # Errors
/// The same as for [`run`].
pub fn own_node() -> Result<String, EngineError> {
    if is_offline() {
        return Ok(nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned());
    }
    run("crm_node", &["--name"], None).map(|name| name.trim_end().to_owned())
}

/// Whether the tools work on a file instead of a running cluster: `CIB_file` in the manual of crm_simulate.
pub fn is_offline() -> bool {
    std::env::var_os("CIB_file").is_some()
}

/// Runs a tool. Its stdout is a file in memory, because crm_simulate reads back what it has saved there.
fn output_of(program: &str, arguments: &[&str], input: Option<&str>) -> Result<Output, EngineError> {
    let no_program = |source: io::Error| EngineError::NoProgram { program: program.to_owned(), source };
    let file = memfd_create("output", MemfdFlags::CLOEXEC).map_err(|error| no_program(error.into()))?;
    let mut file = File::from(file);
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stderr(Stdio::piped());
    command.stdout(file.try_clone().map_err(no_program)?);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    prepare(&mut command, OnParentDeath::Terminate, None);
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => EngineError::NotInstalled(program.to_owned()),
        _ => no_program(source),
    })?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // A tool that fails early does not read its input; its exit code is what matters.
        scope.spawn(|| stdin.map(|mut stdin| stdin.write_all(input.unwrap_or_default().as_bytes())));
        child.wait_with_output()
    });
    let mut output = output.map_err(no_program)?;
    file.rewind().and_then(|()| file.read_to_end(&mut output.stdout)).map_err(no_program)?;
    Ok(output)
}

fn failure(program: &str, output: &Output) -> EngineError {
    let message = message_of(output);
    let name = || program.to_owned();
    match output.status.code() {
        Some(exit::INSUFFICIENT_PRIVILEGES | exit::NO_PERMISSION) => EngineError::NoPermission(name()),
        Some(exit::DISCONNECTED) if message.contains("Permission denied") => EngineError::NoPermission(name()),
        Some(exit::DISCONNECTED) => EngineError::NotRunning(name()),
        Some(exit::OLD) => EngineError::Outdated,
        Some(exit::NO_QUORUM) => EngineError::NoQuorum,
        Some(exit::TIMEOUT) => EngineError::Timeout(name()),
        _ => EngineError::Failed { program: name(), status: output.status, message },
    }
}

/// Returns the messages of a tool that failed: those in its XML, or else its stderr.
fn message_of(output: &Output) -> String {
    let mut messages = Vec::new();
    if let Ok(document) = Element::parse(&String::from_utf8_lossy(&output.stdout)) {
        document.walk(&mut |element| {
            if element.name == "error" {
                messages.push(element.text.clone());
            }
        });
    }
    if messages.is_empty() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        messages.extend(stderr.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    let mut message = messages.join("; ");
    let end = (0..=MESSAGE_BYTES.min(message.len())).rev().find(|end| message.is_char_boundary(*end));
    message.truncate(end.unwrap_or_default());
    message
}
