//! What a program prints when it is asked for its options. The program may belong to a machine's user, so it can neither keep
//! the launcher waiting nor fill its memory.

use crate::interruption::end_group;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to print its options.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most output that is read.
const MAX_BYTES: usize = 1 << 20;

/// Runs a program, and returns the beginning of its output to stdout and stderr. Ends the program when it has printed too
/// much, or takes too long.
///
/// # Errors
/// Fails if the program cannot be started; [`io::ErrorKind::TimedOut`] if it does not close its output in time.
pub(crate) fn first_output(command: Command) -> io::Result<Vec<u8>> {
    first_output_within(command, TIMEOUT)
}

fn first_output_within(mut command: Command, timeout: Duration) -> io::Result<Vec<u8>> {
    let (mut reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn()?;
    // It contains the writing ends, and the end of the output is seen only without them.
    drop(command);
    let end = Instant::now() + timeout;
    let mut output = Vec::new();
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
            Ok(0) => break Ok(output),
            Ok(count) => output.extend(&buffer[..count]),
            Err(error) => break Err(error),
        }
        if output.len() >= MAX_BYTES {
            break Ok(output);
        }
    };
    end_group(&mut child);
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_prints_without_end_or_nothing_at_all_does_not_keep_the_launcher_waiting() {
        assert_eq!(first_output(shell("echo out; echo err >&2")).unwrap(), b"out\nerr\n");
        assert!(first_output(shell("exec yes")).unwrap().len() >= MAX_BYTES);
        let silent = first_output_within(shell("exec sleep 600"), Duration::from_millis(100));
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
