//! The interface through which the library reports progress. The library prints nothing itself.

/// The steps of a build, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Listing store paths without a pack in the cache, and opening the packs of the others.
    Scan,
    /// Reading, hashing, compressing, copying from the cache, writing.
    Blocks,
    /// Writing inodes, directories and the other tables.
    Tables,
    /// Publishing packs and the image.
    Publish,
}

/// A receiver for progress. The build calls it often, from one thread, so implementations must be cheap.
pub trait Progress {
    /// A phase begins. `total_bytes` is the final sum of the `input_bytes` of [`Progress::advance`], or 0 if unknown.
    fn begin(&mut self, phase: Phase, total_bytes: u64);
    /// More content is in the image. The arguments are increments since the last call, not totals. `input_bytes` counts
    /// file content before compression, `cached_bytes` (at most `input_bytes`) the part of it that came from the cache,
    /// and `stored_bytes` the bytes that it takes in the image, 0 for duplicates and holes.
    fn advance(&mut self, input_bytes: u64, cached_bytes: u64, stored_bytes: u64);
    /// A warning for the user; the build continues.
    fn warn(&mut self, message: &str);
}

/// Ignores all progress.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _phase: Phase, _total_bytes: u64) {}
    fn advance(&mut self, _input_bytes: u64, _cached_bytes: u64, _stored_bytes: u64) {}
    fn warn(&mut self, _message: &str) {}
}
