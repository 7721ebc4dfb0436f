//! Builds the squashfs of a Nix closure: see ARCHITECTURE.md.

pub mod atomic_file;
pub mod build;
pub mod cache;
pub mod closure;
pub mod decode;
pub mod dump;
pub mod encode;
pub mod image;
pub mod inspect;
pub mod machine;
pub mod nar;
pub mod nar_hash;
pub mod output;
pub mod plan;
pub mod plan_file;
pub mod presence;
pub mod progress;
pub mod report;
pub mod scan;
pub mod segment;
pub mod settings;
pub mod size;
pub mod squashfs;
pub mod store_path;
pub mod tree;
pub mod verify;
