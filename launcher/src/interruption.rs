//! Signals that ask the launcher to stop, received at the places where it waits: children are then ended and reaped, and
//! what was half made is removed, instead of dying in the middle.

use crate::child::{OnParentDeath, prepare};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a child may take to end by itself after it was asked to.
const GRACE: Duration = Duration::from_secs(2);

/// How often a command that takes long is reported.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// A signal asked the launcher to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {0}")]
pub struct Interrupted(pub Signal);

/// Why a child's end could not be waited for.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// A signal asked the launcher to stop, and so the child was ended.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// It could not be started, or not be waited for.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// How a child ended and what it wrote.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// The end of what it wrote to stdout and stderr; empty when that went to the user.
    pub output: String,
}

/// Blocks SIGTERM, SIGINT, SIGHUP and SIGCHLD as long as it lives, and reports them when asked. A signal that the process
/// was started to ignore, as nohup(1) has it with SIGHUP, is still ignored.
#[derive(Debug)]
pub struct Interruption {
    signals: SignalFd,
    before: SigSet,
    received: Cell<Option<Signal>>,
    progress: RefCell<Option<Progress>>,
}

/// What is called from time to time while a command runs.
struct Progress {
    report: Box<dyn FnMut()>,
    next: Instant,
}

impl fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Progress").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Interruption {
    /// Begins to block the signals. To be called before the process has a second thread.
    ///
    /// # Errors
    /// When the kernel gives no signal descriptor.
    pub fn watch() -> io::Result<Self> {
        let watched = watched_signals();
        let before = watched.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { signals, before, received: Cell::new(None), progress: RefCell::new(None) })
    }

    /// Whether somebody has asked to stop; from then on always the same answer.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        while let Ok(Some(information)) = self.signals.read_signal() {
            let signal = i32::try_from(information.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal) = signal.filter(|signal| *signal != Signal::SIGCHLD) {
                self.received.set(self.received.get().or(Some(signal)));
            }
        }
        self.received.get().map_or(Ok(()), |signal| Err(Interrupted(signal)))
    }

    /// Forgets the signal, so that a second one can be distinguished from the first.
    pub fn forget(&self) {
        self.received.set(None);
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

    /// Calls `report` when a command starts inside `act`, and every few seconds while commands run.
    pub fn while_reporting<T>(&self, report: impl FnMut() + 'static, act: impl FnOnce() -> T) -> T {
        self.progress.replace(Some(Progress { report: Box::new(report), next: Instant::now() }));
        let outcome = act();
        self.progress.replace(None);
        outcome
    }

    fn report_progress(&self) {
        if let Some(progress) = self.progress.borrow_mut().as_mut().filter(|progress| progress.next <= Instant::now()) {
            (progress.report)();
            progress.next = Instant::now() + REPORT_EVERY;
        }
    }

    /// Runs a command to its end and keeps what it writes.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn run_quietly(&self, command: &mut Command) -> Result<Ended, ChildError> {
        let output = memory()?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
        let status = self.run(command)?;
        Ok(Ended { status, output: text_of(output)? })
    }

    /// Runs a command to its end and keeps what it writes to stdout; stderr is the user's.
    ///
    /// # Errors
    /// [`ChildError`].
    pub fn run_for_output(&self, command: &mut Command) -> Result<Ended, ChildError> {
        let output = memory()?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?);
        let status = self.run(command)?;
        Ok(Ended { status, output: text_of(output)? })
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
        self.report_progress();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if let Err(interrupted) = self.pause(Duration::from_millis(100)) {
                end_group(&mut child);
                return Err(interrupted.into());
            }
            self.report_progress();
        }
    }

    /// Restores the signal mask as it was before: to be called right before exec.
    ///
    /// # Errors
    /// When the kernel refuses the mask.
    pub fn restore_mask(&self) -> io::Result<()> {
        self.before.thread_set_mask().map_err(io::Error::from)
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        // A signal that was received must not end the process now: it has been dealt with.
        let _ = self.check();
        let _ = self.restore_mask();
    }
}

impl AsFd for Interruption {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// Takes what a child writes, however much, without a thread that reads along.
fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC)?))
}

fn text_of(mut memory: File) -> io::Result<String> {
    let mut text = Vec::new();
    memory.rewind()?;
    memory.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

fn watched_signals() -> SigSet {
    let ignored = ignored_signals();
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        let bit = 1u64 << (signal as u32 - 1);
        if signal == Signal::SIGCHLD || ignored & bit == 0 {
            signals.add(signal);
        }
    }
    signals
}

/// The mask `SigIgn` of proc_pid_status(5). A blocked signal is delivered although it is ignored, so those must not be
/// blocked.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Ends a child that leads a process group, and all of the group: by SIGTERM, then by SIGKILL.
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
    fn a_command_returns_its_status_and_its_output() {
        let interruption = Interruption::watch().unwrap();
        let ended =
            interruption.run_quietly(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        assert_eq!((ended.status.code(), ended.output.as_str()), (Some(3), "out\nerr"));
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

    #[test]
    fn a_command_that_takes_long_is_reported_at_once_and_again() {
        let interruption = Interruption::watch().unwrap();
        let reports = std::rc::Rc::new(Cell::new(0));
        let counted = std::rc::Rc::clone(&reports);
        // Ends when the second report has come.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reported");
        let script = format!("while [ ! -e {} ]; do sleep 0.1; done", path.display());
        let report = move || {
            counted.set(counted.get() + 1);
            if counted.get() == 2 {
                std::fs::write(&path, "").unwrap();
            }
        };
        let status =
            interruption.while_reporting(report, || interruption.run_aloud(Command::new("sh").args(["-c", &script])));
        assert!(status.unwrap().success());
        assert_eq!(reports.get(), 2);
        // Without a command there is nothing to wait for.
        interruption.while_reporting(|| panic!("nothing takes long"), || ());
    }
}
