//! Errors of the reader.

use super::image_path::ImagePath;
use std::fmt;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// A part of an image, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The first 96 bytes.
    Superblock,
    /// The metadata block after the superblock.
    CodecOptions,
    /// The table of all inodes.
    InodeTable,
    /// All directory listings.
    DirectoryTable,
    /// Positions of the fragment blocks.
    FragmentTable,
    /// Positions of the inodes by number.
    ExportTable,
    /// User and group ids.
    IdTable,
    /// Which extended attributes an inode has.
    XattrIdTable,
    /// Names and values of extended attributes.
    XattrTable,
    /// The inode that begins at this byte of the decompressed inode table.
    Inode(u64),
    /// The inode that begins at this byte of the image.
    InodeAt(u64),
    /// The blocks of files in the image.
    Data,
    /// The listing of the directory with this inode number.
    Listing(u32),
    /// The data block at this byte of the image.
    DataBlock(u64),
    /// The fragment block with this number.
    FragmentBlock(u32),
    /// The bytes after the file system.
    Padding,
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => write!(formatter, "superblock"),
            Self::CodecOptions => write!(formatter, "codec options"),
            Self::InodeTable => write!(formatter, "inode table"),
            Self::DirectoryTable => write!(formatter, "directory table"),
            Self::FragmentTable => write!(formatter, "fragment table"),
            Self::ExportTable => write!(formatter, "export table"),
            Self::IdTable => write!(formatter, "id table"),
            Self::XattrIdTable => write!(formatter, "xattr id table"),
            Self::XattrTable => write!(formatter, "xattr table"),
            Self::Inode(position) => write!(formatter, "inode at byte {position} of the inode table"),
            Self::InodeAt(at) => write!(formatter, "inode at byte {at}"),
            Self::Data => write!(formatter, "data"),
            Self::Listing(number) => write!(formatter, "listing of directory inode {number}"),
            Self::DataBlock(at) => write!(formatter, "data block at byte {at}"),
            Self::FragmentBlock(index) => write!(formatter, "fragment block {index}"),
            Self::Padding => write!(formatter, "padding"),
        }
    }
}

/// An image, or a part of it, cannot be read.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The image file cannot be opened.
    #[error("cannot open image {}", .path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Reading the image file failed.
    #[error("cannot read {length_bytes} bytes at byte {offset} of the image")]
    Read {
        /// Number of bytes requested.
        length_bytes: usize,
        /// Position of the first byte in the image.
        offset: u64,
        /// The error of the system.
        source: io::Error,
    },
    /// The file has the magic number of neither format.
    #[error("neither a squashfs 4.0 nor an erofs image: {reason}")]
    NeitherFormat {
        /// What it begins with instead.
        reason: String,
    },
    /// The file is not a squashfs image, or its beginning is damaged.
    #[error("not a squashfs 4.0 image: {reason}")]
    NotSquashfs {
        /// The unexpected value.
        reason: String,
    },
    /// The file is not an EROFS image, or its beginning is damaged.
    #[error("not an erofs image: {reason}")]
    NotErofs {
        /// What is wrong.
        reason: String,
    },
    /// Readers of the two formats would see different images.
    #[error("it is both a squashfs and an erofs image, so it is not clear which one a guest would mount")]
    TwoFormats,
    /// A valid image that this reader does not support.
    #[error("{what} is not supported")]
    Unsupported {
        /// The unsupported feature.
        what: String,
    },
    /// Something in the image contradicts the format or another part of it.
    #[error("{part}: {reason}")]
    Damaged {
        /// The damaged part.
        part: Part,
        /// The problem.
        reason: String,
    },
    /// The image exceeds a limit of this reader.
    #[error("{part}: {reason} (the limit of this reader is {limit})")]
    Limit {
        /// The part that exceeds the limit.
        part: Part,
        /// What exceeds the limit.
        reason: String,
        /// The limit.
        limit: u64,
    },
    /// The path does not exist in the image.
    #[error("{path} is not in the image")]
    NotFound {
        /// The requested path.
        path: ImagePath,
    },
    /// An error that belongs to one path of the image.
    #[error("{path}")]
    At {
        /// The path in the image.
        path: ImagePath,
        /// The problem with it.
        #[source]
        source: Box<ImageError>,
    },
}

impl ImageError {
    /// Returns an error about damage in `part`.
    pub(crate) fn damaged(part: Part, reason: impl Into<String>) -> Self {
        Self::Damaged { part, reason: reason.into() }
    }

    /// Adds the path that the error belongs to.
    pub(crate) fn at(self, path: &[u8]) -> Self {
        Self::At { path: ImagePath(path.to_vec()), source: Box::new(self) }
    }

    /// Returns the message and those of its sources in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}
