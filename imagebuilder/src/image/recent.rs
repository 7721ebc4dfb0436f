//! Keeps what was made last.

use std::sync::Arc;

/// The values used last, under their numbers.
#[derive(Debug)]
pub(crate) struct Recent {
    kept: Vec<Kept>,
    limit: usize,
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    number: u32,
    used_at: u64,
    bytes: Arc<Vec<u8>>,
}

impl Recent {
    /// Keeps `limit` values, at least one.
    pub(crate) fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), limit, clock: 0 }
    }

    /// The value with this number, when it is kept.
    pub(crate) fn get(&mut self, number: u32) -> Option<Arc<Vec<u8>>> {
        self.clock += 1;
        let kept = self.kept.iter_mut().find(|kept| kept.number == number)?;
        kept.used_at = self.clock;
        Some(Arc::clone(&kept.bytes))
    }

    /// Keeps a value; the one that was not used for longest goes.
    pub(crate) fn put(&mut self, number: u32, bytes: &Arc<Vec<u8>>) {
        self.clock += 1;
        let new = Kept { number, used_at: self.clock, bytes: Arc::clone(bytes) };
        if self.kept.len() < self.limit {
            self.kept.push(new);
        } else if let Some(oldest) = self.kept.iter_mut().min_by_key(|kept| kept.used_at) {
            *oldest = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_that_was_not_used_for_longest_goes() {
        let mut recent = Recent::new(2);
        for number in [1, 2] {
            recent.put(number, &Arc::new(vec![number as u8]));
        }
        assert!(recent.get(1).is_some());
        recent.put(3, &Arc::new(vec![3]));
        assert!(recent.get(2).is_none());
        assert_eq!(recent.get(1).as_deref(), Some(&vec![1]));
        assert_eq!(recent.get(3).as_deref(), Some(&vec![3]));
    }
}
