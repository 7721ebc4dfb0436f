//! What a build says of itself when it is done.

use serde::{Deserialize, Serialize};

/// Facts of a finished build. Serialised it is the version 1 of the `--json` report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildReport {
    /// Version of this report's form.
    pub version: u32,
    /// `built`, or `unchanged` when the output was in place already.
    pub outcome: Outcome,
    /// Store paths in the image.
    pub paths: u64,
    /// Regular files in the image.
    pub files: u64,
    /// Bytes of all regular files, equal content counted each time.
    pub input_bytes: u64,
    /// Length of the image in bytes.
    pub image_bytes: u64,
    /// Data and fragment blocks in the image.
    pub blocks: u64,
    /// What the cache did.
    pub cache: CacheReport,
    /// Files whose content is in the image already.
    pub duplicate_files: u64,
    /// Bytes of those files.
    pub duplicate_bytes: u64,
    /// Wall time of each phase in seconds.
    pub seconds: PhaseSeconds,
    /// Processor time in seconds.
    #[serde(default)]
    pub cpu_seconds: CpuSeconds,
    /// Highest resident size of this process in bytes.
    pub peak_memory_bytes: u64,
    /// BLAKE3-256 of the image in hex, when asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_blake3: Option<String>,
    /// SHA-256 of the image in hex, when asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_sha256: Option<String>,
}

/// How a build ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The image was written.
    #[default]
    Built,
    /// The image of this very plan was in place.
    Unchanged,
}

/// Paths and bytes by where they came from. A path is a hit when nothing of it had to be compressed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheReport {
    /// Whether a cache was used at all.
    pub enabled: bool,
    /// Store paths of which nothing had to be compressed: all their blocks came from the cache, or they have none.
    pub hit_paths: u64,
    /// Store paths of which something had to be compressed.
    pub missed_paths: u64,
    /// Store paths of which a damaged manifest or block was made again; they are counted as missed, too.
    pub rebuilt_paths: u64,
    /// Input bytes whose compressed form came from the cache.
    pub hit_bytes: u64,
    /// Input bytes that were compressed, those of damaged entries included.
    pub missed_bytes: u64,
    /// Input bytes compressed again because the entry was damaged.
    pub rebuilt_bytes: u64,
}

/// Processor time in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuSeconds {
    /// Of all threads.
    pub total: f64,
    /// Of the thread that decides what is stored where: it limits how many processors a build can use.
    pub sequencer: f64,
}

/// Wall time of each phase in seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseSeconds {
    /// Listing and reading manifests.
    pub scan: f64,
    /// Reading, hashing, compressing, copying, writing.
    pub blocks: f64,
    /// Inodes, directories and the other tables.
    pub tables: f64,
    /// Publishing manifests and the image.
    pub publish: f64,
    /// All of it.
    pub total: f64,
}
