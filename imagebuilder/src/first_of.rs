//! Keeps the first of what is found, and counts all of it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Collects findings from many threads. Of too many, the least are kept: the same ones, whatever the threads do.
#[derive(Debug)]
pub(crate) struct FirstOf<T> {
    limit: usize,
    state: Mutex<(BTreeSet<T>, u64)>,
}

impl<T: Ord> FirstOf<T> {
    /// Keeps the first `limit`.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::new((BTreeSet::new(), 0)) }
    }

    /// Adds a finding.
    pub(crate) fn add(&self, found: T) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, count) = &mut *state;
        *count += 1;
        kept.insert(found);
        if kept.len() > self.limit {
            kept.pop_last();
        }
    }

    /// Those kept, in order, and how many there were.
    pub(crate) fn finish(self) -> (Vec<T>, u64) {
        let (kept, count) = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        (kept.into_iter().collect(), count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_the_least_are_kept_and_all_are_counted() {
        let found = FirstOf::new(2);
        for name in ["c", "a", "d", "b"] {
            found.add(name);
        }
        assert_eq!(found.finish(), (vec!["a", "b"], 4));
    }
}
