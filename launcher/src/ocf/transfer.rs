//! Sending a machine to a hypervisor on another node, and receiving it there, over a pair of streams.
//!
//! qemu gets the stream itself. cloud-hypervisor opens a Unix socket, so this process copies in both directions, as the
//! two hypervisors talk to each other.

use super::agent::{POLL_INTERVAL, system};
use super::exit_code::AgentError;
use super::observe::controller_of;
use crate::control::{Condition, ControlError, Controller, MigrationStatus, migrates_by_file};
use crate::launch::Launch;
use crate::path::HostPath;
use crate::sockets::{connect_to, forward, remove_stale};
use crate::state::{Activity, MachineState};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, listen, socket};
use program::place::Place;
use program::user::Identity;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// The socket in the machine's state directory, over which cloud-hypervisor sends and receives.
const SOCKET: &str = "migration.sock";
/// Only the hypervisor's user connects to it.
const SOCKET_MODE: u32 = 0o600;
/// How long a hypervisor may take to find out that its connection is closed.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to check whether a hypervisor still waits for the machine.
const CONDITION_INTERVAL: Duration = Duration::from_secs(1);
/// No request returns why cloud-hypervisor has failed to send a machine.
const GAVE_UP: &str = "its hypervisor has cancelled it; the reason is in the messages of the hypervisor";

/// The connection to the other node.
#[derive(Debug)]
pub struct Streams {
    /// What the other node sends.
    pub input: OwnedFd,
    /// What it receives.
    pub output: OwnedFd,
}

/// Sends the running machine, and returns when it has left. Its hypervisor then waits to be ended, or has ended.
///
/// # Errors
/// Returns [`AgentError::NotSent`] if the machine keeps running, or another [`AgentError`].
pub fn send(state: &MachineState, streams: Streams, timeout: Duration) -> Result<(), AgentError> {
    let (controller, launch) = controller(state)?;
    let time = TransferTime::starting_now(timeout);
    let sent = if launch.control.as_ref().is_some_and(|socket| migrates_by_file(socket.protocol)) {
        send_file(&controller, streams.output, &time)
    } else {
        send_through_socket(&controller, &launch, streams, &time)
    };
    sent.map_err(|reason| AgentError::NotSent { machine: state.name().to_owned(), reason })
}

/// How long a transfer may take.
struct TransferTime {
    limit: Duration,
    deadline: Instant,
}

impl TransferTime {
    fn starting_now(limit: Duration) -> Self {
        Self { limit, deadline: Instant::now() + limit }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn exceeded(&self) -> String {
        format!("it was not finished within {} s, so it was cancelled", self.limit.as_secs())
    }
}

fn send_file(controller: &Controller, stream: OwnedFd, time: &TransferTime) -> Result<(), String> {
    controller.start_to_send(stream.as_fd()).map_err(|error| error.to_string())?;
    // The hypervisor has its own copy. The other node sees the end of the stream when that is closed.
    drop(stream);
    loop {
        match controller.migration_status() {
            Ok(MigrationStatus::Completed) => return Ok(()),
            Ok(MigrationStatus::Failed(reason)) => return Err(reason),
            Ok(MigrationStatus::Active) if !time.is_over() => sleep(POLL_INTERVAL),
            Ok(MigrationStatus::Active) => return cancel(controller, time),
            // While qemu sends the devices, it answers nobody, even if the other node receives nothing.
            Err(ControlError::NoAnswer { .. }) if !time.is_over() => sleep(POLL_INTERVAL),
            Err(ControlError::NoAnswer { .. }) => return cancel(controller, time),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Cancels a migration that takes too long, unless the machine has left just before.
fn cancel(controller: &Controller, time: &TransferTime) -> Result<(), String> {
    controller.cancel_migration().map_err(|error| {
        format!("it was not finished within {} s, and it could not be cancelled: {error}", time.limit.as_secs())
    })?;
    match controller.migration_status() {
        Ok(MigrationStatus::Completed) => Ok(()),
        _ => Err(time.exceeded()),
    }
}

fn send_through_socket(
    controller: &Controller,
    launch: &Launch,
    streams: Streams,
    time: &TransferTime,
) -> Result<(), String> {
    let path = socket_path(launch);
    let listener = listen_for(launch, &path).map_err(|error| format!("{path}: {error}"))?;
    let url = path.clone();
    let mut request = Request::begin(controller.clone().with_timeout(time.limit + LAST_ANSWER_TIMEOUT), move |asked| {
        asked.send_through(&url)
    });
    let connected = accept(&listener, &mut request, controller, time);
    // Nothing else may connect.
    let _ = Place::nofollow(path.as_path()).and_then(|place| place.remove());
    let relay = Relay::start(connected?, streams).map_err(|error| error.to_string())?;
    let closed_by = relay.wait(time.left());
    // Without a connection, the hypervisor gives up, and its guest continues.
    relay.close();
    wait_until_it_has_left(controller, &mut request).map_err(|reason| match closed_by {
        Some(End::Hypervisor) => reason,
        Some(End::Node) => "the other node has closed the connection".to_owned(),
        None => time.exceeded(),
    })
}

/// Waits until a hypervisor whose connection is closed has ended, which shows that the machine has left, or has the
/// machine again.
fn wait_until_it_has_left(controller: &Controller, request: &mut Request) -> Result<(), String> {
    let deadline = Instant::now() + LAST_ANSWER_TIMEOUT;
    loop {
        if let Some(Err(error)) = request.answer() {
            return Err(error.to_string());
        }
        match controller.has_machine() {
            Err(ControlError::NotListening { .. }) => return Ok(()),
            Ok(true) if request.is_answered() => return Err(GAVE_UP.to_owned()),
            _ if Instant::now() < deadline => sleep(POLL_INTERVAL),
            Err(error) => return Err(error.to_string()),
            Ok(_) => return Err("its hypervisor neither continues it nor ends".to_owned()),
        }
    }
}

/// Receives a machine into the hypervisor that waits for it, and returns when the guest runs.
///
/// # Errors
/// Returns [`AgentError::NotArrived`] if the hypervisor ends, [`AgentError::ArrivesTooLate`], or [`AgentError::Control`].
pub fn receive(state: &MachineState, streams: Streams, timeout: Duration) -> Result<(), AgentError> {
    let (controller, launch) = controller(state)?;
    let time = TransferTime::starting_now(timeout);
    let too_late = || AgentError::ArrivesTooLate { machine: state.name().to_owned(), seconds: time.limit.as_secs() };
    if launch.control.as_ref().is_some_and(|socket| migrates_by_file(socket.protocol)) {
        match begins(&streams.input, &controller, &time).map_err(system("receiving the machine"))? {
            Some(true) => {}
            Some(false) => return Err(AgentError::NotArrived(state.name().to_owned())),
            None => return Err(too_late()),
        }
        controller.start_to_receive(streams.input.as_fd())?;
    } else if !receive_through_socket(&controller, &launch, streams, &time)? {
        return Err(too_late());
    }
    loop {
        match controller.condition() {
            Ok(Condition::Runs) => return Ok(()),
            Ok(Condition::Failed(condition)) => {
                return Err(AgentError::Failed { machine: state.name().to_owned(), state: condition });
            }
            _ if state.activity()? == Activity::Stopped => {
                return Err(AgentError::NotArrived(state.name().to_owned()));
            }
            _ if time.is_over() => return Err(too_late()),
            _ => sleep(POLL_INTERVAL),
        }
    }
}

/// Waits until the other node sends something, and returns whether it does; `None` if it has done nothing in time. qemu
/// would wait for ever, with a busy processor, for the first byte of a pipe that the other node has closed: it does not
/// poll for `POLLHUP`. If the hypervisor no longer waits, the cluster has started or stopped the machine in the meantime.
fn begins(stream: &OwnedFd, controller: &Controller, time: &TransferTime) -> io::Result<Option<bool>> {
    loop {
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        let wait = time.left().min(CONDITION_INTERVAL);
        match poll(&mut polled, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
            Ok(0) if time.is_over() => return Ok(None),
            Ok(0) => match controller.condition() {
                Ok(Condition::Waits) | Err(ControlError::NoAnswer { .. }) => {}
                _ => return Ok(Some(false)),
            },
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(Some(polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)))),
        }
    }
}

/// Returns whether the machine was received in time.
fn receive_through_socket(
    controller: &Controller,
    launch: &Launch,
    streams: Streams,
    time: &TransferTime,
) -> Result<bool, AgentError> {
    let path = socket_path(launch);
    remove_stale(path.as_path())
        .map_err(|error| system("receiving the machine")(io::Error::other(error.to_string())))?;
    let url = path.clone();
    let mut request = Request::begin(controller.clone().with_timeout(time.limit + LAST_ANSWER_TIMEOUT), move |asked| {
        asked.receive_through(&url)
    });
    let hypervisor = loop {
        // The guest's memory is sent there.
        if let Ok(hypervisor) = connect_to(path.as_path()) {
            break hypervisor;
        }
        match request.answer() {
            Some(answer) => return Ok(answer.map(|()| true)?),
            None if time.is_over() => return Ok(false),
            None => sleep(POLL_INTERVAL),
        }
    };
    let relay = Relay::start(hypervisor, streams).map_err(system("copying the machine"))?;
    let closed_by = relay.wait(time.left());
    relay.close();
    if closed_by.is_none() {
        return Ok(false);
    }
    Ok(request.wait(LAST_ANSWER_TIMEOUT).transpose()?.is_some())
}

/// A request that is answered only after a migration, or after it has begun.
struct Request {
    answers: mpsc::Receiver<Result<(), ControlError>>,
    is_answered: bool,
}

impl Request {
    fn begin(
        controller: Controller,
        send: impl FnOnce(&Controller) -> Result<(), ControlError> + Send + 'static,
    ) -> Self {
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            // Fails if nothing waits for the answer any more.
            let _ = sender.send(send(&controller));
        });
        Self { answers, is_answered: false }
    }

    /// Returns the answer once, when it has come.
    fn answer(&mut self) -> Option<Result<(), ControlError>> {
        self.wait(Duration::ZERO)
    }

    fn wait(&mut self, timeout: Duration) -> Option<Result<(), ControlError>> {
        let answer = self.answers.recv_timeout(timeout).ok();
        self.is_answered |= answer.is_some();
        answer
    }

    fn is_answered(&self) -> bool {
        self.is_answered
    }
}

fn controller(state: &MachineState) -> Result<(Controller, Launch), AgentError> {
    let missing = || system("migrating")(io::Error::other("the machine has no control socket"));
    let launch = state.last_launch()?;
    let controller = controller_of(launch.as_ref());
    controller.zip(launch).ok_or_else(missing)
}

fn socket_path(launch: &Launch) -> HostPath {
    HostPath::from(SOCKET).below(&launch.working_directory)
}

fn listen_for(launch: &Launch, path: &HostPath) -> io::Result<UnixListener> {
    let owner = launch.user.as_deref().map(Identity::of).transpose().map_err(io::Error::other)?;
    let server = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let place = Place::nofollow(path.as_path())?;
    place.remove()?;
    place.bind(&server, SOCKET_MODE)?;
    if let Some(owner) = owner.filter(|_| nix::unistd::geteuid().is_root()) {
        place.give_socket(&owner)?;
    }
    listen(&server, Backlog::new(1)?)?;
    let listener = UnixListener::from(server);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Waits for the hypervisor's connection. From version 53 on, cloud-hypervisor answers the request before it connects.
fn accept(
    listener: &UnixListener,
    request: &mut Request,
    controller: &Controller,
    time: &TransferTime,
) -> Result<UnixStream, String> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(|error| error.to_string())?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.to_string()),
        }
        if let Some(Err(error)) = request.answer() {
            return Err(error.to_string());
        }
        match request.is_answered().then(|| controller.has_machine()) {
            Some(Ok(true)) => return Err(GAVE_UP.to_owned()),
            Some(Err(error @ ControlError::NotListening { .. })) => return Err(error.to_string()),
            _ if time.is_over() => return Err(time.exceeded()),
            _ => sleep(POLL_INTERVAL),
        }
    }
}

/// The connection of a hypervisor with the other node, copied in both directions by two threads.
struct Relay {
    hypervisor: UnixStream,
    closed_by: mpsc::Receiver<End>,
}

/// An end of the connection.
#[derive(Clone, Copy, Debug)]
enum End {
    Hypervisor,
    Node,
}

impl Relay {
    fn start(hypervisor: UnixStream, streams: Streams) -> io::Result<Self> {
        let (mut from_node, mut to_hypervisor) = (File::from(streams.input), hypervisor.try_clone()?);
        let (mut from_hypervisor, mut to_node) = (hypervisor.try_clone()?, File::from(streams.output));
        let (sender, closed_by) = mpsc::channel();
        let reply = sender.clone();
        // Nothing receives the messages after the deadline.
        thread::spawn(move || {
            // Fails if the hypervisor has closed it. The other thread finds that out.
            if forward(&mut from_node, &mut to_hypervisor).is_ok() {
                let _ = reply.send(End::Node);
            }
            let _ = to_hypervisor.shutdown(Shutdown::Write);
        });
        thread::spawn(move || {
            let copied = forward(&mut from_hypervisor, &mut to_node);
            drop(to_node);
            let _ = sender.send(if copied.is_ok() { End::Hypervisor } else { End::Node });
        });
        Ok(Self { hypervisor, closed_by })
    }

    /// Waits until one end has closed the connection, and returns which; `None` if none has.
    fn wait(&self, timeout: Duration) -> Option<End> {
        self.closed_by.recv_timeout(timeout).ok()
    }

    /// Closes the connection for the hypervisor, although a thread may still wait for the other node.
    fn close(&self) {
        // Fails if the hypervisor has closed it already.
        let _ = self.hypervisor.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use crate::facts::HostFacts;
    use crate::hypervisor::lower;
    use crate::launch::{ControlProtocol, ControlSocket};
    use crate::spec::{Hypervisor, parse::parse};
    use crate::state::tests::running;
    use crate::state::{ProcessIdentity, RuntimeDirectory};
    use crate::validate::check;
    use serde_json::Value;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    const DONE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

    /// Returns the body of a request.
    fn body_of(client: &UnixStream) -> Value {
        let mut reader = BufReader::new(client);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap(),
                Some(_) => {}
                None if line.trim_end().is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap_or_default()
    }

    fn machine(directory: &std::path::Path) -> (MachineState, UnixListener) {
        let spec = r#"{"version": 1, "name": "web", "hypervisor": "cloud-hypervisor", "kernel": "/srv/vmlinux"}"#;
        let host = HostFacts::assumed(HostPath::new(directory.to_str().unwrap()));
        let launch = lower(&check(&parse(spec).unwrap()).unwrap(), &host, Hypervisor::CloudHypervisor).unwrap();
        let state = RuntimeDirectory::at(directory.join("run")).machine("web").unwrap();
        std::fs::create_dir_all(state.directory()).unwrap();
        state.write_launch(&launch).unwrap();
        state.write_running(&running(ProcessIdentity::current().unwrap())).unwrap();
        let socket = launch.control.unwrap().path.below(&launch.working_directory);
        (state, UnixListener::bind(socket.as_path()).unwrap())
    }

    /// Answers a request with this status.
    fn answer(client: &mut UnixStream, status: &str, body: &str) {
        let length = body.len();
        client.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes()).unwrap();
    }

    /// Answers all requests of a controller in this way, until the process ends.
    fn answer_all(server: UnixListener, status: &'static str) {
        thread::spawn(move || {
            for client in server.incoming() {
                let mut client = client.unwrap();
                body_of(&client);
                answer(&mut client, status, "{}");
            }
        });
    }

    /// Accepts the request to send, answers it at once, as versions from 53 on do, and connects.
    fn begin_to_send(server: &UnixListener) -> io::Result<UnixStream> {
        let (mut client, _) = server.accept().unwrap();
        let body = body_of(&client);
        client.write_all(DONE).unwrap();
        let url = body["destination_url"].as_str().unwrap();
        UnixStream::connect(url.trim_start_matches("unix:"))
    }

    /// Accepts a connection; `None` if none has come when `is_over`.
    fn accept_until(listener: &UnixListener, is_over: &AtomicBool) -> Option<UnixStream> {
        listener.set_nonblocking(true).unwrap();
        loop {
            let was_over = is_over.load(Ordering::SeqCst);
            match listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(_) if was_over => return None,
                Err(_) => sleep(POLL_INTERVAL),
            }
        }
    }

    /// Repeats a test with more time until its hypervisor connects before the time is over.
    fn with_enough_seconds(connects_within: impl Fn(u64) -> bool) {
        assert!((0..8).any(|power| connects_within(1 << power)), "the hypervisor does not connect");
    }

    #[test]
    fn cloud_hypervisor_sends_a_machine_through_a_socket_and_receives_it_through_one() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (leaves, sender) = machine(source.path());
        let (arrives, receiver) = machine(target.path());
        let sending = thread::spawn(move || {
            let mut stream = begin_to_send(&sender).unwrap();
            stream.write_all(b"pages").unwrap();
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).unwrap();
            // The hypervisor ends, and with it the listener.
            answer
        });
        let receiving = thread::spawn(move || {
            let (mut client, _) = receiver.accept().unwrap();
            let body = body_of(&client);
            let socket = body["receiver_url"].as_str().unwrap().trim_start_matches("unix:").to_owned();
            let (mut stream, _) = UnixListener::bind(socket).unwrap().accept().unwrap();
            let mut pages = [0; 5];
            stream.read_exact(&mut pages).unwrap();
            stream.write_all(b"ok").unwrap();
            drop(stream);
            client.write_all(DONE).unwrap();
            let (mut client, _) = receiver.accept().unwrap();
            body_of(&client);
            answer(&mut client, "200 OK", r#"{"state":"Running"}"#);
            pages
        });
        // Pipes, as the standard streams of ssh are.
        let ((far, near), (back_near, back_far)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let streams = Streams { input: far.into(), output: back_far.into() };
        let there = thread::spawn(move || receive(&arrives, streams, Duration::from_secs(120)));
        let streams = Streams { input: back_near.into(), output: near.into() };
        send(&leaves, streams, Duration::from_secs(120)).unwrap();
        there.join().unwrap().unwrap();
        assert_eq!((&sending.join().unwrap(), &receiving.join().unwrap()), (b"ok", b"pages"));
        assert!(!source.path().join(SOCKET).exists());
    }

    #[test]
    fn a_machine_whose_target_is_silent_stays() {
        with_enough_seconds(|seconds| {
            let source = tempfile::tempdir().unwrap();
            let (stays, sender) = machine(source.path());
            let sending = thread::spawn(move || {
                let stream = begin_to_send(&sender);
                let connects = stream.is_ok();
                // The other node reads nothing.
                while stream.as_ref().is_ok_and(|mut stream| stream.write_all(&[0; 4096]).is_ok()) {}
                answer_all(sender, "200 OK");
                connects
            });
            let ((far, near), (back_near, back_far)) = (io::pipe().unwrap(), io::pipe().unwrap());
            let streams = Streams { input: back_near.into(), output: near.into() };
            let error = send(&stays, streams, Duration::from_secs(seconds)).unwrap_err();
            let expected =
                format!("web could not be sent: it was not finished within {seconds} s, so it was cancelled");
            assert_eq!(error.to_string(), expected);
            drop((far, back_far));
            sending.join().unwrap()
        });
    }

    #[test]
    fn a_machine_whose_hypervisor_gives_up_stays() {
        for connects in [true, false] {
            let source = tempfile::tempdir().unwrap();
            let (stays, sender) = machine(source.path());
            let sending = thread::spawn(move || {
                if connects {
                    drop(begin_to_send(&sender).unwrap());
                } else {
                    let (mut client, _) = sender.accept().unwrap();
                    body_of(&client);
                    client.write_all(DONE).unwrap();
                }
                answer_all(sender, "200 OK");
            });
            let ((far, near), (back_near, back_far)) = (io::pipe().unwrap(), io::pipe().unwrap());
            let streams = Streams { input: back_near.into(), output: near.into() };
            let error = send(&stays, streams, Duration::from_secs(120)).unwrap_err();
            assert_eq!(error.to_string(), format!("web could not be sent: {GAVE_UP}"), "{connects}");
            sending.join().unwrap();
            drop((far, back_far));
        }
    }

    #[test]
    fn a_machine_that_does_not_come_is_not_awaited_forever() {
        with_enough_seconds(|seconds| {
            let target = tempfile::tempdir().unwrap();
            let (awaits, receiver) = machine(target.path());
            let is_over = Arc::new(AtomicBool::new(false));
            let ends = Arc::clone(&is_over);
            let receiving = thread::spawn(move || {
                let (client, _) = receiver.accept().unwrap();
                let body = body_of(&client);
                let socket = body["receiver_url"].as_str().unwrap().trim_start_matches("unix:").to_owned();
                let stream = accept_until(&UnixListener::bind(socket).unwrap(), &ends);
                stream.map(|mut stream| stream.read(&mut [0]).unwrap())
            });
            let ((far, near), (back_near, back_far)) = (io::pipe().unwrap(), io::pipe().unwrap());
            let streams = Streams { input: far.into(), output: back_far.into() };
            let error = receive(&awaits, streams, Duration::from_secs(seconds)).unwrap_err();
            assert_eq!(error.to_string(), format!("web has not arrived within {seconds} s"));
            is_over.store(true, Ordering::SeqCst);
            let read = receiving.join().unwrap();
            assert!(read.is_none_or(|count| count == 0), "{read:?}");
            drop((near, back_near));
            read.is_some()
        });
    }

    #[test]
    fn a_migration_of_qemu_that_gets_no_answer_in_time_is_cancelled() {
        let cancelled = Err("it was not finished within 0 s, so it was cancelled".to_owned());
        let refused = "it was not finished within 0 s, and it could not be cancelled: \
                       the hypervisor refused migrate_cancel: no";
        for (cancel, status, expected) in [
            (r#"{"return": {}}"#, "cancelled", cancelled),
            (r#"{"return": {}}"#, "completed", Ok(())),
            (r#"{"error": {"desc": "no"}}"#, "active", Err(refused.to_owned())),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let server = UnixListener::bind(directory.path().join("qmp.sock")).unwrap();
            thread::spawn(move || {
                let mut is_asked_to_cancel = false;
                for mut client in server.incoming().map(Result::unwrap) {
                    client.write_all(b"{\"QMP\": {}}\n").unwrap();
                    for line in BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok) {
                        let request: Value = serde_json::from_str(&line).unwrap();
                        let answer = match request["execute"].as_str().unwrap() {
                            // qemu sends the devices.
                            "query-migrate" if !is_asked_to_cancel => break,
                            "query-migrate" => format!(r#"{{"return": {{"status": "{status}"}}}}"#),
                            "migrate_cancel" => {
                                is_asked_to_cancel = true;
                                cancel.to_owned()
                            }
                            _ => r#"{"return": {}}"#.to_owned(),
                        };
                        writeln!(client, "{answer}").unwrap();
                    }
                }
            });
            let socket = ControlSocket { protocol: ControlProtocol::Qmp, path: HostPath::from("qmp.sock") };
            let controller = Controller::new(&socket, &HostPath::new(directory.path().to_str().unwrap()));
            let time = TransferTime::starting_now(Duration::ZERO);
            assert_eq!(send_file(&controller, io::pipe().unwrap().1.into(), &time), expected, "{status}");
        }
    }
}
