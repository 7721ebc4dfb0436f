//! Writing results to stdout and messages to stderr.

use super::failure::Failure;
use program::escape::lines;
use std::io::{self, Write};

/// Writes a result. A reader that closes the pipe early, such as `head`, is not a failure.
pub(crate) fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(&error)),
        _ => Ok(()),
    }
}

/// Writes warnings to stderr, ignoring a closed stderr.
pub(crate) fn write_warnings(warnings: &[String]) {
    let mut stderr = io::stderr().lock();
    for warning in warnings {
        let _ = writeln!(stderr, "warning: {}", lines(warning));
    }
}

/// Prints a message that is not a result.
pub(crate) fn write_stderr(text: &str) {
    // stderr may be closed.
    let _ = writeln!(io::stderr().lock(), "{}", lines(text));
}
