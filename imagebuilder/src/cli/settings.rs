//! The options that determine the bytes of an image.

use super::failure::Failure;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use imagebuilder::erofs::Profile;
use imagebuilder::settings::{Compression, FormatName, ImageFormat, ImageSettings};
use imagebuilder::size;
use program::input::whole_number;

/// Codec, level and block sizes. `docs/defaults.md` explains the defaults.
#[derive(Debug, Args)]
#[command(next_help_heading = "Image")]
pub(crate) struct SettingsArgs {
    /// Format of the image: squashfs is compressed, erofs is not [default: squashfs]
    ///
    /// An erofs image is written as fast as the store can be copied. On btrfs, xfs and bcachefs it shares the blocks of
    /// files with the store and takes little space of its own.
    #[arg(long, value_name = "FORMAT", value_parser = format_parser())]
    format: Option<FormatName>,
    /// Make an erofs image that guests can map into their memory: files have whole blocks, and the image is padded to a
    /// multiple of 2 MiB
    #[arg(long)]
    dax: bool,
    /// Append the hash tree of dm-verity, and write the values needed to open the image to IMAGE.verity.json
    #[arg(long)]
    verity: bool,
    /// Codec of the image [default: zstd]
    #[arg(long, value_name = "CODEC", value_parser = compression_parser())]
    compression: Option<Compression>,
    /// Level of the codec: zstd 1 to 22 [default: 8], gzip 1 to 9 [default: 9], xz 0 to 9 [default: 6]; lz4 and none
    /// have no levels
    #[arg(long, value_name = "N", value_parser = whole_number::<u32>)]
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
    /// Returns whether the image will be sealed.
    pub(crate) fn verity(&self) -> Result<bool, Failure> {
        if self.verity && self.dax {
            return Err(Failure::usage(
                "--verity and --dax were given, but a sealed image cannot be mapped into guests",
            ));
        }
        Ok(self.verity)
    }

    /// Returns the selected format with its settings, checked.
    pub(crate) fn format(&self) -> Result<ImageFormat, Failure> {
        match self.format.unwrap_or(FormatName::Squashfs) {
            FormatName::Squashfs if self.dax => {
                Err(Failure::usage("--dax was given, but the format is squashfs, which cannot be mapped")
                    .with_hint("add --format erofs"))
            }
            FormatName::Squashfs => {
                let compression = self.compression.unwrap_or(ImageSettings::default().compression());
                let settings = ImageSettings::new(compression, self.level, self.block_size, self.fragment_block_size)?;
                Ok(ImageFormat::Squashfs(settings))
            }
            FormatName::Erofs => match self.first_squashfs_option() {
                Some(option) => {
                    Err(Failure::usage(format!("{option} was given, but an erofs image is not compressed"))
                        .with_hint(format!("leave {option} out, or use --format squashfs")))
                }
                None => Ok(ImageFormat::Erofs(if self.dax { Profile::Dax } else { Profile::Disk })),
            },
        }
    }

    /// Returns the first of these options that was given, to refuse it with a plan, which has its own settings.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [("--format", self.format.is_some()), ("--dax", self.dax), ("--verity", self.verity)];
        given.into_iter().find_map(|(name, given)| given.then_some(name)).or_else(|| self.first_squashfs_option())
    }

    fn first_squashfs_option(&self) -> Option<&'static str> {
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

fn format_parser() -> impl TypedValueParser<Value = FormatName> {
    PossibleValuesParser::new(FormatName::ALL.map(FormatName::name))
        .map(|name| FormatName::ALL.into_iter().find(|format| format.name() == name).unwrap_or(FormatName::Squashfs))
}

fn compression_parser() -> impl TypedValueParser<Value = Compression> {
    PossibleValuesParser::new(Compression::ALL.map(Compression::name)).map(|name| {
        Compression::ALL
            .into_iter()
            .find(|codec| codec.name() == name)
            .unwrap_or(ImageSettings::default().compression())
    })
}
