//! Invariant: accepted store paths, NAR hashes and sizes are unchanged when they are printed and parsed again.

#![no_main]

use imagebuilder::nar_hash;
use imagebuilder::size;
use imagebuilder::store_path::{LocatedStorePath, StorePath};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(path) = StorePath::from_base_name(text) {
        assert_eq!(path.base_name(), text);
        assert!(!text.contains(['/', '\0', '\n']) && !text.starts_with('.') && text.len() <= 255);
    }
    if let Ok(located) = LocatedStorePath::parse(text) {
        assert!(text.contains(located.path.base_name()));
    }
    if let Ok(hash) = nar_hash::parse(text) {
        assert_eq!(nar_hash::parse(&nar_hash::print(&hash)), Ok(hash));
    }
    if let Ok(bytes) = size::parse(text) {
        assert_eq!(size::parse(&bytes.to_string()), Ok(bytes));
    }
});
