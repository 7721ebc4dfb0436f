//! Writes the squashfs 4.0 format: the records on disk, the tables of an image, and what surrounds its data.
//!
//! This module uses no store, cache or thread.

pub mod format;
pub mod image;
pub mod metadata;
pub mod tables;
