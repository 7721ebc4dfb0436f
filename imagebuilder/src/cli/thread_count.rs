//! The number of threads on the command line.

use imagebuilder::threads::MAX_JOBS;
use std::num::NonZeroUsize;

/// Parses a number of threads, at least 1 and at most [`MAX_JOBS`].
pub(crate) fn parse(text: &str) -> Result<NonZeroUsize, String> {
    let threads = text.parse().ok().filter(|threads: &NonZeroUsize| threads.get() <= MAX_JOBS);
    threads.ok_or_else(|| format!("it must be a number of threads from 1 to {MAX_JOBS}"))
}
