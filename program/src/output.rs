//! Writing to the terminal: data to stdout, messages to stderr.

use crate::escape::{lines, one_line};
use crate::failure::Failure;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

/// Writes data to stdout. A reader that closes the pipe early, such as `head`, is not a failure.
///
/// # Errors
/// Fails if stdout cannot be written to, for example because the disk is full.
pub fn print(data: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(&error).with_context("cannot write to stdout"))
        }
        _ => Ok(()),
    }
}

/// Writes a path and a newline to stdout, byte for byte.
///
/// # Errors
/// The same as for [`print()`].
pub fn print_path(path: &Path) -> Result<(), Failure> {
    print([path.as_os_str().as_bytes(), b"\n"].concat())
}

/// Writes a document as indented JSON to stdout.
///
/// # Errors
/// The same as for [`print()`].
pub fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(document).map_err(|error| Failure::failed(&error))?;
    text.push(b'\n');
    print(text)
}

/// Prints a message on stderr, escaped. A failure to do so is ignored, because there is nowhere left to report it.
pub fn message(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", lines(text));
}

/// Prints warnings on stderr, escaped.
pub fn warn(warnings: &[String]) {
    for warning in warnings {
        message(&format!("warning: {warning}"));
    }
}

/// Prints why a command failed, and returns its exit code.
pub fn report(failure: &Failure) -> ExitCode {
    let (lines, code) = failure.report();
    for line in lines {
        message(&line);
    }
    code
}

/// Escapes arguments for the messages of a parser that quotes them. Arguments that are not UTF-8 stay: parsers replace
/// their bytes.
pub fn escaped_arguments(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let shown = arguments.into_iter().map(|argument| match argument.to_str() {
        Some(text) => one_line(text).into_owned().into(),
        None => argument,
    });
    shown.collect()
}
