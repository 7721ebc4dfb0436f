//! Threads that work side by side, as many as the system lets a program start.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use std::cell::Cell;
use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most threads a command takes. More than there are processors help nobody, and each has its own buffers.
pub const JOBS_MAX: usize = 256;

/// A pool of `wanted` threads, or fewer when the system starts no more.
///
/// # Errors
/// Not even one thread can be started.
pub(crate) fn pool(wanted: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    let started = Cell::new(0);
    let start = |thread: rayon::ThreadBuilder| match std::thread::Builder::new().spawn(|| thread.run()) {
        // A pool takes work from the queues of threads that do not run, too.
        Err(error) if started.get() == 0 => Err(error),
        Err(_) => Ok(()),
        Ok(_) => {
            started.set(started.get() + 1);
            Ok(())
        }
    };
    ThreadPoolBuilder::new().num_threads(wanted.clamp(1, JOBS_MAX)).spawn_handler(start).build()
}

/// `map` of every item, in the order of the items, by at most `threads` threads. This thread is one of them, so it works
/// also when no other can be started.
pub(crate) fn map_in_parallel<Item: Sync, Product: Send>(
    threads: usize,
    items: &[Item],
    map: impl Fn(&Item) -> Product + Sync,
) -> Vec<Product> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut products = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return products };
            products.push((index, map(item)));
        }
    };
    let mut products = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(items.len()))
            .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut products = work();
        for helper in helpers {
            products.append(&mut helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        products
    });
    products.sort_unstable_by_key(|(index, _)| *index);
    products.into_iter().map(|(_, product)| product).collect()
}

/// Does two things side by side, or one after the other when no thread can be started for the second.
pub(crate) fn both<First, Second: Send>(
    first: impl FnOnce() -> io::Result<First>,
    second: impl Fn() -> io::Result<Second> + Sync,
) -> io::Result<(First, Second)> {
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
    fn products_are_in_the_order_of_the_items_whatever_the_threads() {
        let items: Vec<u32> = (0..1000).collect();
        let expected: Vec<u32> = items.iter().map(|item| item * 2).collect();
        for threads in [0, 1, 2, 7, 2000] {
            assert_eq!(map_in_parallel(threads, &items, |item| item * 2), expected, "{threads}");
        }
        assert_eq!(map_in_parallel(4, &[], |item: &u32| *item), Vec::<u32>::new());
    }

    #[test]
    fn both_things_are_done_and_either_may_fail() {
        let fail = || Err::<i32, _>(io::Error::other("no"));
        assert_eq!(both(|| Ok(1), || Ok(2)).unwrap(), (1, 2));
        assert!(both(fail, || Ok(2)).is_err());
        assert!(both(|| Ok(1), fail).is_err());
    }
}
