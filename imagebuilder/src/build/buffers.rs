//! A pool of buffers for reuse.
//!
//! The kernel maps and zeroes a new buffer of some hundred KiB page by page, and a growing buffer is copied. Both
//! take longer than compressing into it at the fastest levels.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of bytes in the pool.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// Buffers that no worker uses at the moment, to avoid allocating and clearing new ones.
#[derive(Debug, Default)]
pub(super) struct BufferPool(Mutex<Vec<Vec<u8>>>);

impl BufferPool {
    fn locked(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // The list is always consistent, even if a thread has panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the smallest buffer with a capacity of at least `capacity` bytes. Its content is arbitrary.
    pub(super) fn take(&self, capacity: usize) -> Vec<u8> {
        let mut spare = self.locked();
        let large_enough = spare.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= capacity);
        let tightest = large_enough.min_by_key(|(_, buffer)| buffer.capacity()).map(|(index, _)| index);
        tightest.map_or_else(|| Vec::with_capacity(capacity), |index| spare.swap_remove(index))
    }

    /// Returns a buffer with `length` arbitrary bytes.
    pub(super) fn take_filled(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.take(length);
        buffer.resize(length, 0);
        buffer
    }

    /// Returns an empty buffer with a capacity of at least `capacity` bytes.
    pub(super) fn take_empty(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.take(capacity);
        buffer.clear();
        buffer
    }

    /// Adds a buffer to the pool, unless the pool is full.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut spare = self.locked();
        if spare.iter().map(Vec::capacity).sum::<usize>() + buffer.capacity() <= MAX_KEPT_BYTES {
            spare.push(buffer);
        }
    }
}
