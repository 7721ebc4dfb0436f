//! Shared by the tests of images: trees, the tools that make and read images, and the results of each reader.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]
#![allow(unreachable_pub, reason = "each test is a crate of its own")]

pub mod built;
pub mod readers;
pub mod scratch;
pub mod seeded;
pub mod stock;
pub mod store_tree;
pub mod tools;
