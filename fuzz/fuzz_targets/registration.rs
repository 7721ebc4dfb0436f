//! Invariant: for any bytes, the output of `closureInfo` gives a valid closure or an error.
//! Input: `registration`, a zero byte, `store-paths`.

#![no_main]

use fuzz::{Scratch, read_closure};
use imagebuilder::closure::ClosureSource;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let (registration, store_paths) = match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    DIRECTORY.write("registration", registration);
    DIRECTORY.write("store-paths", store_paths);
    if let Ok(closure) = read_closure(&ClosureSource::ClosureInfo(DIRECTORY.path().to_path_buf())) {
        assert!(closure.paths.iter().all(|planned| planned.nar_hash.is_some() && planned.nar_size_bytes.is_some()));
    }
});
