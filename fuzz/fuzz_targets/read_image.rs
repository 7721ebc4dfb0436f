//! Invariant: for any bytes, opening, checking, describing and dumping an image of either format ends without a panic, with
//! memory bounded by the limits of the reader. Two dumps of a valid image are equal.

#![no_main]

use imagebuilder::dump::{dump, dump_erofs};
use imagebuilder::inspect::{inspect, inspect_erofs};
use imagebuilder::open_image::OpenImage;
use imagebuilder::path_sizes::{path_sizes, path_sizes_erofs};
use imagebuilder::verify::{NarCheck, VerifyOptions, verify, verify_erofs};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = OpenImage::from_source(Box::new(bytes.to_vec())) else { return };
    let options = VerifyOptions { closure: None, nar: NarCheck::Skip, jobs: 1, problems_max: 10 };
    let (facts, report, sizes) = match &image {
        OpenImage::Squashfs(image) => (inspect(image), verify(image, options), path_sizes(image)),
        OpenImage::Erofs(image) => (inspect_erofs(image), verify_erofs(image, options), path_sizes_erofs(image)),
    };
    let report = report.expect("one thread can always be started");
    let dumps = [(); 2].map(|()| {
        let mut text = Vec::new();
        let dumped = match &image {
            OpenImage::Squashfs(image) => dump(image, &mut text),
            OpenImage::Erofs(image) => dump_erofs(image, &mut text),
        };
        dumped.map(|()| text).ok()
    });
    assert_eq!(dumps[0], dumps[1]);
    if report.ok {
        assert!(facts.is_ok() && sizes.is_ok() && dumps[0].is_some(), "a valid image can be described");
    }
});
