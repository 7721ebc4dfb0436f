//! What the tests of images share: trees, the tools that make and read images, and what each reader sees.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "it fails tests and tells why they are skipped")]

pub mod built;
pub mod readers;
pub mod seeded;
pub mod stock;
pub mod store_tree;
pub mod tools;
