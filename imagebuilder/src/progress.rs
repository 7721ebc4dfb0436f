//! How the library tells what it is doing. Nothing is printed here: the command line draws it.

/// The steps of a build, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Listing what has no manifest in the cache, and reading the manifests of what has.
    Scan,
    /// Reading, hashing, compressing, copying from the cache, writing.
    Blocks,
    /// Writing inodes, directories and the other tables.
    Tables,
    /// Publishing manifests, putting the image in its place.
    Publish,
}

/// Told by the build as it goes; called from one thread, often: implementations must be cheap.
pub trait Progress {
    /// A phase begins; `total_bytes` is what [`Progress::advance`] will add up to, 0 when not known.
    fn begin(&mut self, phase: Phase, total_bytes: u64);
    /// So many more input bytes are in the image: `cached_bytes` of them came from the cache, and all of them took
    /// `stored_bytes` in the image.
    fn advance(&mut self, input_bytes: u64, cached_bytes: u64, stored_bytes: u64);
    /// A line a user should see although the build goes on.
    fn warn(&mut self, message: &str);
}

/// Tells nobody.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _phase: Phase, _total_bytes: u64) {}
    fn advance(&mut self, _input_bytes: u64, _cached_bytes: u64, _stored_bytes: u64) {}
    fn warn(&mut self, _message: &str) {}
}
