//! Buffers that have been used, to be used again.
//!
//! A new buffer of some hundred KiB is mapped and zeroed by the kernel page by page, and one that grows is copied; both
//! take longer than compressing into it at the fastest levels.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most bytes kept in buffers.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Buffers that nobody uses.
#[derive(Debug, Default)]
pub(super) struct SpareBuffers(Mutex<Vec<Vec<u8>>>);

impl SpareBuffers {
    fn locked(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // A list of buffers is whole at every moment, whichever thread ended while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer with room for `capacity` bytes, the smallest there is; it may hold anything.
    pub(super) fn take(&self, capacity: usize) -> Vec<u8> {
        let mut spare = self.locked();
        let large_enough = spare.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= capacity);
        let tightest = large_enough.min_by_key(|(_, buffer)| buffer.capacity()).map(|(index, _)| index);
        tightest.map_or_else(|| Vec::with_capacity(capacity), |index| spare.swap_remove(index))
    }

    /// A buffer of `length` bytes of any value.
    pub(super) fn take_filled(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.take(length);
        buffer.resize(length, 0);
        buffer
    }

    /// A buffer with room for `capacity` bytes and nothing in it.
    pub(super) fn take_empty(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.take(capacity);
        buffer.clear();
        buffer
    }

    /// Keeps a buffer, unless there are enough.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut spare = self.locked();
        if spare.iter().map(Vec::capacity).sum::<usize>() + buffer.capacity() <= KEPT_BYTES_MAX {
            spare.push(buffer);
        }
    }
}
