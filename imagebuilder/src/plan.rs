//! The plan of an image: a pure function of the closure and the settings, with a versioned JSON format.
//!
//! ```json
//! {
//!   "version": 1,
//!   "storeDir": "/nix/store",
//!   "settings": {"compression": "zstd", "level": 9, "blockSizeBytes": 262144, "fragmentBlockSizeBytes": 131072},
//!   "paths": [{"path": "HASH-NAME", "narHash": "sha256:NIX32", "narSize": 120}]
//! }
//! ```
//! `"verity": true` after the settings appends the hash tree of dm-verity to the image.
//! The settings of an erofs image are `{"format": "erofs"}`, with `"dax": true` for one that is mapped into guests.
//! `narHash` and `narSize` are omitted if the closure's source does not contain them.

use crate::closure::Closure;
use crate::erofs::Profile;
use crate::nar_hash;
use crate::settings::ImageFormat;
use crate::store_path::StorePath;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;
use thiserror::Error;

/// Version of the JSON format that is written, and the only one that can be read.
pub const PLAN_VERSION: u64 = 1;

/// One store path of the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PlannedPath {
    /// The store path.
    pub path: StorePath,
    /// SHA-256 of its NAR serialisation, if the closure's source contains it. With it, a build can look the path up in
    /// the cache without reading its files.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "nar_hash_text")]
    pub nar_hash: Option<[u8; 32]>,
    /// Length of its NAR serialisation in bytes, if the source contains it.
    #[serde(rename = "narSize", default, skip_serializing_if = "Option::is_none")]
    pub nar_size_bytes: Option<u64>,
}

/// A checked plan: at least one path, none of them twice, sorted by base name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlan {
    /// The directory that contains the files of the paths, by default `/nix/store`.
    pub store_dir: PathBuf,
    /// Format of the image, with its settings.
    pub format: ImageFormat,
    /// Whether the hash tree of dm-verity follows the image.
    pub verity: bool,
    /// The paths, sorted by base name.
    pub paths: Vec<PlannedPath>,
}

/// The text is not a valid plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The text is not JSON, or does not have the fields of a plan. The message ends with line and column.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A version that this program does not support.
    #[error("its version is {found}, but this program supports only version {PLAN_VERSION}")]
    Version {
        /// The version in the JSON.
        found: String,
    },
    /// `storeDir` is relative, so it depends on the current directory.
    #[error("its storeDir {} is relative", .store_dir.display())]
    RelativeStoreDir {
        /// The directory.
        store_dir: PathBuf,
    },
    /// The kernel cannot map a sealed device into processes.
    #[error("it has both verity and dax, but a sealed image cannot be mapped into guests")]
    VerityWithDax,
    /// There are no store paths.
    #[error("it contains no store path")]
    Empty,
    /// A store path is listed twice.
    #[error("it lists these store paths twice: {}", display_all(.paths))]
    Twice {
        /// The store paths, in the order of the plan.
        paths: Vec<StorePath>,
    },
}

fn display_all(paths: &[StorePath]) -> String {
    paths.iter().map(StorePath::base_name).collect::<Vec<_>>().join(", ")
}

impl ImagePlan {
    /// Returns the plan of an image of `closure`. Equal closures and formats give equal plans.
    pub fn new(closure: Closure, format: impl Into<ImageFormat>) -> Self {
        Self { store_dir: closure.store_dir, format: format.into(), verity: false, paths: closure.paths }
    }

    /// Reads and checks a plan. The order of the paths does not matter.
    ///
    /// # Errors
    /// The text is not JSON, not a plan, or has a version that this program does not support.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        /// The field that plans of all versions have.
        #[derive(Deserialize)]
        struct AnyVersion {
            version: serde_json::Value,
        }
        let AnyVersion { version } = serde_json::from_str(text)?;
        if version.as_u64() != Some(PLAN_VERSION) {
            return Err(PlanError::Version { found: version.to_string() });
        }
        let PlanDocument { store_dir, settings: format, verity, mut paths, .. } = serde_json::from_str(text)?;
        if !store_dir.is_absolute() {
            return Err(PlanError::RelativeStoreDir { store_dir });
        }
        if paths.is_empty() {
            return Err(PlanError::Empty);
        }
        paths.sort_by(|left, right| left.path.cmp(&right.path));
        let mut twice: Vec<StorePath> =
            paths.windows(2).filter(|pair| pair[0].path == pair[1].path).map(|pair| pair[0].path.clone()).collect();
        twice.dedup();
        if !twice.is_empty() {
            return Err(PlanError::Twice { paths: twice });
        }
        if verity && format == ImageFormat::Erofs(Profile::Dax) {
            return Err(PlanError::VerityWithDax);
        }
        Ok(Self { store_dir, format, verity, paths })
    }

    /// Returns the plan as JSON, with a newline at its end. Equal plans give equal texts.
    ///
    /// # Errors
    /// The name of the store's directory is not UTF-8.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let document = PlanDocument {
            version: PLAN_VERSION,
            store_dir: self.store_dir.clone(),
            settings: self.format,
            verity: self.verity,
            paths: self.paths.clone(),
        };
        let mut text = serde_json::to_string_pretty(&document)?;
        text.push('\n');
        Ok(text)
    }
}

/// The JSON format of a plan.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PlanDocument {
    version: u64,
    store_dir: PathBuf,
    settings: ImageFormat,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    verity: bool,
    paths: Vec<PlannedPath>,
}

mod nar_hash_text {
    //! A NAR hash as text: written in Nix's base 32, read in any of its formats.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Compression, ImageSettings};
    use proptest::prelude::*;

    const HASH: &str = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv";

    /// A plan of two paths, one of them without a hash.
    const GOLDEN: &str = include_str!("../tests/golden/plan-v1.json");

    fn golden_plan() -> ImagePlan {
        ImagePlan {
            store_dir: PathBuf::from("/nix/store"),
            verity: false,
            format: ImageSettings::new(Compression::Zstd, Some(9), Some(262_144), Some(131_072)).unwrap().into(),
            paths: vec![
                PlannedPath {
                    path: StorePath::from_base_name(&format!("{HASH}-bash-5.2")).unwrap(),
                    nar_hash: Some(nar_hash::parse(&format!("sha256:0{}", "1".repeat(51))).unwrap()),
                    nar_size_bytes: Some(120),
                },
                PlannedPath {
                    path: StorePath::from_base_name(&format!("{HASH}-hello")).unwrap(),
                    nar_hash: None,
                    nar_size_bytes: None,
                },
            ],
        }
    }

    /// Returns the golden plan with a part of its text replaced.
    fn changed(old: &str, new: &str) -> String {
        let text = GOLDEN.replacen(old, new, 1);
        assert_ne!(text, GOLDEN, "{old} is not in the golden plan");
        text
    }

    #[test]
    fn the_format_of_version_1_is_unchanged() {
        assert_eq!(golden_plan().to_json().unwrap(), GOLDEN);
        assert_eq!(ImagePlan::from_json(GOLDEN).unwrap(), golden_plan());
    }

    #[test]
    fn the_order_of_paths_does_not_matter() {
        let mut document: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        document["paths"].as_array_mut().unwrap().reverse();
        assert_eq!(ImagePlan::from_json(&document.to_string()).unwrap(), golden_plan());
    }

    #[test]
    fn hashes_are_read_in_every_format() {
        let nix32 = format!("sha256:0{}", "1".repeat(51));
        let hex: String = nar_hash::parse(&nix32).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        for form in [hex.clone(), format!("sha256:{hex}")] {
            assert_eq!(ImagePlan::from_json(&changed(&nix32, &form)).unwrap(), golden_plan());
        }
    }

    #[test]
    fn a_text_that_is_not_a_plan_is_refused_with_line_and_column() {
        for (text, message) in [
            (String::new(), "EOF while parsing a value at line 1 column 0"),
            (GOLDEN.replacen("\"paths\"", "paths", 1), "key must be a string at line 10 column 3"),
            ("{}".to_owned(), "missing field `version` at line 1 column 2"),
            (changed("1,", "2,"), "its version is 2, but this program supports only version 1"),
            (changed("1,", "\"1\","), "its version is \"1\", but this program supports only version 1"),
            (
                changed("\"storeDir\"", "\"storedir\""),
                "unknown field `storedir`, expected one of `version`, `storeDir`, `settings`, `verity`, `paths` at line 3 column 12",
            ),
            (
                changed("\"narSize\"", "\"size\""),
                "unknown field `size`, expected one of `path`, `narHash`, `narSize` at line 14 column 12",
            ),
            (
                changed("\"level\": 9", "\"level\": 23"),
                "level 23 is out of range for zstd: it supports 1 to 22 at line 9 column 3",
            ),
            (
                changed("\"zstd\"", "\"lzma\""),
                "unknown variant `lzma`, expected one of `zstd`, `gzip`, `xz`, `lz4`, `none` at line 5 column 25",
            ),
            (changed("/nix/store", "nix/store"), "its storeDir nix/store is relative"),
            (
                changed("-hello", "-bash-5.2"),
                "it lists these store paths twice: 0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-bash-5.2",
            ),
        ] {
            assert_eq!(ImagePlan::from_json(&text).unwrap_err().to_string(), message);
        }
        let empty = GOLDEN[..GOLDEN.find("\"paths\"").unwrap()].to_owned() + "\"paths\": []}";
        assert_eq!(ImagePlan::from_json(&empty).unwrap_err().to_string(), "it contains no store path");
    }

    #[test]
    fn an_erofs_plan_has_no_setting_of_squashfs() {
        let settings = GOLDEN.find("\"settings\"").unwrap()..GOLDEN.find("\"paths\"").unwrap();
        let with =
            |text: &str| format!("{}\"settings\": {text}, {}", &GOLDEN[..settings.start], &GOLDEN[settings.end..]);
        let format = |text: &str| ImagePlan::from_json(&with(text)).map(|plan| plan.format);
        assert_eq!(format(r#"{"format": "erofs"}"#).unwrap(), ImageFormat::Erofs(Profile::Disk));
        assert_eq!(format(r#"{"format": "erofs", "dax": true}"#).unwrap(), ImageFormat::Erofs(Profile::Dax));
        let squashfs =
            r#"{"format": "squashfs", "compression": "none", "blockSizeBytes": 4096, "fragmentBlockSizeBytes": 4096"#;
        let settings = ImageSettings::new(Compression::None, None, Some(4096), None).unwrap();
        assert_eq!(format(&format!("{squashfs}}}")).unwrap(), ImageFormat::Squashfs(settings));
        for (settings, message) in [
            (r#"{"format": "erofs", "level": 8}"#, "`level` is not a setting of the format erofs"),
            (&format!(r#"{squashfs}, "dax": false}}"#), "`dax` is not a setting of the format squashfs"),
            (r#"{"format": "ext4"}"#, "unknown variant `ext4`, expected `squashfs` or `erofs`"),
            ("{}", "missing field `compression`"),
            (r#"{"format": "erofs", "dax": true}, "verity": true"#, "it has both verity and dax"),
        ] {
            let refused = format(settings).unwrap_err().to_string();
            assert!(refused.starts_with(message), "{refused}");
        }
    }

    #[test]
    fn names_and_hashes_are_checked() {
        let message = |old: &str, new: &str| ImagePlan::from_json(&changed(old, new)).unwrap_err().to_string();
        assert!(message("-hello", "-he llo").contains("its name contains a character other than"));
        assert!(message("-hello", "-hello/../..").contains("at line"));
        assert!(message("sha256:0111", "sha256:011").contains("is not a NAR hash"));
    }

    prop_compose! {
        fn planned_path()(
            name in "[0-9abcdf-np-sv-z]{32}-[a-z0-9+_?=-][a-z0-9.]{0,12}",
            nar_hash: Option<[u8; 32]>,
            nar_size_bytes: Option<u64>,
        ) -> PlannedPath {
            PlannedPath { path: StorePath::from_base_name(&name).unwrap(), nar_hash, nar_size_bytes }
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(
            paths in prop::collection::vec(planned_path(), 1..8),
            codec in prop::sample::select(&Compression::ALL[..]),
            block_log2 in 12..=20_u32,
        ) {
            let mut paths = paths;
            paths.sort_by(|left, right| left.path.cmp(&right.path));
            paths.dedup_by(|left, right| left.path == right.path);
            let settings = ImageSettings::new(codec, None, Some(1 << block_log2), None).unwrap();
            let format = match block_log2 {
                12 => ImageFormat::Erofs(Profile::Disk),
                13 => ImageFormat::Erofs(Profile::Dax),
                _ => settings.into(),
            };
            let verity = block_log2 % 2 == 0;
            let plan = ImagePlan { store_dir: PathBuf::from("/nix/store"), format, verity, paths };
            prop_assert_eq!(ImagePlan::from_json(&plan.to_json().unwrap()).unwrap(), plan);
        }

        #[test]
        fn any_text_is_accepted_or_refused_without_a_panic(text in ".*", cut in 0..GOLDEN.len()) {
            let _ = ImagePlan::from_json(&text);
            let _ = ImagePlan::from_json(&GOLDEN[..cut]);
        }
    }
}
