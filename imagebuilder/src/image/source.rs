//! Sources of the bytes of an image: a file, a block device, or memory.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

/// Bytes that can be read at any position by several threads at once.
pub trait ImageSource: Send + Sync + fmt::Debug {
    /// Returns the length in bytes.
    fn length_bytes(&self) -> u64;

    /// Returns whether the bytes after the image can belong to something else. A block device can be longer than the
    /// image.
    fn may_exceed_image(&self) -> bool {
        false
    }

    /// Fills `buffer` with the bytes that begin at `offset`.
    ///
    /// # Errors
    /// The source ends before the buffer is full, or cannot be read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A file or a block device.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    length_bytes: u64,
    is_device: bool,
}

impl FileSource {
    /// Determines the length by seeking, which also works for block devices.
    ///
    /// # Errors
    /// The file does not support seeking: it is a pipe, a socket or a terminal.
    pub fn new(mut file: File) -> io::Result<Self> {
        let length_bytes = file.seek(SeekFrom::End(0))?;
        let is_device = file.metadata()?.file_type().is_block_device();
        Ok(Self { file, length_bytes, is_device })
    }
}

impl ImageSource for FileSource {
    fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    fn may_exceed_image(&self) -> bool {
        self.is_device
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl ImageSource for Vec<u8> {
    fn length_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let part = start.and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
