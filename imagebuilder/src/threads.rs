//! Starts threads, as many as requested or as many as the system allows.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use rustix::process::{Resource, getrlimit};
use std::cell::Cell;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};

/// Maximum number of threads of a command. Each thread has its own buffers, and more threads than processors do not
/// help.
pub const MAX_JOBS: usize = 256;

/// Minimum number of threads for work that mostly waits for the disk, such as listing directories. Disks answer many
/// requests at once: 8 threads list 313 store paths that are not in memory in 0.4 s, 2 threads in 0.5 to 1.2 s.
const DISK_THREADS: usize = 8;

/// What each thread takes of the address space: its stack, its buffers, and the 64 MiB that glibc reserves for its
/// allocations (HEAP_MAX_SIZE in malloc/arena.c).
const ADDRESS_SPACE_BYTES: u64 = 128 << 20;

/// What the rest of the program may still take of the address space: the plan, the tables of the image, open packs.
const RESERVE_BYTES: u64 = 128 << 20;

/// Threads that could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// How many were started.
    pub started: usize,
    /// How many were wanted.
    pub wanted: usize,
}

impl fmt::Display for Shortage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "only {} of {} threads could be started, so that this took longer", self.started, self.wanted)
    }
}

/// The largest shortage that was not reported yet.
static SHORTAGE: Mutex<Option<Shortage>> = Mutex::new(None);

/// Returns the largest shortage of threads since the last call. The libraries continue with fewer threads, and their caller
/// tells the user.
pub fn take_shortage() -> Option<Shortage> {
    SHORTAGE.lock().unwrap_or_else(PoisonError::into_inner).take()
}

pub(crate) fn note_started(started: usize, wanted: usize) {
    let mut largest = SHORTAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let missing = |shortage: &Shortage| shortage.wanted - shortage.started;
    let found = Shortage { started: started.min(wanted), wanted };
    if started < wanted && largest.as_ref().is_none_or(|largest| missing(largest) < missing(&found)) {
        *largest = Some(found);
    }
}

/// Returns how many of the wanted threads still fit into the limit of the address space (`ulimit -v`), at least one. More
/// threads would start, and the first allocation that fails would abort the process.
pub(crate) fn affordable(wanted: usize) -> usize {
    match getrlimit(Resource::As).current {
        None => wanted.max(1),
        Some(limit) => affordable_within(wanted, limit.saturating_sub(used_bytes(limit))),
    }
}

/// Returns the address space that the process has taken, or the limit if it is unknown: proc_pid_status(5).
fn used_bytes(limit: u64) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB"));
    size.and_then(|kib| kib.parse::<u64>().ok()).map_or(limit, |kib| kib << 10)
}

fn affordable_within(wanted: usize, free_bytes: u64) -> usize {
    let most = free_bytes.saturating_sub(RESERVE_BYTES) / ADDRESS_SPACE_BYTES;
    wanted.min(usize::try_from(most).unwrap_or(wanted)).max(1)
}

/// Creates a pool of `wanted` threads, or fewer if the system does not allow more.
///
/// # Errors
/// Not even one thread can be started.
pub(crate) fn pool(wanted: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let started = Cell::new(0);
    let start = |thread: rayon::ThreadBuilder| match std::thread::Builder::new().spawn(|| thread.run()) {
        // A pool with some threads works: they also take work from the queues of threads that could not be started.
        Err(error) if started.get() == 0 => Err(error),
        Err(_) => Ok(()),
        Ok(_) => {
            started.set(started.get() + 1);
            Ok(())
        }
    };
    let wanted = wanted.clamp(1, MAX_JOBS);
    let threads = ThreadPoolBuilder::new().num_threads(affordable(wanted)).spawn_handler(start).build()?;
    note_started(started.get(), wanted);
    Ok(threads)
}

/// Like [`map_in_parallel`], for work that mostly waits for the disk if the files are not in memory: more threads than there
/// are processors. It is no shortage if they cannot all be started.
pub(crate) fn map_for_disk<Item: Sync, Product: Send>(
    threads: usize,
    items: &[Item],
    map: impl Fn(&Item) -> Product + Sync,
) -> Vec<Product> {
    map_with(threads.max(DISK_THREADS), items, map).0
}

/// Applies `map` to every item with at most `threads` threads, and returns the results in the order of the items. The
/// calling thread is one of them, so this works even if no other can be started.
pub(crate) fn map_in_parallel<Item: Sync, Product: Send>(
    threads: usize,
    items: &[Item],
    map: impl Fn(&Item) -> Product + Sync,
) -> Vec<Product> {
    let (products, started) = map_with(threads, items, map);
    note_started(started, threads.min(items.len()));
    products
}

/// Returns the results, and the number of threads.
fn map_with<Item: Sync, Product: Send>(
    threads: usize,
    items: &[Item],
    map: impl Fn(&Item) -> Product + Sync,
) -> (Vec<Product>, usize) {
    let mut products: Vec<Option<Product>> = items.iter().map(|_| None).collect();
    let places = Mutex::new(items.iter().zip(&mut products));
    // The guard is dropped before the item is mapped.
    let next = || places.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((item, place)) = next() {
            *place = Some(map(item));
        }
    };
    let started = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..affordable(threads.min(items.len())))
            .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        work();
        let started = helpers.len() + 1;
        for helper in helpers {
            helper.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
        started
    });
    // Every item has a product. Collecting into an `Option` needs no other vector.
    (products.into_iter().collect::<Option<_>>().unwrap_or_default(), started)
}

/// Runs two functions in parallel, or one after the other if no thread can be started for the second.
///
/// # Errors
/// That of the first function, or else that of the second.
pub(crate) fn join<First, Second: Send, Failure: Send>(
    first: impl FnOnce() -> Result<First, Failure>,
    second: impl Fn() -> Result<Second, Failure> + Sync,
) -> Result<(First, Second), Failure> {
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new().spawn_scoped(scope, &second);
        let first = first()?;
        let second = match helper {
            Ok(helper) => helper.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => second(),
        };
        Ok((first, second?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_fit_into_the_address_space_aborted_the_build() {
        assert_eq!(affordable_within(256, u64::MAX), 256);
        assert_eq!(affordable_within(256, 600_000 << 10), 3);
        assert_eq!(affordable_within(256, 1), 1);
        assert_eq!(affordable_within(0, u64::MAX), 1);
    }

    #[test]
    fn results_are_in_the_order_of_the_items_for_any_number_of_threads() {
        let items: Vec<u32> = (0..1000).collect();
        let expected: Vec<u32> = items.iter().map(|item| item * 2).collect();
        for threads in [0, 1, 2, 7, 2000] {
            assert_eq!(map_in_parallel(threads, &items, |item| item * 2), expected, "{threads}");
        }
        assert_eq!(map_in_parallel(4, &[], |item: &u32| *item), Vec::<u32>::new());
    }

    #[test]
    fn both_functions_run_and_either_may_fail() {
        let fail = |number| Err::<i32, i32>(number);
        assert_eq!(join(|| Ok(1), || Ok::<i32, i32>(2)), Ok((1, 2)));
        assert_eq!(join(|| fail(1), || Ok(2)), Err(1));
        assert_eq!(join(|| Ok(1), || fail(2)), Err(2));
        assert_eq!(join(|| fail(1), || fail(2)), Err(1));
    }
}
