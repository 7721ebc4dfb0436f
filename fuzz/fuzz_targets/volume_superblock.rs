//! Invariant: for any content of a volume, which the guest writes, its file system is recognised or not, without a
//! panic. Input: the number of a position (first byte), then the bytes at that position.

#![no_main]

use fuzz::Scratch;
use launcher::volumes::file_system;
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

/// The beginning of the volume, and the positions of the superblocks of ext and others, and of btrfs.
const PLACES: [u64; 3] = [0, 1024, 0x1_0000];

static FILE: LazyLock<File> = LazyLock::new(|| {
    let path = Scratch::new().write("volume", b"");
    File::options().read(true).write(true).open(path).expect("a file")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((which, content)) = bytes.split_first() else { return };
    FILE.set_len(0).expect("an empty file");
    FILE.write_all_at(content, PLACES[usize::from(*which) % PLACES.len()]).expect("a volume");
    if let Some(found) = file_system(&FILE).expect("it can be read") {
        assert!(found.is_of_type(found.fs_type) && found.label.is_none_or(|label| label.chars().count() <= 512));
    }
});
