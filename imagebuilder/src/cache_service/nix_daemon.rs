//! Queries Nix's daemon over its socket whether a store path is valid.
//!
//! This needs no special permissions and does not depend on the format of Nix's database. The SQLite file can be read
//! reliably only by users who can write to its directory (because of the write-ahead log), and its schema is internal
//! to Nix. Starting a program for each path would take 20 ms. The daemon answers in a tenth of a millisecond, with a
//! protocol that Nix 2.3 to 2.34 and Lix support, and can protect a path from garbage collection while it is read.
//!
//! The protocol consists of 64-bit little-endian numbers, and of texts: a length and the bytes, padded to a multiple of
//! 8. After a greeting the client sends operations. The daemon answers each with log messages, an end or an error, and
//! the result.

use super::WantedPack;
use crate::nar_hash;
use crate::store_path::StorePath;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// The default socket of Nix's daemon; `$NIX_DAEMON_SOCKET_PATH` overrides it.
pub const DEFAULT_NIX_DAEMON: &str = "/nix/var/nix/daemon-socket/socket";

/// The store directory in Nix's database; the files can be in another directory.
const LOGICAL_STORE_DIR: &str = "/nix/store";

/// Maximum number of temporary roots per connection. The daemon remembers them until the connection ends, so
/// connections are replaced after a while.
const MAX_ROOTS: usize = 64;

/// Time limit for an answer. The daemon can be slow during a garbage collection, when it waits for its own locks.
const TIMEOUT: Duration = Duration::from_secs(60);

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const DAEMON_MAGIC: u64 = 0x6478_696f;
/// The version that the client sends: 1.35, of Nix 2.15. Older daemons answer with their own version, newer ones
/// support this one.
const VERSION: u64 = minor_version(35);
/// The oldest supported version: 1.21, of Nix 2.3.
const OLDEST_VERSION: u64 = minor_version(21);

const OPERATION_ADD_TEMP_ROOT: u64 = 11;
const OPERATION_QUERY_PATH_INFO: u64 = 26;

/// The kinds of log messages.
mod log {
    pub(super) const NEXT: u64 = 0x6f6c_6d67;
    pub(super) const WRITE: u64 = 0x6461_7416;
    pub(super) const LAST: u64 = 0x616c_7473;
    pub(super) const ERROR: u64 = 0x6378_7470;
    pub(super) const START_ACTIVITY: u64 = 0x5354_5254;
    pub(super) const STOP_ACTIVITY: u64 = 0x5354_4f50;
    pub(super) const RESULT: u64 = 0x5253_4c54;
}

/// Maximum length of a text in bytes, and of a list in elements, much larger than anything a daemon sends.
const MAX_TEXT_BYTES: u64 = 1 << 20;
const MAX_ELEMENTS: u64 = 1 << 20;

const fn minor_version(minor: u64) -> u64 {
    (1 << 8) | minor
}

/// Nix's daemon could not be queried.
#[derive(Debug, Error)]
pub enum NixDaemonError {
    /// There is no daemon, or it cannot be reached.
    #[error("cannot reach Nix's daemon at {}", .socket.display())]
    Connect {
        /// The path of the daemon's socket.
        socket: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The connection ended or took too long.
    #[error("the connection to Nix's daemon failed")]
    Io(#[from] io::Error),
    /// The other side is not a daemon, or its protocol is not supported.
    #[error("Nix's daemon sent something unexpected: {0}")]
    Unexpected(&'static str),
    /// The daemon answered with an error.
    #[error("Nix's daemon refused the request: {0}")]
    Refused(String),
}

/// The facts about a valid store path in Nix's database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidPath {
    /// SHA-256 of its NAR serialisation.
    pub nar_hash: [u8; 32],
    /// Length of its NAR serialisation in bytes.
    pub nar_size_bytes: u64,
}

/// A connection to Nix's daemon that is opened when it is needed.
#[derive(Debug)]
pub struct NixDaemon {
    socket: PathBuf,
    connection: Option<Connection<BufReader<UnixStream>, UnixStream>>,
    roots: usize,
}

impl NixDaemon {
    /// Creates a client of the daemon that listens on `socket`, without connecting.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), connection: None, roots: 0 }
    }

    /// Returns the recorded facts about a store path; `None` if it is not valid, for example because it is still being
    /// built.
    ///
    /// # Errors
    /// The daemon cannot be queried.
    pub fn query(&mut self, path: &StorePath) -> Result<Option<ValidPath>, NixDaemonError> {
        self.run_operation(|connection| connection.query_path_info(path))
    }

    /// Same as [`Self::query`], and protects the path from garbage collection until this connection ends.
    ///
    /// # Errors
    /// The daemon cannot be queried.
    pub fn query_and_keep(&mut self, path: &StorePath) -> Result<Option<ValidPath>, NixDaemonError> {
        if self.roots >= MAX_ROOTS {
            self.close();
        }
        self.roots += 1;
        // The root is added before the query, so that the path cannot be collected in between.
        self.run_operation(|connection| {
            connection.add_temp_root(path)?;
            connection.query_path_info(path)
        })
    }

    /// Ends the connection, if there is one. Nix can then collect the protected paths again.
    pub fn close(&mut self) {
        self.connection = None;
        self.roots = 0;
    }

    fn run_operation<T>(
        &mut self,
        question: impl Fn(&mut Connection<BufReader<UnixStream>, UnixStream>) -> Result<T, NixDaemonError>,
    ) -> Result<T, NixDaemonError> {
        let was_open = self.connection.is_some();
        let first = self.run_once(&question);
        match first {
            // The daemon may have been restarted since the last query.
            Err(NixDaemonError::Io(_)) if was_open => self.run_once(&question),
            other => other,
        }
    }

    fn run_once<T>(
        &mut self,
        question: impl Fn(&mut Connection<BufReader<UnixStream>, UnixStream>) -> Result<T, NixDaemonError>,
    ) -> Result<T, NixDaemonError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(connect(&self.socket)?),
        };
        let answer = question(connection);
        if answer.is_err() {
            // After an error, the next bytes on the connection would not be the answer to the next query.
            self.close();
        }
        answer
    }
}

fn connect(socket: &Path) -> Result<Connection<BufReader<UnixStream>, UnixStream>, NixDaemonError> {
    let fail = |source| NixDaemonError::Connect { socket: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).map_err(fail)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(fail)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(fail)?;
    let reader = BufReader::new(stream.try_clone().map_err(fail)?);
    Connection::greet(reader, stream)
}

/// An open connection after the greeting.
#[derive(Debug)]
struct Connection<Reader, Writer> {
    reader: Reader,
    writer: Writer,
    version: u64,
}

impl<Reader: Read, Writer: Write> Connection<Reader, Writer> {
    fn greet(reader: Reader, writer: Writer) -> Result<Self, NixDaemonError> {
        let mut connection = Self { reader, writer, version: VERSION };
        connection.send(&[CLIENT_MAGIC], None)?;
        if connection.number()? != DAEMON_MAGIC {
            return Err(NixDaemonError::Unexpected("its greeting is wrong"));
        }
        let theirs = connection.number()?;
        if theirs >> 8 != VERSION >> 8 || theirs < OLDEST_VERSION {
            return Err(NixDaemonError::Unexpected("its version of the protocol is not supported"));
        }
        connection.version = theirs.min(VERSION);
        // Our version, no CPU affinity, and no space to reserve.
        connection.send(&[VERSION, 0, 0], None)?;
        if connection.version >= minor_version(33) {
            connection.text()?; // Nix's own version
        }
        if connection.version >= minor_version(35) {
            connection.number()?; // whether this client is trusted
        }
        connection.end_of_log()?;
        Ok(connection)
    }

    fn add_temp_root(&mut self, path: &StorePath) -> Result<(), NixDaemonError> {
        self.send(&[OPERATION_ADD_TEMP_ROOT], Some(&logical(path)))?;
        self.end_of_log()?;
        self.number().map(drop)
    }

    fn query_path_info(&mut self, path: &StorePath) -> Result<Option<ValidPath>, NixDaemonError> {
        self.send(&[OPERATION_QUERY_PATH_INFO], Some(&logical(path)))?;
        self.end_of_log()?;
        match self.number()? {
            0 => return Ok(None),
            1 => {}
            _ => return Err(NixDaemonError::Unexpected("the validity of a path is neither 0 nor 1")),
        }
        self.text()?; // the deriver
        let nar_hash =
            nar_hash::parse(&self.text()?).map_err(|_| NixDaemonError::Unexpected("a NAR hash is not a SHA-256"))?;
        self.texts()?; // references
        self.number()?; // time of registration
        let nar_size_bytes = self.number()?;
        self.number()?; // whether it was built here
        self.texts()?; // signatures
        self.text()?; // content address
        Ok(Some(ValidPath { nar_hash, nar_size_bytes }))
    }

    /// Sends numbers and optionally a text, in one write.
    fn send(&mut self, numbers: &[u64], text: Option<&str>) -> Result<(), NixDaemonError> {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        if let Some(text) = text {
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        self.writer.write_all(&bytes)?;
        self.writer.flush()?;
        Ok(())
    }

    /// Reads log messages until they end.
    fn end_of_log(&mut self) -> Result<(), NixDaemonError> {
        loop {
            match self.number()? {
                log::LAST => return Ok(()),
                log::NEXT | log::WRITE => drop(self.text()?),
                log::STOP_ACTIVITY => drop(self.number()?),
                log::START_ACTIVITY => {
                    (0..3).try_for_each(|_| self.number().map(drop))?;
                    self.text()?;
                    self.fields()?;
                    self.number()?;
                }
                log::RESULT => {
                    (0..2).try_for_each(|_| self.number().map(drop))?;
                    self.fields()?;
                }
                log::ERROR => return Err(NixDaemonError::Refused(self.error()?)),
                _ => return Err(NixDaemonError::Unexpected("a log message has an unknown type")),
            }
        }
    }

    fn error(&mut self) -> Result<String, NixDaemonError> {
        if self.version < minor_version(26) {
            let message = self.text()?;
            self.number()?; // exit status
            return Ok(message);
        }
        self.text()?; // kind
        self.number()?; // level
        self.text()?; // name
        let message = self.text()?;
        // The position in a Nix expression and a stack trace follow. They need not be read, because the connection is
        // closed after an error.
        Ok(message)
    }

    fn fields(&mut self) -> Result<(), NixDaemonError> {
        for _ in 0..self.count()? {
            match self.number()? {
                0 => drop(self.number()?),
                1 => drop(self.text()?),
                _ => return Err(NixDaemonError::Unexpected("a field has an unknown type")),
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<u64, NixDaemonError> {
        let mut bytes = [0; 8];
        self.reader.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Result<String, NixDaemonError> {
        let length = self.number()?;
        if length > MAX_TEXT_BYTES {
            return Err(NixDaemonError::Unexpected("a text is too long"));
        }
        let mut bytes = Vec::new();
        let padded = length.next_multiple_of(8);
        self.reader.by_ref().take(padded).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != padded {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn count(&mut self) -> Result<u64, NixDaemonError> {
        match self.number()? {
            count if count <= MAX_ELEMENTS => Ok(count),
            _ => Err(NixDaemonError::Unexpected("a list is too long")),
        }
    }

    fn texts(&mut self) -> Result<(), NixDaemonError> {
        (0..self.count()?).try_for_each(|_| self.text().map(drop))
    }
}

fn logical(path: &StorePath) -> String {
    format!("{LOGICAL_STORE_DIR}/{path}")
}

/// The result of the query for a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// The path is valid and has the requested hash; the number is its NAR size in bytes.
    Valid(u64),
    /// The path is not valid.
    NotValid,
    /// The path is valid, but has another hash.
    NarHashMismatch,
}

/// Compares the facts in Nix's database with the request of a client.
pub(super) fn compare_validity(wanted: &WantedPack, found: Option<&ValidPath>) -> Validity {
    match found {
        None => Validity::NotValid,
        Some(valid) if valid.nar_hash != wanted.nar_hash => Validity::NarHashMismatch,
        Some(valid) => Validity::Valid(valid.nar_size_bytes),
    }
}

/// Reads an answer of a daemon from bytes, for the fuzzer.
#[doc(hidden)]
pub fn read_answer(bytes: &[u8], path: &StorePath) -> Result<Option<ValidPath>, NixDaemonError> {
    Connection::greet(bytes, io::sink())?.query_path_info(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> StorePath {
        StorePath::from_base_name("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello").unwrap()
    }

    fn bytes(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = bytes(&[text.len() as u64]);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn greeting(minor: u64) -> Vec<u8> {
        let mut greeting = bytes(&[DAEMON_MAGIC, minor_version(minor)]);
        if minor >= 33 {
            greeting.extend(text("2.15.0"));
        }
        if minor >= 35 {
            greeting.extend(bytes(&[2]));
        }
        greeting.extend(bytes(&[log::LAST]));
        greeting
    }

    fn info() -> Vec<u8> {
        [
            bytes(&[log::NEXT]),
            text("a line"),
            bytes(&[log::START_ACTIVITY, 1, 2, 3]),
            text("activity"),
            bytes(&[2, 0, 7, 1]),
            text("field"),
            bytes(&[0, log::RESULT, 1, 2, 0, log::STOP_ACTIVITY, 1, log::LAST, 1]),
            text(""),
            text(&"07".repeat(32)),
            bytes(&[1]),
            text("/nix/store/0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello"),
            bytes(&[1, 120, 1, 0]),
            text(""),
        ]
        .concat()
    }

    #[test]
    fn a_valid_path_is_read_from_daemons_of_all_versions() {
        for minor in [21, 34, 35, 38] {
            let answer = [greeting(minor), info()].concat();
            let valid = read_answer(&answer, &path()).unwrap().unwrap();
            assert_eq!(valid, ValidPath { nar_hash: [7; 32], nar_size_bytes: 120 }, "{minor}");
            for end in 0..answer.len() {
                assert!(read_answer(&answer[..end], &path()).is_err(), "{minor}: {end} bytes");
            }
        }
        let absent = [greeting(34), bytes(&[log::LAST, 0])].concat();
        assert_eq!(read_answer(&absent, &path()).unwrap(), None);
    }

    #[test]
    fn refusals_and_invalid_answers_of_a_daemon_are_errors() {
        let message = |answer: &[u8]| read_answer(answer, &path()).unwrap_err().to_string();
        let refused =
            [greeting(34), bytes(&[log::ERROR]), text("Error"), bytes(&[0]), text(""), text("no"), bytes(&[0, 0])];
        assert_eq!(message(&refused.concat()), "Nix's daemon refused the request: no");
        let old = [greeting(21), bytes(&[log::ERROR]), text("no"), bytes(&[1])];
        assert_eq!(message(&old.concat()), "Nix's daemon refused the request: no");
        assert!(message(&greeting(20)).contains("its version of the protocol is not supported"));
        assert!(message(&bytes(&[1, 2, 3])).contains("greeting"));
        let endless = [greeting(34), bytes(&[log::NEXT, u64::MAX])].concat();
        assert!(message(&endless).contains("too long"));
        let many = [greeting(34), bytes(&[log::RESULT, 1, 2, u64::MAX])].concat();
        assert!(message(&many).contains("too long"));
    }
}
