//! Builds the image of a Nix closure, a squashfs or an EROFS, and reads, verifies, compares and extracts such images.
//! The program `microvm-image` is a thin layer over this crate; `ARCHITECTURE.md` explains how the modules work
//! together.
//!
//! A build has four stages, each of which is data that you can inspect:
//!
//! 1. [`closure::read`] reads the store paths of a closure from one of its sources.
//! 2. [`plan::ImagePlan`] combines them with [`settings::ImageSettings`] and determines every byte of the image.
//! 3. [`build::build`] writes the image, completely or not at all.
//! 4. [`verify::verify`] checks an image, alone or against the closure.
//!
//! ```
//! use imagebuilder::build::{BuildOptions, CacheTrust, Digests, Durability, build};
//! use imagebuilder::closure::{ClosureSource, ListInput, read};
//! use imagebuilder::image::Image;
//! use imagebuilder::plan::ImagePlan;
//! use imagebuilder::progress::Silent;
//! use imagebuilder::settings::ImageSettings;
//! use imagebuilder::verify::{NarCheck, VerifyOptions, verify};
//! use std::fs;
//! use std::sync::atomic::AtomicBool;
//!
//! // A store with one store path, and a list that names it.
//! let directory = tempfile::tempdir()?;
//! let store = directory.path().join("store");
//! fs::create_dir(&store)?;
//! fs::write(store.join("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-greeting"), "hello")?;
//! let list = directory.path().join("list");
//! fs::write(&list, "/nix/store/0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-greeting\n")?;
//!
//! let closure = read(&ClosureSource::PathList(ListInput::File(list)), Some(&store))?;
//! let plan = ImagePlan::new(closure.clone(), ImageSettings::default());
//! let output = directory.path().join("greeting.squashfs");
//! let options = BuildOptions {
//!     output: output.clone(),
//!     cache: None,
//!     packs: None,
//!     cache_trust: CacheTrust::Checksums,
//!     jobs: 2,
//!     digests: Digests::Skip,
//!     durability: Durability::Synced,
//! };
//! let report = build(&plan, &options, &mut Silent, &AtomicBool::new(false))?;
//! assert_eq!(report.paths, 1);
//!
//! let options = VerifyOptions { closure: Some(&closure), nar: NarCheck::Skip, jobs: 2, problems_max: 10 };
//! assert!(verify(&Image::open(&output)?, options)?.ok);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod attributes;
pub mod block_map;
mod bounded_findings;
pub mod build;
pub mod cache;
pub mod cache_service;
pub mod closure;
pub mod diff;
pub mod dump;
pub mod encode;
pub mod erofs;
pub mod extract;
pub mod image;
pub mod inspect;
pub mod little_endian;
pub mod machine;
pub mod missing_paths;
pub mod nar;
pub mod nar_hash;
pub mod open_files;
pub mod open_image;
pub mod output;
pub mod pack;
pub mod path_sizes;
pub mod plan;
pub mod plan_file;
pub mod progress;
pub mod report;
pub mod scan;
pub mod segment;
pub mod serve;
pub mod settings;
pub mod size;
pub mod squashfs;
pub mod store_listing;
pub mod store_path;
pub mod store_root;
pub mod threads;
pub mod tree;
pub mod verify;
pub mod verity;
pub mod volume;
