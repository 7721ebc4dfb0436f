//! Buffers of segments that have been written, to be used again.
//!
//! A new buffer of some hundred KiB is mapped and zeroed by the kernel page by page, which takes longer than reading a
//! cached segment into it.

use std::sync::{Mutex, PoisonError};

/// Most bytes kept.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Buffers that nobody uses.
#[derive(Debug, Default)]
pub(super) struct SpareBuffers(Mutex<Vec<Vec<u8>>>);

impl SpareBuffers {
    /// A buffer that may hold anything; a new one when none is spare.
    pub(super) fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// A buffer of `length` bytes of any value.
    pub(super) fn take_filled(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.take();
        buffer.resize(length, 0);
        buffer
    }

    /// A buffer with nothing in it.
    pub(super) fn take_empty(&self) -> Vec<u8> {
        let mut buffer = self.take();
        buffer.clear();
        buffer
    }

    /// Keeps a buffer, unless there are enough.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.iter().map(Vec::capacity).sum::<usize>() + buffer.capacity() <= KEPT_BYTES_MAX {
            spare.push(buffer);
        }
    }
}
