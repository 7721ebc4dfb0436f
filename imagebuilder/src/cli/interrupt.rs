//! SIGINT, SIGTERM and SIGHUP: work that can be undone is asked to stop; everything else ends immediately.
//!
//! The signals are blocked, and one thread waits for them. No code runs in a signal handler, and no `unsafe` is needed.
//! Child processes do not inherit the signal mask, because Rust's standard library clears it for them.

use super::failure::Failure;
use imagebuilder::serve::socket::SocketRemover;
use nix::sys::signal::SigSet;
use program::failure::INTERRUPTED;
use program::signals::{file_size_signal, stop_signals};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Whether the program is a server, for which ending on request is not a failure.
static IS_SERVER: AtomicBool = AtomicBool::new(false);
/// The socket of the server.
static SERVER_SOCKET: OnceLock<SocketRemover> = OnceLock::new();
/// Set by a signal that arrives while undoable work is running.
static CANCELLED: AtomicBool = AtomicBool::new(false);
/// Whether running work checks [`CANCELLED`].
static OBSERVED: AtomicBool = AtomicBool::new(false);

/// Starts to wait for the signals. Call this before starting any other thread: threads inherit the signal mask.
pub(crate) fn install() -> Result<(), Failure> {
    let signals = stop_signals();
    for blocked in [&signals, &file_size_signal()] {
        blocked.thread_block().map_err(|error| Failure::failed(&error).with_context("cannot block signals"))?;
    }
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || wait(&signals))
        .map_err(|error| Failure::failed(&error).with_context("cannot start the thread that waits for signals"))?;
    Ok(())
}

fn wait(signals: &SigSet) {
    while signals.wait().is_ok() {
        if IS_SERVER.load(Ordering::SeqCst) {
            if let Some(socket) = SERVER_SOCKET.get() {
                socket.remove();
            }
            process::exit(0);
        }
        let asked_before = CANCELLED.swap(true, Ordering::SeqCst);
        if asked_before || !OBSERVED.load(Ordering::SeqCst) {
            Failure::interrupted().report();
            process::exit(i32::from(INTERRUPTED));
        }
    }
}

/// From now on a first signal only sets the returned flag, and a second one ends the program immediately. The caller
/// checks the flag often, and undoes its work once it is true.
pub(crate) fn cancel_flag() -> &'static AtomicBool {
    OBSERVED.store(true, Ordering::SeqCst);
    &CANCELLED
}

/// From now on a signal ends the program successfully.
pub(crate) fn end_server() {
    IS_SERVER.store(true, Ordering::SeqCst);
}

/// From now on a signal also removes the server's socket.
pub(crate) fn remove_at_end(socket: SocketRemover) {
    // There is only one server.
    let _ = SERVER_SOCKET.set(socket);
}
