//! Limits the number of files that a build has open at once.
//!
//! A build from packs keeps one file open for each pack. Large closures have thousands of store paths, but the usual
//! limit of a process is 1024 files.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of files that are not counted: standard streams, the image, connections to the service, and files that are
/// open only briefly.
const OTHER_DESCRIPTORS: u64 = 64;
/// Number of files that one thread has open briefly.
const OTHER_DESCRIPTORS_PER_THREAD: u64 = 2;

/// Raises this process's limit of open files as far as possible, and returns the new limit. Programs that it starts
/// inherit the limit.
pub fn raise_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() => hard,
        Ok((soft, _)) => soft,
        // POSIX guarantees 20. The kernel enforces the limit in any case.
        Err(_) => 20,
    }
}

/// The number of files that may still be opened and kept open.
#[derive(Clone, Debug)]
pub struct OpenFiles(Arc<AtomicU64>);

/// Permission to keep one file open, until it is dropped.
#[derive(Debug)]
pub struct OpenFilePermit(OpenFiles);

impl OpenFiles {
    /// Allows at most `count` files.
    pub fn new(count: u64) -> Self {
        Self(Arc::new(AtomicU64::new(count)))
    }

    /// Allows what this process's limit leaves for a build with `threads` threads.
    pub fn of_process(threads: usize) -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        Self::new(limit.saturating_sub(OTHER_DESCRIPTORS + OTHER_DESCRIPTORS_PER_THREAD * threads as u64))
    }

    /// Returns the permission to keep one more file open; `None` if there are too many.
    pub fn permit(&self) -> Option<OpenFilePermit> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        taken.is_ok().then(|| OpenFilePermit(self.clone()))
    }
}

impl Drop for OpenFilePermit {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_closed_make_room_for_others() {
        let files = OpenFiles::new(2);
        let (first, second) = (files.permit(), files.permit());
        assert!(first.is_some() && second.is_some());
        assert!(files.permit().is_none());
        drop(first);
        assert!(files.permit().is_some());
    }
}
