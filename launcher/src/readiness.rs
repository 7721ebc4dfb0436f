//! Reporting the state of a machine to the service manager, and receiving the guest's reports. Nothing here blocks: the
//! supervisor's event loop calls this module when a descriptor is ready.

use crate::launch::{GuestNotification, NotificationSocket};
use crate::path::HostPath;
use crate::sockets::{SocketError, remove_stale};
use nix::errno::Errno;
use nix::libc::VMADDR_CID_HOST;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, VsockAddr, accept4, bind, connect, getpeername,
    listen, recv, send, socket,
};
use program::own_socket::OwnSocket;
use program::place::Place;
use program::user::Identity;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Only the user who runs the hypervisor, and the group, can connect.
const SOCKET_MODE: u32 = 0o660;
/// The longest notification. systemd sends no longer ones.
const MAX_NOTIFICATION_BYTES: usize = 4096;
/// How long a connection from the guest may last. systemd sends its message immediately.
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(2);
/// The most connections at a time, and the most that are accepted within [`ACCEPT_PERIOD`]. A guest that opens more has
/// to wait.
const MAX_CONNECTIONS: usize = 8;
const MAX_ACCEPTED_PER_PERIOD: usize = 16;
const ACCEPT_PERIOD: Duration = Duration::from_secs(1);
/// The length of the kernel's queue of connections that were not accepted yet.
const BACKLOG: i32 = 16;
/// The most connections that are accepted after the hypervisor has ended. The queue is not longer.
const MAX_LAST_CONNECTIONS: usize = 24;
/// How long an incomplete message is left alone after some of it was read, so that a guest that sends byte by byte
/// cannot wake the supervisor for each of them.
const READ_PAUSE: Duration = Duration::from_millis(50);
/// The length of the queue to the service manager. Beyond it, the oldest status lines are dropped.
const MAX_PENDING: usize = 32;

/// Why the launcher cannot listen for the guest.
#[derive(Debug, thiserror::Error)]
pub enum ReadinessError {
    /// The socket cannot be created.
    #[error("cannot listen for the guest's notification on {place}: {source}")]
    Listen {
        /// The socket.
        place: String,
        /// The error of the system.
        source: io::Error,
    },
    /// Another process uses the socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// The service manager that started the launcher, or none: sd_notify(3).
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<OwnedFd>,
    pending: VecDeque<String>,
    /// Whether an error was returned. Later ones are not: the guest can cause a notification at any time.
    has_failed: bool,
}

impl ServiceManager {
    /// Connects to the service manager in `$NOTIFY_SOCKET`.
    ///
    /// # Errors
    /// Fails if the variable is set, but no process receives on that socket.
    pub fn of_environment() -> io::Result<Self> {
        let address = std::env::var_os("NOTIFY_SOCKET").filter(|value| !value.is_empty());
        address.map_or_else(|| Ok(Self::default()), |address| Self::at(address.as_bytes()))
    }

    fn at(address: &[u8]) -> io::Result<Self> {
        let target = match address.strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name)?,
            None => UnixAddr::new(address)?,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        connect(socket.as_raw_fd(), &target)?;
        Ok(Self { socket: Some(socket), pending: VecDeque::new(), has_failed: false })
    }

    /// Whether there is a service manager.
    pub fn is_present(&self) -> bool {
        self.socket.is_some()
    }

    /// Sends lines of `VARIABLE=value`, now or as soon as the service manager reads them.
    ///
    /// # Errors
    /// Fails the first time that no process receives any more. A machine can continue without its service manager.
    pub fn notify(&mut self, lines: &str) -> io::Result<()> {
        if self.socket.is_none() {
            return Ok(());
        }
        self.pending.push_back(lines.to_owned());
        if self.pending.len() > MAX_PENDING
            && let Some(at) = self.pending.iter().position(|lines| lines.starts_with("STATUS="))
        {
            self.pending.remove(at);
        }
        self.flush()
    }

    /// Sends the queued lines.
    ///
    /// # Errors
    /// The same as [`ServiceManager::notify`].
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        while let Some(lines) = self.pending.front() {
            match send(socket.as_raw_fd(), lines.as_bytes(), MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => drop(self.pending.pop_front()),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    self.pending.clear();
                    let is_known = std::mem::replace(&mut self.has_failed, true);
                    return if is_known { Ok(()) } else { Err(errno.into()) };
                }
            }
        }
        Ok(())
    }

    /// Returns the socket and the event to poll for, while lines are queued.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let socket = self.socket.as_ref().filter(|_| !self.pending.is_empty())?;
        Some((socket.as_fd(), PollFlags::POLLOUT))
    }
}

/// A socket on which the guest's systemd reports. Each connection carries one notification.
#[derive(Debug)]
pub struct GuestListener {
    /// Removes the socket's file. Fields are dropped in order, and the socket must still be open then.
    _own_socket: Option<OwnSocket>,
    listener: OwnedFd,
    path: Option<PathBuf>,
    peer_cid: Option<u32>,
    connections: Vec<GuestConnection>,
    /// When the current period began, and how many connections have been accepted in it.
    period: (Instant, usize),
}

#[derive(Debug)]
struct GuestConnection {
    descriptor: OwnedFd,
    text: Vec<u8>,
    end: Instant,
    /// Nothing is read before this time.
    read_after: Instant,
}

/// A report of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestMessage {
    /// Whether it has booted.
    pub is_ready: bool,
    /// Whether it is about to power off or reboot. systemd reports this since version 256.
    pub is_ending: bool,
    /// What it is doing.
    pub status: Option<String>,
}

/// Checks that [`GuestListener::listen`] could listen on a vsock port. Without the device, there is no port yet.
///
/// # Errors
/// Returns [`ReadinessError::Listen`].
pub fn check_notification_port(notification: &GuestNotification) -> Result<(), ReadinessError> {
    if matches!(notification.listen, NotificationSocket::Unix(_)) || !Path::new("/dev/vhost-vsock").exists() {
        return Ok(());
    }
    let bound = bind_vsock(notification.port);
    bound.map(drop).map_err(|source| ReadinessError::Listen { place: vsock_place(notification.port), source })
}

fn vsock_place(port: u32) -> String {
    format!("vsock port {port}")
}

fn bind_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = new_socket(AddressFamily::Vsock)?;
    bind(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_HOST, port))?;
    Ok(socket)
}

impl GuestListener {
    /// Starts to listen; call this before the guest starts. A socket on the file system is given to the user who runs
    /// the hypervisor, if that is another user, because the hypervisor connects to it.
    ///
    /// # Errors
    /// Returns [`ReadinessError`].
    pub fn listen(
        notification: &GuestNotification,
        working_directory: &HostPath,
        hypervisor: Option<&Identity>,
    ) -> Result<Self, ReadinessError> {
        let (place, path, peer_cid) = match &notification.listen {
            NotificationSocket::Unix(path) => {
                let path = path.below(working_directory);
                remove_stale(path.as_path())?;
                (path.to_string(), Some(path.as_path().to_owned()), None)
            }
            NotificationSocket::Vsock { cid } => (vsock_place(notification.port), None, Some(*cid)),
        };
        let made = match &path {
            Some(path) => Place::nofollow(path).and_then(|place| {
                let socket = new_socket(AddressFamily::Unix)?;
                place.bind(&socket, SOCKET_MODE)?;
                hypervisor.map_or(Ok(()), |user| place.give_socket(user))?;
                Ok((socket, Some(OwnSocket::bound(&place)?)))
            }),
            None => bind_vsock(notification.port).map(|socket| (socket, None)),
        };
        let listening = made.and_then(|(socket, own_socket)| {
            listen(&socket, Backlog::new(BACKLOG)?)?;
            Ok((socket, own_socket))
        });
        let (listener, _own_socket) = listening.map_err(|source| ReadinessError::Listen { place, source })?;
        Ok(Self { listener, _own_socket, path, peer_cid, connections: Vec::new(), period: (Instant::now(), 0) })
    }

    /// Returns the path of the socket, if it is on the file system.
    pub fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// Returns the descriptors and events to poll for from `now` until the [`GuestListener::deadline`] of the same
    /// time.
    pub fn interests(&self, now: Instant) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let listener = self.can_accept().then(|| self.listener.as_fd());
        let readable = self.connections.iter().filter(|connection| connection.read_after <= now);
        let connections = readable.map(|connection| connection.descriptor.as_fd());
        listener.into_iter().chain(connections).map(|descriptor| (descriptor, PollFlags::POLLIN)).collect()
    }

    /// Returns the latest time at which [`GuestListener::receive`] must be called.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let pause = |connection: &GuestConnection| Some(connection.read_after).filter(|time| *time > now);
        let connections =
            self.connections.iter().flat_map(|connection| [Some(connection.end), pause(connection)]).flatten();
        // If all connections are in use, accepting resumes when the first one ends; otherwise when the period ends.
        let period = (self.period.1 >= MAX_ACCEPTED_PER_PERIOD).then(|| self.period.0 + ACCEPT_PERIOD);
        connections.chain(period).min()
    }

    /// Accepts connections, reads from them, and returns the complete messages. Closes connections that do not come
    /// from the guest.
    pub fn receive(&mut self) -> Vec<GuestMessage> {
        if self.period.0.elapsed() >= ACCEPT_PERIOD {
            self.period = (Instant::now(), 0);
        }
        self.accept();
        self.read()
    }

    /// Returns what the guest has sent when its hypervisor has ended, complete or not. The limits per second do not
    /// apply, because the last report is that of the guest's end.
    pub fn finish(&mut self) -> Vec<GuestMessage> {
        let mut messages = Vec::new();
        let mut left = MAX_LAST_CONNECTIONS;
        loop {
            let now = Instant::now();
            self.connections.iter_mut().for_each(|connection| connection.end = now);
            messages.extend(self.read());
            self.period = (now, MAX_ACCEPTED_PER_PERIOD.saturating_sub(left));
            match self.accept() {
                0 => return messages,
                accepted => left = left.saturating_sub(accepted),
            }
        }
    }

    /// Accepts connections, and returns how many. Closes those that do not come from the guest.
    fn accept(&mut self) -> usize {
        let mut accepted = 0;
        while self.can_accept() {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let descriptor = match accept4(self.listener.as_raw_fd(), flags) {
                Ok(number) => owned_descriptor(number),
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    // Without a free descriptor, the connection stays readable and would wake the event loop again.
                    self.period.1 = MAX_ACCEPTED_PER_PERIOD;
                    break;
                }
            };
            self.period.1 += 1;
            accepted += 1;
            if self.is_of_guest(&descriptor) {
                let now = Instant::now();
                let (end, text) = (now + MAX_CONNECTION_TIME, Vec::new());
                self.connections.push(GuestConnection { descriptor, text, end, read_after: now });
            }
        }
        accepted
    }

    /// Reads from the connections, and returns the complete messages.
    fn read(&mut self) -> Vec<GuestMessage> {
        let mut messages = Vec::new();
        self.connections.retain_mut(|connection| {
            let is_complete = connection.read();
            if is_complete {
                messages.push(parse(&String::from_utf8_lossy(&connection.text)));
            }
            !is_complete
        });
        messages
    }

    fn can_accept(&self) -> bool {
        self.connections.len() < MAX_CONNECTIONS && self.period.1 < MAX_ACCEPTED_PER_PERIOD
    }

    fn is_of_guest(&self, descriptor: &OwnedFd) -> bool {
        let Some(cid) = self.peer_cid else { return true };
        getpeername::<VsockAddr>(descriptor.as_raw_fd()).is_ok_and(|peer| peer.cid() == cid)
    }
}

impl GuestConnection {
    /// Whether the message is complete: the guest has closed the connection, sent too much, or taken too long.
    fn read(&mut self) -> bool {
        let now = Instant::now();
        if now < self.read_after.min(self.end) {
            return false;
        }
        let mut buffer = [0; 1024];
        while self.text.len() < MAX_NOTIFICATION_BYTES {
            match recv(self.descriptor.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(0) => return true,
                Ok(count) => self.text.extend(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    if !self.text.is_empty() {
                        self.read_after = now + READ_PAUSE;
                    }
                    return now >= self.end;
                }
                Err(_) => return true,
            }
        }
        true
    }
}

fn new_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}

#[expect(unsafe_code, reason = "nix returns the accepted socket as a number")]
fn owned_descriptor(descriptor: i32) -> OwnedFd {
    // SAFETY: accept4 has just returned the descriptor, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Returns the only three fields that are accepted: the guest must not tell the host's service manager which process to
/// watch. `X_SYSTEMD_SHUTDOWN=` is described in systemd(1).
fn parse(text: &str) -> GuestMessage {
    let status = text.lines().find_map(|line| line.strip_prefix("STATUS=")).map(printable);
    let is_ending = text.lines().any(|line| line.starts_with("X_SYSTEMD_SHUTDOWN="));
    GuestMessage { is_ready: text.lines().any(|line| line == "READY=1"), is_ending, status }
}

fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollTimeout, poll};
    use std::io::Write;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn the_service_manager_receives_all_lines_after_it_was_busy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let mut manager = ServiceManager::at(path.as_os_str().as_bytes()).unwrap();
        let mut sent = 0;
        // Until the receiver's queue is full, and a few more.
        while manager.interest().is_none() || sent % 8 != 0 {
            sent += 1;
            manager.notify(&format!("READY=1\nSTATUS={sent}")).unwrap();
        }
        let mut buffer = [0; 64];
        for number in 1..=sent {
            manager.flush().unwrap();
            let count = receiver.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..count], *format!("READY=1\nSTATUS={number}").as_bytes());
        }
        assert!(manager.interest().is_none());
        ServiceManager::default().notify("READY=1").unwrap();
        drop(receiver);
        assert!(manager.notify("STOPPING=1").is_err());
        // Reported once, however often the guest sends its status.
        assert!(manager.notify("STATUS=1").is_ok());
    }

    fn listener() -> (tempfile::TempDir, GuestNotification, GuestListener) {
        let directory = tempfile::tempdir().unwrap();
        let notification =
            GuestNotification { port: 8888, listen: NotificationSocket::Unix("notify.vsock_8888".into()) };
        let state = HostPath::new(directory.path().to_str().unwrap());
        let listener = GuestListener::listen(&notification, &state, None).unwrap();
        (directory, notification, listener)
    }

    #[test]
    fn a_hypervisor_of_another_user_can_connect_for_the_guest() {
        if !nix::unistd::geteuid().is_root() {
            return testing::skipped("only root runs a hypervisor as another user");
        }
        let directory = tempfile::tempdir().unwrap();
        let notification = GuestNotification { port: 8888, listen: NotificationSocket::Unix("vsock_8888".into()) };
        let state = HostPath::new(directory.path().to_str().unwrap());
        let nobody = Identity::of("nobody").unwrap();
        let listener = GuestListener::listen(&notification, &state, Some(&nobody)).unwrap();
        let metadata = std::fs::symlink_metadata(listener.path().unwrap()).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (nobody.user().as_raw(), SOCKET_MODE));
    }

    #[test]
    fn the_guests_message_is_received() {
        let (directory, notification, mut listener) = listener();
        assert_eq!(listener.receive(), []);
        let mut guest = UnixStream::connect(listener.path().unwrap()).unwrap();
        guest.write_all(b"STATUS=Startup\x1b[31m finished\nMAINPID=1\n").unwrap();
        drop(guest);
        let status = Some("Startup[31m finished".to_owned());
        assert_eq!(listener.receive(), [GuestMessage { status, ..GuestMessage::default() }]);
        let mut guest = UnixStream::connect(listener.path().unwrap()).unwrap();
        guest.write_all(b"READY=1").unwrap();
        drop(guest);
        assert!(listener.receive()[0].is_ready);
        let state = HostPath::new(directory.path().to_str().unwrap());
        assert!(matches!(GuestListener::listen(&notification, &state, None), Err(ReadinessError::Socket(_))));
        let path = listener.path().unwrap().clone();
        drop(listener);
        assert!(!path.exists(), "the socket was left behind");
    }

    /// Runs the listener as the event loop does, until the condition is true, and returns the number of wake-ups.
    fn receive_until(listener: &mut GuestListener, mut is_done: impl FnMut(&[GuestMessage]) -> bool) -> usize {
        let mut wake_ups = 0;
        loop {
            let messages = listener.receive();
            if is_done(&messages) {
                return wake_ups;
            }
            let now = Instant::now();
            let left = listener.deadline(now).map(|time| time.saturating_duration_since(Instant::now()));
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let interests = listener.interests(now);
            let mut descriptors: Vec<_> = interests.into_iter().map(|(fd, flags)| PollFd::new(fd, flags)).collect();
            poll(&mut descriptors, timeout).unwrap();
            wake_ups += 1;
        }
    }

    #[test]
    fn a_guest_that_sends_byte_by_byte_does_not_hold_up_another_connection() {
        let (_directory, _, mut listener) = listener();
        let path = listener.path().unwrap().clone();
        let mut slow = UnixStream::connect(&path).unwrap();
        slow.write_all(b"S").unwrap();
        assert_eq!(listener.receive(), []);
        UnixStream::connect(&path).unwrap().write_all(b"READY=1").unwrap();
        assert_eq!(listener.receive(), [GuestMessage { is_ready: true, ..GuestMessage::default() }]);
        let writer = std::thread::spawn(move || {
            let mut written = Ok(());
            while written.is_ok() {
                std::thread::sleep(Duration::from_millis(1));
                written = slow.write_all(b"x");
            }
        });
        // The connection is closed although the guest is still sending.
        let began = Instant::now();
        let wake_ups = receive_until(&mut listener, |messages| !messages.is_empty());
        writer.join().unwrap();
        let pauses = usize::try_from(began.elapsed().as_millis() / READ_PAUSE.as_millis()).unwrap();
        assert!(wake_ups <= 2 * (pauses + 2), "{wake_ups} wake-ups in {pauses} pauses");
    }

    #[test]
    fn the_last_report_of_a_guest_that_has_reported_much_is_received() {
        let (_directory, _, mut listener) = listener();
        let connect = || UnixStream::connect(listener.path().unwrap()).unwrap();
        // As many as can be open at the same time, plus the queue.
        let mut guest: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect()).collect();
        assert_eq!(listener.receive(), []);
        let connect = || UnixStream::connect(listener.path().unwrap()).unwrap();
        guest.extend((MAX_CONNECTIONS..20).map(|_| connect()));
        for (number, connection) in guest.iter_mut().enumerate() {
            let text = if number == 19 { "X_SYSTEMD_SHUTDOWN=poweroff".to_owned() } else { format!("STATUS={number}") };
            connection.write_all(text.as_bytes()).unwrap();
        }
        drop(guest);
        let messages = listener.finish();
        assert_eq!(messages.len(), 20, "{messages:?}");
        assert!(messages[19].is_ending, "{messages:?}");
    }

    #[test]
    fn a_connection_is_polled_for_or_its_pause_is_waited_for_at_any_time() {
        let (_directory, _, mut listener) = listener();
        let mut guest = UnixStream::connect(listener.path().unwrap()).unwrap();
        guest.write_all(b"S").unwrap();
        assert_eq!(listener.receive(), []);
        let pause_end = listener.connections[0].read_after;
        let before = pause_end - Duration::from_nanos(1);
        assert_eq!((listener.interests(before).len(), listener.deadline(before)), (1, Some(pause_end)));
        assert_eq!(listener.interests(pause_end).len(), 2);
    }

    #[test]
    fn a_guest_that_connects_in_a_loop_is_slowed_down() {
        let (_directory, _, mut listener) = listener();
        let path = listener.path().unwrap().clone();
        let began = Instant::now();
        let flooding = std::thread::spawn(move || {
            for _ in 0..100 {
                // If the listener's queue is full, this blocks.
                drop(UnixStream::connect(&path).unwrap());
            }
        });
        let mut received = 0;
        let wake_ups = receive_until(&mut listener, |messages| {
            received += messages.len();
            received == 100
        });
        flooding.join().unwrap();
        let periods = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
        assert!(received <= periods * MAX_ACCEPTED_PER_PERIOD, "{received} connections in {periods} periods");
        assert!(wake_ups <= periods * (2 * MAX_ACCEPTED_PER_PERIOD + 2), "{wake_ups} wake-ups in {periods} periods");
    }
}
