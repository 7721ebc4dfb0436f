//! Invariant: a forged manifest, its checksum right, is refused or is the tree of some store path: names of one component,
//! sorted, hashes for each file. Input: what follows the checksum.

#![no_main]

use fuzz::{BASE_NAME, Scratch, only_entry, open_cache, planned_path};
use imagebuilder::cache::{Cache, Lookup, manifest::range_count};
use imagebuilder::tree::{Entry, FileMode, Tree};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::LazyLock;

static CACHE: LazyLock<(Cache, PathBuf)> = LazyLock::new(|| {
    let scratch = Scratch::new();
    let cache = open_cache(&scratch);
    let mut tree = Tree::default();
    tree.add_file(b"", 0, FileMode::Regular).expect("a file");
    cache.store_manifest(&planned_path(), &tree, &[]).expect("an entry");
    assert!(matches!(cache.load_manifest(&planned_path()), Ok(Lookup::Hit(_))));
    let entry = only_entry(&scratch.path().join("v1/manifests"));
    (cache, entry)
});

fuzz_target!(|bytes: &[u8]| {
    let (cache, entry) = &*CACHE;
    let mut hasher = blake3::Hasher::new_derive_key("microvm-image 2026-11 cached manifest");
    hasher.update(BASE_NAME.as_bytes()).update(&[7; 32]).update(bytes);
    std::fs::write(entry, [hasher.finalize().as_bytes(), bytes].concat()).expect("an entry");
    let Ok(Lookup::Hit(manifest)) = cache.load_manifest(&planned_path()) else { return };
    let mut ranges = 0;
    for node in 0..manifest.tree.len() {
        let name = manifest.tree.name(node);
        assert!(!name.contains(&b'/') && name != b"." && name != b".." && name.is_empty() == (node == 0));
        if let Entry::File { size_bytes, .. } = manifest.tree.entry(node) {
            ranges += range_count(size_bytes);
        }
    }
    assert_eq!(ranges, manifest.range_hashes.len());
    assert!(manifest.tree.nar_size_bytes() > 0);
});
