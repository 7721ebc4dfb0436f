//! Invariant: for any bytes, extracting an image creates nothing outside of the output directory, and the files
//! extracted from a valid image have the names and sizes in the image.

#![no_main]

use imagebuilder::extract::{ExtractOptions, SpecialFiles, extract};
use imagebuilder::inspect::{inspect, inspect_erofs};
use imagebuilder::open_image::OpenImage;
use libfuzzer_sys::fuzz_target;
use std::sync::atomic::AtomicBool;

/// Maximum size of the content to extract. Holes of terabytes are valid, but not useful here.
const MAX_CONTENT_BYTES: u64 = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = OpenImage::from_source(Box::new(bytes.to_vec())) else { return };
    let facts = match &image {
        OpenImage::Squashfs(image) => inspect(image),
        OpenImage::Erofs(image) => inspect_erofs(image),
    };
    if !facts.is_ok_and(|facts| facts.content_bytes <= MAX_CONTENT_BYTES) {
        return;
    }
    let around = tempfile::tempdir().expect("a directory for the test");
    let output = around.path().join("output");
    let options = ExtractOptions { path: b"", output: &output, special_files: SpecialFiles::Skip, jobs: 1 };
    let _ = extract(image.tree(), options, &AtomicBool::new(false));
    let names = std::fs::read_dir(around.path()).expect("the directory for the test");
    let outside = names.map(|entry| entry.expect("an entry").file_name()).filter(|name| name != "output").count();
    assert_eq!(outside, 0);
});
