//! Invariant: for any message of a guest instead of its readiness, listening ends, and what is passed on to the
//! service manager is one short line.

#![no_main]

use fuzz::Scratch;
use launcher::launch::{GuestNotification, NotificationSocket};
use launcher::path::HostPath;
use launcher::readiness::GuestListener;
use libfuzzer_sys::fuzz_target;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

static DIRECTORY: LazyLock<HostPath> = LazyLock::new(|| HostPath::new(Scratch::new().path().to_str().expect("UTF-8")));

fuzz_target!(|bytes: &[u8]| {
    // Each input gets a new listener, because a listener slows down clients that connect very often.
    let notification = GuestNotification { port: 8888, listen: NotificationSocket::Unix("notify".into()) };
    let mut listener = GuestListener::listen(&notification, &DIRECTORY, None).expect("a listener");
    let mut guest = UnixStream::connect(listener.path().expect("a path")).expect("a connection");
    // Longer messages do not fit into the socket, and nobody reads yet.
    guest.write_all(&bytes[..bytes.len().min(64 << 10)]).expect("a message that is sent");
    drop(guest);
    let message = loop {
        if let Some(message) = listener.receive().pop() {
            break message;
        }
    };
    assert!(message.status.is_none_or(|status| !status.contains(char::is_control) && status.chars().count() <= 200));
});
