//! Invariant: for any bytes, an `.attrs.json` gives a valid closure or an error.

#![no_main]

use fuzz::{Scratch, read_closure};
use imagebuilder::closure::ClosureSource;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let file = DIRECTORY.write("attrs.json", bytes);
    for key in [None, Some("closure".to_owned())] {
        let _ = read_closure(&ClosureSource::Graph { file: file.clone(), key });
    }
});
