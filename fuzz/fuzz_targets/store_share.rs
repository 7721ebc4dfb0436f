//! Invariant: whether a machine needs a store disk is determined or refused, for any description.

#![no_main]

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let _ = imagebuilder::machine::skip(&DIRECTORY.write("machine.json", bytes));
});
