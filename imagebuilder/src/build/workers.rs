//! Threads that do jobs, first come first served, and hand the products back.

use super::BuildError;
use super::job::{Job, Product, Worker, Workshop};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a job is for: handed back with its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ticket {
    /// A step of the sequence.
    Step(usize),
    /// A slot of the output.
    Slot(u64),
}

/// A product and what it is for.
pub(super) type Delivery = (Ticket, Result<Product, BuildError>);

/// The jobs that wait for a worker.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Ticket, Job)>,
    /// Workers that wait for a job.
    idle: usize,
    closed: bool,
}

/// Where jobs are handed in.
#[derive(Default)]
pub(super) struct Counter {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Counter {
    fn locked(&self) -> MutexGuard<'_, Queue> {
        // A queue of jobs is whole at every moment, whichever thread ended while it held the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a job in.
    pub(super) fn submit(&self, ticket: Ticket, job: Job) {
        let mut queue = self.locked();
        queue.jobs.push_back((ticket, job));
        // Waking is a system call even when nobody sleeps, and a build from the cache hands in thousands of short jobs.
        if queue.idle > 0 {
            self.wake.notify_one();
        }
    }

    fn close(&self) {
        let mut queue = self.locked();
        queue.jobs.clear();
        queue.closed = true;
        self.wake.notify_all();
    }

    fn next(&self) -> Option<(Ticket, Job)> {
        let mut queue = self.locked();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue.idle += 1;
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

/// Closes the counter when the one who hands in jobs is done, whatever the way.
struct Closing<'a>(&'a Counter);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs `direct` beside `threads` workers that do the jobs it hands in.
///
/// # Errors
/// What `direct` says, or that no thread can be started. `direct` is told how many workers there are: fewer than `threads`
/// when the system starts no more.
pub(super) fn with_workers<T>(
    workshop: &Workshop<'_>,
    threads: usize,
    direct: impl FnOnce(&Counter, &Receiver<Delivery>, usize) -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    let counter = Counter::default();
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let _closing = Closing(&counter);
        let mut started = 0;
        while started < threads {
            let (counter, sender) = (&counter, sender.clone());
            let worker = std::thread::Builder::new()
                .name("microvm-image worker".to_owned())
                .spawn_scoped(scope, move || work(workshop, counter, &sender));
            match worker {
                Ok(_) => started += 1,
                Err(error) if started == 0 => return Err(BuildError::Thread(error)),
                Err(_) => break,
            }
        }
        // Only workers hold senders: when all of them have ended, waiting for a product ends too.
        drop(sender);
        direct(&counter, &receiver, started)
    })
}

/// Tells the one who waits for products that there will be none, should a worker panic.
struct Watch<'a>(&'a Sender<Delivery>);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send((Ticket::Step(usize::MAX), Err(BuildError::WorkerPanicked)));
        }
    }
}

fn work(workshop: &Workshop<'_>, counter: &Counter, sender: &Sender<Delivery>) {
    let _watch = Watch(sender);
    let mut worker = match Worker::new(workshop) {
        Ok(worker) => worker,
        Err(error) => {
            let _ = sender.send((Ticket::Step(usize::MAX), Err(error)));
            return;
        }
    };
    while let Some((ticket, job)) = counter.next() {
        if sender.send((ticket, worker.run(job))).is_err() {
            return;
        }
    }
}
