//! Invariant: the files with a machine's state are read or refused, with any content, and a machine that does not run
//! is never reported as running. Input: the file (the lowest bit of the first byte), then its content.

#![no_main]

use fuzz::Scratch;
use launcher::state::RuntimeDirectory;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static RUNTIME: LazyLock<Scratch> = LazyLock::new(|| {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("web")).expect("a directory");
    scratch
});

fuzz_target!(|bytes: &[u8]| {
    let Some((which, content)) = bytes.split_first() else { return };
    let machine = RuntimeDirectory::at(RUNTIME.path()).machine("web").expect("a name");
    if which & 1 == 0 {
        RUNTIME.write("web/process.json", content);
        if let Ok(Some(running)) = machine.running() {
            assert!(running.hypervisor.is_alive());
        }
    } else {
        RUNTIME.write("web/launch.json", content);
        let _ = machine.last_launch();
    }
});
