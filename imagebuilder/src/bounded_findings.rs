//! Collects findings: keeps the first ones and counts all.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Collects findings from many threads. If there are too many, the smallest are kept, so that the timing of the threads
/// does not affect the result.
#[derive(Debug)]
pub(crate) struct BoundedFindings<T> {
    limit: usize,
    state: Mutex<(BTreeSet<T>, u64)>,
}

impl<T: Ord> BoundedFindings<T> {
    /// Creates a collection that keeps the first `limit` findings.
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

    /// Returns the findings that were kept, in order, and the number of all findings.
    pub(crate) fn finish(self) -> (Vec<T>, u64) {
        let (kept, count) = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        (kept.into_iter().collect(), count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_of_too_many_are_kept_and_all_are_counted() {
        let found = BoundedFindings::new(2);
        for name in ["c", "a", "d", "b"] {
            found.add(name);
        }
        assert_eq!(found.finish(), (vec!["a", "b"], 4));
    }
}
