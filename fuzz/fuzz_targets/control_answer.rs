//! Invariant: for any answer of a hypervisor, which a guest may have taken over, a query ends with a state or an error.
//! Input: the hypervisor (first byte), then its answer.

#![no_main]

use fuzz::Scratch;
use launcher::control::Controller;
use launcher::launch::{ControlProtocol, ControlSocket};
use launcher::path::HostPath;
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::LazyLock;
use std::time::Duration;

/// crosvm's protocol is covered by unit tests, because its type of socket is not in the standard library.
const PROTOCOLS: [ControlProtocol; 4] = [
    ControlProtocol::Qmp,
    ControlProtocol::CloudHypervisorHttp,
    ControlProtocol::FirecrackerHttp,
    ControlProtocol::Kvmtool,
];

static SOCKET: LazyLock<(UnixListener, HostPath)> = LazyLock::new(|| {
    let path = Scratch::new().path().join("control");
    let listener = UnixListener::bind(&path).expect("a socket");
    (listener, HostPath::new(path.to_str().expect("UTF-8")))
});

fuzz_target!(|bytes: &[u8]| {
    let Some((which, answer)) = bytes.split_first() else { return };
    let (listener, path) = &*SOCKET;
    let protocol = PROTOCOLS[usize::from(*which) % PROTOCOLS.len()];
    // Without an answer, kvmtool would be asked again after a while, because its server may miss a client.
    if protocol == ControlProtocol::Kvmtool && answer.len() < 4 {
        return;
    }
    let controller = Controller::new(&ControlSocket { protocol, path: path.clone() }, &HostPath::new("/"));
    let controller = controller.with_timeout(Duration::from_secs(5));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, _) = listener.accept().expect("a client");
            let _ = client.write_all(answer);
            let _ = client.shutdown(std::net::Shutdown::Write);
            // Read until the client closes the connection: closing it with an unread request would reset it.
            let _ = client.read_to_end(&mut Vec::new());
        });
        if let Err(error) = controller.status() {
            assert!(!error.to_string().is_empty());
        }
    });
});
