//! Measures `microvm-image` and `microvm` against their peers: mksquashfs, gensquashfs, mkfs.erofs.
//!
//! Everything compared is run in one go, in turn (A B A B ...), so that a machine that grows slower hits all alike; what is
//! reported is the ratio within each round, and its median, minimum and maximum.

use std::io::Write;

pub mod boot;
pub mod builds;
pub mod contest;
pub mod contests;
pub mod error;
pub mod guest_read;
pub mod measure;
pub mod method;
pub mod mount;
pub mod plot;
pub mod read;
pub mod reading;
pub mod results;
pub mod scale;
pub mod start_up;
pub mod statistics;
pub mod store_tree;
pub mod timings;
pub mod tool;
pub mod workspace;

/// Data, to stdout.
pub fn say(text: &str) {
    // a closed pipe is the reader's wish
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// Talk, to stderr: a line.
pub fn talk(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}
