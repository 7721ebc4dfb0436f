//! Stopping a machine: asks the guest to shut down, waits, and ends the hypervisor only if the guest does not.

use crate::control::{ControlError, Controller};
use crate::launch::{ForcedStop, GracefulStep, Launch};
use crate::sockets::connect_to;
use crate::state::{Activity, MachineState, ProcessIdentity, StateError};
use nix::sys::signal::Signal;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often to check whether the hypervisor has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long to wait after a request before sending the next one.
const MAX_REQUEST_INTERVAL: Duration = Duration::from_secs(15);
/// How long to wait after the last request before starting over with the first: the guest may not have been ready for
/// it.
const REPEAT_AFTER: Duration = Duration::from_secs(30);
/// The gap between magic system requests. The guest handles each one at once, and each depends on the one before.
const MAGIC_KEY_INTERVAL: Duration = Duration::from_secs(2);
const XON: u8 = 0x11;
/// How long to wait for the first response. Doubled after each failure, because a loaded host is slow and the control
/// socket may be busy with another client.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait before retrying a failed request.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long the hypervisor may take to respond to a request to exit, and then to exit.
const FORCED_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the hypervisor may take to exit after SIGTERM, during which it flushes its disk images.
const TERMINATION_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a machine could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It does not respond, and its process is not known.
    #[error("{name} does not stop, and its process is not known, so no signal can be sent: {source}")]
    NoProcess {
        /// The machine.
        name: String,
        /// Why the request over the control socket failed.
        source: ControlError,
    },
    /// The state of the machine cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// A signal could not be sent.
    #[error("cannot send a signal to process {pid} of {name}: {source}")]
    Signal {
        /// The machine.
        name: String,
        /// The process.
        pid: i32,
        /// The error of the system.
        source: io::Error,
    },
    /// The process survived SIGKILL.
    #[error("process {pid} of {name} still exists after SIGKILL: it waits in the kernel, perhaps for a disk")]
    Unkillable {
        /// The machine.
        name: String,
        /// The process.
        pid: i32,
    },
}

/// How a machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The machine was not running.
    WasNotRunning,
    /// The guest shut down.
    Gracefully,
    /// The hypervisor exited on request.
    Forced,
    /// The hypervisor was killed.
    Killed,
}

/// A machine to stop.
#[derive(Debug)]
pub struct StopTarget<'launch> {
    /// The launch of the machine.
    pub launch: &'launch Launch,
    /// The hypervisor's process, if known.
    pub process: Option<ProcessIdentity>,
    /// The socket that serves its console, if it has a supervisor.
    pub console_socket: Option<PathBuf>,
    /// Whether the guest is paused and its memory is saved, so that it cannot shut down.
    pub is_saved: bool,
}

/// Stops the machine. The guest has `timeout` to shut down; failed requests are retried during that time. After it the
/// hypervisor is ended. Passes each problem to `message` as one line.
///
/// # Errors
/// Returns [`StopError`].
pub fn stop(target: &StopTarget<'_>, timeout: Duration, message: &mut dyn FnMut(&str)) -> Result<Stopped, StopError> {
    let launch = target.launch;
    let controller = launch.control.as_ref().map(|socket| Controller::new(socket, &launch.working_directory));
    let machine = Machine { target, controller };
    if machine.is_gone() {
        return Ok(Stopped::WasNotRunning);
    }
    if target.is_saved {
        return machine.force_stop(message);
    }
    let (hypervisor, seconds) = (launch.hypervisor, timeout.as_secs());
    match machine.request_shutdown(timeout, message) {
        Guest::ShutDown => return Ok(Stopped::Gracefully),
        Guest::Asked => message(&format!("the guest has not shut down within {seconds} s; ending {hypervisor}")),
        Guest::NotAsked => {
            message(&format!("the guest could not be asked to shut down within {seconds} s; ending {hypervisor}"));
        }
    }
    machine.force_stop(message)
}

/// Ends a start by sending SIGTERM to the launcher, which then removes what it has created. If it has not ended after
/// `timeout`, or after the time that this takes if that is longer, kills the launcher. Also returns if the machine is running after all because the signal came too late.
///
/// # Errors
/// Returns [`StopError`].
pub fn end_start(state: &MachineState, timeout: Duration, message: &mut dyn FnMut(&str)) -> Result<Stopped, StopError> {
    let Activity::Starting(machine) = state.activity()? else { return Ok(Stopped::WasNotRunning) };
    let (launcher, name) = (machine.launcher, state.name());
    let for_launcher = timeout.max(TERMINATION_TIMEOUT);
    for (signal, outcome, timeout) in
        [(Signal::SIGTERM, Stopped::Forced, for_launcher), (Signal::SIGKILL, Stopped::Killed, TERMINATION_TIMEOUT)]
    {
        if signal == Signal::SIGKILL {
            let seconds = for_launcher.as_secs();
            message(&format!("the start has not ended within {seconds} s; killing process {}", launcher.pid));
        }
        let failed = |source| StopError::Signal { name: name.to_owned(), pid: launcher.pid, source };
        launcher.signal(signal).map_err(failed)?;
        let end = Instant::now() + timeout;
        loop {
            let is_starting = matches!(state.activity()?, Activity::Starting(_));
            // A supervisor that has received the signal stops its machine itself.
            if !is_starting && (!launcher.is_alive() || matches!(state.activity()?, Activity::Running(_))) {
                return Ok(outcome);
            }
            if Instant::now() >= end {
                break;
            }
            sleep(POLL_INTERVAL);
        }
    }
    Err(StopError::Unkillable { name: name.to_owned(), pid: launcher.pid })
}

/// The result of the requests to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guest {
    ShutDown,
    /// It received a request, but did not shut down in time.
    Asked,
    /// No request reached it in time.
    NotAsked,
}

struct Machine<'target> {
    target: &'target StopTarget<'target>,
    controller: Option<Controller>,
}

impl Machine<'_> {
    fn is_gone(&self) -> bool {
        match (&self.target.process, &self.controller) {
            (Some(process), _) => !process.is_alive(),
            (None, Some(controller)) => {
                let status = controller.clone().with_timeout(Duration::from_secs(1)).status();
                matches!(status, Err(ControlError::NotListening { .. }))
            }
            (None, None) => true,
        }
    }

    fn wait(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        loop {
            if self.is_gone() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            sleep(POLL_INTERVAL.min(left));
        }
    }

    fn request_shutdown(&self, timeout: Duration, message: &mut dyn FnMut(&str)) -> Guest {
        let end = Instant::now() + timeout;
        let steps = &self.target.launch.shutdown.graceful;
        let (Some(controller), false) = (&self.controller, steps.is_empty()) else {
            return if self.wait(timeout) { Guest::ShutDown } else { Guest::NotAsked };
        };
        let mut problems = Problems::default();
        let (mut outcome, mut timeout) = (Guest::NotAsked, FIRST_TIMEOUT);
        let mut index = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let request = &steps[index % steps.len()];
            let answer =
                controller.clone().with_timeout(timeout.min(left).max(POLL_INTERVAL)).request_shutdown(request);
            let pause = match &answer {
                Ok(()) => {
                    self.write_xon(request);
                    (outcome, timeout) = (Guest::Asked, FIRST_TIMEOUT);
                    index += 1;
                    gap_after(steps, index - 1, left)
                }
                // The hypervisor responds. It may accept another request, or this one later.
                Err(ControlError::Refused { .. } | ControlError::Unsupported(_)) => {
                    index += 1;
                    RETRY_AFTER
                }
                Err(_) => {
                    timeout = timeout.saturating_mul(2).min(MAX_TIMEOUT);
                    RETRY_AFTER
                }
            };
            if self.wait(pause.min(end.saturating_duration_since(Instant::now()))) {
                return Guest::ShutDown;
            }
            // Only now, because the request also fails while the hypervisor ends.
            if let Err(error) = &answer {
                problems.report(error, message);
            }
            if Instant::now() >= end {
                return outcome;
            }
        }
    }

    /// kvmtool delivers a magic key only when it next reads its terminal (hw/serial.c), so something must be typed.
    /// This types XON, which a guest's terminal ignores. Without a supervisor, only the user can type.
    fn write_xon(&self, step: &GracefulStep) {
        if let (GracefulStep::KvmtoolSysrq(_), Some(socket)) = (step, &self.target.console_socket) {
            // Without a console, the request is delivered at the next key press, or the hypervisor is ended after the
            // timeout.
            let _ = connect_to(socket).and_then(|mut console| console.write_all(&[XON]));
        }
    }

    fn force_stop(&self, message: &mut dyn FnMut(&str)) -> Result<Stopped, StopError> {
        let stop = &self.target.launch.shutdown.forced;
        let mut failure = None;
        if let (Some(controller), false) = (&self.controller, *stop == ForcedStop::Terminate) {
            match controller.clone().with_timeout(FORCED_TIMEOUT).force_stop(stop) {
                Ok(()) => {}
                Err(_) if self.is_gone() => return Ok(Stopped::Forced),
                Err(error) => {
                    message(&error.to_string());
                    failure = Some(error);
                }
            }
            if failure.is_none() && self.wait(FORCED_TIMEOUT) {
                return Ok(Stopped::Forced);
            }
        }
        let name = || self.target.launch.name.clone();
        let Some(process) = &self.target.process else {
            let reason = match self.controller {
                Some(_) => "it still runs, although it accepted the request to exit",
                None => "the machine has no control socket",
            };
            let source = failure.unwrap_or_else(|| ControlError::Unsupported(reason.to_owned()));
            return Err(StopError::NoProcess { name: name(), source });
        };
        for (signal, outcome) in [(Signal::SIGTERM, Stopped::Forced), (Signal::SIGKILL, Stopped::Killed)] {
            if signal == Signal::SIGKILL {
                message(&format!("process {} does not end; killing it", process.pid));
            }
            process.signal(signal).map_err(|source| StopError::Signal { name: name(), pid: process.pid, source })?;
            if self.wait(TERMINATION_TIMEOUT) {
                return Ok(outcome);
            }
        }
        Err(StopError::Unkillable { name: name(), pid: process.pid })
    }
}

/// Returns how long to wait after the request with this index before sending the next one.
fn gap_after(steps: &[GracefulStep], index: usize, left: Duration) -> Duration {
    let index = index % steps.len();
    let steps_left = u32::try_from(steps.len() - index).unwrap_or(1);
    match &steps[index] {
        _ if steps_left == 1 => REPEAT_AFTER,
        GracefulStep::KvmtoolSysrq(_) => MAGIC_KEY_INTERVAL,
        _ => (left / steps_left).min(MAX_REQUEST_INTERVAL),
    }
}

/// Reports each problem only once, however often it occurs.
#[derive(Default)]
struct Problems {
    reported: Vec<String>,
}

impl Problems {
    fn report(&mut self, error: &ControlError, message: &mut dyn FnMut(&str)) {
        let kind = match error {
            // The reason in the error varies from one attempt to the next.
            ControlError::NoAnswer { .. } => "no answer".to_owned(),
            ControlError::NotListening { .. } => "nobody there".to_owned(),
            ControlError::UnexpectedResponse { .. } => "another protocol".to_owned(),
            other => other.to_string(),
        };
        if !self.reported.contains(&kind) {
            message(&format!("{error}; asking again until the timeout"));
            self.reported.push(kind);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
