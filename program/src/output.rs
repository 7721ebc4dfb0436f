//! Writing to the terminal: data to stdout, messages to stderr.

use crate::escape::{lines, one_line};
use crate::failure::Failure;
use serde::Serialize;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Whether the user has asked for JSON.
static REPORTS_AS_JSON: AtomicBool = AtomicBool::new(false);
/// Whether stdout has received data. Its only document is then complete, or cannot be completed.
static HAS_PRINTED: AtomicBool = AtomicBool::new(false);

/// From now on, [`report`] also prints a failure as a JSON document on stdout, unless the command has printed its own.
pub fn report_as_json() {
    REPORTS_AS_JSON.store(true, Ordering::SeqCst);
}

/// Prints the message of a parser of arguments as JSON on stdout, if the arguments contain `--json`.
pub fn report_usage_as_json(arguments: &[OsString], message: &str) {
    let asks = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    if asks {
        report_as_json();
        // What follows is the usage.
        let problem = message.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        report_json(&Failure::usage(problem));
    }
}

/// Writes data to stdout. A reader that closes the pipe early, such as `head`, is not a failure.
///
/// # Errors
/// Fails if stdout cannot be written to, for example because the disk is full.
pub fn print(data: impl AsRef<[u8]>) -> Result<(), Failure> {
    HAS_PRINTED.store(true, Ordering::SeqCst);
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

/// How long an interrupted program waits for the reader of its last message: the user wants it to end.
const INTERRUPTED_TIMEOUT: Duration = Duration::from_secs(2);

/// Prints why a command failed, and returns its exit code.
pub fn report(failure: &Failure) -> ExitCode {
    let (lines, code) = failure.report();
    report_json(failure);
    if failure.is_interruption() {
        print_within(lines, INTERRUPTED_TIMEOUT);
    } else {
        lines.iter().for_each(|line| message(line));
    }
    code
}

/// Prints messages on stderr, but waits for their reader only for that time.
fn print_within(lines: Vec<String>, timeout: Duration) {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        lines.iter().for_each(|line| message(line));
        // Fails if the main thread no longer waits.
        let _ = sender.send(());
    });
    let _ = receiver.recv_timeout(timeout);
}

/// Prints a failure as JSON if that is wanted and stdout has received nothing yet. The error of stdout is not reported,
/// because the failure matters more.
pub fn report_json(failure: &Failure) {
    if REPORTS_AS_JSON.load(Ordering::SeqCst) && !HAS_PRINTED.load(Ordering::SeqCst) {
        let _ = print_json(&failure.document());
    }
}

/// Whether the user permits colours: `NO_COLOR` is unset or empty (no-color.org).
pub fn colours_are_permitted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
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
