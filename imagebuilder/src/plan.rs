//! What is to be built: a pure function of the closure and the settings, and a versioned JSON document.
//!
//! ```json
//! {
//!   "version": 1,
//!   "storeDir": "/nix/store",
//!   "settings": {"compression": "zstd", "level": 9, "blockSizeBytes": 262144, "fragmentBlockSizeBytes": 131072},
//!   "paths": [{"path": "HASH-NAME", "narHash": "sha256:NIX32", "narSize": 120}]
//! }
//! ```
//! `narHash` and `narSize` are left out where the closure's source does not give them.

use crate::closure::Closure;
use crate::nar_hash;
use crate::settings::ImageSettings;
use crate::store_path::StorePath;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The version of the JSON form that is written, and the only one that is read.
pub const PLAN_VERSION: u64 = 1;

/// One store path of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PlannedPath {
    /// The member of the store.
    pub path: StorePath,
    /// sha256 of its NAR serialisation, when the closure's source gives it: then the cache can be asked without reading
    /// the path.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "nar_hash_text")]
    pub nar_hash: Option<[u8; 32]>,
    /// Length of its NAR serialisation in bytes, when the source gives it.
    #[serde(rename = "narSize", default, skip_serializing_if = "Option::is_none")]
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

/// Why a text is not a plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("cannot read the plan {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What the file holds is not a plan.
    #[error("{} is not a plan", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PlanFormError,
    },
}

/// What is wrong with the text of a plan.
#[derive(Debug, Error)]
pub enum PlanFormError {
    /// Not JSON, or not of the form of a plan; the message ends with line and column.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// No version that this program knows.
    #[error("its version is {found}, but this program reads version {PLAN_VERSION} only")]
    Version {
        /// The version, as it stands in the JSON.
        found: String,
    },
    /// `storeDir` depends on where the program runs.
    #[error("its storeDir {} is relative", .store_dir.display())]
    RelativeStoreDir {
        /// The directory.
        store_dir: PathBuf,
    },
    /// There are no store paths.
    #[error("it holds no store path")]
    Empty,
    /// The same store path twice.
    #[error("these store paths stand in it twice: {}", display_all(.paths))]
    Twice {
        /// The paths.
        paths: Vec<StorePath>,
    },
}

fn display_all(paths: &[StorePath]) -> String {
    paths.iter().map(StorePath::base_name).collect::<Vec<_>>().join(", ")
}

impl ImagePlan {
    /// The plan of an image of `closure`: equal closures and settings give equal plans.
    pub fn new(closure: Closure, settings: ImageSettings) -> Self {
        Self { store_dir: closure.store_dir, settings, paths: closure.paths }
    }

    /// Reads and checks a plan from a file.
    ///
    /// # Errors
    /// It cannot be read, or is not a plan.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let text = fs::read_to_string(path).map_err(|source| PlanError::Read { path: path.to_path_buf(), source })?;
        Self::from_json(&text).map_err(|source| PlanError::Malformed { path: path.to_path_buf(), source })
    }

    /// Reads and checks a plan. The order of the paths does not matter.
    ///
    /// # Errors
    /// The text is not JSON, not a plan, or one of a version that this program does not know.
    pub fn from_json(text: &str) -> Result<Self, PlanFormError> {
        /// All that is asked of a plan of any version.
        #[derive(Deserialize)]
        struct AnyVersion {
            version: serde_json::Value,
        }
        let AnyVersion { version } = serde_json::from_str(text)?;
        if version.as_u64() != Some(PLAN_VERSION) {
            return Err(PlanFormError::Version { found: version.to_string() });
        }
        let PlanDocument { store_dir, settings, mut paths, .. } = serde_json::from_str(text)?;
        if !store_dir.is_absolute() {
            return Err(PlanFormError::RelativeStoreDir { store_dir });
        }
        if paths.is_empty() {
            return Err(PlanFormError::Empty);
        }
        paths.sort_by(|left, right| left.path.cmp(&right.path));
        let mut twice: Vec<StorePath> =
            paths.windows(2).filter(|pair| pair[0].path == pair[1].path).map(|pair| pair[0].path.clone()).collect();
        twice.dedup();
        if !twice.is_empty() {
            return Err(PlanFormError::Twice { paths: twice });
        }
        Ok(Self { store_dir, settings, paths })
    }

    /// The plan as JSON, with a newline at its end: equal plans give equal texts.
    ///
    /// # Errors
    /// The name of the store's directory is not UTF-8.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let document = PlanDocument {
            version: PLAN_VERSION,
            store_dir: self.store_dir.clone(),
            settings: self.settings,
            paths: self.paths.clone(),
        };
        let mut text = serde_json::to_string_pretty(&document)?;
        text.push('\n');
        Ok(text)
    }
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PlanDocument {
    version: u64,
    store_dir: PathBuf,
    settings: ImageSettings,
    paths: Vec<PlannedPath>,
}

mod nar_hash_text {
    //! A NAR hash as text: written in Nix' base 32, read in any of its forms.

    use super::{Deserialize, Deserializer, Serializer, nar_hash};
    use serde::de::Error;

    pub(super) fn serialize<S: Serializer>(hash: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
        match hash {
            Some(hash) => serializer.serialize_str(&nar_hash::print(hash)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 32]>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| nar_hash::parse(&text).map_err(D::Error::custom)).transpose()
    }
}
