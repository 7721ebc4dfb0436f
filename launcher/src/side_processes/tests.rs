use super::*;
use std::fs;
use std::path::Path;

/// A daemon that listens on the socket and ends on its first connection, as virtiofsd does.
const DAEMON: &str = "import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
open(sys.argv[1] + '.starts', 'a').write('x')
server.accept()
";

fn side_process(directory: &Path, script: &str) -> SideProcess {
    let program = directory.join("daemon.py");
    crate::test_program::write_program(&program, &format!("#!/usr/bin/env python3\n{script}"));
    SideProcess {
        kind: SideProcessKind::Virtiofsd,
        name: "ro-store".to_owned(),
        program: HostPath::new(program.to_str().unwrap()),
        arguments: vec![directory.join("fs.sock").to_str().unwrap().to_owned()],
        socket: "fs.sock".into(),
    }
}

fn state(directory: &Path) -> HostPath {
    HostPath::new(directory.to_str().unwrap())
}

#[test]
fn a_daemon_is_started_again_and_ended() {
    let directory = tempfile::tempdir().unwrap();
    let process = side_process(directory.path(), DAEMON);
    let interruption = Interruption::watch().unwrap();
    let mut processes =
        SideProcesses::start(std::slice::from_ref(&process), &state(directory.path()), &interruption).unwrap();
    let socket = directory.path().join("fs.sock");
    // Another supervisor leaves alone what is served already.
    assert!(SideProcesses::start(&[process], &state(directory.path()), &interruption).unwrap().is_empty());
    drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    let starts = || fs::read_to_string(directory.path().join("fs.sock.starts")).unwrap_or_default().len();
    let end = Instant::now() + Duration::from_secs(60);
    let mut events = Vec::new();
    while starts() < 2 && Instant::now() < end {
        events.extend(processes.tend().0);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(starts(), 2, "{events:?}");
    assert!(
        events[0].contains("share `ro-store` ended with exit status: 0; starting it again in 100 ms"),
        "{events:?}"
    );
    drop(processes);
    assert!(!socket.exists());
}

#[test]
fn a_daemon_that_dies_at_once_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let process = side_process(directory.path(), "import sys\nsys.exit(3)\n");
    let interruption = Interruption::watch().unwrap();
    let error = SideProcesses::start(&[process], &state(directory.path()), &interruption).unwrap_err().to_string();
    assert!(error.contains("ended with exit status: 3 before it served"), "{error}");
}

#[test]
fn a_missing_daemon_says_what_to_install() {
    let directory = tempfile::tempdir().unwrap();
    let process = SideProcess { program: "/nonexistent/virtiofsd".into(), ..side_process(directory.path(), "") };
    let interruption = Interruption::watch().unwrap();
    let error = SideProcesses::start(&[process], &state(directory.path()), &interruption).unwrap_err().to_string();
    assert!(
        error.contains("the virtiofs daemon of share `ro-store`: /nonexistent/virtiofsd is not installed"),
        "{error}"
    );
    assert!(error.contains("Debian: virtiofsd"), "{error}");
}

#[test]
fn failures_are_given_more_and_more_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut entry = Entry {
        process: side_process(directory.path(), ""),
        program: PathBuf::new(),
        socket: "fs.sock".into(),
        working_directory: state(directory.path()),
        child: None,
        started: Instant::now(),
        delay: FIRST_DELAY,
        start_again: None,
    };
    for _ in 0..20 {
        entry.start_later();
    }
    assert_eq!(entry.delay, LONGEST_DELAY);
}
