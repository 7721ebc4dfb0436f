//! Data to stdout, messages to stderr. Nothing else writes to either.

use super::failure::Failure;
use serde::Serialize;
use std::borrow::Cow;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Writes data to stdout. A reader that closes the pipe early, such as `head`, is not a failure.
pub(crate) fn print(data: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(&error).with_context("cannot write to stdout"))
        }
        _ => Ok(()),
    }
}

/// Writes a path and a newline to stdout, byte for byte.
pub(crate) fn print_path(path: &Path) -> Result<(), Failure> {
    print(&[path.as_os_str().as_bytes(), b"\n"].concat())
}

/// Writes a document as indented JSON to stdout.
pub(crate) fn print_json(document: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(document).map_err(|error| Failure::failed(&error))?;
    text.push(b'\n');
    print(&text)
}

/// Prints a line on stderr. A failure to do so is ignored, because there is nowhere left to report it.
pub(crate) fn message(line: &str) {
    _ = writeln!(io::stderr().lock(), "{}", visible(line));
}

/// Escapes control characters, so that a name in a plan or an image cannot control the user's terminal.
fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character.is_control() && character != '\n' && character != '\t')
}

/// The same for a text of one line, in which a newline could fake another message.
pub(crate) fn visible_line(text: &str) -> Cow<'_, str> {
    escaped(text, char::is_control)
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if is_escaped(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}
