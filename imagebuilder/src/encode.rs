//! Compresses single blocks. The same input gives the same bytes on every machine and in every thread.
//!
//! The codecs are compiled in. The system's libraries are never used, because another version may give other bytes.

use crate::little_endian::PutLe;
use crate::settings::{Compression, ImageSettings};
use crate::squashfs::format::{BLOCK_PLAIN, codec};
use flate2::{Compress, FlushCompress, Status};
use liblzma::stream::{Action, Check, Filters, LzmaOptions, Stream};
use std::io::Cursor;
use thiserror::Error;
use zstd::zstd_safe::{CCtx, CParameter, ParamSwitch};

/// Increased by every change of this module that changes the output. It is part of every cache key.
pub const ENCODER_VERSION: u32 = 1;

/// Versions of the codecs' crates, as in `Cargo.lock`: another version may give other bytes.
const ZLIB_RS: &str = "0.6.8";
const LIBLZMA: &str = "0.4.9";
const LZ4_FLEX: &str = "0.14.0";

/// Returns the version of the encoder and the name and version of its codec. Together with the content, the level and
/// the block size, they determine the bytes of a block.
pub fn codec_version(compression: Compression) -> String {
    let version = match compression {
        Compression::Zstd => zstd::zstd_safe::version_string(),
        Compression::Gzip => ZLIB_RS,
        Compression::Xz => LIBLZMA,
        Compression::Lz4 => LZ4_FLEX,
        Compression::None => "0",
    };
    format!("e{ENCODER_VERSION}.{version}")
}

/// A codec failed. This is not expected, because the codecs only read and write memory.
#[derive(Clone, Debug, Error)]
#[error("the {codec} encoder failed: {reason}")]
pub struct EncodeError {
    codec: &'static str,
    reason: String,
}

#[cfg(test)]
impl EncodeError {
    /// Returns an error for tests of error handling.
    pub(crate) fn for_test() -> Self {
        Self { codec: "zstd", reason: "for a test".to_owned() }
    }
}

/// Returns the number of a codec in the superblock.
///
/// Uncompressed images name gzip, because it is the codec that kernels with squashfs most likely support.
pub fn codec_number(compression: Compression) -> u16 {
    match compression {
        Compression::Zstd => codec::ZSTD,
        Compression::Gzip | Compression::None => codec::GZIP,
        Compression::Xz => codec::XZ,
        Compression::Lz4 => codec::LZ4,
    }
}

/// Levels at which the squashfs tools write no codec options.
const DEFAULT_ZSTD_LEVEL: u32 = 15;
const DEFAULT_GZIP_LEVEL: u32 = 9;

/// Highest zstd level for metadata blocks.
const ZSTD_METADATA_LEVEL: u32 = 1;

/// Returns the codec options that follow the superblock. LZ4 requires them (for its version); the others only contain
/// what differs from the defaults of the squashfs tools.
pub fn codec_options(settings: &ImageSettings) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match (settings.compression(), settings.level()) {
        (Compression::Zstd, Some(level)) if level != DEFAULT_ZSTD_LEVEL => out.put_u32(level),
        (Compression::Gzip, Some(level)) if level != DEFAULT_GZIP_LEVEL => {
            out.put_u32(level);
            out.put_u16(15); // window bits
            out.put_u16(1); // strategies: the default one
        }
        (Compression::Lz4, _) => {
            out.put_u32(1); // block format
            out.put_u32(0); // not the high compression encoder
        }
        _ => return None,
    }
    Some(out)
}

/// Compresses blocks one after the other. It owns the codec's working memory, so each thread keeps one.
pub struct Encoder {
    codec: Codec,
}

enum Codec {
    Zstd(Box<CCtx<'static>>),
    Gzip(Box<Compress>),
    Xz { level: u32, dictionary_bytes: u32 },
    Lz4,
    None,
}

impl Encoder {
    /// Sets the codec up.
    ///
    /// # Errors
    /// The codec refuses its parameters.
    pub fn new(settings: &ImageSettings) -> Result<Self, EncodeError> {
        let level = settings.level().unwrap_or_default();
        let codec = match settings.compression() {
            Compression::Zstd => Codec::Zstd(Box::new(zstd_context(level)?)),
            Compression::Gzip => Codec::Gzip(Box::new(Compress::new(flate2::Compression::new(level), true))),
            Compression::Xz => Codec::Xz { level, dictionary_bytes: settings.block_size_bytes().max(8192) },
            Compression::Lz4 => Codec::Lz4,
            Compression::None => Codec::None,
        };
        Ok(Self { codec })
    }

    /// Sets the codec up for metadata blocks. Higher zstd levels take two to ten times as long for 8 KiB, which would
    /// slow down a rebuild from the cache, and save less than a ten-thousandth of an image.
    ///
    /// # Errors
    /// The codec refuses its parameters.
    pub fn for_metadata(settings: &ImageSettings) -> Result<Self, EncodeError> {
        match (settings.compression(), settings.level()) {
            (Compression::Zstd, Some(level)) => {
                Ok(Self { codec: Codec::Zstd(Box::new(zstd_context(level.min(ZSTD_METADATA_LEVEL))?)) })
            }
            _ => Self::new(settings),
        }
    }

    /// Appends the stored form of a block to `out` and returns its size word: the stored length, with
    /// [`BLOCK_PLAIN`] if compression does not make it shorter.
    ///
    /// # Errors
    /// The codec failed.
    pub fn encode_block(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<u32, EncodeError> {
        let start = out.len();
        let shorter = match &mut self.codec {
            Codec::Zstd(context) => encode_zstd(context, input, out)?,
            Codec::Gzip(stream) => encode_gzip(stream, input, out)?,
            Codec::Xz { level, dictionary_bytes } => encode_xz(*level, *dictionary_bytes, input, out)?,
            Codec::Lz4 => {
                out.resize(start + lz4_flex::block::get_maximum_output_size(input.len()), 0);
                let written = lz4_flex::block::compress_into(input, &mut out[start..])
                    .map_err(|error| EncodeError { codec: "lz4", reason: error.to_string() })?;
                out.truncate(start + written);
                written < input.len()
            }
            Codec::None => false,
        };
        if shorter {
            return Ok(length_word(out.len() - start));
        }
        out.truncate(start);
        out.extend_from_slice(input);
        Ok(length_word(input.len()) | BLOCK_PLAIN)
    }
}

/// Returns the length as a size word. Blocks have at most 1 MiB, so it always fits.
fn length_word(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Creates a zstd context. It enables the row-based match finder explicitly; otherwise its use depends on the CPU that
/// zstd was compiled for.
fn zstd_context(level: u32) -> Result<CCtx<'static>, EncodeError> {
    let mut context = CCtx::create();
    let level = i32::try_from(level).unwrap_or(i32::MAX);
    for parameter in [CParameter::CompressionLevel(level), CParameter::UseRowMatchFinder(ParamSwitch::Enable)] {
        context.set_parameter(parameter).map_err(zstd_error)?;
    }
    Ok(context)
}

fn zstd_error(code: usize) -> EncodeError {
    EncodeError { codec: "zstd", reason: zstd::zstd_safe::get_error_name(code).to_owned() }
}

/// Appends the compressed form to `out`; returns whether it is shorter than the input.
fn encode_zstd(context: &mut CCtx<'static>, input: &[u8], out: &mut Vec<u8>) -> Result<bool, EncodeError> {
    let start = out.len();
    out.reserve(zstd::zstd_safe::compress_bound(input.len()));
    // With a cursor, zstd can write to memory that has not been zeroed.
    let mut end = Cursor::new(out);
    end.set_position(start as u64);
    let written = context.compress2(&mut end, input).map_err(zstd_error)?;
    Ok(written < input.len())
}

/// Same as [`encode_zstd`]. The output buffer is one byte shorter than the input: output that does not fit is not
/// shorter.
fn encode_gzip(stream: &mut Compress, input: &[u8], out: &mut Vec<u8>) -> Result<bool, EncodeError> {
    let start = out.len();
    stream.reset();
    out.resize(start + input.len().saturating_sub(1), 0);
    let status = stream
        .compress(input, &mut out[start..], FlushCompress::Finish)
        .map_err(|error| EncodeError { codec: "gzip", reason: error.to_string() })?;
    out.truncate(start + usize::try_from(stream.total_out()).unwrap_or(0));
    Ok(status == Status::StreamEnd)
}

/// Same as [`encode_zstd`]. The kernel's decoder requires a single LZMA2 filter, a dictionary that is not larger than
/// the block, and CRC32 as the check.
fn encode_xz(level: u32, dictionary_bytes: u32, input: &[u8], out: &mut Vec<u8>) -> Result<bool, EncodeError> {
    let fail = |error: liblzma::stream::Error| EncodeError { codec: "xz", reason: error.to_string() };
    let mut options = LzmaOptions::new_preset(level).map_err(fail)?;
    options.dict_size(dictionary_bytes);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let mut stream = Stream::new_stream_encoder(&filters, Check::Crc32).map_err(fail)?;
    let start = out.len();
    out.resize(start + input.len().saturating_sub(1), 0);
    let status = stream.process(input, &mut out[start..], Action::Finish).map_err(fail)?;
    out.truncate(start + usize::try_from(stream.total_out()).unwrap_or(0));
    Ok(matches!(status, liblzma::stream::Status::StreamEnd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(compression: Compression) -> ImageSettings {
        ImageSettings::new(compression, None, None, None).unwrap()
    }

    fn decode(compression: Compression, stored: &[u8], length: usize) -> Vec<u8> {
        match compression {
            Compression::Zstd => zstd::bulk::decompress(stored, length).unwrap(),
            Compression::Gzip => {
                let mut out = vec![0; length];
                let mut stream = flate2::Decompress::new(true);
                stream.decompress(stored, &mut out, flate2::FlushDecompress::Finish).unwrap();
                out
            }
            Compression::Xz => {
                let mut out = Vec::with_capacity(length);
                Stream::new_stream_decoder(1 << 30, 0).unwrap().process_vec(stored, &mut out, Action::Finish).unwrap();
                out
            }
            Compression::Lz4 => lz4_flex::block::decompress(stored, length).unwrap(),
            Compression::None => stored.to_vec(),
        }
    }

    #[test]
    fn every_codec_restores_its_input_and_compresses_it_to_the_same_bytes_twice() {
        let text = b"the quick brown fox ".repeat(5000);
        for compression in Compression::ALL {
            let mut encoder = Encoder::new(&settings(compression)).unwrap();
            let mut out = b"before".to_vec();
            let word = encoder.encode_block(&text, &mut out).unwrap();
            assert_eq!(word & BLOCK_PLAIN != 0, compression == Compression::None);
            assert_eq!((word & !BLOCK_PLAIN) as usize, out.len() - 6);
            assert_eq!(decode(compression, &out[6..], text.len()), text, "{compression:?}");
            let mut again = Vec::new();
            assert_eq!(encoder.encode_block(&text, &mut again).unwrap(), word);
            assert_eq!(again, out[6..]);
        }
    }

    #[test]
    fn the_versions_in_the_keys_of_packs_are_those_in_cargo_lock() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
        for (name, version) in [("zlib-rs", ZLIB_RS), ("liblzma-sys", LIBLZMA), ("lz4_flex", LZ4_FLEX)] {
            assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")), "{name} {version}");
        }
        assert_eq!(codec_version(Compression::Zstd), "e1.1.5.7");
    }

    #[test]
    fn a_block_that_does_not_shrink_is_stored_uncompressed() {
        let mut noise = Vec::new();
        blake3::Hasher::new().finalize_xof().fill({
            noise.resize(4097, 0);
            &mut noise
        });
        for input in [&noise[..], &noise[..1], &noise[..2], &noise[..100]] {
            for compression in Compression::ALL {
                let mut encoder = Encoder::new(&settings(compression)).unwrap();
                let mut out = Vec::new();
                let word = encoder.encode_block(input, &mut out).unwrap();
                assert_eq!(word, length_word(input.len()) | BLOCK_PLAIN, "{compression:?} {}", input.len());
                assert_eq!(out, input);
            }
        }
    }
}
