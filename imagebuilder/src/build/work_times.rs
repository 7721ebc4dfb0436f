//! Measures what the worker threads spend their time on, and for which store paths.

use super::source::InputPath;
use crate::report::{PathSeconds, WorkSeconds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The largest number of store paths in a report.
const MAX_PATHS: usize = 10;

/// A kind of work.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Reading files of the store and hashing their content.
    Read,
    /// Compressing.
    Compress,
    /// Comparing store paths with their NAR hashes.
    Check,
    /// Copying from packs to the image.
    Copy,
    /// Writing to the image and to new packs.
    Write,
}

/// The times of all worker threads together, including the time in which they wait for disks.
#[derive(Debug)]
pub(super) struct WorkTimes {
    by_kind: [AtomicU64; 5],
    /// By number of the store path; copying and writing do not count, because they are done for several at a time.
    by_path: Vec<AtomicU64>,
}

impl WorkTimes {
    /// Begins to measure.
    pub(super) fn new(store_paths: &[InputPath]) -> Self {
        Self { by_kind: Default::default(), by_path: store_paths.iter().map(|_| AtomicU64::new(0)).collect() }
    }

    /// Does work, and counts its time; for a store path, if it is done for a single one.
    pub(super) fn measure<T>(&self, work: Work, store_path: Option<usize>, act: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = act();
        let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.by_kind[work as usize].fetch_add(nanoseconds, Ordering::Relaxed);
        if let Some(time) = store_path.and_then(|number| self.by_path.get(number)) {
            time.fetch_add(nanoseconds, Ordering::Relaxed);
        }
        result
    }

    /// Returns the times of each kind in seconds.
    pub(super) fn seconds(&self) -> WorkSeconds {
        let [read, compress, check, copy, write] = self.by_kind.each_ref().map(seconds);
        WorkSeconds { read, compress, check, copy, write }
    }

    /// Returns the store paths on which most time was spent, longest first.
    pub(super) fn slowest(&self, store_paths: &[InputPath]) -> Vec<PathSeconds> {
        let mut slowest: Vec<PathSeconds> = store_paths
            .iter()
            .zip(self.by_path.iter().map(seconds))
            .filter(|(_, seconds)| *seconds > 0.0)
            .map(|(store_path, seconds)| PathSeconds {
                path: store_path.planned.path.base_name().to_owned(),
                input_bytes: store_path.input_bytes(),
                seconds,
            })
            .collect();
        slowest.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then_with(|| a.path.cmp(&b.path)));
        slowest.truncate(MAX_PATHS);
        slowest
    }
}

fn seconds(nanoseconds: &AtomicU64) -> f64 {
    Duration::from_nanos(nanoseconds.load(Ordering::Relaxed)).as_secs_f64()
}
