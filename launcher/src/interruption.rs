//! Signals that ask the launcher to stop, taken at the places where it waits: children are then ended and reaped, and
//! what was half made is removed, instead of dying in the middle.

use crate::child::{OnParentDeath, prepare};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a child may take to end by itself after it was asked to.
const GRACE: Duration = Duration::from_secs(2);

/// Somebody asked the launcher to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {0}")]
pub struct Interrupted(pub Signal);

/// Why a child's end could not be waited for.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// Somebody asked the launcher to stop, and so the child was ended.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// It could not be started, or not be waited for.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// How a child ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// The end of what it wrote to stdout and stderr; empty when that went to the user.
    pub said: String,
}

/// Holds back SIGTERM, SIGINT, SIGHUP and SIGCHLD as long as it lives, and tells of them when asked.
#[derive(Debug)]
pub struct Interruption {
    signals: SignalFd,
    before: SigSet,
    heard: Cell<Option<Signal>>,
}

impl Interruption {
    /// Begins to hold the signals back. To be called before the process has a second thread.
    ///
    /// # Errors
    /// When the kernel gives no signal descriptor.
    pub fn watch() -> io::Result<Self> {
        let watched = watched_signals();
        let before = watched.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { signals, before, heard: Cell::new(None) })
    }

    /// Whether somebody has asked to stop; from then on always the same answer.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        while let Ok(Some(information)) = self.signals.read_signal() {
            let signal = i32::try_from(information.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal) = signal.filter(|signal| *signal != Signal::SIGCHLD) {
                self.heard.set(self.heard.get().or(Some(signal)));
            }
        }
        self.heard.get().map_or(Ok(()), |signal| Err(Interrupted(signal)))
    }

    /// Forgets what was heard, so that a second signal can be told from the first.
    pub fn forget(&self) {
        self.heard.set(None);
    }

    /// Waits, at most until then; wakes earlier when a child ends.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn pause(&self, longest: Duration) -> Result<(), Interrupted> {
        self.check()?;
        let mut descriptors = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        // An error means that it did not wait; every caller asks again.
        let _ = poll(&mut descriptors, timeout);
        self.check()
    }

    /// Runs a command to its end and keeps what it says.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn run_quietly(&self, command: &mut Command) -> Result<Ended, ChildError> {
        let said = memory()?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?);
        let status = self.run(command)?;
        Ok(Ended { status, said: text_of(said)? })
    }

    /// Runs a command to its end and keeps what it writes to stdout; stderr is the user's.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn run_for_output(&self, command: &mut Command) -> Result<Ended, ChildError> {
        let said = memory()?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?);
        let status = self.run(command)?;
        Ok(Ended { status, said: text_of(said)? })
    }

    /// Runs a command to its end; what it writes to stdout goes to stderr, because stdout is for results.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn run_aloud(&self, command: &mut Command) -> Result<ExitStatus, ChildError> {
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        command.stdin(Stdio::null()).stdout(stderr);
        self.run(command)
    }

    fn run(&self, command: &mut Command) -> Result<ExitStatus, ChildError> {
        self.check()?;
        prepare(command, OnParentDeath::Terminate, None);
        // In a process group of its own, so that what it has started ends with it.
        let mut child = command.process_group(0).spawn()?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if let Err(interrupted) = self.pause(Duration::from_millis(100)) {
                end_group(&mut child);
                return Err(interrupted.into());
            }
        }
    }

    /// Lets the signals through again, as they were before: to be called right before exec.
    ///
    /// # Errors
    /// When the kernel refuses the mask.
    pub fn let_through(&self) -> io::Result<()> {
        self.before.thread_set_mask().map_err(io::Error::from)
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        // A signal that was held back and heard is not to strike now: whoever watched has dealt with it.
        let _ = self.check();
        let _ = self.let_through();
    }
}

impl AsFd for Interruption {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// Takes what a child writes, however much, without a thread that reads along.
fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create(c"said", MFdFlags::MFD_CLOEXEC)?))
}

fn text_of(mut memory: File) -> io::Result<String> {
    let mut text = Vec::new();
    memory.rewind()?;
    memory.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

fn watched_signals() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals
}

/// Ends a child that leads a process group, and all of the group: politely, then not.
pub fn end_group(child: &mut Child) {
    let Ok(group) = i32::try_from(child.id()) else { return };
    for (signal, patience) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, GRACE)] {
        if killpg(Pid::from_raw(group), signal) == Err(Errno::ESRCH) {
            break;
        }
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // Killed: it cannot be long.
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_tells_how_it_ended_and_what_it_said() {
        let interruption = Interruption::watch().unwrap();
        let ended =
            interruption.run_quietly(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        assert_eq!((ended.status.code(), ended.said.as_str()), (Some(3), "out\nerr"));
        let missing = interruption.run_quietly(&mut Command::new("/nonexistent/program"));
        assert!(matches!(missing, Err(ChildError::System(_))));
    }

    #[test]
    fn a_signal_ends_the_command_and_its_children() {
        let interruption = Interruption::watch().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pid_file = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", pid_file.display());
        let own_thread = nix::sys::pthread::pthread_self();
        let waiting = pid_file.clone();
        std::thread::spawn(move || {
            while std::fs::read_to_string(&waiting).map_or(true, |text| !text.ends_with('\n')) {
                std::thread::sleep(Duration::from_millis(5));
            }
            // To the thread that holds it back: in a test program the others do not.
            nix::sys::pthread::pthread_kill(own_thread, Signal::SIGTERM).unwrap();
        });
        let result = interruption.run_quietly(Command::new("sh").args(["-c", &script]));
        assert!(matches!(result, Err(ChildError::Interrupted(Interrupted(Signal::SIGTERM)))), "{result:?}");
        let sleeper: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let gone =
            || std::fs::read_to_string(format!("/proc/{sleeper}/stat")).map_or(true, |stat| stat.contains(") Z "));
        let end = Instant::now() + Duration::from_secs(20);
        while !gone() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(gone(), "process {sleeper} lives on");
    }
}
