//! Measures `microvm-image` and `microvm` against their peers: mksquashfs, gensquashfs, mkfs.erofs.
//!
//! All candidates run in one session and take turns (A B A B ...), so that a machine that becomes slower affects all of
//! them equally. Results are ratios within each round, with their median, minimum and maximum.

use std::io::Write;

pub mod boot;
pub mod builds;
pub mod cache_costs;
pub mod comparison;
pub mod comparisons;
pub mod error;
pub mod guest_read;
pub mod initrd;
pub mod measure;
pub mod method;
pub mod mount;
pub mod plot;
pub mod read;
pub mod reading;
pub mod report;
pub mod results;
pub mod scale;
pub mod start_up;
pub mod statistics;
pub mod store_tree;
pub mod store_ways;
pub mod timings;
pub mod tool;
pub mod workspace;

/// Prints data to stdout.
pub fn print(text: &str) {
    // The reader may close the pipe.
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// Prints a message to stderr.
pub fn message(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}
