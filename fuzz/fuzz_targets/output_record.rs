//! Invariant: for any bytes, a record of a finished build is accepted only if it describes exactly the existing file.

#![no_main]

use fuzz::{Scratch, only_entry, open_cache, plan};
use imagebuilder::build::Durability;
use imagebuilder::cache::Cache;
use imagebuilder::cache::outputs::{PlanKey, Published};
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
    let published = Published { file: std::fs::File::open(&image).expect("an image"), is_synced: true };
    cache.remember_build(&key, &image, &published, &BuildReport::default()).expect("a record");
    assert!(cache.finished_build((&key, &plan()), &image, Durability::Synced).is_some());
    let record = only_entry(&scratch.path().join("v2/outputs"));
    Place { cache, key, image, record }
});

fuzz_target!(|bytes: &[u8]| {
    let place = &*PLACE;
    std::fs::write(&place.record, bytes).expect("a record");
    // The weaker demand, which accepts more records.
    let found = place.cache.finished_build((&place.key, &plan()), &place.image, Durability::UnsyncedIfNew);
    assert!(found.is_none());
});
