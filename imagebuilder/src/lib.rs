//! Builds the squashfs of a Nix closure: see ARCHITECTURE.md.

pub mod build;
pub mod plan;
pub mod progress;
pub mod report;
pub mod settings;
pub mod store_path;
