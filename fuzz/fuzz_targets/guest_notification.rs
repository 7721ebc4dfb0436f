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

static LISTENER: LazyLock<GuestListener> = LazyLock::new(|| {
    let notification = GuestNotification { port: 8888, listen: NotificationSocket::Unix("notify".into()) };
    let directory = HostPath::new(Scratch::new().path().to_str().expect("UTF-8"));
    GuestListener::listen(&notification, &directory).expect("a listener")
});

fuzz_target!(|bytes: &[u8]| {
    let mut guest = UnixStream::connect(LISTENER.path().expect("a path")).expect("a connection");
    // Longer ones do not fit into the socket, and nobody reads yet.
    guest.write_all(&bytes[..bytes.len().min(64 << 10)]).expect("a word");
    drop(guest);
    let word = LISTENER.take().expect("what was said");
    assert!(word.status.is_none_or(|status| !status.contains(char::is_control) && status.chars().count() <= 200));
});
