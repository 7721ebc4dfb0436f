//! A build's side of the service. Whatever goes wrong here costs time and nothing else: the build makes for itself what it
//! does not get.

use super::in_one_line;
use super::messages::{self, Message};
use super::protocol::{Answer, ProtocolError, Reason, Request};
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

/// Connections of one build: the service takes a limited number of each user.
const CONNECTIONS_MAX: usize = 8;

/// How long a build waits for the service, by default.
const PATIENCE: Patience = Patience { silence: Duration::from_secs(10), request: Duration::from_secs(900) };

/// How long a build waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a sign that the service is still there; it gives one every two seconds.
    pub silence: Duration,
    /// For one pack.
    pub request: Duration,
}

/// Why the service gave no pack.
#[derive(Debug, Error)]
pub enum ClientError {
    /// It cannot be reached.
    #[error("cannot reach the cache service at {}", .socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection ended.
    #[error("the cache service at {} ended the connection", .socket.display())]
    Ended {
        /// Its socket.
        socket: PathBuf,
        /// Why, where the kernel says it.
        #[source]
        source: io::Error,
    },
    /// It said nothing for too long.
    #[error("the cache service at {} did not answer in time", .socket.display())]
    Silent {
        /// Its socket.
        socket: PathBuf,
    },
    /// It said what no service says.
    #[error("what listens at {} is no cache service of this version", .socket.display())]
    Protocol {
        /// Its socket.
        socket: PathBuf,
        /// What it said.
        #[source]
        source: ProtocolError,
    },
    /// It refused.
    #[error("the cache service at {} refused: {message}", .socket.display())]
    Refused {
        /// Its socket.
        socket: PathBuf,
        /// Why, for a program.
        reason: Reason,
        /// Why, for a person.
        message: String,
    },
}

/// A service that a build asks for packs, from several threads at once.
#[derive(Debug)]
pub struct CacheClient {
    socket: PathBuf,
    patience: Patience,
    pool: Mutex<Pool>,
    returned: Condvar,
}

/// Connections that nobody uses at the moment, and how many more may be made.
#[derive(Debug)]
struct Pool {
    idle: Vec<OwnedFd>,
    unmade: usize,
    /// Set once the service is not to be asked again.
    given_up: bool,
}

impl CacheClient {
    /// For the service at `socket`. The first connection is made here, to see whether there is one: `None` says that
    /// nothing is at `socket`.
    ///
    /// # Errors
    /// Something is there, but it cannot be connected to.
    pub fn connect(socket: &Path) -> Result<Option<Self>, ClientError> {
        Self::connect_with(socket, PATIENCE)
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// Those of [`CacheClient::connect`].
    pub fn connect_with(socket: &Path, patience: Patience) -> Result<Option<Self>, ClientError> {
        match open(socket, patience.silence) {
            Ok(first) => {
                let pool = Pool { idle: vec![first], unmade: CONNECTIONS_MAX - 1, given_up: false };
                let (pool, returned) = (Mutex::new(pool), Condvar::new());
                Ok(Some(Self { socket: socket.to_owned(), patience, pool, returned }))
            }
            Err(ClientError::Connect { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for the pack of a store path: `None` when the service has none for this build, which is no trouble. After an
    /// error the service is not asked again: other requests would meet it, too, or take as long.
    ///
    /// The caller must verify the pack like one from any other cache.
    ///
    /// # Errors
    /// The service cannot be used, or could not make the pack.
    pub fn fetch(
        &self,
        store_path: &PlannedPath,
        settings: &ImageSettings,
        encoder: &str,
    ) -> Result<Option<File>, ClientError> {
        let Some(request) = Request::new(store_path.clone(), *settings, encoder.to_owned()) else { return Ok(None) };
        let message = request.message().map_err(|source| self.protocol(source))?;
        let Some(taken) = self.take_connection() else { return Ok(None) };
        let (connection, answer) = self.ask(taken, &message);
        let answer = match answer {
            Ok(pack) => Ok(Some(pack)),
            // A path of another store than the host's, or more work than the service takes: the build goes on alone.
            Err(ClientError::Refused {
                reason: Reason::NotValid | Reason::OtherContent | Reason::Busy | Reason::TooSlow,
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

    /// A connection, or room for a new one; waits for one of another thread. `None` once the service was given up.
    fn take_connection(&self) -> Option<Option<OwnedFd>> {
        let mut pool = self.pool();
        loop {
            if pool.given_up {
                return None;
            }
            if let Some(idle) = pool.idle.pop() {
                return Some(Some(idle));
            }
            if pool.unmade > 0 {
                pool.unmade -= 1;
                return Some(None);
            }
            pool = self.returned.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, connection: Option<OwnedFd>, gives_up: bool) {
        let mut pool = self.pool();
        match connection {
            Some(connection) => pool.idle.push(connection),
            None => pool.unmade += 1,
        }
        if gives_up {
            pool.given_up = true;
            self.returned.notify_all();
        } else {
            self.returned.notify_one();
        }
    }

    /// Asks on a connection, or on a new one. A service that was restarted meanwhile, or has closed a connection that was
    /// idle, is asked once more.
    fn ask(&self, connection: Option<OwnedFd>, message: &[u8]) -> (Option<OwnedFd>, Result<File, ClientError>) {
        let mut next = connection;
        for attempt in 0..2 {
            let connection = match next.take().map_or_else(|| open(&self.socket, self.patience.silence), Ok) {
                Ok(connection) => connection,
                Err(error) => return (None, Err(error)),
            };
            match self.converse(&connection, message) {
                Err(ClientError::Ended { .. }) if attempt == 0 => {}
                // The connection is still good: the answer was whole.
                answer @ (Ok(_) | Err(ClientError::Refused { .. })) => return (Some(connection), answer),
                answer => return (None, answer),
            }
        }
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        (None, Err(ClientError::Ended { socket: self.socket.clone(), source }))
    }

    fn converse(&self, connection: &OwnedFd, message: &[u8]) -> Result<File, ClientError> {
        let deadline = Instant::now() + self.patience.request;
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
            // The service ended the connection before it read all: what it said first is still there.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => messages::receive(connection),
            other => other,
        };
        received.map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => self.protocol(ProtocolError::TooLong),
            _ => self.failed(source),
        })
    }

    /// A pipe, a directory or a device would block a reader or lie about its length.
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
        self.fetch(store_path, settings, &settings_name(settings)).map_err(|error| PackSourceError(in_one_line(&error)))
    }
}

/// Connects to the service. Neither connecting nor anything after it waits longer than `silence`.
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
