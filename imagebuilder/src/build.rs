//! Builds an image from a plan.

use crate::plan::ImagePlan;
use crate::progress::Progress;
use crate::report::BuildReport;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use thiserror::Error;

/// How much the cache is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheTrust {
    /// Checksums are checked: damage is found, a forger with write access is not.
    Checksums,
    /// Every cached block is decompressed and compared with the store.
    VerifyAgainstStore,
}

/// Whether digests of the whole image are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digests {
    /// None: the quickest.
    Skip,
    /// BLAKE3-256 and SHA-256.
    Compute,
}

/// Everything about a build that does not change a byte of the image.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Where the image goes.
    pub output: PathBuf,
    /// The cache directory; `None` builds without.
    pub cache: Option<PathBuf>,
    /// How much the cache is trusted.
    pub cache_trust: CacheTrust,
    /// Threads that read and compress, at least 1.
    pub jobs: usize,
    /// Digests of the whole image.
    pub digests: Digests,
}

/// Why there is no image.
#[derive(Debug, Error)]
pub enum BuildError {
    /// Stopped by the caller.
    #[error("interrupted")]
    Interrupted,
}

/// Builds the image of `plan` at `options.output`: whole or not at all.
///
/// `cancel` is looked at often; once it is true the build ends with [`BuildError::Interrupted`].
///
/// # Errors
/// Anything that keeps the image from being right; then nothing stands at the output that did not stand there before.
pub fn build(
    _plan: &ImagePlan,
    _options: &BuildOptions,
    _progress: &mut dyn Progress,
    _cancel: &AtomicBool,
) -> Result<BuildReport, BuildError> {
    Err(BuildError::Interrupted)
}
