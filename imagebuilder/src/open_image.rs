//! Opens images of either format.

use crate::erofs::format::{MAGIC as EROFS_MAGIC, SUPERBLOCK_OFFSET};
use crate::erofs::reader::ErofsImage;
use crate::image::{FileSource, FileTree, Image, ImageError, ImageSource};
use crate::squashfs::format::MAGIC as SQUASHFS_MAGIC;
use std::fs::File;
use std::path::Path;

/// An image of either format.
#[derive(Debug)]
pub enum OpenImage {
    /// A squashfs image.
    Squashfs(Box<Image>),
    /// An EROFS image.
    Erofs(ErofsImage),
}

impl OpenImage {
    /// Opens an image file or a block device with an image on it.
    ///
    /// # Errors
    /// It cannot be read, has neither format, or is damaged. An image with the magic numbers of both formats is
    /// refused, because a guest could see different files in it than this reader.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let source = File::open(path).and_then(FileSource::new);
        let source = source.map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
        Self::from_source(Box::new(source))
    }

    /// Opens an image from any source.
    ///
    /// # Errors
    /// The same as those of [`Self::open`].
    pub fn from_source(source: Box<dyn ImageSource>) -> Result<Self, ImageError> {
        let is_squashfs = has_magic(source.as_ref(), SQUASHFS_MAGIC, 0)?;
        let is_erofs = has_magic(source.as_ref(), EROFS_MAGIC, SUPERBLOCK_OFFSET)?;
        match (is_squashfs, is_erofs) {
            (true, true) => Err(ImageError::TwoFormats),
            (false, true) => ErofsImage::from_source(source).map(Self::Erofs),
            (true, false) => Image::from_source(source).map(|image| Self::Squashfs(Box::new(image))),
            (false, false) => Err(neither_format(Image::from_source(source))),
        }
    }

    /// Returns the files of the image.
    pub fn tree(&self) -> &dyn FileTree {
        match self {
            Self::Squashfs(image) => image.as_ref(),
            Self::Erofs(image) => image,
        }
    }
}

/// Returns the error for a file without a magic number of either format. The reader of squashfs gives the reason.
fn neither_format(image: Result<Image, ImageError>) -> ImageError {
    match image {
        Err(ImageError::NotSquashfs { reason }) => ImageError::NeitherFormat { reason },
        Err(error) => error,
        Ok(_) => ImageError::NeitherFormat { reason: "it has no magic number".to_owned() },
    }
}

fn has_magic(source: &dyn ImageSource, magic: u32, offset: u64) -> Result<bool, ImageError> {
    let mut bytes = [0; 4];
    if source.length_bytes() < offset + bytes.len() as u64 {
        return Ok(false);
    }
    let read = source.read_exact_at(&mut bytes, offset);
    read.map_err(|source| ImageError::Read { length_bytes: bytes.len(), offset, source })?;
    Ok(u32::from_le_bytes(bytes) == magic)
}
