use super::*;
use crate::launch::{Console, ControlProtocol, ControlSocket, LAUNCH_VERSION, Needs, Shutdown};
use crate::path::HostPath;
use crate::spec::Hypervisor;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv, send, socket,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};

pub(crate) fn launch(directory: &Path) -> Launch {
    Launch {
        version: LAUNCH_VERSION,
        name: "web".to_owned(),
        hypervisor: Hypervisor::Qemu,
        program: "qemu".into(),
        process_name: "qemu".to_owned(),
        arguments: Vec::new(),
        environment: BTreeMap::new(),
        working_directory: HostPath::new(directory.to_str().unwrap()),
        user: None,
        files: Vec::new(),
        needs: Needs::default(),
        disks: Vec::new(),
        control: Some(ControlSocket { protocol: ControlProtocol::Qmp, path: "web.sock".into() }),
        shutdown: Shutdown {
            graceful: vec![GracefulStep::QmpSystemPowerdown, GracefulStep::QmpCtrlAltDelete],
            forced: ForcedStop::QmpQuit,
        },
        console: Console { guest_device: None, socket: None },
        vsock: None,
        notification: None,
        balloon: None,
        expected_configuration: None,
        warnings: Vec::new(),
    }
}

/// A process that stands in for the hypervisor.
fn sleeper(script: &str) -> (Child, ProcessIdentity) {
    let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
    let identity = ProcessIdentity::of(child.id() as i32).unwrap();
    (child, identity)
}

/// A fake qemu that reports every command, and kills the process when it receives the command `obeys`.
fn qemu(directory: &Path, obeys: &'static str, pid: i32) -> std::sync::mpsc::Receiver<String> {
    let listener = UnixListener::bind(directory.join("web.sock")).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The client has timed out and closed the connection.
            let Ok(()) = stream.write_all(b"{\"QMP\": {}}\n") else { continue };
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let Ok(line) = line else { break };
                let command = serde_json::from_str::<serde_json::Value>(&line).unwrap()["execute"].clone();
                let command = command.as_str().unwrap().to_owned();
                if command == obeys {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
                }
                let _ = sender.send(command);
                if stream.write_all(b"{\"return\": {}}\n").is_err() {
                    break;
                }
            }
        }
    });
    receiver
}

fn stop_quietly(launch: &Launch, process: Option<ProcessIdentity>, timeout: Duration) -> (Stopped, Vec<String>) {
    let mut messages = Vec::new();
    let target = StopTarget { launch, process, console_socket: None, is_saved: false };
    let stopped = stop(&target, timeout, &mut |text| messages.push(text.to_owned())).unwrap();
    (stopped, messages)
}

#[test]
fn stopping_a_machine_that_does_not_run_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let launch = launch(directory.path());
    assert_eq!(stop_quietly(&launch, None, Duration::from_secs(9)).0, Stopped::WasNotRunning);
    let (mut child, identity) = sleeper("exec sleep 100");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(stop_quietly(&launch, Some(identity), Duration::from_secs(9)).0, Stopped::WasNotRunning);
}

#[test]
fn the_guest_is_asked_to_shut_down_before_the_hypervisor_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 100");
    let commands = qemu(directory.path(), "system_powerdown", identity.pid);
    let (stopped, messages) = stop_quietly(&launch(directory.path()), Some(identity), Duration::from_secs(60));
    assert_eq!((stopped, messages), (Stopped::Gracefully, Vec::new()));
    assert_eq!(commands.try_iter().collect::<Vec<_>>(), ["qmp_capabilities", "system_powerdown"]);
    child.wait().unwrap();
}

#[test]
fn a_guest_that_ignores_the_power_button_gets_ctrl_alt_delete() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 100");
    let _commands = qemu(directory.path(), "input-send-event", identity.pid);
    let (stopped, _) = stop_quietly(&launch(directory.path()), Some(identity), Duration::from_secs(10));
    assert_eq!(stopped, Stopped::Gracefully);
    child.wait().unwrap();
}

#[test]
fn the_hypervisor_is_ended_if_the_guest_does_not_shut_down_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 100");
    let commands = qemu(directory.path(), "quit", identity.pid);
    let (stopped, messages) = stop_quietly(&launch(directory.path()), Some(identity), Duration::from_secs(3));
    assert_eq!(stopped, Stopped::Forced);
    assert!(messages[0].contains("the guest has not shut down within 3 s; ending qemu"), "{messages:?}");
    let asked: Vec<String> = commands.try_iter().filter(|command| command != "qmp_capabilities").collect();
    assert_eq!(asked, ["system_powerdown", "input-send-event", "quit"]);
    child.wait().unwrap();
}

#[test]
fn the_hypervisor_is_ended_with_the_reason_if_the_guest_cannot_be_asked() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 100");
    let _silent = UnixListener::bind(directory.path().join("web.sock")).unwrap();
    let (stopped, messages) = stop_quietly(&launch(directory.path()), Some(identity), Duration::from_millis(300));
    assert_eq!(stopped, Stopped::Forced);
    assert!(messages[0].contains("web.sock accepts connections but does not answer"), "{messages:?}");
    let ending = "the guest could not be asked to shut down within 0 s; ending qemu";
    assert!(messages.iter().any(|text| text == ending), "{messages:?}");
    child.wait().unwrap();
}

/// How the control socket of a hypervisor behaves that its guest has taken over, or that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// It listens, but never accepts a connection.
    NeverAccepts,
    /// It accepts connections, and never answers.
    Silent,
    /// It closes each connection at once.
    Closes,
    /// It sends something else each time.
    Garbage,
    /// It closes the connection in the middle of its answer.
    ClosesInTheMiddle,
    /// It sends one byte at a time, without end.
    Slow,
}

const BROKEN: [Broken; 6] =
    [Broken::NeverAccepts, Broken::Silent, Broken::Closes, Broken::Garbage, Broken::ClosesInTheMiddle, Broken::Slow];

/// Serves a socket that behaves like this, until the test ends.
fn broken_hypervisor(protocol: ControlProtocol, path: &Path, behaviour: Broken) {
    let is_crosvm = protocol == ControlProtocol::CrosvmSeqpacket;
    let kind = if is_crosvm { SockType::SeqPacket } else { SockType::Stream };
    let listener = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let beginning: &[u8] = match protocol {
        ControlProtocol::Qmp => b"{\"QMP\": {}",
        ControlProtocol::CrosvmSeqpacket => b"{\"Err",
        ControlProtocol::Kvmtool => b"\x01",
        _ => b"HTTP/1.1 20",
    };
    std::thread::spawn(move || {
        if behaviour == Broken::NeverAccepts {
            loop {
                std::thread::park();
            }
        }
        let mut kept = Vec::new();
        for number in 0.. {
            let client = accept(listener.as_raw_fd()).unwrap();
            let say = |bytes: &[u8]| send(client, bytes, MsgFlags::MSG_NOSIGNAL).is_ok();
            match behaviour {
                Broken::Garbage => drop(say(format!("garbage {number}\n").as_bytes())),
                Broken::ClosesInTheMiddle => drop(say(beginning)),
                Broken::Slow => {
                    std::thread::spawn(move || {
                        while send(client, b" ", MsgFlags::MSG_NOSIGNAL).is_ok() {
                            std::thread::sleep(Duration::from_millis(50));
                        }
                    });
                }
                _ => {}
            }
            match behaviour {
                Broken::Silent | Broken::Slow => kept.push(client),
                _ => nix::unistd::close(client).unwrap(),
            }
        }
    });
}

/// Each problem is reported once, and the hypervisor is ended after the timeout, not before.
#[test]
fn a_hypervisor_with_a_broken_control_socket_is_ended_after_the_timeout_and_the_problem_is_reported_once() {
    let stop_one = |protocol: ControlProtocol, behaviour: Broken| {
        let directory = tempfile::tempdir().unwrap();
        broken_hypervisor(protocol, &directory.path().join("web.sock"), behaviour);
        let (mut child, process) = sleeper("exec sleep 600");
        let mut launch = launch(directory.path());
        launch.control = Some(ControlSocket { protocol, path: "web.sock".into() });
        launch.shutdown.graceful = steps_of(protocol);
        launch.shutdown.forced = forced_stop_of(protocol);
        let timeout = Duration::from_millis(1800);
        let start = Instant::now();
        let (stopped, messages) = stop_quietly(&launch, Some(process), timeout);
        let case = format!("{protocol:?} {behaviour:?}: {messages:?}");
        assert!(start.elapsed() >= timeout, "{case}");
        assert_eq!(stopped, Stopped::Forced, "{case}");
        let about_socket = messages.iter().filter(|text| text.contains("asking again until the timeout")).count();
        // A server that closes can fail in two ways: while the request is written, or while the answer is read.
        assert!((1..=2).contains(&about_socket), "{case}");
        let ending = "the guest could not be asked to shut down within 1 s; ending qemu";
        assert!(messages.iter().any(|text| text == ending), "{case}");
        child.wait().unwrap();
    };
    std::thread::scope(|scope| {
        for protocol in PROTOCOLS {
            for behaviour in BROKEN {
                scope.spawn(move || stop_one(protocol, behaviour));
            }
        }
    });
}

#[test]
fn a_process_that_ignores_signals_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let ready = directory.path().join("ready");
    let (mut child, identity) = sleeper(&format!("trap '' TERM; touch {}; while :; do sleep 1; done", ready.display()));
    while !ready.exists() {
        sleep(Duration::from_millis(5));
    }
    let mut launch = launch(directory.path());
    launch.control = None;
    launch.shutdown = Shutdown { graceful: Vec::new(), forced: ForcedStop::Terminate };
    let (stopped, messages) = stop_quietly(&launch, Some(identity), Duration::ZERO);
    assert_eq!(stopped, Stopped::Killed);
    assert!(messages.iter().any(|text| text.contains("does not end; killing it")), "{messages:?}");
    child.wait().unwrap();
}

const PROTOCOLS: [ControlProtocol; 5] = [
    ControlProtocol::Qmp,
    ControlProtocol::CloudHypervisorHttp,
    ControlProtocol::FirecrackerHttp,
    ControlProtocol::CrosvmSeqpacket,
    ControlProtocol::Kvmtool,
];

/// The request that ends the hypervisor over this protocol.
fn forced_stop_of(protocol: ControlProtocol) -> ForcedStop {
    match protocol {
        ControlProtocol::Qmp => ForcedStop::QmpQuit,
        ControlProtocol::CrosvmSeqpacket => ForcedStop::CrosvmExit,
        ControlProtocol::Kvmtool => ForcedStop::KvmtoolStop,
        ControlProtocol::CloudHypervisorHttp | ControlProtocol::FirecrackerHttp => ForcedStop::Terminate,
    }
}

/// The requests to the guest over this protocol.
fn steps_of(protocol: ControlProtocol) -> Vec<GracefulStep> {
    let put = |path: &str| {
        let body = Some(json!({"action_type": "SendCtrlAltDel"}));
        vec![GracefulStep::Http(crate::launch::HttpRequest { method: "PUT".to_owned(), path: path.to_owned(), body })]
    };
    match protocol {
        ControlProtocol::Qmp => vec![GracefulStep::QmpSystemPowerdown],
        ControlProtocol::CloudHypervisorHttp => put("/api/v1/vm.power-button"),
        ControlProtocol::FirecrackerHttp => put("/actions"),
        ControlProtocol::CrosvmSeqpacket => vec![GracefulStep::CrosvmPowerButton],
        ControlProtocol::Kvmtool => vec![GracefulStep::KvmtoolSysrq('s')],
    }
}

/// A fake hypervisor that closes the first connections without a response, and then carries out a request. For kvmtool,
/// whose response is the closed connection, it keeps them open.
fn busy_hypervisor(protocol: ControlProtocol, path: &Path, busy_connections: usize, pid: i32) {
    let end = move || nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    if protocol == ControlProtocol::CrosvmSeqpacket {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        std::thread::spawn(move || {
            for _ in 0..busy_connections {
                nix::unistd::close(accept(listener.as_raw_fd()).unwrap()).unwrap();
            }
            let client = accept(listener.as_raw_fd()).unwrap();
            let count = recv(client, &mut [0; 1024], MsgFlags::empty()).unwrap();
            assert!(count > 0);
            end();
            send(client, b"\"Ok\"", MsgFlags::empty()).unwrap();
        });
        return;
    }
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        if protocol == ControlProtocol::Kvmtool {
            // Connections without a message only make the real one accept the next client.
            let connections = listener.incoming().map(Result::unwrap);
            let mut requests =
                connections.filter_map(|mut stream| (stream.read(&mut buffer).unwrap() > 0).then_some(stream));
            let _kept: Vec<_> = requests.by_ref().take(busy_connections).collect();
            let answered = requests.next();
            end();
            drop(answered);
            return;
        }
        for _ in 0..busy_connections {
            drop(listener.accept().unwrap());
        }
        let (mut stream, _) = listener.accept().unwrap();
        match protocol {
            ControlProtocol::Qmp => {
                stream.write_all(b"{\"QMP\": {}}\n").unwrap();
                assert!(stream.read(&mut buffer).unwrap() > 0);
                stream.write_all(b"{\"return\": {}}\n").unwrap();
                assert!(stream.read(&mut buffer).unwrap() > 0);
                end();
                stream.write_all(b"{\"return\": {}}\n").unwrap();
            }
            _ => {
                assert!(stream.read(&mut buffer).unwrap() > 0);
                end();
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            }
        }
        // The client has received its response, or closes the connection.
        let _ = stream.read(&mut buffer);
    });
}

#[test]
fn a_hypervisor_whose_control_socket_is_busy_is_asked_again_until_its_guest_shuts_down() {
    for protocol in PROTOCOLS {
        let directory = tempfile::tempdir().unwrap();
        let (mut child, identity) = sleeper("exec sleep 600");
        let mut launch = launch(directory.path());
        launch.control = Some(ControlSocket { protocol, path: "web.sock".into() });
        launch.shutdown.graceful = steps_of(protocol);
        busy_hypervisor(protocol, &directory.path().join("web.sock"), 2, identity.pid);
        let (stopped, messages) = stop_quietly(&launch, Some(identity), Duration::from_secs(300));
        assert_eq!(stopped, Stopped::Gracefully, "{protocol:?}: {messages:?}");
        assert_eq!(messages.len(), 1, "the same problem is reported once: {messages:?}");
        assert!(messages[0].ends_with("; asking again until the timeout"), "{messages:?}");
        child.wait().unwrap();
    }
}

#[test]
fn a_guest_shuts_down_although_another_client_holds_the_control_socket_for_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 600");
    let _commands = qemu(directory.path(), "system_powerdown", identity.pid);
    let mut other = UnixStream::connect(directory.path().join("web.sock")).unwrap();
    // The other client is connected: qemu serves no one else until it disconnects.
    other.read_exact(&mut [0; 8]).unwrap();
    let launch = launch(directory.path());
    let (stopped, messages) = std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let target = StopTarget { launch: &launch, process: Some(identity), console_socket: None, is_saved: false };
        let stopping = scope.spawn(move || {
            let mut messages = Vec::new();
            let stopped = stop(&target, Duration::from_secs(300), &mut |text| {
                messages.push(text.to_owned());
                // The test waits for the first message only.
                let _ = sender.send(());
            });
            (stopped.unwrap(), messages)
        });
        receiver.recv().unwrap();
        drop(other);
        stopping.join().unwrap()
    });
    assert_eq!(stopped, Stopped::Gracefully, "{messages:?}");
    assert_eq!(messages.len(), 1, "{messages:?}");
    child.wait().unwrap();
}

#[test]
fn a_hypervisor_that_refuses_at_first_is_asked_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 600");
    let mut launch = launch(directory.path());
    let protocol = ControlProtocol::CloudHypervisorHttp;
    launch.control = Some(ControlSocket { protocol, path: "web.sock".into() });
    launch.shutdown.graceful = steps_of(protocol);
    let listener = UnixListener::bind(directory.path().join("web.sock")).unwrap();
    let pid = identity.pid;
    std::thread::spawn(move || {
        for answer in ["503 Service Unavailable", "500 Internal Server Error", "204 No Content"] {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            if answer.starts_with("204") {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            }
            stream.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes()).unwrap();
        }
    });
    let (stopped, messages) = stop_quietly(&launch, Some(identity), Duration::from_secs(300));
    assert_eq!(stopped, Stopped::Gracefully, "{messages:?}");
    child.wait().unwrap();
}
