//! What the tests of several crates share. It is a dev-dependency only, so no program contains it.
//!
//! ```
//! let directory = std::env::temp_dir().join(format!("testing-{}", std::process::id()));
//! testing::write_program(&directory, "#!/bin/sh\necho done\n");
//! assert_eq!(std::process::Command::new(&directory).output()?.stdout, b"done\n");
//! # std::fs::remove_file(&directory)?;
//! # Ok::<(), std::io::Error>(())
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on fails, and prints the reason if it is skipped"
)]

mod disk;
mod faults;
mod nar;
mod numbers;
mod small_disk;

pub use disk::Disk;
pub use faults::{Fault, Faults};
pub use nar::nar_sha256;
pub use numbers::{NEGATIVE, NOT_NUMBERS, TWO_TO_63, TWO_TO_64, YEAR_AND_A_SECOND};
pub use small_disk::SmallDisk;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Set to 1 where everything that tests need must be installed.
const REQUIRE: &str = "MICROVM_TEST_REQUIRE_TOOLS";

/// Prints why a test, or a part of it, is skipped.
pub fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Prints that something is missing and the test is skipped; with `MICROVM_TEST_REQUIRE_TOOLS=1` fails the test
/// instead.
#[track_caller]
pub fn missing(reason: &str) {
    assert!(std::env::var_os(REQUIRE).is_none_or(|value| value != "1"), "{reason}, but {REQUIRE}=1");
    skipped(reason);
}

/// Returns the path of a program that a test needs. If it is not installed, calls [`missing`].
#[track_caller]
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = directories.map(|directory| directory.join(name)).find(|candidate| candidate.is_file());
    if found.is_none() {
        missing(&format!("{name} is not installed"));
    }
    found
}

/// Builds `fixtures/guest/handles.c` in this directory, a program without dependencies that opens file handles.
pub fn file_handles(directory: &Path) -> PathBuf {
    let program = directory.join("handles");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/guest/handles.c");
    let built =
        Command::new("gcc").args(["-static", "-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(source).output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

/// Writes an executable file through another process. If this process wrote it, a test in another thread could start a
/// program at the same time, whose process holds the open file until its exec: starting the new program then fails with
/// "Text file busy".
pub fn write_program(path: &Path, text: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 0755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}
