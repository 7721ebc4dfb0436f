//! The squashfs 4.0 format: what its records look like on disk, and how the tables of an image are laid out.
//!
//! Nothing here knows of stores, caches or threads.

pub mod format;
pub mod metadata;
pub mod tables;
