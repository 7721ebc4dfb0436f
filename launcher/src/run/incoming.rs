//! A machine that gets into its hypervisor in another way than by booting: it is resumed, or migrates from another
//! host.

use super::RunError;
use crate::control::{Condition, ControlError, Controller};
use crate::launch::Launch;
use crate::state::ProcessIdentity;
use crate::suspend::{Resumption, SuspendError};
use crate::volumes::{VolumeError, VolumeLock};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for the thread that loads a machine to find out that its hypervisor has ended.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to check whether a machine has arrived, and whether the other host has released its volumes.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How a machine gets into its hypervisor.
#[derive(Debug)]
pub(super) enum IncomingState {
    /// It was suspended, and is loaded from files.
    Resumption(Resumption),
    /// Its hypervisor receives it from another host, which the resource agent of the cluster arranges.
    Migration,
}

/// A machine that a thread waits for.
pub(super) struct IncomingMachine {
    resumption: Option<Arc<Resumption>>,
    wakes: UnixStream,
    arrived: mpsc::Receiver<Result<(), RunError>>,
    began: Instant,
}

impl IncomingMachine {
    /// Starts the thread. It locks the volumes when the machine has arrived.
    pub(super) fn start(
        incoming: IncomingState,
        launch: &Launch,
        hypervisor: ProcessIdentity,
        locks: Vec<VolumeLock>,
    ) -> Result<Self, RunError> {
        let failed = |source: io::Error| RunError::System { action: "waiting for the machine", source };
        let (wakes, waker) = UnixStream::pair().map_err(failed)?;
        let (sender, arrived) = mpsc::channel();
        let launch = launch.clone();
        let resumption = match incoming {
            IncomingState::Resumption(resumption) => Some(Arc::new(resumption)),
            IncomingState::Migration => None,
        };
        let shared = resumption.clone();
        thread::spawn(move || {
            let arrived = match shared {
                Some(resumption) => resumption.load(&launch, hypervisor).map_err(RunError::from),
                None => match receive(&launch, hypervisor) {
                    Reception::Arrived => take(locks, hypervisor),
                    Reception::Ended => Err(RunError::NotArrived(launch.name)),
                    // The supervisor reports the end of its hypervisor.
                    Reception::NeverWaited => return,
                },
            };
            // Fails if the machine has ended in the meantime; nothing waits for the answer then.
            let _ = sender.send(arrived);
            drop(waker);
        });
        Ok(Self { resumption, wakes, arrived, began: Instant::now() })
    }

    /// Returns the descriptor that becomes readable when the machine has arrived or failed to.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.wakes.as_fd()
    }

    /// Returns the result of the thread; `None` if it has not finished.
    pub(super) fn result(&self) -> Option<Result<(), RunError>> {
        self.arrived.recv().ok()
    }

    /// Removes what was saved, and returns what happened, for the user.
    pub(super) fn finish(self, launch: &Launch) -> (String, Result<(), SuspendError>) {
        let (name, milliseconds) = (&launch.name, self.began.elapsed().as_millis());
        match self.resumption {
            Some(resumption) => (format!("{name} was resumed within {milliseconds} ms"), resumption.finish(launch)),
            None => (format!("{name} has migrated to this host, within {milliseconds} ms"), Ok(())),
        }
    }

    /// Returns why a hypervisor that has ended could not load the machine, if the thread has received the reason.
    pub(super) fn refusal(&self) -> Option<RunError> {
        let is_refusal = |error: &RunError| {
            let is_refused = matches!(error, RunError::Suspended(SuspendError::Control(ControlError::Refused { .. })));
            is_refused || matches!(error, RunError::NotArrived(_))
        };
        self.arrived.recv_timeout(LAST_ANSWER_TIMEOUT).ok()?.err().filter(is_refusal)
    }
}

/// How the wait for a machine that migrates ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reception {
    /// The hypervisor has received the machine.
    Arrived,
    /// The hypervisor has waited for the machine, and ended without it.
    Ended,
    /// The hypervisor ended before it waited for the machine.
    NeverWaited,
}

/// Waits until the hypervisor has received the machine.
fn receive(launch: &Launch, hypervisor: ProcessIdentity) -> Reception {
    let Some(socket) = &launch.control else { return Reception::Arrived };
    let controller = Controller::new(socket, &launch.working_directory);
    let mut reception = Reception::NeverWaited;
    while hypervisor.is_alive() {
        match controller.condition() {
            Ok(Condition::Runs) => return Reception::Arrived,
            Ok(_) => reception = Reception::Ended,
            // It is starting, or has just ended.
            Err(_) => {}
        }
        thread::sleep(POLL_INTERVAL);
    }
    reception
}

/// Locks the volumes as soon as the hypervisor that the machine has left ends. Until then, no other machine can lock
/// them either.
fn take(mut locks: Vec<VolumeLock>, hypervisor: ProcessIdentity) -> Result<(), RunError> {
    for lock in &mut locks {
        loop {
            match lock.take() {
                Err(VolumeError::InUse { .. }) if hypervisor.is_alive() => thread::sleep(POLL_INTERVAL),
                taken => break taken?,
            }
        }
    }
    Ok(())
}
