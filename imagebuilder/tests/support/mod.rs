//! What the tests of images share: trees, the tools that make and read images, and what each reader sees.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "it fails tests")]

pub mod built;
pub mod readers;
pub mod seeded;
pub mod stock;
pub mod store_tree;
pub mod tools;
