//! Handling signals that ask the launcher to stop. They are received only where the launcher waits, so that it can end
//! and reap its children and remove incomplete files before it exits.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::Pid;
use program::child::{OnParentDeath, prepare};
use program::signals::{file_size_signal, stop_signals};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a child may take to exit after SIGTERM.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

/// The most output of a command that is captured, in bytes. Programs that are asked for their version or make a file system
/// print a few kilobytes.
const MAX_OUTPUT_BYTES: usize = 4 << 20;

/// How often progress is reported while a command runs.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// A signal asked the launcher to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by {0}")]
pub struct Interrupted(pub Signal);

/// Why waiting for a child failed.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// A signal asked the launcher to stop, and the child was ended.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The child could not be started, or waiting for it failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// The result of a child process.
#[derive(Debug)]
pub struct ChildOutput {
    /// Its exit status.
    pub status: ExitStatus,
    /// The output that was captured.
    pub output: String,
}

/// Blocks SIGTERM, SIGINT, SIGHUP, SIGCHLD and SIGXFSZ while it exists, and reports the first three on request. Signals that were ignored
/// when the process started, such as SIGHUP under nohup(1), stay ignored.
#[derive(Debug)]
pub struct Interruption {
    signals: SignalFd,
    before: SigSet,
    received: Cell<Option<Signal>>,
    progress: RefCell<Option<Progress>>,
}

/// A callback for progress reports while a command runs.
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
    /// Starts to block the signals. Call this before the process creates a second thread.
    ///
    /// # Errors
    /// Fails if the kernel cannot create a signal descriptor.
    pub fn watch() -> io::Result<Self> {
        let watched = watched_signals();
        let before = watched.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { signals, before, received: Cell::new(None), progress: RefCell::new(None) })
    }

    /// Whether a signal has asked the launcher to stop. Returns the first such signal on every later call.
    ///
    /// # Errors
    /// Returns [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        while let Ok(Some(information)) = self.signals.read_signal() {
            let signal = i32::try_from(information.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            if let Some(signal) = signal.filter(|signal| ![Signal::SIGCHLD, Signal::SIGXFSZ].contains(signal)) {
                self.received.set(self.received.get().or(Some(signal)));
            }
        }
        self.received.get().map_or(Ok(()), |signal| Err(Interrupted(signal)))
    }

    /// Forgets the signal, so that a second one can be detected.
    pub fn forget(&self) {
        self.received.set(None);
    }

    /// Waits for at most this time; returns earlier when a child ends.
    ///
    /// # Errors
    /// Returns [`Interrupted`].
    pub fn pause(&self, longest: Duration) -> Result<(), Interrupted> {
        self.pause_until_output(longest, None)
    }

    fn pause_until_output(&self, longest: Duration, output: Option<&PipeReader>) -> Result<(), Interrupted> {
        self.check()?;
        let mut descriptors = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        descriptors.extend(output.map(|output| PollFd::new(output.as_fd(), PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
        // An error means that it did not wait; all callers check again.
        let _ = poll(&mut descriptors, timeout);
        self.check()
    }

    /// Runs `act`, and calls `report` when a command starts in it and every few seconds while commands run.
    pub fn while_reporting<T>(&self, report: impl FnMut() + 'static, act: impl FnOnce() -> T) -> T {
        self.progress.replace(Some(Progress { report: Box::new(report), next: Instant::now() }));
        let outcome = act();
        self.progress.replace(None);
        outcome
    }

    fn report_progress(&self) {
        if let Some(progress) = self.progress.borrow_mut().as_mut().filter(|progress| progress.next <= Instant::now()) {
            (progress.report)();
            progress.next = Instant::now() + REPORT_INTERVAL;
        }
    }

    /// Runs a command until it ends and captures the beginning of its output. However much it prints, it is not ended: use
    /// this for programs that change a file system.
    ///
    /// # Errors
    /// Returns [`ChildError`].
    pub fn run_captured(&self, command: &mut Command) -> Result<ChildOutput, ChildError> {
        let (output, writer) = Output::new(Excess::Drop)?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        self.capture(command, None, output)
    }

    /// Runs a command until it ends and captures its output. Ends it after that time, or when it has printed too much.
    ///
    /// # Errors
    /// Returns [`ChildError`]; [`io::ErrorKind::TimedOut`] if it did not end in time.
    pub fn run_captured_within(&self, command: &mut Command, limit: Duration) -> Result<ChildOutput, ChildError> {
        let (output, writer) = Output::new(Excess::EndProgram)?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        self.capture(command, Some(Instant::now() + limit), output)
    }

    /// Runs a command until it ends and captures its stdout. Its stderr goes to the user. Ends it when it has printed too much.
    ///
    /// # Errors
    /// Returns [`ChildError`].
    pub fn run_for_output(&self, command: &mut Command) -> Result<ChildOutput, ChildError> {
        let (output, writer) = Output::new(Excess::EndProgram)?;
        command.stdin(Stdio::null()).stdout(writer);
        self.capture(command, None, output)
    }

    fn capture(
        &self,
        command: &mut Command,
        deadline: Option<Instant>,
        mut output: Output,
    ) -> Result<ChildOutput, ChildError> {
        let status = self.run_until(command, deadline, Some(&mut output))?;
        Ok(ChildOutput { status, output: String::from_utf8_lossy(&output.kept).trim().to_owned() })
    }

    /// Runs a command until it ends. Its stdout goes to stderr, because the launcher's stdout is for results.
    ///
    /// # Errors
    /// Returns [`ChildError`].
    pub fn run_with_output_on_stderr(&self, command: &mut Command) -> Result<ExitStatus, ChildError> {
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        command.stdin(Stdio::null()).stdout(stderr);
        self.run_until(command, None, None)
    }

    fn run_until(
        &self,
        command: &mut Command,
        deadline: Option<Instant>,
        mut output: Option<&mut Output>,
    ) -> Result<ExitStatus, ChildError> {
        self.check()?;
        prepare(command, OnParentDeath::Terminate, None);
        // In its own process group, so that the processes that it has started end with it.
        let mut child = command.process_group(0).spawn()?;
        self.report_progress();
        loop {
            let status = child.try_wait()?;
            // After the status, so that all that the child printed is read.
            if let Err(error) = output.as_mut().map_or(Ok(()), |output| output.read()) {
                end_group(&mut child);
                return Err(error.into());
            }
            if let Some(status) = status {
                return Ok(status);
            }
            let reader = output.as_ref().and_then(|output| output.reader.as_ref());
            if let Err(interrupted) = self.pause_until_output(Duration::from_millis(100), reader) {
                end_group(&mut child);
                return Err(interrupted.into());
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                end_group(&mut child);
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.report_progress();
        }
    }

    /// Restores the original signal mask; call this right before exec.
    ///
    /// # Errors
    /// Fails if the kernel refuses the mask.
    pub fn restore_mask(&self) -> io::Result<()> {
        self.before.thread_set_mask().map_err(io::Error::from)
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        // A pending signal must not end the process after the mask is restored, because it has been handled.
        let _ = self.check();
        let _ = self.restore_mask();
    }
}

impl AsFd for Interruption {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// What happens to output beyond [`MAX_OUTPUT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excess {
    /// The program is ended.
    EndProgram,
    /// It is dropped.
    Drop,
}

/// What a child prints: it writes to a pipe, so that it can also open `/dev/stdout`.
#[derive(Debug)]
struct Output {
    /// `None` if all writing ends are closed.
    reader: Option<PipeReader>,
    kept: Vec<u8>,
    excess: Excess,
}

impl Output {
    /// Returns it, and the pipe's writing end.
    fn new(excess: Excess) -> io::Result<(Self, PipeWriter)> {
        let (reader, writer) = io::pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // Another user, as which the child may run, can open it too.
        fchmod(&writer, Mode::from_bits_truncate(0o622))?;
        Ok((Self { reader: Some(reader), kept: Vec::new(), excess }, writer))
    }

    /// Reads what the pipe contains.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::FileTooLarge`] if the program must be ended.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        let mut read_bytes = 0;
        // Limited, because a program may write faster than this reads.
        while let Some(mut reader) = self.reader.as_ref()
            && read_bytes <= MAX_OUTPUT_BYTES
        {
            match reader.read(&mut buffer) {
                Ok(0) => self.reader = None,
                Ok(count) => {
                    read_bytes += count;
                    let room = MAX_OUTPUT_BYTES - self.kept.len();
                    if count > room && self.excess == Excess::EndProgram {
                        let reason = format!("it printed more than {} MiB", MAX_OUTPUT_BYTES >> 20);
                        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
                    }
                    self.kept.extend(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn watched_signals() -> SigSet {
    let mut signals = stop_signals();
    signals.add(Signal::SIGCHLD);
    signals.extend(&file_size_signal());
    signals
}

/// Ends a child and its process group: with SIGTERM, then with SIGKILL if any of these processes has not ended in time.
pub fn end_group(child: &mut Child) {
    let Ok(group) = i32::try_from(child.id()).map(Pid::from_raw) else { return };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if killpg(group, signal) == Err(Errno::ESRCH) {
            break;
        }
        let end = Instant::now() + GRACE_PERIOD;
        while Instant::now() < end {
            let has_ended = !matches!(child.try_wait(), Ok(None));
            // A shell ends before what it runs, which still cleans up or ignores SIGTERM. Nothing survives SIGKILL.
            if has_ended && (signal == Signal::SIGKILL || killpg(group, None).is_err()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // It has received SIGKILL, so this does not take long.
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_returns_its_status_and_its_output() {
        let interruption = Interruption::watch().unwrap();
        let ended =
            interruption.run_captured(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        assert_eq!((ended.status.code(), ended.output.as_str()), (Some(3), "out\nerr"));
        let silent = interruption.run_captured_within(Command::new("sleep").arg("600"), Duration::from_millis(200));
        assert!(matches!(silent, Err(ChildError::System(error)) if error.kind() == io::ErrorKind::TimedOut));
        let missing = interruption.run_captured(&mut Command::new("/nonexistent/program"));
        assert!(matches!(missing, Err(ChildError::System(_))));
    }

    #[test]
    fn a_program_that_prints_without_end_is_ended_and_does_not_fill_the_memory() {
        let interruption = Interruption::watch().unwrap();
        // One stops when a write fails, one goes on.
        for script in ["exec cat /dev/zero", "while :; do head -c 65536 /dev/zero; done 2>/dev/null"] {
            let endless = interruption.run_for_output(Command::new("sh").args(["-c", script]));
            let Err(ChildError::System(error)) = endless else { panic!("{script}: {endless:?}") };
            assert_eq!(error.to_string(), "it printed more than 4 MiB", "{script}");
        }
        let long = interruption.run_for_output(Command::new("head").args(["-c", "4194304", "/dev/zero"])).unwrap();
        assert_eq!(long.output.len(), 4 << 20, "the limit itself is accepted");
    }

    #[test]
    fn a_program_that_changes_a_file_system_is_not_ended_for_its_output() {
        let interruption = Interruption::watch().unwrap();
        let script = "head -c 9000000 /dev/zero | tr '\\0' x; exit 5";
        let ended = interruption.run_captured(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!((ended.status.code(), ended.output.len()), (Some(5), 4 << 20));
    }

    #[test]
    fn output_to_the_device_stdout_is_captured() {
        let interruption = Interruption::watch().unwrap();
        let script = "echo 1; echo 2 >/dev/stdout; echo 3 >>/dev/stdout; echo 4 >/dev/stderr; echo 5";
        let mut command = Command::new("sh");
        command.args(["-ec", script]);
        // Also as another user than the one who made the pipe.
        if nix::unistd::geteuid().is_root() {
            command.uid(65534);
        }
        let ended = interruption.run_captured(&mut command).unwrap();
        assert_eq!((ended.status.code(), ended.output.as_str()), (Some(0), "1\n2\n3\n4\n5"));
    }

    #[test]
    fn a_process_that_a_program_leaves_behind_does_not_keep_the_launcher_waiting() {
        let interruption = Interruption::watch().unwrap();
        let ended = interruption.run_for_output(Command::new("sh").args(["-c", "sleep 600 & echo $!"])).unwrap();
        let process: i32 = ended.output.parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
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
            // To the thread that blocks it, because the other threads of a test program do not.
            nix::sys::pthread::pthread_kill(own_thread, Signal::SIGTERM).unwrap();
        });
        let result = interruption.run_captured(Command::new("sh").args(["-c", &script]));
        assert!(matches!(result, Err(ChildError::Interrupted(Interrupted(Signal::SIGTERM)))), "{result:?}");
        let sleeper: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let gone =
            || std::fs::read_to_string(format!("/proc/{sleeper}/stat")).map_or(true, |stat| stat.contains(") Z "));
        let end = Instant::now() + Duration::from_secs(20);
        while !gone() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(gone(), "process {sleeper} is still running");
    }

    #[test]
    fn a_process_that_ignores_sigterm_is_killed_although_its_parent_has_ended() {
        let mut command = Command::new("sh");
        command.args(["-c", "(trap '' TERM; echo; exec sleep 600) & wait"]).process_group(0).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        assert_eq!(output.read(&mut [0; 1]).unwrap(), 1);
        end_group(&mut child);
        // The end of the output: its last writer has ended.
        assert_eq!(output.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_long_command_is_reported_at_once_and_again() {
        let interruption = Interruption::watch().unwrap();
        let reports = std::rc::Rc::new(Cell::new(0));
        let counted = std::rc::Rc::clone(&reports);
        // Ends after the second report.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reported");
        let script = format!("while [ ! -e {} ]; do sleep 0.1; done", path.display());
        let report = move || {
            counted.set(counted.get() + 1);
            if counted.get() == 2 {
                std::fs::write(&path, "").unwrap();
            }
        };
        let status = interruption.while_reporting(report, || {
            interruption.run_with_output_on_stderr(Command::new("sh").args(["-c", &script]))
        });
        assert!(status.unwrap().success());
        assert_eq!(reports.get(), 2);
        // Without a command, nothing is reported.
        interruption.while_reporting(|| panic!("nothing takes long"), || ());
    }
}
