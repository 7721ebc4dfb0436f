//! Writing to stdout and stderr without waiting for a slow reader.

use program::escape::lines;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The size of the queue. Beyond it, the oldest bytes are dropped.
const MAX_BACKLOG_BYTES: usize = 1 << 20;
/// The largest single write.
const CHUNK_BYTES: usize = 16 << 10;
/// How long to wait at the end for a reader that reads nothing, before the rest is discarded.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A thread that writes, and its queue. A slow reader blocks only that thread.
#[derive(Clone, Debug)]
pub(super) struct OutputWriter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// The number of bytes that were dropped and not yet reported in the output.
    dropped_bytes: u64,
    /// The number of completed writes.
    writes: u64,
    is_writing: bool,
    /// The reader has closed its end: bytes are discarded from now on.
    is_broken: bool,
}

impl OutputWriter {
    /// Starts the thread.
    pub(super) fn start(output: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        // It is not joined: a write that waits for a reader cannot be interrupted.
        thread::spawn(move || write_all(&of_thread, output));
        Self { shared }
    }

    /// Queues the bytes. If the queue is full, drops the oldest ones.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut queue = self.shared.lock();
        if queue.is_broken {
            return;
        }
        queue.bytes.extend(bytes);
        let surplus = queue.bytes.len().saturating_sub(MAX_BACKLOG_BYTES);
        queue.bytes.drain(..surplus);
        queue.dropped_bytes += surplus as u64;
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Queues a message for a person, without control characters.
    pub(super) fn push_line(&self, text: &str) {
        self.push(format!("{}\n", lines(text)).as_bytes());
    }

    /// Waits until everything is written, or until the reader has read nothing for [`TIMEOUT`].
    pub(super) fn finish(&self) {
        let mut queue = self.shared.lock();
        let mut writes = queue.writes;
        let mut end = Instant::now() + TIMEOUT;
        while !queue.is_broken && (queue.is_writing || !queue.bytes.is_empty()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.shared.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            if queue.writes != writes {
                writes = queue.writes;
                end = Instant::now() + TIMEOUT;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for bytes, and returns the next ones to write.
    fn take(&self) -> Vec<u8> {
        let mut queue = self.lock();
        while queue.bytes.is_empty() {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let mut chunk = Vec::new();
        if queue.dropped_bytes > 0 {
            let dropped = std::mem::take(&mut queue.dropped_bytes);
            chunk.extend(format!("\r\n[microvm: {dropped} bytes were dropped: nothing read them]\r\n").bytes());
        }
        let count = queue.bytes.len().min(CHUNK_BYTES);
        chunk.extend(queue.bytes.drain(..count));
        queue.is_writing = true;
        chunk
    }

    fn written(&self, outcome: &io::Result<()>) {
        let mut queue = self.lock();
        queue.is_writing = false;
        queue.writes += 1;
        if outcome.is_err() {
            queue.is_broken = true;
            queue.bytes.clear();
        }
        drop(queue);
        self.changed.notify_all();
    }
}

fn write_all(shared: &Shared, mut output: impl Write) {
    loop {
        let chunk = shared.take();
        let outcome = output.write_all(&chunk).and_then(|()| output.flush());
        shared.written(&outcome);
        if outcome.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn all_output_reaches_a_reader_that_reads() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let reading = thread::spawn(move || {
            let mut bytes = vec![0; 300_000];
            reader.read_exact(&mut bytes).unwrap();
            bytes
        });
        let output = OutputWriter::start(writer);
        for part in 0..300u32 {
            output.push(&[part as u8; 1000]);
        }
        output.finish();
        let bytes = reading.join().unwrap();
        assert!(bytes.chunks(1000).enumerate().all(|(part, bytes)| bytes.iter().all(|byte| *byte == part as u8)));
    }

    #[test]
    fn a_reader_that_does_not_read_blocks_nothing_and_sees_how_much_was_dropped() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let output = OutputWriter::start(writer);
        for _ in 0..300 {
            output.push(&[b'x'; 8192]);
        }
        // Returns after its timeout, because nothing reads.
        output.finish();
        output.push(b"the last line");
        let mut text = String::new();
        let mut buffer = [0; 8192];
        while !text.ends_with("the last line") {
            let count = reader.read(&mut buffer).unwrap();
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        assert!(text.contains("bytes were dropped: nothing read them]"));
    }

    #[test]
    fn finishing_does_not_wait_for_a_reader_that_has_closed() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = OutputWriter::start(writer);
        output.push(b"x");
        output.finish();
        output.push(b"y");
        assert!(output.shared.lock().bytes.is_empty());
    }
}
