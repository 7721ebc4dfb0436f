//! Stopping a machine: the guest is asked, then waited for, then the hypervisor is ended.

use crate::control::{ControlError, Controller};
use crate::launch::{ForcedStop, GracefulStep, Launch};
use crate::state::ProcessIdentity;
use nix::sys::signal::Signal;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often to look whether the hypervisor is gone.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the guest may take over the first request before the next one is made.
const LONGEST_GAP: Duration = Duration::from_secs(15);
/// Magic system requests are carried out at once, and build on each other.
const MAGIC_KEY_GAP: Duration = Duration::from_secs(1);
const XON: u8 = 0x11;
/// How long the hypervisor may take to end once it must.
const FORCED_PATIENCE: Duration = Duration::from_secs(5);

/// Why a machine could not be stopped.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It does not react, and there is no process to send a signal to.
    #[error("{name} does not stop, and nobody has written down which process it is: {source}")]
    NoProcess {
        /// The machine.
        name: String,
        /// Why the control socket was of no use.
        source: ControlError,
    },
    /// A signal could not be sent.
    #[error("process {pid} of {name} cannot be sent a signal: {source}")]
    Signal {
        /// The machine.
        name: String,
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// Even SIGKILL did not help.
    #[error("process {pid} of {name} is still there after SIGKILL: the kernel holds it")]
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
    /// It did not run.
    WasNotRunning,
    /// The guest shut down.
    Gracefully,
    /// The hypervisor ended when it was told to.
    Forced,
    /// The hypervisor was killed.
    Killed,
}

/// A machine to be stopped.
#[derive(Debug)]
pub struct StopTarget<'launch> {
    /// What was started.
    pub launch: &'launch Launch,
    /// Its process, if known.
    pub process: Option<ProcessIdentity>,
    /// The socket on which its supervisor serves its console, if there is one.
    pub console_socket: Option<PathBuf>,
}

/// Stops the machine. `timeout` is for the guest; afterwards its hypervisor is ended. What does not go as it should is
/// told to `talk`.
///
/// # Errors
/// [`StopError`].
pub fn stop(target: &StopTarget<'_>, timeout: Duration, talk: &mut dyn FnMut(&str)) -> Result<Stopped, StopError> {
    let launch = target.launch;
    let controller = launch.control.as_ref().map(|socket| Controller::new(socket, &launch.working_directory));
    let machine = Machine { target, controller };
    if machine.is_gone() {
        return Ok(Stopped::WasNotRunning);
    }
    if machine.ask_guest(timeout, talk) {
        return Ok(Stopped::Gracefully);
    }
    talk(&format!("the guest has not shut down within {} s; ending {}", timeout.as_secs(), launch.hypervisor));
    machine.force(talk)
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
                let asked = controller.clone().with_patience(Duration::from_secs(1)).status();
                matches!(asked, Err(ControlError::NobodyThere { .. }))
            }
            (None, None) => true,
        }
    }

    fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        loop {
            if self.is_gone() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            sleep(LOOK_EVERY);
        }
    }

    /// Whether the guest has shut down in time.
    fn ask_guest(&self, timeout: Duration, talk: &mut dyn FnMut(&str)) -> bool {
        let end = Instant::now() + timeout;
        let Some(controller) = &self.controller else { return self.wait(timeout) };
        let steps = &self.target.launch.shutdown.graceful;
        for (index, step) in steps.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            match controller.clone().with_patience(left.clamp(LOOK_EVERY, FORCED_PATIENCE)).ask_guest(step) {
                Ok(()) => self.nudge_console(step),
                Err(_) if self.is_gone() => return true,
                Err(error @ (ControlError::NobodyThere { .. } | ControlError::NoAnswer { .. })) => {
                    talk(&error.to_string());
                    return false;
                }
                Err(error) => {
                    talk(&error.to_string());
                    continue;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            let steps_left = u32::try_from(steps.len() - index).unwrap_or(1);
            let gap = match step {
                _ if steps_left == 1 => left,
                GracefulStep::KvmtoolSysrq(_) => MAGIC_KEY_GAP.min(left),
                _ => (left / steps_left).min(LONGEST_GAP),
            };
            if self.wait(gap) {
                return true;
            }
        }
        steps.is_empty() && self.wait(end.saturating_duration_since(Instant::now()))
    }

    /// kvmtool hands a magic key on only when it next reads its terminal (hw/serial.c), so something must be typed:
    /// XON, which a guest's terminal swallows. Without a supervisor only the user can type.
    fn nudge_console(&self, step: &GracefulStep) {
        if let (GracefulStep::KvmtoolSysrq(_), Some(socket)) = (step, &self.target.console_socket) {
            // A console that cannot be reached does no harm: the machine is then ended in the end.
            let _ = UnixStream::connect(socket).and_then(|mut console| console.write_all(&[XON]));
        }
    }

    fn force(&self, talk: &mut dyn FnMut(&str)) -> Result<Stopped, StopError> {
        let stop = &self.target.launch.shutdown.forced;
        let mut failure = None;
        if let (Some(controller), false) = (&self.controller, *stop == ForcedStop::Terminate) {
            match controller.clone().with_patience(FORCED_PATIENCE).force(stop) {
                Ok(()) => {}
                Err(_) if self.is_gone() => return Ok(Stopped::Forced),
                Err(error) => {
                    talk(&error.to_string());
                    failure = Some(error);
                }
            }
            if failure.is_none() && self.wait(FORCED_PATIENCE) {
                return Ok(Stopped::Forced);
            }
        }
        let name = || self.target.launch.name.clone();
        let Some(process) = &self.target.process else {
            let none = || ControlError::Unsupported("there is no control socket".to_owned());
            return Err(StopError::NoProcess { name: name(), source: failure.unwrap_or_else(none) });
        };
        for (signal, outcome) in [(Signal::SIGTERM, Stopped::Forced), (Signal::SIGKILL, Stopped::Killed)] {
            if signal == Signal::SIGKILL {
                talk(&format!("process {} does not end; killing it", process.pid));
            }
            process.signal(signal).map_err(|source| StopError::Signal { name: name(), pid: process.pid, source })?;
            if self.wait(FORCED_PATIENCE) {
                return Ok(outcome);
            }
        }
        Err(StopError::Unkillable { name: name(), pid: process.pid })
    }
}

#[cfg(test)]
mod tests;
