use super::*;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv, send, socket,
};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

fn controller(protocol: ControlProtocol, path: &Path) -> Controller {
    let socket = ControlSocket { protocol, path: HostPath::new(path.to_str().unwrap()) };
    Controller::new(&socket, &"/".into()).with_timeout(Duration::from_secs(20))
}

/// Serves `connections` connections, one after another.
fn server<F>(path: &Path, connections: usize, serve: F) -> JoinHandle<()>
where
    F: Fn(UnixStream) + Send + 'static,
{
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || (0..connections).for_each(|_| serve(listener.accept().unwrap().0)))
}

/// A fake qemu that responds to the n-th line with the n-th answer.
fn qmp_server(path: &Path, answers: &'static [&'static str]) -> JoinHandle<()> {
    server(path, 1, move |mut stream| {
        stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        for answer in answers {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                return;
            }
            stream.write_all(answer.as_bytes()).unwrap();
        }
    })
}

#[test]
fn qmp_answers_are_found_between_events() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let thread = qmp_server(
        &path,
        &["{\"return\": {}}\r\n", "{\"event\": \"RESUME\"}\r\n{\"return\": {\"status\": \"running\"}}\r\n"],
    );
    assert_eq!(controller(ControlProtocol::Qmp, &path).status().unwrap(), "running");
    thread.join().unwrap();
}

#[test]
fn a_refusal_of_qemu_is_reported_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let _thread = qmp_server(
        &path,
        &["{\"return\": {}}\r\n", "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\r\n"],
    );
    let error =
        controller(ControlProtocol::Qmp, &path).request_shutdown(&GracefulStep::QmpSystemPowerdown).unwrap_err();
    assert_eq!(error.to_string(), "the hypervisor refused system_powerdown: no such thing");
}

#[test]
fn quit_succeeds_without_a_response() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let _thread = qmp_server(&path, &["{\"return\": {}}\r\n", ""]);
    controller(ControlProtocol::Qmp, &path).force_stop(&ForcedStop::QmpQuit).unwrap();
}

#[test]
fn a_missing_server_and_a_silent_server_give_different_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    for protocol in [
        ControlProtocol::Qmp,
        ControlProtocol::FirecrackerHttp,
        ControlProtocol::CloudHypervisorHttp,
        ControlProtocol::Kvmtool,
    ] {
        let error = controller(protocol, &path).status().unwrap_err();
        assert!(matches!(error, ControlError::NotListening { .. }), "{protocol:?}: {error}");
        // A process that listens but never accepts a connection.
        let listener = UnixListener::bind(&path).unwrap();
        let impatient = controller(protocol, &path).with_timeout(Duration::from_millis(300));
        let error = impatient.status().unwrap_err();
        assert!(matches!(error, ControlError::NoAnswer { .. }), "{protocol:?}: {error}");
        assert!(error.to_string().contains("qmp.sock accepts connections but does not answer"), "{error}");
        drop(listener);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_server_of_another_protocol_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.sock");
    let _thread = server(&path, 2, |mut stream| {
        stream.write_all(b"SSH-2.0-OpenSSH\r\n\r\n").unwrap();
        // Until the client disconnects, because it may still be sending.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    for protocol in [ControlProtocol::Qmp, ControlProtocol::FirecrackerHttp] {
        let error = controller(protocol, &path).status().unwrap_err();
        assert!(matches!(error, ControlError::UnexpectedResponse { .. }), "{protocol:?}: {error}");
    }
}

/// Its answer must not fill the terminal or control it.
#[test]
fn only_a_short_escaped_part_of_an_unexpected_response_is_shown() {
    let garbage = "\u{1b}[2Jerror: all is well ".repeat(1000);
    for (protocol, answer) in [
        (ControlProtocol::Qmp, format!("{garbage}\n")),
        (ControlProtocol::Qmp, format!("{{\"QMP\": {{}}}}\n{{\"error\": {{\"desc\": \"{}\"}}}}\n", "x".repeat(5000))),
        (ControlProtocol::FirecrackerHttp, format!("{garbage}\r\n")),
        (
            ControlProtocol::FirecrackerHttp,
            format!("HTTP/1.1 400 Bad\r\nContent-Length: {}\r\n\r\n{garbage}", garbage.len()),
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let _thread = server(&path, 1, move |mut stream| {
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let error = controller(protocol, &path).status().unwrap_err().to_string();
        assert!(error.len() < 700 && !error.contains('\u{1b}'), "{protocol:?}: {error}");
    }
}

/// A guest may have taken control of its hypervisor, which then sends without end.
#[test]
fn reading_from_a_hypervisor_that_never_stops_sending_ends() {
    for (protocol, first, again) in [
        (ControlProtocol::Qmp, "{\"QMP\": {}}\n", "{\"event\": \"RESUME\"}\n"),
        (ControlProtocol::Qmp, "", "{\"QMP\": "),
        (ControlProtocol::FirecrackerHttp, "HTTP/1.1 200 OK\r\n", "Name: value\r\n"),
        (ControlProtocol::FirecrackerHttp, "", "HTTP/1.1"),
        (ControlProtocol::Kvmtool, "", "\u{7f}"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let _thread = server(&path, 1, move |mut stream| {
            let endless = again.repeat(1000);
            let mut outcome = stream.write_all(first.as_bytes());
            while outcome.is_ok() {
                outcome = stream.write_all(endless.as_bytes());
            }
        });
        let error = controller(protocol, &path).with_timeout(Duration::from_secs(1)).status().unwrap_err();
        assert!(!matches!(error, ControlError::NotListening { .. }), "{protocol:?}: {error}");
    }
}

/// The server sends one byte just before each single read would time out.
#[test]
fn a_response_that_comes_byte_by_byte_times_out_as_a_whole() {
    for (protocol, first) in
        [(ControlProtocol::Qmp, "{\"QMP\": {}}\n"), (ControlProtocol::FirecrackerHttp, "HTTP/1.1 200 OK\r\n")]
    {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let thread = server(&path, 1, move |mut stream| {
            let mut written = stream.write_all(first.as_bytes());
            while written.is_ok() {
                std::thread::sleep(Duration::from_millis(50));
                written = stream.write_all(b" ");
            }
        });
        let error = controller(protocol, &path).with_timeout(Duration::from_millis(500)).status().unwrap_err();
        assert!(error.to_string().contains("no answer in time"), "{protocol:?}: {error}");
        thread.join().unwrap();
    }
}

/// Reads one request and sends the response.
fn http_server(path: &Path, answer: &'static str) -> JoinHandle<()> {
    server(path, 1, move |mut stream| {
        let mut request = [0; 4096];
        let count = stream.read(&mut request).unwrap();
        let request = String::from_utf8_lossy(&request[..count]).into_owned();
        assert!(request.contains("HTTP/1.1\r\nHost: localhost\r\n"), "{request}");
        stream.write_all(answer.as_bytes()).unwrap();
        // firecracker keeps the connection open, so the client must not wait for its end.
        let _ = stream.read(&mut [0; 16]);
    })
}

#[test]
fn http_answers_are_read_by_their_length() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fc.sock");
    let _thread = http_server(&path, "HTTP/1.1 200 \r\nServer: x\r\ncontent-length: 19\r\n\r\n{\"state\":\"Running\"}");
    assert_eq!(controller(ControlProtocol::FirecrackerHttp, &path).status().unwrap(), "Running");
}

#[test]
fn an_http_refusal_is_reported_with_its_body() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fc.sock");
    let _thread = http_server(&path, "HTTP/1.1 400 \r\nContent-Length: 17\r\n\r\n{\"fault\":\"no no\"}");
    let request = HttpRequest {
        method: "PUT".to_owned(),
        path: "/actions".to_owned(),
        body: Some(json!({"action_type": "SendCtrlAltDel"})),
    };
    let error =
        controller(ControlProtocol::FirecrackerHttp, &path).request_shutdown(&GracefulStep::Http(request)).unwrap_err();
    assert_eq!(error.to_string(), "the hypervisor refused PUT /actions: 400 {\"fault\":\"no no\"}");
}

/// A fake crosvm that responds to each packet with the next answer.
fn crosvm_server(path: &Path, answers: &'static [&'static str]) -> JoinHandle<Vec<String>> {
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(4).unwrap()).unwrap();
    std::thread::spawn(move || {
        let serve = |answer: &&str| {
            let client = accept(listener.as_raw_fd()).unwrap();
            let mut buffer = [0; 1024];
            let count = recv(client, &mut buffer, MsgFlags::empty()).unwrap();
            send(client, answer.as_bytes(), MsgFlags::empty()).unwrap();
            nix::unistd::close(client).unwrap();
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        };
        answers.iter().map(serve).collect()
    })
}

#[test]
fn messages_to_crosvm_are_in_its_format() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("crosvm.sock");
    let thread = crosvm_server(&path, &["\"Ok\"", "{\"Err\":19}"]);
    let controller = controller(ControlProtocol::CrosvmSeqpacket, &path);
    controller.request_shutdown(&GracefulStep::CrosvmPowerButton).unwrap();
    let error = controller.force_stop(&ForcedStop::CrosvmExit).unwrap_err();
    assert!(error.to_string().contains("No such device"), "{error}");
    assert_eq!(thread.join().unwrap(), ["\"Powerbtn\"", "\"Exit\""]);
}

#[test]
fn messages_to_kvmtool_are_in_its_format() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lkvm.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        (0..3)
            .map(|index| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut header = [0; 8];
                stream.read_exact(&mut header).unwrap();
                let mut content = vec![0; header[4].into()];
                stream.read_exact(&mut content).unwrap();
                if index == 0 {
                    stream.write_all(&1i32.to_le_bytes()).unwrap();
                }
                [&header, content.as_slice()].concat()
            })
            .collect::<Vec<_>>()
    });
    let controller = controller(ControlProtocol::Kvmtool, &path);
    assert_eq!(controller.status().unwrap(), "paused");
    controller.request_shutdown(&GracefulStep::KvmtoolSysrq('s')).unwrap();
    controller.kvmtool_balloon(-2).unwrap();
    assert_eq!(
        thread.join().unwrap(),
        [
            vec![8, 0, 0, 0, 0, 0, 0, 0],
            vec![2, 0, 0, 0, 12, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, b's', 0, 0, 0],
            vec![1, 0, 0, 0, 4, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff],
        ]
    );
}

/// A server that accepts clients as kvmtool does. Returns the first message that it receives.
fn kvmtool_server(listener: UnixListener) -> JoinHandle<Vec<u8>> {
    let wakes = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&wakes, &listener, epoll::EventData::new_u64(0), edge).unwrap();
    std::thread::spawn(move || {
        loop {
            let mut events = Vec::with_capacity(1);
            epoll::wait(&wakes, spare_capacity(&mut events), None).unwrap();
            let mut message = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut message).unwrap();
            if !message.is_empty() {
                return message;
            }
        }
    })
}

#[test]
fn a_request_to_kvmtool_is_handled_although_clients_that_gave_up_wait_in_front_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lkvm.sock");
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..4 {
        drop(UnixStream::connect(&path).unwrap());
    }
    let thread = kvmtool_server(listener);
    let controller = controller(ControlProtocol::Kvmtool, &path).with_timeout(Duration::from_secs(120));
    controller.request_shutdown(&GracefulStep::KvmtoolSysrq('s')).unwrap();
    assert_eq!(thread.join().unwrap()[..4], [2, 0, 0, 0]);
}

#[test]
fn a_socket_whose_path_exceeds_an_address_is_reached() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let near = directory.path().join("short");
    std::os::unix::fs::symlink(&deep, &near).unwrap();
    let _thread =
        http_server(&near.join("fc.sock"), "HTTP/1.1 200 \r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}");
    assert_eq!(controller(ControlProtocol::FirecrackerHttp, &deep.join("fc.sock")).status().unwrap(), "Paused");
}

#[test]
fn a_socket_that_cannot_be_reached_does_not_count_as_one_on_which_nothing_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    // A process has bound it, but it is of another type.
    let _bound = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let error = controller(ControlProtocol::Qmp, &path).status().unwrap_err();
    assert!(matches!(error, ControlError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().starts_with("cannot connect to the control socket"), "{error}");
}
