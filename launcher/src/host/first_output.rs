//! Output of a program that can neither keep the launcher waiting nor fill its memory. The program may belong to a machine's
//! user, or read much.

use crate::interruption::end_group;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most output that is returned.
const MAX_BYTES: usize = 1 << 20;

/// Runs a program, and returns the beginning of its output to stdout and stderr. Ends the program when it has printed too
/// much, or takes too long.
///
/// # Errors
/// Fails if the program cannot be started; [`io::ErrorKind::TimedOut`] if it does not close its output in time.
pub(crate) fn first_output(command: Command) -> io::Result<Vec<u8>> {
    first_output_within(command, TIMEOUT)
}

/// Runs a program, and returns the end of its output to stdout, or what it had printed when it was ended because it took too
/// long.
///
/// # Errors
/// Fails if the program cannot be started.
pub(crate) fn last_output(command: Command) -> io::Result<Vec<u8>> {
    last_output_within(command, TIMEOUT)
}

fn first_output_within(mut command: Command, timeout: Duration) -> io::Result<Vec<u8>> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut output = Vec::new();
    read_output(command, reader, timeout, |bytes| {
        output.extend(bytes);
        output.len() >= MAX_BYTES
    })?;
    Ok(output)
}

fn last_output_within(mut command: Command, timeout: Duration) -> io::Result<Vec<u8>> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer).stderr(Stdio::null());
    let mut output = VecDeque::new();
    let read = read_output(command, reader, timeout, |bytes| {
        output.extend(bytes);
        output.drain(..output.len().saturating_sub(MAX_BYTES));
        false
    });
    match read {
        Err(error) if error.kind() != io::ErrorKind::TimedOut => Err(error),
        _ => Ok(output.into()),
    }
}

/// Runs a program with its output to a pipe. Ends it when `is_enough` says so, or when it takes too long.
fn read_output(
    mut command: Command,
    mut reader: PipeReader,
    timeout: Duration,
    mut is_enough: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    command.stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn()?;
    // It contains the writing ends, and the end of the output is seen only without them.
    drop(command);
    let end = Instant::now() + timeout;
    let read = loop {
        let left = PollTimeout::try_from(end.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => break Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => break Err(errno.into()),
        }
        let mut buffer = [0; 16 << 10];
        match reader.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) if is_enough(&buffer[..count]) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    end_group(&mut child);
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough on a busy host.
    const LONG: Duration = Duration::from_secs(600);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_prints_without_end_or_nothing_at_all_does_not_keep_the_launcher_waiting() {
        assert_eq!(first_output_within(shell("echo out; echo err >&2"), LONG).unwrap(), b"out\nerr\n");
        assert!(first_output_within(shell("exec yes"), LONG).unwrap().len() >= MAX_BYTES);
        let silent = first_output_within(shell("exec sleep 600"), Duration::from_millis(100));
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn reading_the_journal_after_a_failed_start_had_no_limit() {
        let script = "head -c 9000000 /dev/zero; echo 'error: the end'; echo err >&2";
        let long = last_output_within(shell(script), LONG).unwrap();
        assert!(long.len() == MAX_BYTES && long.ends_with(b"\0error: the end\n"));
        // When a short time is over, the program may not have printed anything yet.
        let times = (0..14).map(|power| Duration::from_millis(50 << power));
        let stuck = |time| last_output_within(shell("echo 'error: so far'; exec sleep 6000"), time).unwrap();
        assert_eq!(times.map(stuck).find(|output| !output.is_empty()).unwrap_or_default(), b"error: so far\n");
        let endless = last_output_within(shell("exec yes"), Duration::from_millis(200)).unwrap();
        assert!(endless.len() <= MAX_BYTES);
        assert!(last_output(Command::new("/nonexistent/journalctl")).is_err());
    }
}
