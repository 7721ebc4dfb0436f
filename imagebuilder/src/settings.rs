//! The settings of an image: codec, level and block sizes. Together with the store paths they determine every byte.

use crate::erofs::Profile;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The codec of data and metadata blocks. The names are those of the squashfs tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard, levels 1 to 22.
    Zstd,
    /// zlib streams, levels 1 to 9.
    Gzip,
    /// xz streams with one LZMA2 filter, levels 0 to 9.
    Xz,
    /// LZ4 blocks; no levels.
    Lz4,
    /// Every block is stored uncompressed; no levels.
    None,
}

impl Compression {
    /// All codecs, in the order of the help text.
    pub const ALL: [Self; 5] = [Self::Zstd, Self::Gzip, Self::Xz, Self::Lz4, Self::None];

    /// Returns the name on the command line and in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::None => "none",
        }
    }

    /// Returns the lowest, default and highest level; `None` for codecs without levels.
    pub fn levels(self) -> Option<LevelRange> {
        match self {
            Self::Zstd => Some(LevelRange { lowest: 1, default: 8, highest: 22 }),
            Self::Gzip => Some(LevelRange { lowest: 1, default: 9, highest: 9 }),
            Self::Xz => Some(LevelRange { lowest: 0, default: 6, highest: 9 }),
            Self::Lz4 | Self::None => None,
        }
    }
}

/// The levels that a codec supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelRange {
    /// The fastest level, which compresses least.
    pub lowest: u32,
    /// The default level.
    pub default: u32,
    /// The slowest level, which compresses most.
    pub highest: u32,
}

/// Settings that no image can have.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingsError {
    /// The level is outside the codec's range.
    #[error("level {level} is out of range for {}: it supports {lowest} to {highest}", .compression.name())]
    LevelOutOfRange {
        /// The codec.
        compression: Compression,
        /// The requested level.
        level: u32,
        /// Lowest level of the codec.
        lowest: u32,
        /// Highest level of the codec.
        highest: u32,
    },
    /// The codec has no levels.
    #[error("{} has no levels, but level {level} was given", .compression.name())]
    NoLevels {
        /// The codec.
        compression: Compression,
        /// The requested level.
        level: u32,
    },
    /// The block size is not a power of two from 4 KiB to 1 MiB, as squashfs requires.
    #[error("block size {bytes} is not a power of two from 4096 (4K) to 1048576 (1M)")]
    BlockSize {
        /// The requested size.
        bytes: u64,
    },
    /// A setting of the other format.
    #[error("`{setting}` is not a setting of the format {format}")]
    NotOfFormat {
        /// The setting.
        setting: &'static str,
        /// The format.
        format: &'static str,
    },
    /// A setting that the format needs.
    #[error("missing field `{setting}`")]
    Missing {
        /// The setting.
        setting: &'static str,
    },
    /// The fragment block size is too large or not a power of two. Readers use a buffer of one data block for fragment
    /// blocks.
    #[error("fragment block size {fragment_bytes} is not a power of two from 4096 to the block size {block_bytes}")]
    FragmentBlockSize {
        /// The requested fragment block size.
        fragment_bytes: u64,
        /// The data block size.
        block_bytes: u32,
    },
}

/// The format of an image and its settings: two images with equal formats and equal store paths are equal byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "UncheckedSettings", into = "UncheckedSettings")]
pub enum ImageFormat {
    /// Compressed squashfs.
    Squashfs(ImageSettings),
    /// Uncompressed EROFS.
    Erofs(Profile),
}

impl ImageFormat {
    /// The name on the command line and in plans.
    pub fn name(self) -> FormatName {
        match self {
            Self::Squashfs(_) => FormatName::Squashfs,
            Self::Erofs(_) => FormatName::Erofs,
        }
    }
}

impl From<ImageSettings> for ImageFormat {
    fn from(settings: ImageSettings) -> Self {
        Self::Squashfs(settings)
    }
}

impl TryFrom<ImageFormat> for ImageSettings {
    type Error = SettingsError;

    fn try_from(format: ImageFormat) -> Result<Self, SettingsError> {
        match format {
            ImageFormat::Squashfs(settings) => Ok(settings),
            ImageFormat::Erofs(_) => Err(SettingsError::NotOfFormat { setting: "format", format: "squashfs" }),
        }
    }
}

/// A format without its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FormatName {
    /// Squashfs 4.0.
    Squashfs,
    /// EROFS of Linux 5.4.
    Erofs,
}

impl FormatName {
    /// All formats, in the order of the help.
    pub const ALL: [Self; 2] = [Self::Squashfs, Self::Erofs];

    /// The name on the command line and in plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

/// Checked settings of a squashfs image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "ImageFormat", into = "ImageFormat")]
pub struct ImageSettings {
    compression: Compression,
    level: Option<u32>,
    block_size_bytes: u32,
    fragment_block_size_bytes: u32,
}

impl ImageSettings {
    /// Default size of data blocks in bytes. It was chosen by measurement, see `docs/defaults.md`.
    pub const DEFAULT_BLOCK_SIZE_BYTES: u32 = 128 * 1024;
    /// Default size of fragment blocks in bytes, unless data blocks are smaller.
    pub const DEFAULT_FRAGMENT_BLOCK_SIZE_BYTES: u32 = 128 * 1024;

    /// Checks the settings; `None` stands for the default.
    ///
    /// # Errors
    /// A level or size is out of its range.
    pub fn new(
        compression: Compression,
        level: Option<u32>,
        block_size_bytes: Option<u64>,
        fragment_block_size_bytes: Option<u64>,
    ) -> Result<Self, SettingsError> {
        let level = match (compression.levels(), level) {
            (None, None) => None,
            (None, Some(level)) => return Err(SettingsError::NoLevels { compression, level }),
            (Some(range), None) => Some(range.default),
            (Some(LevelRange { lowest, highest, .. }), Some(level)) => {
                if !(lowest..=highest).contains(&level) {
                    return Err(SettingsError::LevelOutOfRange { compression, level, lowest, highest });
                }
                Some(level)
            }
        };
        let block_bytes = block_size_bytes.unwrap_or(u64::from(Self::DEFAULT_BLOCK_SIZE_BYTES));
        let block_size_bytes =
            power_of_two(block_bytes, 1 << 20).ok_or(SettingsError::BlockSize { bytes: block_bytes })?;
        let fragment_bytes = fragment_block_size_bytes
            .unwrap_or(u64::from(Self::DEFAULT_FRAGMENT_BLOCK_SIZE_BYTES.min(block_size_bytes)));
        let fragment_block_size_bytes = power_of_two(fragment_bytes, block_size_bytes)
            .ok_or(SettingsError::FragmentBlockSize { fragment_bytes, block_bytes: block_size_bytes })?;
        Ok(Self { compression, level, block_size_bytes, fragment_block_size_bytes })
    }

    /// Returns the codec.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Returns the codec's level; `None` for codecs without levels.
    pub fn level(&self) -> Option<u32> {
        self.level
    }

    /// Returns the size of a data block before compression, in bytes, which is also in the superblock.
    pub fn block_size_bytes(&self) -> u32 {
        self.block_size_bytes
    }

    /// Returns the maximum size of a fragment block before compression, in bytes.
    pub fn fragment_block_size_bytes(&self) -> u32 {
        self.fragment_block_size_bytes
    }
}

impl Default for ImageSettings {
    fn default() -> Self {
        Self {
            compression: Compression::Zstd,
            level: Compression::Zstd.levels().map(|range| range.default),
            block_size_bytes: Self::DEFAULT_BLOCK_SIZE_BYTES,
            fragment_block_size_bytes: Self::DEFAULT_FRAGMENT_BLOCK_SIZE_BYTES,
        }
    }
}

/// The settings in a plan, before they are checked. A plan without a format is one of a squashfs.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct UncheckedSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<FormatName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compression: Option<Compression>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block_size_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fragment_block_size_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dax: Option<bool>,
}

impl TryFrom<UncheckedSettings> for ImageFormat {
    type Error = SettingsError;

    fn try_from(unchecked: UncheckedSettings) -> Result<Self, SettingsError> {
        let UncheckedSettings { format, compression, level, block_size_bytes, fragment_block_size_bytes, dax } =
            unchecked;
        let format = format.unwrap_or(FormatName::Squashfs);
        let refuse = |given: &[(&'static str, bool)]| match given.iter().find(|(_, is_given)| *is_given) {
            Some((setting, _)) => Err(SettingsError::NotOfFormat { setting, format: format.name() }),
            None => Ok(()),
        };
        match format {
            FormatName::Squashfs => {
                refuse(&[("dax", dax.is_some())])?;
                let missing = |setting| SettingsError::Missing { setting };
                let compression = compression.ok_or(missing("compression"))?;
                let block_bytes = block_size_bytes.ok_or(missing("blockSizeBytes"))?;
                let fragment_bytes = fragment_block_size_bytes.ok_or(missing("fragmentBlockSizeBytes"))?;
                ImageSettings::new(compression, level, Some(block_bytes), Some(fragment_bytes)).map(Self::Squashfs)
            }
            FormatName::Erofs => {
                refuse(&[
                    ("compression", compression.is_some()),
                    ("level", level.is_some()),
                    ("blockSizeBytes", block_size_bytes.is_some()),
                    ("fragmentBlockSizeBytes", fragment_block_size_bytes.is_some()),
                ])?;
                Ok(Self::Erofs(if dax == Some(true) { Profile::Dax } else { Profile::Disk }))
            }
        }
    }
}

impl From<ImageFormat> for UncheckedSettings {
    fn from(format: ImageFormat) -> Self {
        match format {
            // No format: older versions of this program can read the plan.
            ImageFormat::Squashfs(settings) => Self {
                compression: Some(settings.compression),
                level: settings.level,
                block_size_bytes: Some(u64::from(settings.block_size_bytes)),
                fragment_block_size_bytes: Some(u64::from(settings.fragment_block_size_bytes)),
                ..Self::default()
            },
            ImageFormat::Erofs(profile) => Self {
                format: Some(FormatName::Erofs),
                dax: (profile == Profile::Dax).then_some(true),
                ..Self::default()
            },
        }
    }
}

/// Returns `bytes` if it is a power of two from 4096 to `highest`.
fn power_of_two(bytes: u64, highest: u32) -> Option<u32> {
    u32::try_from(bytes).ok().filter(|size| size.is_power_of_two() && (4096..=highest).contains(size))
}
