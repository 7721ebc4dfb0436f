//! Checks the manual. It runs the examples, regenerates the parts that programs print, and looks up quoted messages,
//! links, files and option names.

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
