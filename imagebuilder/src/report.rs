//! The report of a finished build.

use crate::verity::Seal;
use serde::{Deserialize, Serialize};

/// Facts about a finished build. Their serialised form is version 1 of the `--json` report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildReport {
    /// Version of this report's format.
    pub version: u32,
    /// `built`, or `unchanged` if the output already existed.
    pub outcome: Outcome,
    /// Store paths in the image.
    pub paths: u64,
    /// Regular files in the image.
    pub files: u64,
    /// Bytes of all regular files. Equal content counts each time.
    pub input_bytes: u64,
    /// Length of the image in bytes.
    pub image_bytes: u64,
    /// Data and fragment blocks in the image.
    pub blocks: u64,
    /// Use of the cache.
    pub cache: CacheReport,
    /// Files whose content equals that of an earlier file in the image.
    pub duplicate_files: u64,
    /// Bytes of those files.
    pub duplicate_bytes: u64,
    /// Wall time of each phase in seconds.
    pub seconds: PhaseSeconds,
    /// Processor time in seconds.
    #[serde(default)]
    pub cpu_seconds: CpuSeconds,
    /// Time of the worker threads in seconds.
    #[serde(default)]
    pub work_seconds: WorkSeconds,
    /// The store paths that took most time to read, check and compress, at most ten, longest first.
    #[serde(default)]
    pub slowest_paths: Vec<PathSeconds>,
    /// Highest resident size of this process in bytes.
    pub peak_memory_bytes: u64,
    /// The values to open the image with through dm-verity, if it is sealed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verity: Option<Seal>,
    /// Bytes of a sealed image that were hashed for dm-verity. The hashes of the others came from the cache.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hashed_bytes: Option<u64>,
    /// BLAKE3-256 of the image in hex, if requested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_blake3: Option<String>,
    /// SHA-256 of the image in hex, if requested.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_sha256: Option<String>,
}

/// The outcome of a build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The image was written.
    #[default]
    Built,
    /// The output already contained the image of this plan.
    Unchanged,
}

/// Paths and bytes by their origin. A path is a hit if nothing in it had to be compressed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheReport {
    /// Whether a cache was used.
    pub enabled: bool,
    /// Store paths in which nothing had to be compressed: all their blocks came from the cache, or they have none.
    pub hit_paths: u64,
    /// Store paths in which something had to be compressed.
    pub missed_paths: u64,
    /// Store paths whose pack was damaged and had to be replaced; they are also counted as missed.
    pub rebuilt_paths: u64,
    /// Input bytes whose compressed form came from the cache.
    pub hit_bytes: u64,
    /// Input bytes that were compressed, including those of damaged packs.
    pub missed_bytes: u64,
    /// Input bytes that were compressed again because the pack was damaged.
    pub rebuilt_bytes: u64,
}

/// Processor time in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuSeconds {
    /// Time of all threads.
    pub total: f64,
    /// Time of the thread that decides where everything is stored. It limits how many processors a build can use.
    pub sequencer: f64,
}

/// Wall time of each phase in seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseSeconds {
    /// Listing store paths and opening packs.
    pub scan: f64,
    /// Reading, hashing, compressing, copying, writing.
    pub blocks: f64,
    /// Inodes, directories and the other tables.
    pub tables: f64,
    /// Time to hash the image for dm-verity.
    #[serde(default)]
    pub verity: f64,
    /// Publishing packs and the image.
    pub publish: f64,
    /// The whole build.
    pub total: f64,
}

/// Time that the worker threads spent on each kind of work, in seconds of all threads together. Waiting for disks
/// counts. It is zero for an EROFS image, which is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkSeconds {
    /// Reading files of the store and hashing their content.
    pub read: f64,
    /// Compressing.
    pub compress: f64,
    /// Comparing store paths with their NAR hashes.
    pub check: f64,
    /// Copying from packs to the image.
    pub copy: f64,
    /// Writing to the image and to new packs.
    pub write: f64,
}

/// Time that was spent on one store path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathSeconds {
    /// Base name of the store path.
    pub path: String,
    /// Bytes of its files.
    pub input_bytes: u64,
    /// Time to read, check and compress it, in seconds of all threads together.
    pub seconds: f64,
}
