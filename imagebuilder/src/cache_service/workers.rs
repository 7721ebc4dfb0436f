//! The worker threads, which do the slow work: querying Nix, opening packs, making packs.

use super::nix_daemon::{NixDaemon, Validity, compare_validity};
use super::protocol::Reason;
use super::scheduler::Owner;
use super::{PackStore, WantedPack, in_one_line};
use rustix::event::{EventfdFlags, eventfd};
use std::any::Any;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long an idle worker keeps its connection to Nix's daemon.
const KEEP_CONNECTION: Duration = Duration::from_secs(5);

/// A piece of work.
#[derive(Debug)]
pub(super) enum Task {
    /// Ask Nix whether the store path is valid, and open its pack if there is one.
    LookUp {
        /// The connection of the client.
        connection: u64,
        /// The owner of the connection.
        owner: Owner,
        /// The pack.
        wanted: WantedPack,
    },
    /// Make a pack.
    Make {
        /// The pack.
        wanted: WantedPack,
        /// Set when no client waits for it any more.
        cancel: Arc<AtomicBool>,
    },
}

/// The outcome of a task.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The outcome of [`Task::LookUp`].
    LookedUp {
        /// The connection of the client.
        connection: u64,
        /// The owner of the connection.
        owner: Owner,
        /// The pack, or `None` if it must be made.
        found: Result<Option<File>, Refusal>,
    },
    /// The outcome of [`Task::Make`].
    Made {
        /// The pack.
        wanted: WantedPack,
        /// The pack's file.
        made: Result<File, Refusal>,
    },
}

/// The reason why a client gets no pack.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The reason, for programs.
    pub(super) reason: Reason,
    /// The reason, for people.
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Wakes the polling thread when there is an outcome.
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    /// Creates an event descriptor.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    fn wake(&self) {
        // If the counter is full, the thread has already been woken.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Resets the event descriptor.
    pub(super) fn reset(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The inputs that all workers share.
pub(super) struct WorkerInputs<'a> {
    /// Where packs are looked up and made.
    pub(super) packs: &'a dyn PackStore,
    /// The socket of Nix's daemon.
    pub(super) nix_daemon: &'a Path,
    /// Used to wake the polling thread for each outcome.
    pub(super) waker: &'a Waker,
}

impl WorkerInputs<'_> {
    /// Carries out tasks until there are no more.
    pub(super) fn work(&self, tasks: &Mutex<Receiver<Task>>, outcomes: &Sender<Outcome>) {
        let mut nix = NixDaemon::new(self.nix_daemon);
        loop {
            let next = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(KEEP_CONNECTION);
            let outcome = match next {
                Ok(task) => self.run_task(&mut nix, task),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    nix.close();
                    continue;
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
            };
            if outcomes.send(outcome).is_err() {
                return;
            }
            self.waker.wake();
        }
    }

    fn run_task(&self, nix: &mut NixDaemon, task: Task) -> Outcome {
        match task {
            Task::LookUp { connection, owner, wanted } => {
                Outcome::LookedUp { connection, owner, found: catch_panic(|| self.look_up(nix, &wanted)) }
            }
            Task::Make { wanted, cancel } => {
                let made = catch_panic(|| self.make(nix, &wanted, &cancel));
                Outcome::Made { wanted, made }
            }
        }
    }

    fn look_up(&self, nix: &mut NixDaemon, wanted: &WantedPack) -> Result<Option<File>, Refusal> {
        let found = nix.query(&wanted.path).map_err(|error| refusal_of(&error))?;
        require_valid(compare_validity(wanted, found.as_ref()), wanted)?;
        self.packs.find(wanted).map_err(|error| refusal_of(&error))
    }

    fn make(&self, nix: &mut NixDaemon, wanted: &WantedPack, cancel: &AtomicBool) -> Result<File, Refusal> {
        let found = nix.query_and_keep(&wanted.path).map_err(|error| refusal_of(&error))?;
        let nar_size_bytes = Some(require_valid(compare_validity(wanted, found.as_ref()), wanted)?);
        let wanted = WantedPack { nar_size_bytes, ..wanted.clone() };
        let made = self.packs.make(&wanted, cancel).map_err(|message| Refusal::new(Reason::Failed, message))?;
        made.ok_or_else(|| {
            Refusal::new(Reason::NoPack, format!("the service no longer has the pack of {}", wanted.path))
        })
    }
}

fn require_valid(validity: Validity, wanted: &WantedPack) -> Result<u64, Refusal> {
    match validity {
        Validity::Valid(nar_size_bytes) => Ok(nar_size_bytes),
        Validity::NotValid => {
            Err(Refusal::new(Reason::NotValid, format!("{} is not valid on this host according to Nix", wanted.path)))
        }
        Validity::NarHashMismatch => {
            Err(Refusal::new(Reason::NarHashMismatch, format!("{} has a different NAR hash on this host", wanted.path)))
        }
    }
}

fn refusal_of(error: &dyn Error) -> Refusal {
    Refusal::new(Reason::Failed, in_one_line(error))
}

/// Catches a panic, which is a defect of this program. It must only fail one request, not end a worker of the service.
fn catch_panic<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic: Box<dyn Any + Send>| {
        drop(panic);
        Err(Refusal::new(Reason::Failed, "a worker failed; this is a defect of microvm-image"))
    })
}
