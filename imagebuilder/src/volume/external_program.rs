//! Runs a program to its end, or until the caller says stop.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Where mkfs programs are although many users' PATH does not say so.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];
/// Time between two looks at a running program.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How a program ended.
pub(super) enum Ended {
    Succeeded,
    /// It was killed since the caller said stop.
    Cancelled,
    /// There is no such program.
    NotInstalled,
    /// It ended with another status than 0.
    Failed {
        status: ExitStatus,
        /// What it wrote on its stderr.
        message: String,
    },
}

/// Runs a program with its stdin and stdout closed, in English.
pub(super) fn run(program: &str, arguments: &[OsString], cancel: &AtomicBool) -> io::Result<Ended> {
    let Some(found) = find(program) else {
        return Ok(Ended::NotInstalled);
    };
    // A file rather than a pipe: it cannot fill up while nobody reads.
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
    // A Ctrl-C on the terminal reaches the program as well, perhaps before this process has noticed.
    if cancel.load(Ordering::SeqCst) {
        return Ok(Ended::Cancelled);
    }
    let mut text = Vec::new();
    messages.rewind()?;
    messages.read_to_end(&mut text)?;
    Ok(Ended::Failed { status, message: without_usage(&String::from_utf8_lossy(&text)) })
}

/// What a program says before it lists all its options: mkfs.xfs does with every error.
fn without_usage(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("Usage:"));
    let message = lines.collect::<Vec<_>>().join("\n").trim().to_owned();
    if message.is_empty() { text.trim().to_owned() } else { message }
}

/// The program in PATH or the system's directories.
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
    fn the_ends_a_program_can_take() {
        let never = AtomicBool::new(false);
        assert!(matches!(shell("exit 0", &never), Ended::Succeeded));
        assert!(matches!(run("no-such-program", &[], &never).unwrap(), Ended::NotInstalled));
        let Ended::Failed { status, message } = shell("echo said; echo why >&2; exit 3", &never) else { panic!() };
        assert_eq!((status.code(), message.as_str()), (Some(3), "why"));
    }

    #[test]
    fn a_usage_is_left_out_when_there_is_more_to_say() {
        assert_eq!(without_usage("too small\nUsage: mkfs.xfs\n[-q]\n"), "too small");
        assert_eq!(without_usage("Usage: mke2fs\n[-q]\n"), "Usage: mke2fs\n[-q]");
    }

    #[test]
    fn a_cancelled_program_is_killed() {
        assert!(matches!(shell("sleep 600", &AtomicBool::new(true)), Ended::Cancelled));
    }

    #[test]
    fn the_first_directory_of_the_path_wins_and_the_systems_come_last() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("sh");
        std::fs::write(&program, "").unwrap();
        assert_ne!(find_in("sh", directory.path().as_os_str()), Some(program.clone()), "not executable");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in("sh", directory.path().as_os_str()), Some(program));
    }
}
