//! A small cache of decompressed blocks.

use std::sync::Arc;

/// The most recently used values, by their numbers.
#[derive(Debug)]
pub(crate) struct LruCache {
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

impl LruCache {
    /// Creates a cache of `limit` values, at least one.
    pub(crate) fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), limit, clock: 0 }
    }

    /// Returns the value with this number, if it is in the cache.
    pub(crate) fn get(&mut self, number: u32) -> Option<Arc<Vec<u8>>> {
        self.clock += 1;
        let kept = self.kept.iter_mut().find(|kept| kept.number == number)?;
        kept.used_at = self.clock;
        Some(Arc::clone(&kept.bytes))
    }

    /// Adds a value. A full cache drops the least recently used one.
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
    fn a_full_cache_drops_the_least_recently_used_value() {
        let mut recent = LruCache::new(2);
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
