//! Runs a program and measures its time, processor time and peak memory.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The cost of one run of a program.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Wall-clock seconds from start to end.
    pub seconds: f64,
    /// Processor seconds in user mode, of all threads.
    pub user_seconds: f64,
    /// Processor seconds in the kernel, of all threads.
    pub system_seconds: f64,
    /// The largest resident set the program had, in bytes.
    pub peak_memory_bytes: u64,
}

/// Runs `command` to its end and discards its output.
///
/// # Errors
/// When it can't be started or fails.
pub fn run(command: &mut Command) -> Result<Cost, Error> {
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| Error::Start { program: command.get_program().to_string_lossy().into_owned(), source })?;
    let (status, usage) = wait(child)?;
    let seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        let stderr = "run the command by hand to see what it says".to_owned();
        return Err(Error::Program { program: format!("{command:?}"), status, stderr });
    }
    Ok(Cost {
        seconds,
        user_seconds: time_seconds(usage.ru_utime),
        system_seconds: time_seconds(usage.ru_stime),
        // Linux reports KiB: getrusage(2)
        peak_memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    })
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a process fit a double")]
fn time_seconds(time: nix::libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

/// `wait4` is the only call that reports the peak memory of one child instead of all children so far.
#[expect(unsafe_code, reason = "neither std nor nix offers wait4")]
fn wait(child: Child) -> Result<(ExitStatus, nix::libc::rusage), Error> {
    use std::os::unix::process::ExitStatusExt;
    let id = nix::libc::pid_t::try_from(child.id()).map_err(|error| Error::Unexpected(error.to_string()))?;
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which all zeroes is a value.
    let mut usage: nix::libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live local variables of the types wait4 writes; the child is ours and not yet waited for.
    let waited = unsafe { nix::libc::wait4(id, &raw mut status, 0, &raw mut usage) };
    if waited == id {
        return Ok((ExitStatus::from_raw(status), usage));
    }
    Err(Error::Unexpected(format!("cannot wait for process {id}: {}", std::io::Error::last_os_error())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_costs_time_and_memory() {
        let cost = run(Command::new("sleep").arg("0.05")).unwrap();
        assert!(cost.seconds >= 0.05, "{cost:?}");
        assert!(cost.peak_memory_bytes > 100_000, "{cost:?}");
    }

    #[test]
    fn the_peak_memory_is_that_of_this_child_alone() {
        let large = run(Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"])).unwrap();
        let small = run(&mut Command::new("true")).unwrap();
        assert!(large.peak_memory_bytes > 200_000_000, "{large:?}");
        assert!(small.peak_memory_bytes < 50_000_000, "{small:?}");
    }

    #[test]
    fn a_failing_program_is_an_error() {
        let error = run(&mut Command::new("false")).unwrap_err();
        assert!(matches!(error, Error::Program { .. }), "{error}");
    }
}
