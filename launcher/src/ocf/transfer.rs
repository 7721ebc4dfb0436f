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
use crate::sockets::{connect_to, remove_stale};
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
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// The socket in the machine's state directory, over which cloud-hypervisor sends and receives.
const SOCKET: &str = "migration.sock";
/// Only the hypervisor's user connects to it.
const SOCKET_MODE: u32 = 0o600;

/// The connection to the other node.
#[derive(Debug)]
pub struct Streams {
    /// What the other node sends.
    pub input: OwnedFd,
    /// What it receives.
    pub output: OwnedFd,
}

/// Sends the running machine, and returns when it has left. Its hypervisor then waits to be ended.
///
/// # Errors
/// Returns [`AgentError::NotSent`] if the machine keeps running, or another [`AgentError`].
pub fn send(state: &MachineState, streams: Streams, timeout: Duration) -> Result<(), AgentError> {
    let (controller, launch) = controller(state)?;
    let deadline = Instant::now() + timeout;
    let sent = if launch.control.as_ref().is_some_and(|socket| migrates_by_file(socket.protocol)) {
        send_file(&controller, streams.output, deadline)
    } else {
        send_through_socket(&controller, &launch, streams, timeout)
    };
    sent.map_err(|reason| AgentError::NotSent { machine: state.name().to_owned(), reason })
}

fn send_file(controller: &Controller, stream: OwnedFd, deadline: Instant) -> Result<(), String> {
    controller.start_to_send(stream.as_fd()).map_err(|error| error.to_string())?;
    // The hypervisor has its own copy. The other node sees the end of the stream when that is closed.
    drop(stream);
    loop {
        match controller.migration_status().map_err(|error| error.to_string())? {
            MigrationStatus::Completed => return Ok(()),
            MigrationStatus::Failed(reason) => return Err(reason),
            MigrationStatus::Active if Instant::now() < deadline => sleep(POLL_INTERVAL),
            MigrationStatus::Active => {
                controller.cancel_migration().map_err(|error| error.to_string())?;
                return Err("it was not finished in time".to_owned());
            }
        }
    }
}

fn send_through_socket(
    controller: &Controller,
    launch: &Launch,
    streams: Streams,
    timeout: Duration,
) -> Result<(), String> {
    let path = socket_path(launch);
    let listener = listen_for(launch, &path).map_err(|error| format!("{path}: {error}"))?;
    let (asked, url) = (controller.clone().with_timeout(timeout), path.clone());
    let sending = thread::spawn(move || asked.send_through(&url));
    let connected = accept(&listener, &sending);
    // Nothing else may connect.
    let _ = Place::nofollow(path.as_path()).and_then(|place| place.remove());
    if let Some(hypervisor) = connected.map_err(|error| error.to_string())? {
        relay(hypervisor, streams).map_err(|error| error.to_string())?;
    }
    joined(sending).map_err(|error| error.to_string())
}

/// Receives a machine into the hypervisor that waits for it, and returns when the guest runs.
///
/// # Errors
/// Returns [`AgentError::NotArrived`] if the hypervisor ends, or [`AgentError::Control`].
pub fn receive(state: &MachineState, streams: Streams) -> Result<(), AgentError> {
    let (controller, launch) = controller(state)?;
    if launch.control.as_ref().is_some_and(|socket| migrates_by_file(socket.protocol)) {
        if !begins(&streams.input).map_err(system("receiving the machine"))? {
            return Err(AgentError::NotArrived(state.name().to_owned()));
        }
        controller.start_to_receive(streams.input.as_fd())?;
    } else {
        receive_through_socket(&controller, &launch, streams)?;
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
            _ => sleep(POLL_INTERVAL),
        }
    }
}

/// Waits until the other node sends something, and returns whether it does. qemu would wait for ever, with a busy processor,
/// for the first byte of a pipe that the other node has closed: it does not poll for `POLLHUP`.
fn begins(stream: &OwnedFd) -> io::Result<bool> {
    loop {
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN))),
        }
    }
}

fn receive_through_socket(controller: &Controller, launch: &Launch, streams: Streams) -> Result<(), AgentError> {
    /// Pacemaker ends the source, and so this process, long before.
    const LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
    let path = socket_path(launch);
    remove_stale(path.as_path())
        .map_err(|error| system("receiving the machine")(io::Error::other(error.to_string())))?;
    let (asked, url) = (controller.clone().with_timeout(LIMIT), path.clone());
    let receiving = thread::spawn(move || asked.receive_through(&url));
    while !receiving.is_finished() {
        // The guest's memory is sent there.
        if let Ok(hypervisor) = connect_to(path.as_path()) {
            relay(hypervisor, streams).map_err(system("copying the machine"))?;
            break;
        }
        sleep(POLL_INTERVAL);
    }
    Ok(joined(receiving)?)
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

/// Waits for the hypervisor's connection; `None` if its request has ended before.
fn accept<T>(listener: &UnixListener, request: &JoinHandle<T>) -> io::Result<Option<UnixStream>> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !request.is_finished() => sleep(POLL_INTERVAL),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Copies in both directions, and returns when both ends have closed theirs. An error of one end is reported by the
/// hypervisors' own protocol.
fn relay(hypervisor: UnixStream, streams: Streams) -> io::Result<()> {
    let (mut from_node, mut to_hypervisor) = (File::from(streams.input), hypervisor.try_clone()?);
    let incoming = thread::spawn(move || {
        let _ = io::copy(&mut from_node, &mut to_hypervisor);
        let _ = to_hypervisor.shutdown(Shutdown::Write);
    });
    let (mut from_hypervisor, mut to_node) = (hypervisor, File::from(streams.output));
    let _ = io::copy(&mut from_hypervisor, &mut to_node);
    drop(to_node);
    // The other node may still be open for writing although nothing more will come.
    drop(incoming);
    Ok(())
}

fn joined(request: JoinHandle<Result<(), ControlError>>) -> Result<(), ControlError> {
    request.join().unwrap_or_else(|_| Err(ControlError::Unsupported("the request was not finished".to_owned())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use crate::facts::HostFacts;
    use crate::hypervisor::lower;
    use crate::spec::{Hypervisor, parse::parse};
    use crate::state::tests::running;
    use crate::state::{ProcessIdentity, RuntimeDirectory};
    use crate::validate::check;
    use serde_json::Value;
    use std::io::{BufRead, BufReader, Read, Write};

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

    #[test]
    fn cloud_hypervisor_sends_a_machine_through_a_socket_and_receives_it_through_one() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (leaves, sender) = machine(source.path());
        let (arrives, receiver) = machine(target.path());
        let sending = thread::spawn(move || {
            let (mut client, _) = sender.accept().unwrap();
            let body = body_of(&client);
            let mut stream =
                UnixStream::connect(body["destination_url"].as_str().unwrap().trim_start_matches("unix:")).unwrap();
            stream.write_all(b"pages").unwrap();
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).unwrap();
            client.write_all(DONE).unwrap();
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
            client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}").unwrap();
            pages
        });
        let ((near, far), (back_near, back_far)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let there = thread::spawn(move || receive(&arrives, Streams { input: far.into(), output: back_far.into() }));
        let streams = Streams { input: back_near.into(), output: near.into() };
        send(&leaves, streams, Duration::from_secs(120)).unwrap();
        there.join().unwrap().unwrap();
        assert_eq!((&sending.join().unwrap(), &receiving.join().unwrap()), (b"ok", b"pages"));
        assert!(!source.path().join(SOCKET).exists());
    }
}
