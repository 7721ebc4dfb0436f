//! The service: one thread serves all clients without blocking on any of them, and workers do the slow work.
//!
//! A request is first looked up: is the store path valid, and does its pack exist? Missing packs are made by other
//! workers, each pack once for all clients that request it. For both kinds of work the users take turns, and lookups
//! never wait for packs that are being made.

use super::connections::{Connections, accept};
use super::owners::Owners;
use super::protocol::{Answer, Reason, Request, WantedFile};
use super::scheduler::{Owner, Scheduler};
use super::workers::{Outcome, Refusal, Task, Waker, WorkerInputs};
use super::{PackStore, WantedPack, reopen};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Interval at which time limits are checked.
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// How long no client is accepted after accepting one has failed, because the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of clients to accept before the others are served again.
const MAX_ACCEPTED_AT_ONCE: usize = 16;
/// Number of threads for lookups.
const LOOKUP_WORKERS: usize = 2;

/// The limits of the service.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum number of packs that are made at the same time, at least 2. One user can use all but one of these
    /// workers.
    pub makers: usize,
    /// Maximum number of connected clients.
    pub clients: usize,
    /// Maximum number of connected clients of one user.
    pub clients_per_user: usize,
    /// Time limit for a request, and for making a pack.
    pub request_time: Duration,
    /// Time limit for a connection without a request.
    pub silence: Duration,
    /// The service ends after this time without a client; `None` means never.
    pub idle_exit: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            makers: 2,
            clients: 256,
            clients_per_user: 16,
            request_time: Duration::from_secs(600),
            silence: Duration::from_secs(30),
            idle_exit: None,
        }
    }
}

/// A service that is ready to run.
pub struct Service<'a> {
    /// The socket that clients connect to.
    pub listener: OwnedFd,
    /// Where packs are looked up and made.
    pub packs: &'a dyn PackStore,
    /// The socket of Nix's daemon.
    pub nix_daemon: &'a Path,
    /// The users that count as one.
    pub owners: Owners,
    /// How much clients can use at once.
    pub limits: Limits,
}

/// The service cannot continue.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A system call failed.
    #[error("cannot {action}")]
    System {
        /// The operation that failed, as it follows "cannot".
        action: &'static str,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

fn system(action: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::System { action, source }
}

impl Service<'_> {
    /// Serves until `stop` is set, or until there has been no client for the configured time. `report` receives lines
    /// for the log.
    ///
    /// # Errors
    /// A thread cannot be started, or waiting for clients fails.
    pub fn run(&self, stop: &AtomicBool, report: &mut dyn FnMut(&str)) -> Result<(), ServeError> {
        let flags = fcntl_getfl(&self.listener).map_err(|error| system("get the flags of the socket")(error.into()))?;
        fcntl_setfl(&self.listener, flags | OFlags::NONBLOCK)
            .map_err(|error| system("set the socket up")(error.into()))?;
        let waker = Waker::new().map_err(system("create an event descriptor"))?;
        let workshop = WorkerInputs { packs: self.packs, nix_daemon: self.nix_daemon, waker: &waker };
        let (lookups, lookup_tasks) = mpsc::channel();
        let (builds, making_tasks) = mpsc::channel();
        let (outcome_sender, outcomes) = mpsc::channel();
        let queues =
            [(LOOKUP_WORKERS, Mutex::new(lookup_tasks)), (self.limits.makers.max(2), Mutex::new(making_tasks))];
        thread::scope(|scope| {
            let mut started = [0; 2];
            for (count, (workers, tasks)) in started.iter_mut().zip(&queues) {
                for _ in 0..*workers {
                    let (workshop, sender) = (&workshop, outcome_sender.clone());
                    let work = move || workshop.work(tasks, &sender);
                    match thread::Builder::new().name("cache worker".to_owned()).spawn_scoped(scope, work) {
                        Ok(_) => *count += 1,
                        Err(error) if *count == 0 => return Err(system("start a thread")(error)),
                        Err(_) => break,
                    }
                }
            }
            let [lookup_workers, makers] = started;
            let wanted: usize = queues.iter().map(|(workers, _)| workers).sum();
            if lookup_workers + makers < wanted {
                let started = lookup_workers + makers;
                report(&format!(
                    "warning: only {started} of {wanted} threads could be started, so that requests wait longer"
                ));
            }
            let mut server = Server {
                service: self,
                waker: &waker,
                connections: Connections::default(),
                lookups: Pool { scheduler: Scheduler::new(lookup_workers), tasks: lookups },
                builds: Pool { scheduler: Scheduler::new(makers), tasks: builds },
                jobs: HashMap::new(),
                report,
            };
            server.run(&outcomes, stop)
        })
    }
}

/// The workers of one kind, and the tasks that wait for them.
struct Pool<Item> {
    scheduler: Scheduler<Item>,
    tasks: Sender<Task>,
}

/// A pack that is being made or waits for a worker.
#[derive(Debug, Default)]
struct Job {
    /// The connections that wait for it.
    waiting: Vec<u64>,
    /// Set when the work begins: its owner, its start, and the flag that cancels it.
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    owner: Owner,
    since: Instant,
    cancel: Arc<AtomicBool>,
}

struct Server<'a> {
    service: &'a Service<'a>,
    waker: &'a Waker,
    connections: Connections,
    lookups: Pool<u64>,
    builds: Pool<WantedPack>,
    jobs: HashMap<WantedPack, Job>,
    report: &'a mut dyn FnMut(&str),
}

impl Server<'_> {
    fn run(&mut self, outcomes: &Receiver<Outcome>, stop: &AtomicBool) -> Result<(), ServeError> {
        let mut busy = Instant::now();
        let mut accept_after = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            self.assign_tasks();
            let ready = self.wait(Instant::now() >= accept_after).map_err(system("wait for clients"))?;
            self.waker.reset();
            while let Ok(outcome) = outcomes.try_recv() {
                self.handle_outcome(outcome);
            }
            for (number, gone) in ready.connections {
                if gone { self.drop_client(number) } else { self.read(number) }
            }
            if ready.listener && self.accept().is_err() {
                accept_after = Instant::now() + ACCEPT_PAUSE;
            }
            self.check_timeouts();
            if self.connections.count() > 0 || !self.builds.scheduler.is_idle() {
                busy = Instant::now();
            }
            if self.service.limits.idle_exit.is_some_and(|limit| busy.elapsed() >= limit) {
                break;
            }
        }
        for job in self.jobs.values() {
            job.cancel();
        }
        Ok(())
    }

    /// Waits for something to do, at most until the next deadline.
    fn wait(&self, accepts: bool) -> io::Result<Ready> {
        let mut numbers = Vec::with_capacity(self.connections.count());
        let listened = if accepts { PollFlags::IN } else { PollFlags::empty() };
        let mut polled = vec![PollFd::new(&self.service.listener, listened), PollFd::new(self.waker, PollFlags::IN)];
        for (number, socket, waits) in self.connections.sockets() {
            // A client that waits for an answer is not read: its next request stays in its socket.
            let wanted = if waits { PollFlags::empty() } else { PollFlags::IN };
            numbers.push(number);
            polled.push(PollFd::new(socket, wanted));
        }
        match poll(&mut polled, Some(&POLL_INTERVAL)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        let connections = numbers
            .into_iter()
            .zip(&polled[2..])
            .filter(|(_, polled)| !polled.revents().is_empty())
            .map(|(number, polled)| (number, polled.revents().intersects(gone)))
            .collect();
        Ok(Ready { listener: polled[0].revents().contains(PollFlags::IN), connections })
    }

    /// Accepts waiting clients, within the limits.
    ///
    /// # Errors
    /// No client can be accepted at the moment.
    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..MAX_ACCEPTED_AT_ONCE {
            let (socket, user) = match accept(&self.service.listener) {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The client has already closed the connection.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    (self.report)(&format!("cannot accept a client: {error}"));
                    return Err(error);
                }
            };
            let (owner, limits) = (self.service.owners.of(user), &self.service.limits);
            if self.connections.count() >= limits.clients || self.connections.count_of(owner) >= limits.clients_per_user
            {
                let refusal = Answer::refused(Reason::Busy, "the cache service has reached its limit of clients");
                if let Ok(message) = refusal.message() {
                    let _ = super::messages::send(&socket, &message, None);
                }
                continue;
            }
            self.connections.add(socket, owner);
        }
        Ok(())
    }

    /// Reads a request.
    fn read(&mut self, number: u64) {
        let message = match self.connections.receive(number) {
            Ok(Some(message)) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => return self.connections.remove(number),
        };
        let request = match Request::parse(&message) {
            Ok(request) => request,
            Err(error) => {
                let reason = match error {
                    super::protocol::ProtocolError::Version { .. } => Reason::Version,
                    _ => Reason::Malformed,
                };
                self.refuse(number, &Refusal::new(reason, error.to_string()));
                return self.connections.remove(number);
            }
        };
        let encoder = self.service.packs.encoder(&request.settings);
        if request.encoder != encoder {
            let message = format!("this service makes packs with {encoder}");
            return self.refuse(number, &Refusal::new(Reason::Encoder, message));
        }
        // The parser has checked that there is one.
        let Some(nar_hash) = request.store_path.nar_hash else { return self.connections.remove(number) };
        let (path, settings, file) = (request.store_path.path, request.settings, request.file);
        let wanted = WantedPack { path, nar_hash, nar_size_bytes: None, settings, file };
        self.connections.wait(number, wanted, self.service.limits.request_time);
        if let Some(owner) = self.connections.owner(number) {
            self.lookups.scheduler.push(owner, number);
        }
    }

    /// Gives free workers their next tasks.
    fn assign_tasks(&mut self) {
        while let Some((owner, connection)) = self.lookups.scheduler.next() {
            match self.connections.wanted(connection).cloned() {
                Some(wanted) => self.lookups.assign(Task::LookUp { connection, owner, wanted }),
                None => self.lookups.scheduler.finished(owner),
            }
        }
        while let Some((owner, wanted)) = self.builds.scheduler.next() {
            // A pack can be in the queues of several owners, and perhaps no client waits for it any more.
            match self.jobs.get_mut(&wanted) {
                Some(job) if job.running.is_none() => {
                    let cancel = Arc::new(AtomicBool::new(false));
                    job.running = Some(Running { owner, since: Instant::now(), cancel: Arc::clone(&cancel) });
                    self.builds.assign(Task::Make { wanted, cancel });
                }
                _ => self.builds.scheduler.finished(owner),
            }
        }
    }

    /// Handles the outcome of a worker's task.
    fn handle_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::LookedUp { connection, owner, found } => {
                self.lookups.scheduler.finished(owner);
                match found {
                    Ok(Some(pack)) => self.connections.answer(connection, &Answer::PACK, Some(&pack)),
                    Ok(None) => self.queue_pack(connection),
                    Err(refusal) => self.refuse(connection, &refusal),
                }
            }
            Outcome::Made { wanted, made } => self.deliver_pack(wanted, made),
        }
    }

    /// Queues the pack that a client waits for.
    fn queue_pack(&mut self, connection: u64) {
        let (Some(owner), Some(wanted)) = (self.connections.owner(connection), self.connections.wanted(connection))
        else {
            return;
        };
        let job = self.jobs.entry(wanted.clone()).or_default();
        job.waiting.push(connection);
        if job.running.is_none() {
            // It is added to this owner's queue even if it is already in another's, because an owner must not wait for
            // another's queue.
            self.builds.scheduler.push(owner, wanted.clone());
        }
    }

    fn deliver_pack(&mut self, wanted: WantedPack, made: Result<File, Refusal>) {
        let Some(job) = self.jobs.remove(&wanted) else { return };
        self.builds.scheduler.discard(&wanted);
        let mut stopped = false;
        if let Some(running) = &job.running {
            self.builds.scheduler.finished(running.owner);
            stopped = running.cancel.load(Ordering::Relaxed);
        }
        match made {
            Ok(pack) => {
                for connection in job.waiting {
                    match reopen(&pack) {
                        Ok(own) => self.connections.answer(connection, &Answer::PACK, Some(&own)),
                        Err(error) => self.refuse(connection, &Refusal::new(Reason::Failed, error.to_string())),
                    }
                }
            }
            // Clients that requested it after it was cancelled still wait for it.
            Err(_) if stopped => job.waiting.into_iter().for_each(|connection| self.queue_pack(connection)),
            Err(refusal) => {
                if refusal.reason != Reason::NoPack {
                    let file = match wanted.file {
                        WantedFile::Pack => "the pack",
                        WantedFile::BlockHashes => "the hashes",
                    };
                    (self.report)(&format!("cannot create {file} of {}: {}", wanted.path, refusal.message));
                }
                for connection in job.waiting {
                    self.refuse(connection, &refusal);
                }
            }
        }
    }

    fn refuse(&mut self, connection: u64, refusal: &Refusal) {
        self.connections.answer(connection, &Answer::refused(refusal.reason, &refusal.message), None);
    }

    /// Ends a connection, and cancels the work that is done only for it.
    fn drop_client(&mut self, number: u64) {
        self.connections.remove(number);
        self.cancel_waiting(number);
    }

    /// Removes a connection from the queues and from the packs that it waits for.
    fn cancel_waiting(&mut self, number: u64) {
        self.lookups.scheduler.discard(&number);
        let queued = &mut self.builds.scheduler;
        self.jobs.retain(|wanted, job| {
            job.waiting.retain(|waiting| *waiting != number);
            if job.waiting.is_empty() {
                job.cancel();
            }
            // A running job remains until its worker has ended.
            let remains = !job.waiting.is_empty() || job.running.is_some();
            if !remains {
                queued.discard(wanted);
            }
            remains
        });
    }

    fn check_timeouts(&mut self) {
        let limits = &self.service.limits;
        let timed_out = self.connections.timed_out(limits.silence);
        let late = Refusal::new(Reason::TooSlow, "the pack took longer than the cache service allows");
        for number in timed_out.silent {
            self.connections.remove(number);
        }
        for number in timed_out.late {
            self.refuse(number, &late);
            self.cancel_waiting(number);
        }
        for number in timed_out.due_heartbeats {
            self.connections.heartbeat(number);
            if self.connections.owner(number).is_none() {
                self.cancel_waiting(number);
            }
        }
        let request_time = limits.request_time;
        let mut refused = Vec::new();
        for job in self.jobs.values_mut() {
            if job.running.as_ref().is_some_and(|running| {
                running.since.elapsed() >= request_time && !running.cancel.load(Ordering::Relaxed)
            }) {
                job.cancel();
                refused.append(&mut job.waiting);
            }
        }
        for number in refused {
            self.refuse(number, &late);
        }
    }
}

/// The sockets that have become ready.
struct Ready {
    /// Whether clients wait to be accepted.
    listener: bool,
    /// Connections that have a message, and whether they have ended.
    connections: Vec<(u64, bool)>,
}

impl<Item> Pool<Item> {
    fn assign(&self, task: Task) {
        // Sending cannot fail, because the workers run until this sender is dropped.
        let _ = self.tasks.send(task);
    }
}

impl Job {
    fn cancel(&self) {
        if let Some(running) = &self.running {
            running.cancel.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ImageSettings;
    use crate::store_path::StorePath;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    struct NoPacks;

    impl PackStore for NoPacks {
        fn encoder(&self, _: &ImageSettings) -> String {
            String::new()
        }

        fn find(&self, _: &WantedPack) -> io::Result<Option<File>> {
            Ok(None)
        }

        fn make(&self, _: &WantedPack, _: &AtomicBool) -> Result<Option<File>, String> {
            Err("no packs".to_owned())
        }
    }

    fn sockets() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn the_queues_do_not_grow_when_a_client_connects_requests_and_disconnects_again_and_again() {
        let service = Service {
            listener: sockets().0,
            packs: &NoPacks,
            nix_daemon: Path::new("/nonexistent"),
            owners: Owners::parse(""),
            limits: Limits::default(),
        };
        let (waker, mut report) = (Waker::new().unwrap(), |_: &str| {});
        let (tasks, _kept) = mpsc::channel();
        let mut server = Server {
            service: &service,
            waker: &waker,
            connections: Connections::default(),
            lookups: Pool { scheduler: Scheduler::new(2), tasks: tasks.clone() },
            builds: Pool { scheduler: Scheduler::new(2), tasks },
            jobs: HashMap::new(),
            report: &mut report,
        };
        let request = |server: &mut Server<'_>, number: u64, name: u64| {
            let path = StorePath::from_base_name(&format!("{name:032}-path")).unwrap();
            let wanted = WantedPack {
                path,
                nar_hash: [7; 32],
                nar_size_bytes: None,
                settings: ImageSettings::default(),
                file: WantedFile::Pack,
            };
            server.connections.add(sockets().0, 1000);
            server.connections.wait(number, wanted, Duration::from_secs(600));
            server.lookups.scheduler.push(1000, number);
            server.queue_pack(number);
        };
        // One client keeps waiting for the first pack; all workers are busy.
        request(&mut server, 0, 0);
        for number in 1..100 {
            request(&mut server, number, number % 7);
            server.drop_client(number);
        }
        assert_eq!(server.jobs.len(), 1);
        server.drop_client(0);
        assert!(server.builds.scheduler.is_idle() && server.lookups.scheduler.is_idle() && server.jobs.is_empty());
    }
}
