use super::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
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
    testing::write_program(&program, &format!("#!/usr/bin/env python3\n{script}"));
    SideProcess {
        kind: SideProcessKind::Virtiofsd,
        name: "ro-store".to_owned(),
        program: HostPath::new(program.to_str().unwrap()),
        arguments: vec![directory.join("fs.sock").to_str().unwrap().to_owned()],
        socket: "fs.sock".into(),
        view: None,
        on_exit: OnExit::Restart,
    }
}

fn state(directory: &Path) -> HostPath {
    HostPath::new(directory.to_str().unwrap())
}

#[test]
fn a_daemon_that_has_ended_is_restarted_and_ended_with_its_supervisor() {
    let directory = tempfile::tempdir().unwrap();
    let process = side_process(directory.path(), DAEMON);
    let interruption = Interruption::watch().unwrap();
    let mut processes =
        SideProcesses::start(std::slice::from_ref(&process), &state(directory.path()), None, &interruption).unwrap();
    let socket = directory.path().join("fs.sock");
    // Another supervisor does not start a daemon that is already running.
    assert!(SideProcesses::start(&[process], &state(directory.path()), None, &interruption).unwrap().is_empty());
    drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    let starts = || fs::read_to_string(directory.path().join("fs.sock.starts")).unwrap_or_default().len();
    let end = Instant::now() + Duration::from_secs(60);
    let mut events = Vec::new();
    while starts() < 2 && Instant::now() < end {
        events.extend(processes.supervise().0);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(starts(), 2, "{events:?}");
    assert!(
        events[0].contains("share `ro-store` ended with exit status: 0; starting it again in 100 ms"),
        "{events:?}"
    );
    drop(processes);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "the program and what it wrote");
}

/// Like virtiofsd, it writes a file next to its socket and follows symbolic links when it opens it.
const DAEMON_WITH_PID_FILE: &str = "import os, socket, sys
path = sys.argv[1].removeprefix('--socket-path=')
open(path + '.pid', 'w').write(str(os.getpid()))
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
server.accept()
";

#[test]
fn a_daemon_does_not_overwrite_a_host_file_through_a_link_of_the_machines_user() {
    let directory = tempfile::tempdir().unwrap();
    let (elsewhere, state_directory) = (directory.path().join("passwd"), directory.path().join("state"));
    fs::write(&elsewhere, "root:x:0:0").unwrap();
    fs::create_dir(&state_directory).unwrap();
    std::os::unix::fs::symlink(&elsewhere, state_directory.join("fs.sock.pid")).unwrap();
    let mut process = side_process(directory.path(), DAEMON_WITH_PID_FILE);
    process.arguments = vec!["--socket-path=fs.sock".to_owned()];
    let interruption = Interruption::watch().unwrap();
    let client = nix::unistd::geteuid().is_root().then(|| Identity::of("nobody").unwrap());
    let start = || {
        SideProcesses::start(std::slice::from_ref(&process), &state(&state_directory), client.as_ref(), &interruption)
    };
    let mut processes = start().unwrap();
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "root:x:0:0");
    let socket = state_directory.join("fs.sock");
    let names = || {
        let entries = fs::read_dir(&state_directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["fs.sock", "fs.sock.command", "fs.sock.pid"]);
    if let Some(client) = &client {
        assert_eq!(fs::symlink_metadata(&socket).unwrap().uid(), client.user().as_raw());
    }
    assert!(start().unwrap().is_empty(), "another launcher recognises it by its command");
    // It is restarted after it has ended, and its private directory is removed.
    drop(std::os::unix::net::UnixStream::connect(&socket).unwrap());
    let end = Instant::now() + Duration::from_secs(60);
    let mut events = Vec::new();
    while (events.is_empty() || !is_served(&socket)) && Instant::now() < end {
        events.extend(processes.supervise().0);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(is_served(&socket), "{events:?}");
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "root:x:0:0");
    drop(processes);
    assert_eq!(names(), ["fs.sock.pid"]);
}

/// Binds the path that follows the option and, as passt does, a second one next to it. Reports its user and the owner of the
/// directory of its socket.
const BINDING_DAEMON: &str = "import os, socket, sys
words = ' '.join(sys.argv[1:]).replace('--socket-path ', '--socket-path=').replace('--socket ', '--socket=')
option, _, path = words.partition('=')
sockets = [socket.socket(socket.AF_UNIX) for _ in range(2)]
sockets[1].bind(path + '.repair')
sockets[0].bind(path)
directory = os.stat(os.path.dirname(path) or '.')
open(sys.argv[0] + '.report', 'w').write(f'{os.geteuid()} {directory.st_uid}')
for each in sockets: each.listen(1)
sockets[0].accept()
";

/// Starts the process in a directory of `owner`, for `client` if it is another user. Returns the user who made the socket, the
/// owner of the directory in which it was made, and the owner of the socket that the client gets.
fn makers_of_socket(kind: SideProcessKind, option: &[&str], owner: &Identity, client: Option<&Identity>) -> [u32; 3] {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let state_directory = directory.path().join("state");
    fs::create_dir(&state_directory).unwrap();
    let mut process = side_process(directory.path(), BINDING_DAEMON);
    let report = directory.path().join("daemon.py.report");
    fs::write(&report, "").unwrap();
    for path in [&state_directory, &report] {
        std::os::unix::fs::chown(path, Some(owner.user().as_raw()), None).unwrap();
    }
    process.kind = kind;
    process.arguments = option.iter().map(|&argument| argument.to_owned()).collect();
    let interruption = Interruption::watch().unwrap();
    let started = SideProcesses::start(&[process], &state(&state_directory), client, &interruption).unwrap();
    let report = fs::read_to_string(report).unwrap();
    let (user, directory_owner) = report.split_once(' ').unwrap();
    let socket = fs::symlink_metadata(state_directory.join("fs.sock")).unwrap().uid();
    drop(started);
    if kind != SideProcessKind::StoreDisk || client.is_none() {
        let left: Vec<_> = fs::read_dir(&state_directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{kind:?} leaves {left:?}");
    }
    [user.parse().unwrap(), directory_owner.parse().unwrap(), socket]
}

#[test]
fn no_process_of_root_makes_its_socket_in_a_directory_of_another_user_and_none_stays() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("only root starts processes for another user");
    }
    let owner = Identity::of("nobody").unwrap();
    let user = owner.user().as_raw();
    for (kind, option, made) in [
        (SideProcessKind::Virtiofsd, ["--socket-path=fs.sock"].as_slice(), [0, 0, user]),
        (SideProcessKind::CrosvmGpu, &["--socket-path", "fs.sock"], [0, 0, user]),
        (SideProcessKind::Passt, &["--socket=fs.sock"], [user, user, user]),
        (SideProcessKind::StoreDisk, &["--socket", "fs.sock"], [user, user, user]),
    ] {
        assert_eq!(makers_of_socket(kind, option, &owner, Some(&owner)), made, "{kind:?}");
        assert_eq!(
            makers_of_socket(kind, option, &owner, None),
            [0, 0, 0],
            "{kind:?}, for a machine that runs as root"
        );
    }
}

/// Reports what is in the directory that it serves.
const LISTING_DAEMON: &str = "import os, socket, sys, time
options = dict(word.split('=', 1) for word in sys.argv[1:])
open(sys.argv[0] + '.started', 'w')
while not os.path.exists(sys.argv[0] + '.go'): time.sleep(0.01)
open(sys.argv[0] + '.listed', 'a').write(' '.join(os.listdir(options['--shared-dir'])) + ' ')
server = socket.socket(socket.AF_UNIX)
server.bind(options['--socket-path'])
server.listen(1)
server.accept()
";

#[test]
fn a_virtiofs_daemon_of_root_serves_no_directory_to_which_the_machines_user_has_put_a_link() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("only root starts processes for another user");
    }
    let directory = tempfile::tempdir().unwrap();
    let state_directory = directory.path().join("state");
    for name in ["etc", "state", "state/share"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    fs::write(directory.path().join("etc/shadow"), "secret").unwrap();
    fs::write(state_directory.join("share/own"), "").unwrap();
    let client = Identity::of("nobody").unwrap();
    for path in [&state_directory, &state_directory.join("share")] {
        std::os::unix::fs::chown(path, Some(client.user().as_raw()), None).unwrap();
    }
    let mut process = side_process(directory.path(), LISTING_DAEMON);
    process.arguments = ["--socket-path=fs.sock", "--shared-dir=share"].map(str::to_owned).to_vec();
    let interruption = Interruption::watch().unwrap();
    let start = || {
        let processes = std::slice::from_ref(&process);
        SideProcesses::start(processes, &state(&state_directory), Some(&client), &interruption)
    };
    let replace_by_link = || {
        fs::rename(state_directory.join("share"), state_directory.join("aside")).unwrap();
        std::os::unix::fs::symlink(directory.path().join("etc"), state_directory.join("share")).unwrap();
        std::os::unix::fs::lchown(state_directory.join("share"), Some(client.user().as_raw()), None).unwrap();
    };
    let beside = |ending: &str| directory.path().join(format!("daemon.py.{ending}"));
    // The link appears while the daemon starts: it serves the directory that was there.
    let served = std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + Duration::from_secs(60);
            while !beside("started").exists() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            replace_by_link();
            fs::write(beside("go"), "").unwrap();
        });
        start()
    });
    drop(served.unwrap());
    let listed = || fs::read_to_string(beside("listed")).unwrap();
    assert_eq!(listed(), "own ");
    let error = start().unwrap_err().to_string();
    assert!(error.contains("root does not follow a symbolic link of nobody to a file of root"), "{error}");
    assert_eq!(listed(), "own ");
}

#[test]
fn a_daemon_with_another_command_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let mut process = side_process(directory.path(), DAEMON);
    process.arguments.push("--read-write".to_owned());
    let interruption = Interruption::watch().unwrap();
    let left_over =
        SideProcesses::start(std::slice::from_ref(&process), &state(directory.path()), None, &interruption).unwrap();
    process.arguments.pop();
    process.arguments.push("--readonly".to_owned());
    let error = SideProcesses::start(&[process], &state(directory.path()), None, &interruption).unwrap_err();
    assert!(matches!(error, SideProcessError::Foreign { .. }), "{error}");
    drop(left_over);
}

#[test]
fn the_command_of_a_restarted_daemon_is_recorded_again() {
    let directory = tempfile::tempdir().unwrap();
    let process = side_process(directory.path(), DAEMON);
    let interruption = Interruption::watch().unwrap();
    let mut processes =
        SideProcesses::start(std::slice::from_ref(&process), &state(directory.path()), None, &interruption).unwrap();
    drop(std::os::unix::net::UnixStream::connect(directory.path().join("fs.sock")).unwrap());
    let starts = || fs::read_to_string(directory.path().join("fs.sock.starts")).unwrap_or_default().len();
    let end = Instant::now() + Duration::from_secs(60);
    while (starts() < 2 || !serves_the_same(&process, &state(directory.path()))) && Instant::now() < end {
        let (_, next) = processes.supervise();
        assert!(next.is_some() || processes.entries[0].is_noted || processes.entries[0].child.is_some());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(serves_the_same(&process, &state(directory.path())));
}

#[test]
fn a_launcher_that_is_killed_leaves_no_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let process = side_process(
        directory.path(),
        "import os, sys, time\nopen(sys.argv[1] + '.pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n",
    );
    // A child that a launcher has started, in a process that is then killed.
    let pid_file = directory.path().join("fs.sock.pid");
    let program = find_program(&process.program).unwrap();
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "side_processes::tests::starts_a_daemon_for_another_test", "--ignored"])
        .env("SIDE_PROCESS_PROGRAM", program)
        .env("SIDE_PROCESS_DIRECTORY", directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&pid_file).unwrap_or_default().is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    let daemon = crate::state::ProcessIdentity::of(fs::read_to_string(&pid_file).unwrap().parse().unwrap()).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    while daemon.is_alive() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!daemon.is_alive());
}

/// Not a test: the process that [`a_launcher_that_is_killed_leaves_no_daemon`] kills.
#[test]
#[ignore = "run by another test"]
fn starts_a_daemon_for_another_test() {
    let (Ok(program), Ok(directory)) = (std::env::var("SIDE_PROCESS_PROGRAM"), std::env::var("SIDE_PROCESS_DIRECTORY"))
    else {
        return;
    };
    let directory = Path::new(&directory);
    let process = SideProcess {
        kind: SideProcessKind::Virtiofsd,
        name: "ro-store".to_owned(),
        program: HostPath::new(program.clone()),
        arguments: vec![directory.join("fs.sock").to_str().unwrap().to_owned()],
        socket: "fs.sock".into(),
        view: None,
        on_exit: OnExit::Restart,
    };
    let mut entry = Entry {
        process,
        program: PathBuf::from(program),
        socket: "fs.sock".into(),
        working_directory: state(directory),
        client: None,
        child: None,
        started: Instant::now(),
        delay: FIRST_RESTART_DELAY,
        start_again: None,
        private: None,
        is_noted: false,
        loss: None,
    };
    entry.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn the_start_fails_if_a_daemon_ends_before_it_serves() {
    let directory = tempfile::tempdir().unwrap();
    let process = side_process(directory.path(), "import sys\nsys.exit(3)\n");
    let interruption = Interruption::watch().unwrap();
    let error =
        SideProcesses::start(&[process], &state(directory.path()), None, &interruption).unwrap_err().to_string();
    assert!(error.contains("ended with exit status: 3 before it listened on"), "{error}");
}

#[test]
fn a_daemon_whose_group_does_not_exist_is_not_started() {
    let directory = tempfile::tempdir().unwrap();
    let mut process = side_process(directory.path(), DAEMON);
    process.arguments.push("--socket-group=no-such-group".to_owned());
    let interruption = Interruption::watch().unwrap();
    let error = SideProcesses::start(&[process], &state(directory.path()), None, &interruption).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the virtiofs daemon of share `ro-store`: this host has no group `no-such-group`, to which its socket must \
         belong; create the group, or set microvm.virtiofsd.group to another one or to null"
    );
    assert!(!directory.path().join("fs.sock").exists());
}

/// Records its arguments before it listens.
const DAEMON_WITH_GROUP: &str = "import socket, sys
path = sys.argv[1].removeprefix('--socket-path=')
open(sys.argv[0] + '.arguments', 'w').write(' '.join(sys.argv[1:]))
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(1)
server.accept()
";

/// virtiofsd sets the group by the path of its socket after it has begun to listen, and ends if the socket has been moved by
/// then. It ended so for the group of root, which a socket of root has from the beginning.
#[test]
fn the_launcher_sets_the_group_of_a_socket_and_not_the_daemon() {
    if !nix::unistd::geteuid().is_root() {
        return testing::missing("only root can give a file to another group");
    }
    for number in [65534, 0] {
        let Ok(Some(group)) = nix::unistd::Group::from_gid(number.into()) else {
            return testing::missing(&format!("there is no group with the number {number}"));
        };
        let directory = tempfile::tempdir().unwrap();
        let mut process = side_process(directory.path(), DAEMON_WITH_GROUP);
        process.arguments = vec!["--socket-path=fs.sock".to_owned(), format!("--socket-group={}", group.name)];
        let interruption = Interruption::watch().unwrap();
        let started = SideProcesses::start(&[process], &state(directory.path()), None, &interruption);
        let mut processes = started.unwrap();
        let socket = fs::metadata(directory.path().join("fs.sock")).unwrap();
        assert_eq!((socket.gid(), socket.mode() & 0o777), (number, 0o770));
        assert!(processes.supervise().0.is_empty());
        let arguments = fs::read_to_string(directory.path().join("daemon.py.arguments")).unwrap();
        assert!(arguments.starts_with("--socket-path=") && !arguments.contains("--socket-group"), "{arguments}");
    }
}

#[test]
fn the_error_for_a_missing_daemon_names_the_package() {
    let directory = tempfile::tempdir().unwrap();
    let process = SideProcess { program: "/nonexistent/virtiofsd".into(), ..side_process(directory.path(), "") };
    let interruption = Interruption::watch().unwrap();
    let error =
        SideProcesses::start(&[process], &state(directory.path()), None, &interruption).unwrap_err().to_string();
    assert!(
        error.contains("the virtiofs daemon of share `ro-store`: /nonexistent/virtiofsd is not installed"),
        "{error}"
    );
    assert!(error.contains("Debian: virtiofsd"), "{error}");
}

#[test]
fn repeated_failures_are_retried_with_longer_delays() {
    let directory = tempfile::tempdir().unwrap();
    let mut entry = Entry {
        process: side_process(directory.path(), ""),
        program: PathBuf::new(),
        socket: "fs.sock".into(),
        working_directory: state(directory.path()),
        client: None,
        child: None,
        started: Instant::now(),
        delay: FIRST_RESTART_DELAY,
        start_again: None,
        private: None,
        is_noted: false,
        loss: None,
    };
    for _ in 0..20 {
        entry.start_later();
    }
    assert_eq!(entry.delay, MAX_RESTART_DELAY);
}
