//! Data to stdout, talk to stderr: the only place that writes to either.

use super::failure::Failure;
use serde::Serialize;
use std::borrow::Cow;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Writes data to stdout. A reader that has gone away, as `head` does, is no failure.
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

/// Says a line on stderr. When nobody can be told there is nobody to tell that either.
pub(crate) fn tell(line: &str) {
    _ = writeln!(io::stderr().lock(), "{}", visible(line));
}

/// What is told as it may be shown: a name in a plan or an image is not to steer the terminal of who reads about it.
fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character.is_control() && character != '\n' && character != '\t')
}

/// The same for text that is one line: a newline in it would begin what looks like another message.
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
