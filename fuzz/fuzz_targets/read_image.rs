//! Invariant: for any bytes, opening, checking, describing and dumping an image ends without a panic, with memory
//! bounded by the limits of the reader. Two dumps of a valid image are equal.

#![no_main]

use imagebuilder::dump::dump;
use imagebuilder::image::Image;
use imagebuilder::inspect::inspect;
use imagebuilder::verify::{NarCheck, VerifyOptions, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::from_source(Box::new(bytes.to_vec())) else { return };
    let facts = inspect(&image);
    let options = VerifyOptions { closure: None, nar: NarCheck::Skip, jobs: 1, problems_told: 10 };
    let report = verify(&image, options).expect("one thread can always be started");
    let dumps = [(); 2].map(|()| {
        let mut text = Vec::new();
        dump(&image, &mut text).map(|()| text).ok()
    });
    assert_eq!(dumps[0], dumps[1]);
    if report.sound {
        assert!(facts.is_ok() && dumps[0].is_some(), "a valid image can be described");
    }
});
