//! Runs a program until it ends or the caller cancels it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Directories of mkfs programs, which are not in the PATH of many users.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Interval between checks whether the program has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How a program ended.
pub(super) enum Ended {
    Succeeded,
    /// It was killed because the caller cancelled it.
    Cancelled,
    /// The program does not exist.
    NotInstalled,
    /// It ended with a status other than 0.
    Failed {
        status: ExitStatus,
        /// Its output on stderr.
        message: String,
    },
}

/// Runs a program with stdin and stdout connected to `/dev/null` and English messages.
pub(super) fn run(program: &str, arguments: &[OsString], cancel: &AtomicBool) -> io::Result<Ended> {
    let Some(found) = find(program) else {
        return Ok(Ended::NotInstalled);
    };
    // A file instead of a pipe, which could fill up and block the program.
    let mut messages = tempfile::tempfile()?;
    let mut child = Command::new(found)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(messages.try_clone()?)
        .spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if cancel.load(Ordering::SeqCst) {
            child.kill()?;
            child.wait()?;
            return Ok(Ended::Cancelled);
        }
        thread::sleep(POLL_INTERVAL);
    };
    if status.success() {
        return Ok(Ended::Succeeded);
    }
    // A Ctrl-C on the terminal also reaches the program, perhaps before this process handles it.
    if cancel.load(Ordering::SeqCst) {
        return Ok(Ended::Cancelled);
    }
    let mut text = Vec::new();
    messages.rewind()?;
    messages.read_to_end(&mut text)?;
    Ok(Ended::Failed { status, message: without_usage(&String::from_utf8_lossy(&text)) })
}

/// Returns the part of a message before the usage. mkfs.xfs prints its usage with every error.
fn without_usage(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("Usage:"));
    let message = lines.collect::<Vec<_>>().join("\n").trim().to_owned();
    if message.is_empty() { text.trim().to_owned() } else { message }
}

/// Finds the program in PATH or the system's directories.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    find_in(program, &path)
}

fn find_in(program: &str, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, cancel: &AtomicBool) -> Ended {
        run("sh", &["-c".into(), script.into()], cancel).unwrap()
    }

    #[test]
    fn success_failure_and_a_missing_program_are_distinguished() {
        let never = AtomicBool::new(false);
        assert!(matches!(shell("exit 0", &never), Ended::Succeeded));
        assert!(matches!(run("no-such-program", &[], &never).unwrap(), Ended::NotInstalled));
        let Ended::Failed { status, message } = shell("echo said; echo why >&2; exit 3", &never) else { panic!() };
        assert_eq!((status.code(), message.as_str()), (Some(3), "why"));
    }

    #[test]
    fn the_usage_is_removed_from_a_message_that_has_other_text() {
        assert_eq!(without_usage("too small\nUsage: mkfs.xfs\n[-q]\n"), "too small");
        assert_eq!(without_usage("Usage: mke2fs\n[-q]\n"), "Usage: mke2fs\n[-q]");
    }

    #[test]
    fn a_cancelled_program_is_killed() {
        assert!(matches!(shell("sleep 600", &AtomicBool::new(true)), Ended::Cancelled));
    }

    #[test]
    fn the_directories_of_path_are_searched_before_those_of_the_system() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("sh");
        std::fs::write(&program, "").unwrap();
        assert_ne!(find_in("sh", directory.path().as_os_str()), Some(program.clone()), "not executable");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in("sh", directory.path().as_os_str()), Some(program));
    }
}
