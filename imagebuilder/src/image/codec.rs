//! Decompresses single blocks into buffers of a given size. A block never gets more memory than that, whatever its
//! header says.

use super::error::{ImageError, Part};
use crate::settings::Compression;
use crate::squashfs::format::codec;
use flate2::{Decompress, FlushDecompress, Status};
use liblzma::stream::{Action, Stream};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Memory limit for an xz block. Its dictionary is at most one block of 1 MiB; the decoder needs the rest for itself.
const XZ_MEMORY_BYTES: u64 = 16 << 20;

/// The codec number of images from `mksquashfs -comp lzma`, which no kernel supports.
const LZMA: u16 = 2;
/// The codec number of LZO images.
const LZO: u16 = 3;

/// Decompresses blocks for many threads; their working memory is reused.
pub(crate) struct Decoder {
    compression: Compression,
    idle: Mutex<Vec<Workspace>>,
}

/// The working memory of one thread.
#[derive(Default)]
pub(crate) struct Workspace {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    gzip: Option<Decompress>,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Decoder").field("compression", &self.compression).finish_non_exhaustive()
    }
}

impl Decoder {
    /// Returns the decoder for a codec number of a superblock.
    pub(crate) fn new(number: u16) -> Result<Self, ImageError> {
        let compression = match number {
            codec::GZIP => Compression::Gzip,
            codec::XZ => Compression::Xz,
            codec::LZ4 => Compression::Lz4,
            codec::ZSTD => Compression::Zstd,
            LZMA => return Err(ImageError::Unsupported { what: "codec lzma".to_owned() }),
            LZO => return Err(ImageError::Unsupported { what: "codec lzo".to_owned() }),
            _ => return Err(ImageError::NotSquashfs { reason: format!("no codec has the number {number}") }),
        };
        Ok(Self { compression, idle: Mutex::new(Vec::new()) })
    }

    /// Returns the codec. Images without compression name gzip and contain only uncompressed blocks.
    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// Decompresses one block to the beginning of `output` and returns its length.
    pub(crate) fn decode(&self, part: Part, input: &[u8], output: &mut [u8]) -> Result<usize, ImageError> {
        let taken = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = taken.unwrap_or_default();
        let result = workspace.decode(self.compression, input, output);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        result.map_err(|reason| {
            ImageError::damaged(part, format!("does not decompress with {}: {reason}", self.compression.name()))
        })
    }
}

impl Workspace {
    /// Decompresses one block to the beginning of `output` and returns its length.
    pub(crate) fn decode(
        &mut self,
        compression: Compression,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<usize, String> {
        match compression {
            Compression::Zstd => self.decode_zstd(input, output),
            Compression::Gzip => self.decode_gzip(input, output),
            Compression::Xz => decode_xz(input, output),
            Compression::Lz4 => lz4_flex::block::decompress_into(input, output).map_err(|error| error.to_string()),
            Compression::None => Err("there is no codec".to_owned()),
        }
    }

    fn decode_zstd(&mut self, input: &[u8], output: &mut [u8]) -> Result<usize, String> {
        let decompressor = match &mut self.zstd {
            Some(decompressor) => decompressor,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?),
        };
        decompressor.decompress_to_buffer(input, output).map_err(|error| error.to_string())
    }

    fn decode_gzip(&mut self, input: &[u8], output: &mut [u8]) -> Result<usize, String> {
        let stream = self.gzip.get_or_insert_with(|| Decompress::new(true));
        stream.reset(true);
        let status = stream.decompress(input, output, FlushDecompress::Finish).map_err(|error| error.to_string())?;
        finished(status == Status::StreamEnd, stream.total_out())
    }
}

fn decode_xz(input: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let mut stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES, 0).map_err(|error| error.to_string())?;
    let status = stream.process(input, output, Action::Finish).map_err(|error| error.to_string())?;
    finished(matches!(status, liblzma::stream::Status::StreamEnd), stream.total_out())
}

/// Returns the length of a stream, or an error if the stream has not ended.
fn finished(ended: bool, length: u64) -> Result<usize, String> {
    if !ended {
        return Err("it is truncated, or longer than a block can be".to_owned());
    }
    usize::try_from(length).map_err(|error| error.to_string())
}
