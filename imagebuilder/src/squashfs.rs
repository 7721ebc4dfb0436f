//! Writes the squashfs 4.0 format: the records on disk, and the tables of an image.
//!
//! This module uses no store, cache or thread.

pub mod format;
pub mod metadata;
pub mod tables;
