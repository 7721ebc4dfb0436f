//! Asks the kernel to read files of the store before workers need them, if they are not in memory, so that threads which
//! compress do not wait for the disk. This only affects when files are read: nothing depends on its success.

use super::source::{InputPath, SourceFile};
use crate::tree::{Entry, NodeId};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far the kernel reads ahead of the workers, in bytes of content. At level 3, two cores compress this much in
/// about half a second.
pub(super) const AHEAD_BYTES: u64 = 64 << 20;

/// The kernel reads at most as much per request as it reads ahead by itself, by default 128 KiB, and ignores the rest.
const REQUEST_BYTES: u64 = 128 << 10;

/// Files of a store path that a later job will read.
#[derive(Debug)]
pub(super) struct FilesAhead {
    /// Number of the store path.
    pub(super) store_path: usize,
    /// The files and the positions in them.
    pub(super) ranges: Vec<(NodeId, Range<u64>)>,
}

impl FilesAhead {
    /// Returns the number of bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, range)| range.end - range.start).sum()
    }
}

/// Asks the kernel to read files, unless the first of them is in memory: then the others probably are as well. A file
/// that cannot be opened is left to the job that reads it, which reports the error.
pub(super) fn read_ahead<Name>(
    ranges: impl IntoIterator<Item = (Name, Range<u64>)>,
    open: impl Fn(Name) -> Option<SourceFile>,
) {
    for (number, (name, range)) in ranges.into_iter().enumerate() {
        let Some(source) = open(name) else { return };
        if number == 0 && !would_wait(source.file(), range.start) {
            return;
        }
        request(source.file(), range);
    }
}

/// Returns whether reading the byte at `offset` would wait for the disk. If the file system cannot tell, it would not.
fn would_wait(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT) == Err(Errno::AGAIN)
}

/// Asks the kernel to read a range of a file.
fn request(file: &File, range: Range<u64>) {
    for offset in range.clone().step_by(REQUEST_BYTES as usize) {
        let length = NonZeroU64::new(REQUEST_BYTES.min(range.end - offset));
        if fadvise(file, offset, length, Advice::WillNeed).is_err() {
            return;
        }
    }
}

/// What may still be read ahead while the store paths are listed, in bytes.
#[derive(Debug)]
pub(super) struct ScanAhead(AtomicU64);

impl Default for ScanAhead {
    fn default() -> Self {
        Self(AtomicU64::new(AHEAD_BYTES))
    }
}

impl ScanAhead {
    /// Returns how many of `bytes` bytes may be read.
    fn take(&self, bytes: u64) -> u64 {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
        left.map_or(0, |left| left.min(bytes))
    }

    /// Asks the kernel to read the first files of a store path that has been listed.
    pub(super) fn listed(&self, store_path: &InputPath) {
        let tree = store_path.tree();
        let files = (0..tree.len()).filter_map(|node| match tree.entry(node) {
            Entry::File { size_bytes, .. } if size_bytes > 0 => Some((node, size_bytes)),
            _ => None,
        });
        let ranges = files.map_while(|(node, size_bytes)| match self.take(size_bytes) {
            0 => None,
            bytes => Some((node, 0..bytes)),
        });
        read_ahead(ranges, |node| store_path.open(None, node).ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use testing::Disk;

    /// Returns the number of bytes that this thread has made the kernel read from disks.
    fn bytes_from_disk() -> u64 {
        let text = fs::read_to_string("/proc/thread-self/io").unwrap();
        text.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok()).unwrap()
    }

    #[test]
    fn a_file_that_is_not_in_memory_is_read_as_a_whole_without_waiting_for_it() {
        const SIZE: u64 = 8 << 20;
        let directory = tempfile::tempdir().unwrap();
        let Some(disk) = Disk::new(directory.path(), "ext4") else { return };
        let location = disk.path().join("file");
        fs::write(&location, vec![7; SIZE as usize]).unwrap();
        let file = File::open(&location).unwrap();
        assert!(!would_wait(&file, 0));
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let before = bytes_from_disk();
        assert!(would_wait(&file, 0));
        request(&file, 0..SIZE);
        let read = bytes_from_disk() - before;
        assert!(read >= SIZE, "{read} bytes were read");
        // Behind the end there is nothing to read.
        assert!(!would_wait(&file, SIZE));
    }
}
