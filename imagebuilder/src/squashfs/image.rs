//! What surrounds the data of an image: the superblock and the codec's options before it, tables and padding after it.

use super::format::{
    FragmentEntry, IMAGE_ALIGNMENT_BYTES, METADATA_PLAIN, NO_TABLE, SUPERBLOCK_BYTES, Superblock, flags,
};
use super::tables::{Contents, RootEntry, TablesError, write_tables};
use crate::encode::{EncodeError, Encoder, codec_number, codec_options};
use crate::little_endian::PutLe;
use crate::settings::ImageSettings;

/// Creation time of images, in seconds since 1970. It is the time that Nix gives to all files, so images do not depend
/// on the clock.
const MADE_AT: u32 = 1;

/// Returns the bytes before the data: room for the superblock, and the codec's options if they are not the defaults.
pub fn begin(settings: &ImageSettings) -> Vec<u8> {
    let mut beginning = vec![0; SUPERBLOCK_BYTES];
    if let Some(options) = codec_options(settings) {
        beginning.put_u16(u16::try_from(options.len()).unwrap_or(0) | METADATA_PLAIN);
        beginning.extend_from_slice(&options);
    }
    beginning
}

/// The data of an image, between its beginning and its tables.
#[derive(Clone, Copy, Debug)]
pub struct DataBlocks<'a> {
    /// Position of the first byte after the data, counted from the beginning of the image.
    pub end: u64,
    /// The fragment blocks, in the order of their indexes.
    pub fragments: &'a [FragmentEntry],
    /// Whether no block is compressed.
    pub all_plain: bool,
}

/// The rest of an image whose data is written.
#[derive(Debug)]
pub struct ImageTail {
    /// The tables, which follow the data.
    pub tables: Vec<u8>,
    /// The 96 bytes of the superblock, which replace the first ones of [`begin`].
    pub superblock: Vec<u8>,
    /// The length of the image in bytes: the file system, and zeros up to the next multiple of
    /// [`IMAGE_ALIGNMENT_BYTES`].
    pub length: u64,
}

/// Makes the rest of an image. `store_paths` must be sorted by name, and `contents` counts them in that order.
///
/// # Errors
/// The codec failed, or the closure has more files than the format supports.
pub fn finish(
    settings: &ImageSettings,
    store_paths: &[RootEntry<'_>],
    contents: &dyn Contents,
    data: DataBlocks<'_>,
) -> Result<ImageTail, TablesError> {
    let mut encoders = three_encoders(|| Encoder::for_metadata(settings))?;
    let encoders = encoders.each_mut().map(Some);
    let tables = write_tables(store_paths, contents, data.fragments, data.end, encoders)?;
    let bytes_used = data.end + tables.bytes.len() as u64;
    let mut bits = flags::EXPORTABLE | flags::NO_XATTRS | flags::DUPLICATES;
    for (bit, is_set) in [
        (flags::CODEC_OPTIONS, codec_options(settings).is_some()),
        (flags::NO_FRAGMENTS, tables.fragment_table == NO_TABLE),
        (flags::PLAIN_DATA | flags::PLAIN_FRAGMENTS, data.all_plain),
    ] {
        bits |= if is_set { bit } else { 0 };
    }
    let superblock = Superblock {
        inodes: tables.inodes,
        made_at: MADE_AT,
        block_size_bytes: settings.block_size_bytes(),
        fragments: u32::try_from(data.fragments.len())
            .map_err(|_| TablesError::TooLarge { what: "over 4294967295 fragment blocks" })?,
        codec: codec_number(settings.compression()),
        flags: bits,
        ids: tables.ids,
        root: tables.root,
        bytes_used,
        id_table: tables.id_table,
        inode_table: tables.inode_table,
        directory_table: tables.directory_table,
        fragment_table: tables.fragment_table,
        export_table: tables.export_table,
    };
    let length = bytes_used.next_multiple_of(IMAGE_ALIGNMENT_BYTES);
    Ok(ImageTail { tables: tables.bytes, superblock: superblock.encode(), length })
}

/// Creates the encoders of the inode table, the directory table and the other tables. A codec that cannot be set up
/// ends the build, because tables written without it would have other bytes.
fn three_encoders(new: impl Fn() -> Result<Encoder, EncodeError>) -> Result<[Encoder; 3], EncodeError> {
    Ok([new()?, new()?, new()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_that_cannot_be_set_up_ends_the_build_instead_of_writing_plain_tables() {
        let settings = ImageSettings::default();
        let calls = std::cell::Cell::new(0);
        let fails_at_the_third = || {
            calls.set(calls.get() + 1);
            if calls.get() < 3 { Encoder::for_metadata(&settings) } else { Err(EncodeError::for_test()) }
        };
        assert!(three_encoders(fails_at_the_third).is_err());
        assert!(three_encoders(|| Encoder::for_metadata(&settings)).is_ok());
    }
}
