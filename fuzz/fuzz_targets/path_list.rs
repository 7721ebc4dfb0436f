//! Invariant: for any bytes, a list of store paths gives a valid closure or an error. Carriage returns are ignored.

#![no_main]

use fuzz::{Scratch, read_closure};
use imagebuilder::closure::{ClosureSource, ListInput};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let read = |name: &str, bytes: &[u8]| {
        read_closure(&ClosureSource::PathList(ListInput::File(DIRECTORY.write(name, bytes)))).ok()
    };
    let closure = read("list", bytes);
    let windows: Vec<u8> =
        bytes.iter().flat_map(|byte| if *byte == b'\n' { vec![b'\r', b'\n'] } else { vec![*byte] }).collect();
    assert_eq!(closure, read("windows", &windows));
});
