//! Programs that unit tests write and then start.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes an executable file through another process. Were it written by this one, a test in another thread could start a
/// program meanwhile, whose process holds the open file until its exec: starting the new program then fails with
/// "Text file busy".
pub(crate) fn write_program(path: &Path, text: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 0755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}
