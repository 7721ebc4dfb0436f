//! The number of threads on the command line.

use imagebuilder::threads::JOBS_MAX;
use std::num::NonZeroUsize;

/// Parses a number of threads, at least 1 and at most [`JOBS_MAX`].
pub(crate) fn parse(text: &str) -> Result<NonZeroUsize, String> {
    let threads = text.parse().ok().filter(|threads: &NonZeroUsize| threads.get() <= JOBS_MAX);
    threads.ok_or_else(|| format!("it takes a number of threads from 1 to {JOBS_MAX}"))
}
