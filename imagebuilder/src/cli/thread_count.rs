//! How many threads a command takes, as the user writes it.

use std::num::NonZeroUsize;

/// Reads a number of threads.
pub(crate) fn parse(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "it takes a whole number of threads, at least 1".to_owned())
}
