//! Invariant: a forged segment, its checksum right, is refused or has as many bytes as its blocks say.
//! Input: what follows the checksum.

#![no_main]

use fuzz::{Scratch, only_entry, open_cache};
use imagebuilder::cache::segments::checksum;
use imagebuilder::cache::{Cache, Lookup};
use imagebuilder::encode::Encoder;
use imagebuilder::segment::{Batch, SegmentKey, SegmentKind, encode_segment};
use imagebuilder::settings::ImageSettings;
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

const KEY: SegmentKey = SegmentKey { kind: SegmentKind::File, content: [7; 32] };
/// The bit of a size word that says that the block is stored as it is.
const PLAIN: u32 = 1 << 24;

static CACHE: LazyLock<(Cache, PathBuf)> = LazyLock::new(|| {
    let scratch = Scratch::new();
    let cache = open_cache(&scratch);
    let settings = ImageSettings::default();
    let mut encoder = Encoder::new(&settings).expect("an encoder");
    let mut batch = Batch::default();
    let segment = encode_segment(&mut encoder, KEY.kind, b"content", settings.block_size_bytes(), &mut batch);
    let segment = segment.expect("a segment");
    cache.store_segment(&KEY, &segment, batch.stored(&segment)).expect("an entry");
    assert!(matches!(cache.load_segment(&KEY, &mut Batch::default()), Ok(Lookup::Hit(_))));
    let entry = only_entry(&scratch.path().join("v1/segments"));
    (cache, entry)
});

fuzz_target!(|bytes: &[u8]| {
    let (cache, entry) = &*CACHE;
    std::fs::write(entry, [&checksum(&KEY, &[bytes])[..], bytes].concat()).expect("an entry");
    let mut batch = Batch::default();
    let Ok(Lookup::Hit(segment)) = cache.load_segment(&KEY, &mut batch) else { return };
    let stored: u64 = segment.words.iter().map(|word| u64::from(word & !PLAIN)).sum();
    assert_eq!(stored, batch.stored(&segment).len() as u64);
});
