//! The signals that ask a program to stop, and one that would end it without a message.

use nix::sys::signal::{SigSet, Signal};

/// Returns SIGINT, SIGTERM and SIGHUP, without those that were ignored when this process started, such as SIGHUP under
/// nohup(1). A blocked signal is delivered even if it is ignored, so an ignored one must not be blocked.
pub fn stop_signals() -> SigSet {
    let ignored = ignored_signals();
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        if ignored & 1 << (signal as u32 - 1) == 0 {
            signals.add(signal);
        }
    }
    signals
}

/// Returns SIGXFSZ. While it is blocked, a file that grows beyond the limit of the process (`ulimit -f`) is an error of the
/// write, EFBIG, which can be reported.
pub fn file_size_signal() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals
}

/// Returns the mask `SigIgn` of proc_pid_status(5).
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
