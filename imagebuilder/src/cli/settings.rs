//! The options that determine the bytes of an image.

use super::failure::Failure;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use imagebuilder::settings::{Compression, ImageSettings};
use imagebuilder::size;

/// Codec, level and block sizes. `docs/defaults.md` explains the defaults.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct SettingsArgs {
    /// Codec of the image [default: zstd]
    #[arg(long, value_name = "CODEC", value_parser = compression_parser())]
    compression: Option<Compression>,
    /// Level of the codec: zstd 1 to 22 [default: 8], gzip 1 to 9 [default: 9], xz 0 to 9 [default: 6]; lz4 and none
    /// have no levels
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// Size of a data block before compression, a power of two from 4K to 1M [default: 128K]
    ///
    /// Larger blocks make the image smaller, and slower to read in small pieces. K, M and G are units of 1024.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    block_size: Option<u64>,
    /// Largest size of a block that packs small files, a power of two from 4K to the block size [default:
    /// 128K, or the block size if it is smaller]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    fragment_block_size: Option<u64>,
}

impl SettingsArgs {
    /// Checks the selected settings and returns them.
    pub(crate) fn settings(&self) -> Result<ImageSettings, Failure> {
        let compression = self.compression.unwrap_or(ImageSettings::default().compression());
        Ok(ImageSettings::new(compression, self.level, self.block_size, self.fragment_block_size)?)
    }

    /// Returns the name of the first of these options that was given. They conflict with a plan, which has its own
    /// settings.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        [
            ("--compression", self.compression.is_some()),
            ("--level", self.level.is_some()),
            ("--block-size", self.block_size.is_some()),
            ("--fragment-block-size", self.fragment_block_size.is_some()),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }
}

fn compression_parser() -> impl TypedValueParser<Value = Compression> {
    PossibleValuesParser::new(Compression::ALL.map(Compression::name)).map(|name| {
        Compression::ALL
            .into_iter()
            .find(|codec| codec.name() == name)
            .unwrap_or(ImageSettings::default().compression())
    })
}
