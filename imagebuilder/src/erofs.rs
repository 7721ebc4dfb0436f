//! The EROFS format without compression: what its records look like on disk, and how an image is laid out.
//!
//! The images use the format of Linux 5.4, the first version with EROFS: no feature that a kernel could lack. All blocks
//! have 4096 bytes. An image consists of
//!
//! ```text
//! inode area      superblock at byte 1024; then inodes, each in 32-byte slots and followed by its tail, if it has one
//! directory area  the blocks of directories and symbolic links whose content does not fit after their inodes
//! data area       the blocks of files; every file begins at a block
//! ```
//!
//! A *tail* is what is left of a directory, symbolic link or file after its last whole block. It is stored directly after
//! the inode and never crosses the end of a block. Files have tails in images for block devices ([`Profile::Disk`]). DAX
//! maps the blocks of the image into the processes that read it, so there every file has only whole blocks
//! ([`Profile::Dax`]).
//!
//! An image is made in two passes over one `Output`: the first one counts, so that every inode and block
//! has its place; the second one writes a [`BlockMap`](crate::block_map::BlockMap). Nothing here reads a file or uses
//! caches or threads.

mod directory;
mod emit;
pub mod format;
mod layout;
pub mod reader;

pub use emit::block_map;
pub use layout::{ErofsError, Profile, SameContent};
