//! SIGINT and SIGTERM: work that can be undone is asked to stop, everything else ends at once.
//!
//! The signals are blocked and one thread waits for them: no code runs in a signal handler, and no `unsafe` is needed.
//! Programs that are started do not inherit the blocking, since Rust's standard library empties the mask for them.

use super::failure::Failure;
use super::streams;
use nix::sys::signal::{SigSet, Signal};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// The exit code of a program that SIGINT ended, as shells give it.
const INTERRUPTED: i32 = 130;

/// Set once a signal has come while work was to be undone.
static CANCELLED: AtomicBool = AtomicBool::new(false);
/// Whether somebody looks at [`CANCELLED`].
static LOOKED_AT: AtomicBool = AtomicBool::new(false);

/// Begins to wait for the signals. To be called before any other thread is started: threads inherit the blocking.
pub(crate) fn install() -> Result<(), Failure> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|error| Failure::failed(&error).with_context("cannot block signals"))?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || wait(&signals))
        .map_err(|error| Failure::failed(&error).with_context("cannot start the thread that waits for signals"))?;
    Ok(())
}

fn wait(signals: &SigSet) {
    while signals.wait().is_ok() {
        let asked_before = CANCELLED.swap(true, Ordering::SeqCst);
        if asked_before || !LOOKED_AT.load(Ordering::SeqCst) {
            streams::tell("error: interrupted");
            process::exit(INTERRUPTED);
        }
    }
}

/// From here on a first signal only sets the flag that is returned, and a second one ends the program at once. The
/// caller looks at the flag often, and undoes what it has begun once it is true.
pub(crate) fn cancel_flag() -> &'static AtomicBool {
    LOOKED_AT.store(true, Ordering::SeqCst);
    &CANCELLED
}
