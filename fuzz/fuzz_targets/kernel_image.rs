//! Invariant: the format of a kernel image is recognised or not, for any bytes, with the same result twice.

#![no_main]

use fuzz::Scratch;
use launcher::host::kernel_form;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|bytes: &[u8]| {
    let path = DIRECTORY.write("kernel", bytes);
    assert_eq!(kernel_form(&path).ok(), kernel_form(&path).ok());
});
