//! The server of a console. One thread serves all clients, and none of them can block it.

use super::ConsoleError;
use crate::sockets::remove_stale;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, listen, socket};
use program::own_socket::OwnSocket;
use program::place::Place;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How much of the earlier output a new client receives.
const SCROLLBACK_BYTES: usize = 256 << 10;
/// A client with a longer backlog is disconnected, because it has stopped reading.
const MAX_BACKLOG_BYTES: usize = 1 << 20;
/// The most clients at a time. Others wait until one of them disconnects.
const MAX_CLIENTS: usize = 64;
/// The most reads from one client in one turn of the loop.
const MAX_READS: usize = 16;
/// How long to wait after a failed accept(2), for example when there are no free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// This user and its group can connect.
const SOCKET_MODE: u32 = 0o660;
/// The length of the listen queue.
const WAITING_CLIENTS: i32 = 128;

const HANG_UP: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR);

/// The console of one machine.
#[derive(Debug)]
pub struct ConsoleServer {
    /// Removes the socket's file. Fields are dropped in order, and the socket must still be open then.
    _own_socket: OwnSocket,
    listener: UnixListener,
    path: PathBuf,
    scrollback: VecDeque<u8>,
    clients: Vec<Client>,
    accept_after: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    backlog: VecDeque<u8>,
    /// The client has shut down its end for writing, as `echo reboot | microvm console` does, and may still read.
    has_finished: bool,
    is_gone: bool,
}

/// Whether input from clients is read at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputState {
    /// It is read.
    Accepted,
    /// It is left in the clients' sockets, because the guest has not read the earlier input.
    Held,
}

impl ConsoleServer {
    /// Starts to serve on that socket. Only this user and its group can connect to it.
    ///
    /// # Errors
    /// Returns [`ConsoleError`].
    pub fn listen(path: &Path) -> Result<Self, ConsoleError> {
        remove_stale(path)?;
        let made = Place::nofollow(path).and_then(|place| {
            let listener = new_socket()?;
            place.bind(&listener, SOCKET_MODE)?;
            listen(&listener, Backlog::new(WAITING_CLIENTS)?)?;
            Ok((UnixListener::from(listener), OwnSocket::bound(&place)?))
        });
        let path = path.to_owned();
        let (listener, _own_socket) = made.map_err(|source| ConsoleError::Serve { path: path.clone(), source })?;
        Ok(Self { listener, path, _own_socket, scrollback: VecDeque::new(), clients: Vec::new(), accept_after: None })
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the descriptors and events to poll for.
    pub fn interests(&self, typing: InputState) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let listener = self.can_accept().then(|| (self.listener.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter().map(|client| (client.stream.as_fd(), client.interest(typing)));
        listener.into_iter().chain(clients).collect()
    }

    /// Returns the latest time at which [`ConsoleServer::serve`] must be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.accept_after
    }

    /// Sends the guest's output to the clients.
    pub fn print(&mut self, bytes: &[u8]) {
        append(&mut self.scrollback, bytes, SCROLLBACK_BYTES);
        for client in &mut self.clients {
            client.backlog.extend(bytes);
            client.flush();
        }
        self.remove_gone();
    }

    /// Accepts new clients, writes to all clients, and returns what they have typed.
    pub fn serve(&mut self, typing: InputState) -> Vec<u8> {
        if self.accept_after.is_some_and(|time| time <= Instant::now()) {
            self.accept_after = None;
        }
        while self.can_accept() {
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
            if typing == InputState::Accepted || client.has_hung_up() {
                client.read(&mut typed);
            }
            client.flush();
        }
        self.remove_gone();
        typed
    }

    fn can_accept(&self) -> bool {
        self.clients.len() < MAX_CLIENTS && self.accept_after.is_none()
    }

    fn remove_gone(&mut self) {
        self.clients.retain(|client| !client.is_gone && client.backlog.len() <= MAX_BACKLOG_BYTES);
    }
}

impl Client {
    /// End of file stays readable, so it is not polled for again. A hang-up is always reported: poll(2).
    fn interest(&self, typing: InputState) -> PollFlags {
        let mut flags = PollFlags::empty();
        if typing == InputState::Accepted && !self.has_finished {
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
        // Checked before reading, so that everything the client sent before it hung up is read below.
        let has_hung_up = self.has_hung_up();
        let mut buffer = [0; 4096];
        // Limited, so that a client that never stops typing cannot block the loop.
        for _ in 0..MAX_READS {
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
    fn a_late_client_sees_the_earlier_output_and_can_type() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = ConsoleServer::listen(&directory.path().join("console.sock")).unwrap();
        server.print(b"booting\n");
        let mut client = UnixStream::connect(server.path()).unwrap();
        assert_eq!(server.serve(InputState::Accepted), b"");
        assert_eq!(read_exactly(&mut client, 8), "booting\n");
        let mut other = UnixStream::connect(server.path()).unwrap();
        server.serve(InputState::Accepted);
        server.print(b"login: ");
        assert_eq!(read_exactly(&mut client, 7), "login: ");
        assert_eq!(read_exactly(&mut other, 15), "booting\nlogin: ");
        other.write_all(b"root\n").unwrap();
        assert_eq!(server.serve(InputState::Accepted), b"root\n");
        assert_eq!(server.interests(InputState::Accepted).len(), 3);
    }

    #[test]
    fn the_socket_is_accessible_to_user_and_group_and_not_created_through_a_link() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (elsewhere, path) = (directory.path().join("elsewhere.sock"), directory.path().join("console.sock"));
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        ConsoleServer::listen(&path).unwrap_err();
        assert!(Place::nofollow(&path).unwrap().bind(&new_socket().unwrap(), SOCKET_MODE).is_err());
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
    fn a_client_that_does_not_read_is_disconnected() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = ConsoleServer::listen(&directory.path().join("console.sock")).unwrap();
        let _asleep = UnixStream::connect(server.path()).unwrap();
        server.serve(InputState::Accepted);
        for _ in 0..400 {
            server.print(&[b'x'; 8192]);
        }
        assert_eq!(server.clients.len(), 0);
        assert_eq!(server.scrollback.len(), SCROLLBACK_BYTES);
    }

    #[test]
    fn a_client_that_hangs_up_is_removed_and_the_socket_is_deleted_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.sock");
        let mut server = ConsoleServer::listen(&path).unwrap();
        drop(UnixStream::connect(&path).unwrap());
        server.serve(InputState::Accepted);
        server.print(b"x");
        server.print(b"x");
        assert_eq!(server.clients.len(), 0);
        assert!(matches!(ConsoleServer::listen(&path), Err(ConsoleError::Socket(_))));
        drop(server);
        assert!(!path.exists());
    }

    /// Whether poll(2) returns at once.
    fn is_woken(server: &ConsoleServer, typing: InputState) -> bool {
        let interests = server.interests(typing);
        let mut descriptors: Vec<_> = interests.into_iter().map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        poll(&mut descriptors, PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn a_client_that_has_left_does_not_wake_the_supervisor_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = ConsoleServer::listen(&directory.path().join("console.sock")).unwrap();
        for typing in [InputState::Accepted, InputState::Held] {
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
        assert_eq!(server.serve(InputState::Accepted), b"uptime\n");
        assert!(!is_woken(&server, InputState::Accepted));
        server.print(b"up 3 days\n");
        assert_eq!(read_exactly(&mut client, 10), "up 3 days\n");
        drop(client);
        assert!(is_woken(&server, InputState::Accepted));
        server.serve(InputState::Accepted);
        assert_eq!(server.clients.len(), 0);
    }
}
