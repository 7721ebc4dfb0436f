//! Keeps the manual true. What a page shows is made by the programs or held against them: the examples are run, the
//! references are printed by the programs, quoted messages and linked places must exist.

pub mod comparison;
pub mod error;
pub mod examples;
pub mod links;
pub mod markdown;
pub mod messages;
pub mod pages;
pub mod parts;
pub mod picture;
pub mod programs;
