//! What is to be built: a pure function of the closure and the settings, and a versioned JSON document.

use crate::settings::ImageSettings;
use crate::store_path::StorePath;
use std::path::PathBuf;

/// One store path of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPath {
    /// The member of the store.
    pub path: StorePath,
    /// sha256 of its NAR serialisation, when the closure's source gives it: then the cache can be asked without reading
    /// the path.
    pub nar_hash: Option<[u8; 32]>,
    /// Length of its NAR serialisation in bytes, when the source gives it.
    pub nar_size_bytes: Option<u64>,
}

/// A checked plan: at least one path, none of them twice, sorted by base name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlan {
    /// The directory that physically holds the paths, `/nix/store` or another.
    pub store_dir: PathBuf,
    /// Codec and block sizes.
    pub settings: ImageSettings,
    /// The paths, sorted by base name.
    pub paths: Vec<PlannedPath>,
}
