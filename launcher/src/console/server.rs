//! Serves the console to any number of clients from one thread that never waits for one of them.

use super::ConsoleError;
use crate::sockets::remove_stale;
use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// How much of the past a new client is shown.
const SCROLLBACK_BYTES: usize = 256 << 10;
/// A client that is this far behind does not read any more.
const LONGEST_BACKLOG_BYTES: usize = 1 << 20;

/// The console of one machine.
#[derive(Debug)]
pub struct ConsoleServer {
    listener: UnixListener,
    path: PathBuf,
    scrollback: VecDeque<u8>,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    backlog: VecDeque<u8>,
    gone: bool,
}

impl ConsoleServer {
    /// Serves on that socket, which only this user and its group may connect to.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn listen(path: &Path) -> Result<Self, ConsoleError> {
        remove_stale(path)?;
        let failed = |source| ConsoleError::Serve { path: path.to_owned(), source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), scrollback: VecDeque::new(), clients: Vec::new() })
    }

    /// Where it is served.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to wait for: the listener first, then each client, with whether it also waits to be written to.
    pub fn descriptors(&self) -> Vec<(BorrowedFd<'_>, bool)> {
        let clients = self.clients.iter().map(|client| (client.stream.as_fd(), !client.backlog.is_empty()));
        std::iter::once((self.listener.as_fd(), false)).chain(clients).collect()
    }

    /// The guest has printed something.
    pub fn print(&mut self, bytes: &[u8]) {
        append(&mut self.scrollback, bytes, SCROLLBACK_BYTES);
        for client in &mut self.clients {
            client.backlog.extend(bytes);
            client.flush();
        }
        self.forget_the_gone();
    }

    /// Takes new clients and writes to old ones; what was typed comes back.
    pub fn serve(&mut self) -> Vec<u8> {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, backlog: self.scrollback.clone(), gone: false });
            }
        }
        let mut typed = Vec::new();
        for client in &mut self.clients {
            client.read(&mut typed);
            client.flush();
        }
        self.forget_the_gone();
        typed
    }

    fn forget_the_gone(&mut self) {
        self.clients.retain(|client| !client.gone && client.backlog.len() <= LONGEST_BACKLOG_BYTES);
    }
}

impl Drop for ConsoleServer {
    fn drop(&mut self) {
        // Nobody can be served there any more; a leftover is removed by the next start.
        let _ = fs::remove_file(&self.path);
    }
}

impl Client {
    fn read(&mut self, typed: &mut Vec<u8>) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                // It has finished typing, as `echo reboot | microvm console` does, but may still be listening; when it
                // is not, writing will tell.
                Ok(0) => return,
                Ok(count) => typed.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
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
                    self.gone = true;
                    return;
                }
            }
        }
    }
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
        assert_eq!(server.serve(), b"");
        assert_eq!(read_exactly(&mut client, 8), "booting\n");
        let mut other = UnixStream::connect(server.path()).unwrap();
        server.serve();
        server.print(b"login: ");
        assert_eq!(read_exactly(&mut client, 7), "login: ");
        assert_eq!(read_exactly(&mut other, 15), "booting\nlogin: ");
        other.write_all(b"root\n").unwrap();
        assert_eq!(server.serve(), b"root\n");
        assert_eq!(server.descriptors().len(), 3);
    }

    #[test]
    fn a_client_that_does_not_read_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut server = ConsoleServer::listen(&directory.path().join("console.sock")).unwrap();
        let _asleep = UnixStream::connect(server.path()).unwrap();
        server.serve();
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
        server.serve();
        server.print(b"x");
        server.print(b"x");
        assert_eq!(server.clients.len(), 0);
        assert!(matches!(ConsoleServer::listen(&path), Err(ConsoleError::Socket(_))));
        drop(server);
        assert!(!path.exists());
    }
}
