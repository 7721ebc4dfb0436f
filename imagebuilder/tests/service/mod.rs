//! Shared by the tests of the cache service: a fake Nix daemon, fake packs with a few bytes, and clients.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]
#![allow(unreachable_pub, reason = "each test is a crate of its own")]

pub mod nix_daemon;

use imagebuilder::cache_service::owners::Owners;
use imagebuilder::cache_service::protocol::{Answer, Request};
use imagebuilder::cache_service::server::{Limits, Service};
use imagebuilder::cache_service::{PackStore, WantedPack, listener};
use imagebuilder::plan::PlannedPath;
use imagebuilder::settings::ImageSettings;
use imagebuilder::store_path::StorePath;
use nix_daemon::FakeNixDaemon;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect, recv, recvmsg, send, sendmsg,
    socket_with,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for anything that is expected to happen, even on a busy machine.
pub const LONG: Duration = Duration::from_secs(120);

/// Returns the name of the store path with this number.
pub fn base_name(number: usize) -> String {
    format!("{number:032}-path")
}

/// Returns the store path with this number as a plan contains it.
pub fn planned(number: usize) -> PlannedPath {
    PlannedPath {
        path: StorePath::from_base_name(&base_name(number)).unwrap(),
        nar_hash: Some([7; 32]),
        nar_size_bytes: None,
    }
}

/// Returns a request for the pack of the store path with this number.
pub fn request(number: usize) -> Vec<u8> {
    let request = Request::new(planned(number), ImageSettings::default(), ENCODER.to_owned()).unwrap();
    request.message().unwrap()
}

/// The name of the encoder that makes [`FakePacks`].
pub const ENCODER: &str = "fake-1";

/// The content of `/etc/subuid`: these users belong to one user with a user namespace.
const SUBUID: &str = "someone:100000:65536\n";

/// What [`FakePacks`] does for a store path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Making {
    /// Make the pack.
    Works,
    /// Work until it is cancelled, or the gate opens.
    Takes,
    /// Fail.
    Fails,
    /// Panic.
    Panics,
}

/// Packs that contain only the name of their store path.
pub struct FakePacks {
    directory: TempDir,
    /// What happens for these store paths. For all others, the pack is made.
    pub makings: Mutex<HashMap<String, Making>>,
    /// Store paths in the order in which the work on their packs began.
    pub begun: Mutex<Vec<String>>,
    /// How often the work on a pack was cancelled.
    pub cancelled: AtomicUsize,
    /// Ends all work of the kind [`Making::Takes`] when it is true.
    pub gate: AtomicBool,
}

impl FakePacks {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            makings: Mutex::default(),
            begun: Mutex::default(),
            cancelled: AtomicUsize::new(0),
            gate: AtomicBool::new(false),
        }
    }

    pub fn set(&self, number: usize, making: Making) {
        self.makings.lock().unwrap().insert(base_name(number), making);
    }

    pub fn begun(&self) -> Vec<String> {
        self.begun.lock().unwrap().clone()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl PackStore for FakePacks {
    fn encoder(&self, _settings: &ImageSettings) -> String {
        ENCODER.to_owned()
    }

    fn find(&self, wanted: &WantedPack) -> io::Result<Option<File>> {
        match File::open(self.path(wanted.path.base_name())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    fn make(&self, wanted: &WantedPack, cancel: &AtomicBool) -> Result<Option<File>, String> {
        let name = wanted.path.base_name().to_owned();
        let making = self.makings.lock().unwrap().get(&name).copied().unwrap_or(Making::Works);
        self.begun.lock().unwrap().push(name.clone());
        match making {
            Making::Works => {}
            Making::Fails => return Err("no space left".to_owned()),
            Making::Panics => panic!("a defect"),
            Making::Takes => {
                while !self.gate.load(Ordering::SeqCst) {
                    if cancel.load(Ordering::SeqCst) {
                        self.cancelled.fetch_add(1, Ordering::SeqCst);
                        return Err("cancelled".to_owned());
                    }
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
        let path = self.path(&name);
        // Like real packs, it is complete or missing, and only its owner can read it.
        let mut file = tempfile::Builder::new().tempfile_in(self.directory.path()).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        Ok(Some(file.persist(path).unwrap()))
    }
}

/// A service that runs in its own thread.
pub struct Running {
    pub packs: Arc<FakePacks>,
    pub nix: FakeNixDaemon,
    pub printed: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    directory: TempDir,
}

impl Running {
    /// Starts a service with limits that tests do not reach by accident.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Starts a service with some limits changed.
    pub fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = Limits { silence: LONG, request_time: LONG, ..Limits::default() };
        change(&mut limits);
        let directory = tempfile::tempdir().unwrap();
        // Tests connect as other users.
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let nix = FakeNixDaemon::start(&directory.path().join("nix"));
        (0..2000).for_each(|number| nix.add(&base_name(number), [7; 32], 120));
        let packs = Arc::new(FakePacks::new());
        let printed = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (listener, own_socket) = listener::make(&directory.path().join("cache.sock")).unwrap();
        let thread = {
            let (packs, printed, stop, nix_daemon) =
                (Arc::clone(&packs), Arc::clone(&printed), Arc::clone(&stop), directory.path().join("nix"));
            thread::spawn(move || {
                let _own_socket = own_socket;
                let service = Service {
                    listener,
                    packs: &*packs,
                    nix_daemon: &nix_daemon,
                    owners: Owners::parse(SUBUID),
                    limits,
                };
                service.run(&stop, &mut |line| printed.lock().unwrap().push(line.to_owned())).unwrap();
            })
        };
        Self { packs, nix, printed, stop, thread: Some(thread), directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cache.sock")
    }

    pub fn client(&self) -> TestClient {
        TestClient::connect(&self.socket())
    }

    /// Connects as another user, which only root can do.
    pub fn client_of(&self, user: u32) -> TestClient {
        let socket = self.socket();
        let connect = move || {
            let uid = rustix::fs::Uid::from_raw(user);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            TestClient::connect(&socket)
        };
        thread::spawn(connect).join().unwrap()
    }

    /// Waits for the service to end by itself.
    pub fn wait(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the service panicked");
        }
    }
}

/// A client that can send anything.
pub struct TestClient(pub OwnedFd);

/// What the client received from the service.
#[derive(Debug)]
pub enum Received {
    /// An answer other than `working`, and the content of the pack in it.
    Answer(Answer, Option<String>),
    /// The service ended the connection.
    End,
}

impl TestClient {
    pub fn connect(path: &std::path::Path) -> Self {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(LONG)).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self(socket)
    }

    pub fn send(&self, message: &[u8]) {
        send(&self.0, message, SendFlags::NOSIGNAL).unwrap();
    }

    /// Receives the next message and its descriptor.
    pub fn receive_raw(&self) -> io::Result<(Vec<u8>, Option<File>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; 8192];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let mut descriptors = ancillary.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let file = descriptors.next().and_then(|mut descriptors| descriptors.next()).map(File::from);
        bytes.truncate(length);
        Ok((bytes, file))
    }

    /// Receives the next answer that ends a request.
    pub fn receive(&self) -> Received {
        loop {
            let (bytes, file) = match self.receive_raw() {
                Ok((bytes, _)) if bytes.is_empty() => return Received::End,
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(error) => panic!("{error}"),
            };
            let answer = Answer::parse(&bytes).unwrap();
            if answer != Answer::WORKING {
                let content = file.map(|mut file| {
                    let mut content = String::new();
                    file.read_to_string(&mut content).unwrap();
                    content
                });
                return Received::Answer(answer, content);
            }
        }
    }

    pub fn ask(&self, number: usize) -> Received {
        self.send(&request(number));
        self.receive()
    }

    /// Requests a pack and checks its content.
    pub fn expect_pack(&self, number: usize) {
        match self.ask(number) {
            Received::Answer(Answer::Pack { .. }, Some(content)) => assert_eq!(content, base_name(number)),
            other => panic!("no pack but {other:?}"),
        }
    }
}

impl Received {
    /// Returns the reason of a refusal, as in its JSON.
    pub fn reason(self) -> String {
        match self {
            Self::Answer(Answer::Refused { reason, .. }, None) => {
                serde_json::to_string(&reason).unwrap().trim_matches('"').to_owned()
            }
            other => panic!("not refused but {other:?}"),
        }
    }

    pub fn is_end(&self) -> bool {
        matches!(self, Self::End)
    }
}

/// Starts a fake service that calls `behaviour` for each connection.
pub fn broken(behaviour: impl Fn(&OwnedFd) + Send + Sync + 'static) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache.sock");
    let (listener, own_socket) = listener::make(&path).unwrap();
    let behaviour = Arc::new(behaviour);
    thread::spawn(move || {
        let _own_socket = own_socket;
        while let Ok(client) = accept_with(&listener, SocketFlags::CLOEXEC) {
            let behaviour = Arc::clone(&behaviour);
            thread::spawn(move || {
                while recv(&client, &mut [0_u8; 8192][..], RecvFlags::empty()).is_ok_and(|(length, _)| length > 0) {
                    behaviour(&client);
                }
            });
        }
    });
    (directory, path)
}

/// Sends a message with descriptors.
pub fn say(client: &OwnedFd, message: &[u8], descriptors: &[OwnedFd]) {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(borrowed.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
    let _ = sendmsg(client, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// Waits until `is_so` returns true.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
