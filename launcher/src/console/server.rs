//! Serves the console to several clients from one thread that never waits for one of them.

use super::ConsoleError;
use crate::place::Place;
use crate::sockets::remove_stale;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, listen, socket};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How much of the earlier output a new client is shown.
const SCROLLBACK_BYTES: usize = 256 << 10;
/// A client that is this far behind does not read any more.
const LONGEST_BACKLOG_BYTES: usize = 1 << 20;
/// More clients than this have to wait until one of them leaves.
const MOST_CLIENTS: usize = 64;
/// How often a client is read before the others are.
const MOST_READS: usize = 16;
/// How long no client is accepted after the kernel has refused one, for want of descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// This user and its group may connect.
const SOCKET_MODE: u32 = 0o660;
/// Connections that may wait to be accepted.
const WAITING_CLIENTS: i32 = 128;

const HANG_UP: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR);

/// The console of one machine.
#[derive(Debug)]
pub struct ConsoleServer {
    listener: UnixListener,
    path: PathBuf,
    place: Place,
    scrollback: VecDeque<u8>,
    clients: Vec<Client>,
    accept_after: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    backlog: VecDeque<u8>,
    /// It has closed its end for writing, as `echo reboot | microvm console` does, and may still read.
    has_finished: bool,
    is_gone: bool,
}

/// Whether what clients type can be taken at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typing {
    /// Read it.
    Accepted,
    /// Leave it with the clients: the guest is behind.
    Held,
}

impl ConsoleServer {
    /// Serves on that socket, which only this user and its group may connect to.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn listen(path: &Path) -> Result<Self, ConsoleError> {
        remove_stale(path)?;
        let made = Place::itself(path).and_then(|place| {
            let listener = new_socket()?;
            place.bind(&listener, SOCKET_MODE)?;
            listen(&listener, Backlog::new(WAITING_CLIENTS)?)?;
            Ok((UnixListener::from(listener), place))
        });
        let path = path.to_owned();
        let (listener, place) = made.map_err(|source| ConsoleError::Serve { path: path.clone(), source })?;
        Ok(Self { listener, path, place, scrollback: VecDeque::new(), clients: Vec::new(), accept_after: None })
    }

    /// Where it is served.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to wait for.
    pub fn interests(&self, typing: Typing) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let listener = self.may_accept().then(|| (self.listener.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter().map(|client| (client.stream.as_fd(), client.interest(typing)));
        listener.into_iter().chain(clients).collect()
    }

    /// When to call [`ConsoleServer::serve`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.accept_after
    }

    /// Shows the clients what the guest has printed.
    pub fn print(&mut self, bytes: &[u8]) {
        append(&mut self.scrollback, bytes, SCROLLBACK_BYTES);
        for client in &mut self.clients {
            client.backlog.extend(bytes);
            client.flush();
        }
        self.remove_gone();
    }

    /// Accepts new clients and writes to old ones. Returns what was typed.
    pub fn serve(&mut self, typing: Typing) -> Vec<u8> {
        if self.accept_after.is_some_and(|time| time <= Instant::now()) {
            self.accept_after = None;
        }
        while self.may_accept() {
            match self.listener.accept() {
                Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                    let backlog = self.scrollback.clone();
                    self.clients.push(Client { stream, backlog, has_finished: false, is_gone: false });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.accept_after = Some(Instant::now() + ACCEPT_PAUSE),
            }
        }
        let mut typed = Vec::new();
        for client in &mut self.clients {
            if typing == Typing::Accepted || client.has_hung_up() {
                client.read(&mut typed);
            }
            client.flush();
        }
        self.remove_gone();
        typed
    }

    fn may_accept(&self) -> bool {
        self.clients.len() < MOST_CLIENTS && self.accept_after.is_none()
    }

    fn remove_gone(&mut self) {
        self.clients.retain(|client| !client.is_gone && client.backlog.len() <= LONGEST_BACKLOG_BYTES);
    }
}

impl Drop for ConsoleServer {
    fn drop(&mut self) {
        // A socket that stays is removed by the next start.
        let _ = self.place.remove();
    }
}

impl Client {
    /// The end of what it types stays readable for ever, so it is not waited for again. That it hangs up is always
    /// reported: poll(2).
    fn interest(&self, typing: Typing) -> PollFlags {
        let mut flags = PollFlags::empty();
        if typing == Typing::Accepted && !self.has_finished {
            flags |= PollFlags::POLLIN;
        }
        if !self.backlog.is_empty() {
            flags |= PollFlags::POLLOUT;
        }
        flags
    }

    fn has_hung_up(&self) -> bool {
        let mut descriptors = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        let polled = poll(&mut descriptors, PollTimeout::ZERO);
        polled.is_ok() && descriptors[0].revents().is_some_and(|events| events.intersects(HANG_UP))
    }

    fn read(&mut self, typed: &mut Vec<u8>) {
        // Asked before reading: what it has sent before it hung up is then read below.
        let has_hung_up = self.has_hung_up();
        let mut buffer = [0; 4096];
        // One that types faster than this loop reads must not hold it up.
        for _ in 0..MOST_READS {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.has_finished = true;
                    self.is_gone |= has_hung_up;
                    return;
                }
                Ok(count) => typed.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.is_gone = true;
                    return;
                }
            }
        }
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            match self.stream.write(self.backlog.as_slices().0) {
                Ok(count) => {
                    self.backlog.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.is_gone = true;
                    return;
                }
            }
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

fn append(buffer: &mut VecDeque<u8>, bytes: &[u8], longest: usize) {
    buffer.extend(bytes);
    let surplus = buffer.len().saturating_sub(longest);
    buffer.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn read_exactly(stream: &mut UnixStream, count: usize) -> String {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_late_client_sees_what_was_printed_before_and_types() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = ConsoleServer::listen(&directory.path().join("console.sock")).unwrap();
        server.print(b"booting\n");
        let mut client = UnixStream::connect(server.path()).unwrap();
        assert_eq!(server.serve(Typing::Accepted), b"");
        assert_eq!(read_exactly(&mut client, 8), "booting\n");
        let mut other = UnixStream::connect(server.path()).unwrap();
        server.serve(Typing::Accepted);
        server.print(b"login: ");
        assert_eq!(read_exactly(&mut client, 7), "login: ");
        assert_eq!(read_exactly(&mut other, 15), "booting\nlogin: ");
        other.write_all(b"root\n").unwrap();
        assert_eq!(server.serve(Typing::Accepted), b"root\n");
        assert_eq!(server.interests(Typing::Accepted).len(), 3);
    }

    #[test]
    fn the_socket_is_for_the_user_and_the_group_and_no_link_of_another_user_is_followed_to_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (elsewhere, path) = (directory.path().join("elsewhere.sock"), directory.path().join("console.sock"));
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        ConsoleServer::listen(&path).unwrap_err();
        assert!(Place::itself(&path).unwrap().bind(&new_socket().unwrap(), SOCKET_MODE).is_err());
        assert!(!elsewhere.exists());
        std::fs::remove_file(&path).unwrap();
        let server = ConsoleServer::listen(&path).unwrap();
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        UnixStream::connect(&path).unwrap();
        assert!(crate::sockets::is_served(&path));
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn a_client_that_does_not_read_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = ConsoleServer::listen(&directory.path().join("console.sock")).unwrap();
        let _asleep = UnixStream::connect(server.path()).unwrap();
        server.serve(Typing::Accepted);
        for _ in 0..400 {
            server.print(&[b'x'; 8192]);
        }
        assert_eq!(server.clients.len(), 0);
        assert_eq!(server.scrollback.len(), SCROLLBACK_BYTES);
    }

    #[test]
    fn a_client_that_hangs_up_is_forgotten_and_the_socket_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.sock");
        let mut server = ConsoleServer::listen(&path).unwrap();
        drop(UnixStream::connect(&path).unwrap());
        server.serve(Typing::Accepted);
        server.print(b"x");
        server.print(b"x");
        assert_eq!(server.clients.len(), 0);
        assert!(matches!(ConsoleServer::listen(&path), Err(ConsoleError::Socket(_))));
        drop(server);
        assert!(!path.exists());
    }

    /// Whether something is to be done at once.
    fn is_woken(server: &ConsoleServer, typing: Typing) -> bool {
        let interests = server.interests(typing);
        let mut descriptors: Vec<_> = interests.into_iter().map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        poll(&mut descriptors, PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn a_client_that_has_left_does_not_wake_the_supervisor_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = ConsoleServer::listen(&directory.path().join("console.sock")).unwrap();
        for typing in [Typing::Accepted, Typing::Held] {
            let mut client = UnixStream::connect(server.path()).unwrap();
            server.serve(typing);
            client.write_all(b"reboot\n").unwrap();
            drop(client);
            assert!(is_woken(&server, typing));
            assert_eq!(server.serve(typing), b"reboot\n", "{typing:?}");
            assert!(!is_woken(&server, typing), "{typing:?}");
            assert_eq!(server.clients.len(), 0);
        }
    }

    #[test]
    fn a_client_that_has_finished_typing_still_reads_and_does_not_wake_the_supervisor() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = ConsoleServer::listen(&directory.path().join("console.sock")).unwrap();
        let mut client = UnixStream::connect(server.path()).unwrap();
        client.write_all(b"uptime\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(server.serve(Typing::Accepted), b"uptime\n");
        assert!(!is_woken(&server, Typing::Accepted));
        server.print(b"up 3 days\n");
        assert_eq!(read_exactly(&mut client, 10), "up 3 days\n");
        drop(client);
        assert!(is_woken(&server, Typing::Accepted));
        server.serve(Typing::Accepted);
        assert_eq!(server.clients.len(), 0);
    }
}
