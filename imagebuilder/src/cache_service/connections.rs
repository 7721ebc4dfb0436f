//! The connected clients, and their current requests.

use super::WantedPack;
use super::messages;
use super::protocol::Answer;
use super::scheduler::Owner;
use rustix::net::{SocketFlags, accept_with, sockopt};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Interval at which a waiting client gets a `working` message.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(2);

/// Size of the send buffer. The kernel raises it to its minimum, which is enough for a few answers. A client that does
/// not read them is dropped. This keeps the number of descriptors in flight small, which the kernel counts against the
/// service.
const SEND_BUFFER_BYTES: usize = 1;

/// A connected client.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    owner: Owner,
    pending: Option<PendingRequest>,
    last_message: Instant,
}

/// A request that is being worked on.
#[derive(Debug)]
pub(super) struct PendingRequest {
    /// The pack.
    pub(super) wanted: WantedPack,
    deadline: Instant,
    heartbeat: Instant,
}

/// The connections for which a time limit has passed.
#[derive(Debug, Default)]
pub(super) struct TimedOut {
    /// Clients that sent nothing for too long.
    pub(super) silent: Vec<u64>,
    /// Clients whose request took too long.
    pub(super) late: Vec<u64>,
    /// Clients that must get a `working` message.
    pub(super) due_heartbeats: Vec<u64>,
}

/// All connections by number. Numbers are never reused.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: BTreeMap<u64, Connection>,
    next: u64,
}

/// Accepts a client, and returns its socket and its user.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if no client is waiting.
pub(super) fn accept(listener: impl AsFd) -> io::Result<(OwnedFd, u32)> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let user = sockopt::socket_peercred(&socket)?.uid.as_raw();
    sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES)?;
    Ok((socket, user))
}

impl Connections {
    /// Adds a client.
    pub(super) fn add(&mut self, socket: OwnedFd, owner: Owner) {
        let connection = Connection { socket, owner, pending: None, last_message: Instant::now() };
        self.open.insert(self.next, connection);
        self.next += 1;
    }

    /// Returns the number of connections.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// Returns the number of connections of one owner.
    pub(super) fn count_of(&self, owner: Owner) -> usize {
        self.open.values().filter(|connection| connection.owner == owner).count()
    }

    /// Returns the number and the socket of each connection, and whether it has a request in progress.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (u64, &OwnedFd, bool)> {
        self.open.iter().map(|(number, connection)| (*number, &connection.socket, connection.pending.is_some()))
    }

    /// Returns the owner of a connection; `None` if it has ended.
    pub(super) fn owner(&self, number: u64) -> Option<Owner> {
        self.open.get(&number).map(|connection| connection.owner)
    }

    /// Returns the pack that a client waits for.
    pub(super) fn wanted(&self, number: u64) -> Option<&WantedPack> {
        self.open.get(&number)?.pending.as_ref().map(|wait| &wait.wanted)
    }

    /// Records that a client now waits for a pack.
    pub(super) fn wait(&mut self, number: u64, wanted: WantedPack, time_limit: Duration) {
        if let Some(connection) = self.open.get_mut(&number) {
            let now = Instant::now();
            connection.pending =
                Some(PendingRequest { wanted, deadline: now + time_limit, heartbeat: now + HEARTBEAT_INTERVAL });
        }
    }

    /// Reads a message of a client; `None` if it has closed the connection.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is no message.
    pub(super) fn receive(&mut self, number: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(connection) = self.open.get_mut(&number) else { return Ok(None) };
        let message = messages::receive_without_descriptors(&connection.socket)?;
        connection.last_message = Instant::now();
        Ok((!message.bytes.is_empty()).then_some(message.bytes))
    }

    /// Sends an answer that ends a client's request. A client that cannot receive it is dropped.
    pub(super) fn answer(&mut self, number: u64, answer: &Answer, pack: Option<&File>) {
        if let Some(connection) = self.open.get_mut(&number) {
            connection.pending = None;
            connection.last_message = Instant::now();
            self.send(number, answer, pack);
        }
    }

    /// Sends a client the message that the service is still working.
    pub(super) fn heartbeat(&mut self, number: u64) {
        if let Some(Connection { pending: Some(wait), .. }) = self.open.get_mut(&number) {
            wait.heartbeat = Instant::now() + HEARTBEAT_INTERVAL;
            self.send(number, &Answer::WORKING, None);
        }
    }

    fn send(&mut self, number: u64, answer: &Answer, pack: Option<&File>) {
        let Some(connection) = self.open.get(&number) else { return };
        let sent = answer
            .message()
            .map_err(io::Error::other)
            .and_then(|message| messages::send(&connection.socket, &message, pack.map(AsFd::as_fd)));
        if sent.is_err() {
            self.open.remove(&number);
        }
    }

    /// Ends a connection.
    pub(super) fn remove(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// Returns the connections for which a time limit has passed.
    pub(super) fn timed_out(&self, silence_limit: Duration) -> TimedOut {
        let now = Instant::now();
        let mut timed_out = TimedOut::default();
        for (number, connection) in &self.open {
            match &connection.pending {
                None if now.duration_since(connection.last_message) >= silence_limit => timed_out.silent.push(*number),
                Some(wait) if now >= wait.deadline => timed_out.late.push(*number),
                Some(wait) if now >= wait.heartbeat => timed_out.due_heartbeats.push(*number),
                _ => {}
            }
        }
        timed_out
    }
}
