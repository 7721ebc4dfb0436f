//! Invariant: for any bytes, a record of a finished build is accepted only if it describes exactly the existing file.

#![no_main]

use fuzz::{Scratch, only_entry, open_cache, plan};
use imagebuilder::cache::{Cache, outputs::PlanKey};
use imagebuilder::report::BuildReport;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

struct Place {
    cache: Cache,
    key: PlanKey,
    image: PathBuf,
    record: PathBuf,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let scratch = Scratch::new();
    let cache = open_cache(&scratch);
    let key = PlanKey::of(&plan()).expect("a key");
    let image = scratch.write("image", b"image");
    let published = std::fs::File::open(&image).expect("an image");
    cache.remember_build(&key, &image, &published, &BuildReport::default()).expect("a record");
    assert!(cache.finished_build(&key, &plan(), &image).is_some());
    let record = only_entry(&scratch.path().join("v2/outputs"));
    Place { cache, key, image, record }
});

fuzz_target!(|bytes: &[u8]| {
    let place = &*PLACE;
    std::fs::write(&place.record, bytes).expect("a record");
    assert!(place.cache.finished_build(&place.key, &plan(), &place.image).is_none());
});
