//! The client of the service. Its failures only make a build slower: the build makes the packs that it does not get
//! itself.

use super::in_one_line;
use super::messages::{self, Message};
use super::protocol::{Answer, ProtocolError, Reason, Request, WantedFile};
use crate::pack::{PackSource, PackSourceError, settings_name};
use crate::plan::PlannedPath;
use crate::settings::ImageSettings;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Maximum number of connections of one build. The service accepts a limited number from each user.
const MAX_CONNECTIONS: usize = 8;

/// The default time limits of a build.
const DEFAULT_TIMEOUTS: Timeouts = Timeouts { silence: Duration::from_secs(10), request: Duration::from_secs(900) };

/// How long a build waits for the service.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Time limit for any message; the service sends one every two seconds.
    pub silence: Duration,
    /// Time limit for one pack.
    pub request: Duration,
}

/// The service did not provide a pack.
#[derive(Debug, Error)]
pub enum ClientError {
    /// It cannot be reached.
    #[error("cannot reach the cache service at {}", .socket.display())]
    Connect {
        /// The path of the service's socket.
        socket: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The connection ended.
    #[error("the cache service at {} ended the connection", .socket.display())]
    Ended {
        /// The path of the service's socket.
        socket: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// It sent nothing for too long.
    #[error("the cache service at {} did not answer in time", .socket.display())]
    Silent {
        /// The path of the service's socket.
        socket: PathBuf,
    },
    /// It sent an invalid message.
    #[error("the program that listens on {} is not a cache service of this version", .socket.display())]
    Protocol {
        /// The path of the service's socket.
        socket: PathBuf,
        /// The problem with the message.
        #[source]
        source: ProtocolError,
    },
    /// It refused the request.
    #[error("the cache service at {} refused the request: {message}", .socket.display())]
    Refused {
        /// The path of the service's socket.
        socket: PathBuf,
        /// The reason, for programs.
        reason: Reason,
        /// The reason, for people.
        message: String,
    },
}

/// A client that requests packs from the service. Several threads can use it at once.
#[derive(Debug)]
pub struct CacheClient {
    socket: PathBuf,
    timeouts: Timeouts,
    pool: Mutex<Pool>,
    returned: Condvar,
}

/// Idle connections, and the number of connections that can still be opened.
#[derive(Debug)]
struct Pool {
    idle: Vec<OwnedFd>,
    unopened: usize,
    /// Whether the service must not be used again.
    given_up: bool,
}

impl CacheClient {
    /// Connects to the service at `socket`; `None` if the socket does not exist.
    ///
    /// # Errors
    /// The socket exists, but connecting to it fails.
    pub fn connect(socket: &Path) -> Result<Option<Self>, ClientError> {
        Self::connect_with(socket, DEFAULT_TIMEOUTS)
    }

    /// Same as [`CacheClient::connect`], with other time limits.
    ///
    /// # Errors
    /// Those of [`CacheClient::connect`].
    pub fn connect_with(socket: &Path, timeouts: Timeouts) -> Result<Option<Self>, ClientError> {
        match open(socket, timeouts.silence) {
            Ok(first) => {
                let pool = Pool { idle: vec![first], unopened: MAX_CONNECTIONS - 1, given_up: false };
                let (pool, returned) = (Mutex::new(pool), Condvar::new());
                Ok(Some(Self { socket: socket.to_owned(), timeouts, pool, returned }))
            }
            Err(ClientError::Connect { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Requests a file of a store path: its pack, or the hashes of the pack's blocks. Returns `None` if the service has
    /// none for this build, which is not an error. After an error, the service is not used again, because other
    /// requests would fail too, or take as long.
    ///
    /// The caller must check the file like one from any other cache.
    ///
    /// # Errors
    /// The service cannot be used, or could not make the pack.
    pub fn fetch(
        &self,
        file: WantedFile,
        store_path: &PlannedPath,
        settings: &ImageSettings,
        encoder: &str,
    ) -> Result<Option<File>, ClientError> {
        let Some(mut request) = Request::new(store_path.clone(), *settings, encoder.to_owned()) else {
            return Ok(None);
        };
        request.file = file;
        let message = request.message().map_err(|source| self.protocol(source))?;
        let Some(taken) = self.take_connection() else { return Ok(None) };
        let (connection, answer) = self.request(taken, &message);
        let answer = match answer {
            Ok(pack) => Ok(Some(pack)),
            // The path is not in the host's store, the service is too busy, or has removed the pack: the build makes
            // this pack, or its hashes, itself.
            Err(ClientError::Refused {
                reason:
                    Reason::NotValid
                    | Reason::NarHashMismatch
                    | Reason::Busy
                    | Reason::TooSlow
                    | Reason::NoPack
                    | Reason::Unknown,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        };
        self.give_back(connection, answer.is_err());
        answer
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an idle connection, or returns `Some(None)` if a new one can be opened. Waits until another thread returns
    /// one. `None` if the service must not be used again.
    fn take_connection(&self) -> Option<Option<OwnedFd>> {
        let mut pool = self.pool();
        loop {
            if pool.given_up {
                return None;
            }
            if let Some(idle) = pool.idle.pop() {
                return Some(Some(idle));
            }
            if pool.unopened > 0 {
                pool.unopened -= 1;
                return Some(None);
            }
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, connection: Option<OwnedFd>, gives_up: bool) {
        let mut pool = self.pool();
        match connection {
            Some(connection) => pool.idle.push(connection),
            None => pool.unopened += 1,
        }
        if gives_up {
            pool.given_up = true;
            self.returned.notify_all();
        } else {
            self.returned.notify_one();
        }
    }

    /// Sends a request on a connection, or on a new one. If the service was restarted in the meantime, or has closed an
    /// idle connection, it sends the request once more.
    fn request(&self, connection: Option<OwnedFd>, message: &[u8]) -> (Option<OwnedFd>, Result<File, ClientError>) {
        let mut next = connection;
        for attempt in 0..2 {
            let connection = match next.take().map_or_else(|| open(&self.socket, self.timeouts.silence), Ok) {
                Ok(connection) => connection,
                Err(error) => return (None, Err(error)),
            };
            match self.exchange(&connection, message) {
                Err(ClientError::Ended { .. }) if attempt == 0 => {}
                // The connection is still usable, because the answer was complete.
                answer @ (Ok(_) | Err(ClientError::Refused { .. })) => return (Some(connection), answer),
                answer => return (None, answer),
            }
        }
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        (None, Err(ClientError::Ended { socket: self.socket.clone(), source }))
    }

    fn exchange(&self, connection: &OwnedFd, message: &[u8]) -> Result<File, ClientError> {
        let deadline = Instant::now() + self.timeouts.request;
        messages::send(connection, message, None).map_err(|source| self.failed(source))?;
        while Instant::now() < deadline {
            let Message { bytes, mut descriptors } = self.receive(connection)?;
            if bytes.is_empty() {
                return Err(self.failed(io::ErrorKind::UnexpectedEof.into()));
            }
            let answer = Answer::parse(&bytes).map_err(|source| self.protocol(source))?;
            let expected = usize::from(matches!(answer, Answer::Pack { .. }));
            if descriptors.len() != expected {
                return Err(self.protocol(ProtocolError::Descriptors(descriptors.len())));
            }
            match (answer, descriptors.pop()) {
                (Answer::Pack { .. }, Some(descriptor)) => return self.regular_file(descriptor),
                (Answer::Refused { reason, message, .. }, _) => {
                    return Err(ClientError::Refused { socket: self.socket.clone(), reason, message });
                }
                (Answer::Working { .. } | Answer::Pack { .. }, _) => {}
            }
        }
        Err(ClientError::Silent { socket: self.socket.clone() })
    }

    fn receive(&self, connection: &OwnedFd) -> Result<Message, ClientError> {
        let received = match messages::receive(connection) {
            // The service closed the connection before it read everything; its message can still be received.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => messages::receive(connection),
            other => other,
        };
        received.map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => self.protocol(ProtocolError::TooLong),
            _ => self.failed(source),
        })
    }

    /// Refuses everything except regular files: a pipe, a directory or a device could block a reader or have a wrong
    /// length.
    fn regular_file(&self, descriptor: OwnedFd) -> Result<File, ClientError> {
        let file = File::from(descriptor);
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(file),
            _ => Err(self.protocol(ProtocolError::NotAFile)),
        }
    }

    fn failed(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent { socket },
            _ => ClientError::Ended { socket, source },
        }
    }

    fn protocol(&self, source: ProtocolError) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), source }
    }
}

impl PackSource for CacheClient {
    fn find_pack(&self, store_path: &PlannedPath, settings: &ImageSettings) -> Result<Option<File>, PackSourceError> {
        self.fetch(WantedFile::Pack, store_path, settings, &settings_name(settings))
            .map_err(|error| PackSourceError(in_one_line(&error)))
    }

    fn find_block_hashes(
        &self,
        store_path: &PlannedPath,
        settings: &ImageSettings,
    ) -> Result<Option<File>, PackSourceError> {
        self.fetch(WantedFile::BlockHashes, store_path, settings, &settings_name(settings))
            .map_err(|error| PackSourceError(in_one_line(&error)))
    }
}

/// Connects to the service. Neither connecting nor any later operation waits longer than `silence`.
fn open(path: &Path, silence: Duration) -> Result<OwnedFd, ClientError> {
    let connected = || -> rustix::io::Result<OwnedFd> {
        let address = SocketAddrUnix::new(path)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(silence))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(silence))?;
        connect(&socket, &address)?;
        Ok(socket)
    };
    connected().map_err(|error| ClientError::Connect { socket: path.to_owned(), source: error.into() })
}
