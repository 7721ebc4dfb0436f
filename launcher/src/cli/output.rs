//! Results on stdout.

use super::failure::Failure;
use launcher::visible::lines;
use std::io::{self, Write};

/// Writes a result; a reader that went away, as `head` does, is no failure.
pub(crate) fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(&error)),
        _ => Ok(()),
    }
}

/// Writes warnings on stderr, where nobody need listen.
pub(crate) fn write_warnings(warnings: &[String]) {
    let mut stderr = io::stderr().lock();
    for warning in warnings {
        let _ = writeln!(stderr, "warning: {}", lines(warning));
    }
}

/// Tells the user something that is no result.
pub(crate) fn write_stderr(text: &str) {
    // Nobody listens when stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{}", lines(text));
}
