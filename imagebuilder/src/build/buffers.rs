//! Buffers that have done their service, to be used again.
//!
//! A new buffer of some hundred KiB is mapped and zeroed by the kernel page by page, and one that grows is copied; both
//! take longer than reading a cached segment into it.

use crate::segment::RANGE_BYTES;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most bytes kept in buffers of any size.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Length of roomy buffers: every segment fits.
const ROOMY_BYTES: usize = (RANGE_BYTES + RANGE_BYTES / 64) as usize;
/// Most roomy buffers kept. They take no more memory than the cached segments that have been read into them.
const KEPT_ROOMY_MAX: usize = 24;

/// Buffers that nobody uses.
#[derive(Debug, Default)]
pub(super) struct SpareBuffers(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    of_any_size: Vec<Vec<u8>>,
    roomy: Vec<Vec<u8>>,
}

impl SpareBuffers {
    fn locked(&self) -> MutexGuard<'_, Spare> {
        // Lists of buffers are whole at every moment, whichever thread ended while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer with room for `capacity` bytes, the smallest there is; it may hold anything.
    pub(super) fn take(&self, capacity: usize) -> Vec<u8> {
        let spare = &mut self.locked().of_any_size;
        let large_enough = spare.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= capacity);
        let tightest = large_enough.min_by_key(|(_, buffer)| buffer.capacity()).map(|(index, _)| index);
        tightest.map_or_else(|| Vec::with_capacity(capacity), |index| spare.swap_remove(index))
    }

    /// A buffer for many cached segments; it may hold anything.
    pub(super) fn take_roomy(&self) -> Vec<u8> {
        self.locked().roomy.pop().unwrap_or_else(|| Vec::with_capacity(ROOMY_BYTES))
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
        let Spare { of_any_size, roomy } = &mut *spare;
        if buffer.capacity() >= ROOMY_BYTES {
            if roomy.len() < KEPT_ROOMY_MAX {
                roomy.push(buffer);
            }
        } else if of_any_size.iter().map(Vec::capacity).sum::<usize>() + buffer.capacity() <= KEPT_BYTES_MAX {
            of_any_size.push(buffer);
        }
    }
}
