//! The client of a console socket: `microvm console`.

use super::ConsoleError;
use super::terminal::RawTerminal;
use crate::sockets::connect_to;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Ctrl-], as in telnet: leaves the console.
const ESCAPE: u8 = 0x1d;

/// Why the client has left the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The user pressed Ctrl-].
    ByUser,
    /// The machine has ended.
    MachineEnded,
}

/// Connects stdin and stdout, which may be a terminal, to the console until the user types Ctrl-].
///
/// # Errors
/// Returns [`ConsoleError`].
pub fn attach(path: &Path) -> Result<Detached, ConsoleError> {
    let stream = connect_to(path).map_err(|source| ConsoleError::Unreachable { path: path.to_owned(), source })?;
    let stdin = io::stdin();
    let _raw = stdin.is_terminal().then(|| RawTerminal::enter(&stdin)).transpose().map_err(ConsoleError::Terminal)?;
    relay(stream, &mut stdin.lock(), &mut io::stdout().lock()).map_err(ConsoleError::Terminal)
}

fn relay(mut stream: UnixStream, input: &mut (impl Read + AsFd), output: &mut impl Write) -> io::Result<Detached> {
    let mut buffer = [0; 8192];
    let mut typing = true;
    loop {
        let mut descriptors = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        if typing {
            descriptors.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_ready = |descriptor: &PollFd<'_>| descriptor.any().unwrap_or(false);
        let (from_guest, from_user) = (is_ready(&descriptors[0]), descriptors.get(1).is_some_and(is_ready));
        drop(descriptors);
        if from_guest {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Ok(Detached::MachineEnded);
            }
            output.write_all(&buffer[..count])?;
            output.flush()?;
        }
        if from_user {
            let count = input.read(&mut buffer)?;
            let typed = &buffer[..count];
            let end = typed.iter().position(|byte| *byte == ESCAPE);
            stream.write_all(&typed[..end.unwrap_or(count)])?;
            if end.is_some() {
                return Ok(Detached::ByUser);
            }
            if count == 0 {
                typing = false;
                stream.shutdown(Shutdown::Write)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn input_is_sent_up_to_the_escape_key() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("typed");
        std::fs::write(&path, b"reboot\n\x1dnot this").unwrap();
        let mut output = Vec::new();
        assert_eq!(relay(ours, &mut File::open(&path).unwrap(), &mut output).unwrap(), Detached::ByUser);
        let mut received = String::new();
        theirs.read_to_string(&mut received).unwrap();
        assert_eq!(received, "reboot\n");
    }

    #[test]
    fn output_is_printed_until_the_machine_ends() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"login: ").unwrap();
        drop(theirs);
        let mut output = Vec::new();
        let detached = relay(ours, &mut File::open("/dev/null").unwrap(), &mut output);
        assert_eq!((detached.unwrap(), output.as_slice()), (Detached::MachineEnded, b"login: ".as_slice()));
    }

    #[test]
    fn connecting_to_the_console_of_a_stopped_machine_fails() {
        let error = attach(Path::new("/nonexistent/console.sock")).unwrap_err();
        assert!(error.to_string().contains("cannot connect to the console /nonexistent/console.sock"), "{error}");
    }
}
