//! A queue of jobs, and the worker threads that run them and return the outputs.

use super::BuildError;
use super::job::{Job, JobOutput, Worker, WorkerInputs};
use crate::threads::{affordable, note_started};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The purpose of a job, which is returned with its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobId {
    /// A step of the sequence.
    Step(usize),
    /// A slot of the output.
    Slot(u64),
    /// A job that only the end of the build waits for.
    Background,
}

/// An output and its purpose.
pub(super) type JobResult = (JobId, Result<JobOutput, BuildError>);

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<(JobId, Job)>,
    /// Copies, which run when there are no other jobs, because nothing waits for them.
    copies: VecDeque<(JobId, Job)>,
    /// Number of workers that wait for a job.
    idle: usize,
    closed: bool,
}

/// The jobs that wait for a worker.
#[derive(Default)]
pub(super) struct JobQueue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl JobQueue {
    fn locked(&self) -> MutexGuard<'_, Waiting> {
        // The queue is always consistent, even if a thread has panicked while it held the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job at the end, or at the front if it frees memory, or keeps others from waiting.
    pub(super) fn submit(&self, id: JobId, job: Job) {
        let mut waiting = self.locked();
        match job {
            Job::Write(_) | Job::ReadAhead(_) => waiting.jobs.push_front((id, job)),
            Job::Copy(_) => waiting.copies.push_back((id, job)),
            _ => waiting.jobs.push_back((id, job)),
        }
        // Waking is a system call even if no worker sleeps, and a build from packs submits thousands of short jobs.
        if waiting.idle > 0 {
            self.wake.notify_one();
        }
    }

    fn close(&self) {
        let mut waiting = self.locked();
        waiting.jobs.clear();
        waiting.copies.clear();
        waiting.closed = true;
        self.wake.notify_all();
    }

    fn next(&self) -> Option<(JobId, Job)> {
        let mut waiting = self.locked();
        loop {
            let next = waiting.jobs.pop_front();
            if let Some(job) = next.or_else(|| waiting.copies.pop_front()) {
                return Some(job);
            }
            if waiting.closed {
                return None;
            }
            waiting.idle += 1;
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }
}

/// Closes the queue when the submitter of jobs ends, for any reason.
struct CloseGuard<'a>(&'a JobQueue);

impl Drop for CloseGuard<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs `direct` with `threads` workers, which run the jobs that it submits. `direct` receives the number of workers,
/// which is smaller than `threads` if the system does not allow more.
///
/// # Errors
/// The error of `direct`, or no thread can be started.
pub(super) fn with_workers<T>(
    inputs: &WorkerInputs<'_>,
    threads: usize,
    direct: impl FnOnce(&JobQueue, &Receiver<JobResult>, usize) -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    let queue = JobQueue::default();
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let _close = CloseGuard(&queue);
        let mut started = 0;
        while started < affordable(threads) {
            let (queue, sender) = (&queue, sender.clone());
            let worker = std::thread::Builder::new()
                .name("microvm-image worker".to_owned())
                .spawn_scoped(scope, move || work(inputs, queue, &sender));
            match worker {
                Ok(_) => started += 1,
                Err(error) if started == 0 => return Err(BuildError::Thread(error)),
                Err(_) => break,
            }
        }
        note_started(started, threads);
        // Now only workers have senders, so that waiting for an output ends when all workers have ended.
        drop(sender);
        direct(&queue, &receiver, started)
    })
}

/// Sends an error to the receiver of outputs if the worker panics.
struct PanicGuard<'a>(&'a Sender<JobResult>);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send((JobId::Background, Err(BuildError::WorkerPanicked)));
        }
    }
}

fn work(inputs: &WorkerInputs<'_>, queue: &JobQueue, sender: &Sender<JobResult>) {
    let _guard = PanicGuard(sender);
    let mut worker = match Worker::new(inputs) {
        Ok(worker) => worker,
        Err(error) => {
            let _ = sender.send((JobId::Background, Err(error)));
            return;
        }
    };
    while let Some((id, job)) = queue.next() {
        if sender.send((id, worker.run(job))).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_sends_an_error_instead_of_leaving_the_build_waiting() {
        let (sender, receiver) = channel();
        let worker = std::thread::spawn(move || {
            let _guard = PanicGuard(&sender);
            panic!("a defect, for the test");
        });
        assert!(worker.join().is_err());
        let (id, job_output) = receiver.recv().expect("an error");
        assert_eq!(id, JobId::Background);
        let error = job_output.expect_err("an error").to_string();
        assert_eq!(error, "a worker thread failed; this is a defect of microvm-image");
    }

    #[test]
    fn an_impossible_state_is_named_as_a_defect_of_the_program() {
        let error = BuildError::Defect { what: "a job made no segment" }.to_string();
        assert_eq!(error, "a job made no segment; this is a defect of microvm-image");
    }
}
