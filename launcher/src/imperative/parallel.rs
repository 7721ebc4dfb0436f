//! Work on several machines at the same time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::thread;

/// The most evaluations in parallel: each one needs a core and about 1 GiB of memory.
const MAX_CONCURRENT_JOBS: usize = 8;

/// Calls `work` for each item, on as many threads as there are cores, at most 8, and returns the results in the order of
/// the items.
pub fn in_parallel<Item: Sync, Output: Send>(items: &[Item], work: impl Fn(&Item) -> Output + Sync) -> Vec<Output> {
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(MAX_CONCURRENT_JOBS).min(items.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item);
                    locked(&results).push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The list is always complete, even if a thread has panicked while it held the lock.
fn locked<T>(results: &Mutex<T>) -> MutexGuard<'_, T> {
    results.lock().unwrap_or_else(PoisonError::into_inner)
}
