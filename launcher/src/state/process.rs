//! Processes, distinguished from later processes with the same process id.

use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

/// A process, distinguished from later processes with the same process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat`, which exec does not change.
    pub start_ticks: u64,
}

/// Returns the current time, in seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl ProcessIdentity {
    /// Returns the running process with that process id.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = proc_file(pid, "stat")?;
        let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has an unknown format"));
        // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
        let fields = stat.rsplit_once(')').ok_or_else(broken)?.1;
        let mut fields = fields.split_whitespace();
        let run_state = fields.next().ok_or_else(broken)?;
        if matches!(run_state, "Z" | "X") {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let start_ticks = fields.nth(18).and_then(|field| field.parse().ok()).ok_or_else(broken)?;
        Ok(Self { pid, start_ticks })
    }

    /// Returns this process.
    pub fn current() -> io::Result<Self> {
        Self::of(Pid::this().as_raw())
    }

    /// Whether it is still running. A zombie is not.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// Sends a signal. Does nothing if the process has ended, and never signals a later process with the same process
    /// id: pidfd_open(2).
    ///
    /// # Errors
    /// Fails if this user is not permitted to signal the process.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else { return Ok(()) };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // Checked after opening the descriptor: if the process is still alive now, the descriptor refers to it.
        if !self.is_alive() {
            return Ok(());
        }
        let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        match pidfd_send_signal(descriptor, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns the real user id: `Uid` in `/proc/PID/status`.
    pub(super) fn user(&self) -> io::Result<Uid> {
        let status = proc_file(self.pid, "status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let user = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        user.map(Uid::from_raw).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// Reads a file of `/proc/PID`. A process chooses its own name, which is in some of them and need not be UTF-8.
pub(crate) fn proc_file(pid: i32, name: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{name}"))?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_process_with_a_name_that_is_not_utf8_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join(OsStr::from_bytes(b"a)\xff 1"));
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("600").spawn().unwrap();
        let process = ProcessIdentity::of(i32::try_from(child.id()).unwrap());
        let user = process.as_ref().map(|process| process.user().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(user.unwrap(), nix::unistd::getuid());
    }

    #[test]
    fn a_signal_is_not_sent_to_a_later_process_with_the_same_pid() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessIdentity::of(i32::try_from(child.id()).unwrap()).unwrap();
        let former = ProcessIdentity { start_ticks: process.start_ticks - 1, ..process };
        former.signal(Signal::SIGKILL).unwrap();
        assert!(process.is_alive());
        process.signal(Signal::SIGTERM).unwrap();
        child.wait().unwrap();
        process.signal(Signal::SIGKILL).unwrap();
    }
}
