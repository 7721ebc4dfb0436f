//! SIGINT, SIGTERM and SIGHUP: exit code 130, one message, and no remaining files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod program;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use program::Workspace;
use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

/// Nothing in these tests takes this long, unless a signal is ignored.
const TIMEOUT: Duration = Duration::from_secs(60);
const NOISE: &str = "3aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-noise";

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn wait_for(path: &Path) {
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < TIMEOUT, "{} does not appear", path.display());
        thread::sleep(Duration::from_millis(2));
    }
}

/// Sends the signal and expects the program to end with 130 and the message.
#[track_caller]
fn interrupt(child: Child, signal: Signal) {
    end(child, signal, (Some(130), "error: interrupted\n"));
}

/// Sends the signal and expects the program to end with this code and this on stderr.
#[track_caller]
fn end(mut child: Child, signal: Signal, (code, message): (Option<i32>, &str)) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < TIMEOUT, "{signal} was ignored");
        thread::sleep(Duration::from_millis(2));
    };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((status.code(), stderr.as_str(), stdout.as_str()), (code, message, ""));
}

/// Creates a workspace with a store path that takes many seconds to compress at the highest level.
fn with_noise() -> Workspace {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("store")).unwrap();
    let noise: Vec<u8> = (0..1_000_000_u64)
        .flat_map(|number| blake3::hash(&(number / 3).to_le_bytes()).as_bytes()[..16].to_vec())
        .collect();
    fs::write(workspace.path("store").join(NOISE), noise).unwrap();
    workspace.write("list", NOISE);
    workspace
}

/// Returns a command that ignores no signal. The tests may run below nohup(1), which ignores SIGHUP, or in the background of
/// a script, where SIGINT is ignored.
fn with_default_signals(workspace: &Workspace, line: &str) -> Command {
    let arguments = ["--default-signal=HUP,INT", env!("CARGO_BIN_EXE_microvm-image")];
    workspace.command_of(Path::new("env"), arguments.into_iter().chain(line.split(' ')))
}

#[test]
fn an_interrupted_build_leaves_nothing_and_keeps_the_existing_image() {
    let workspace = with_noise();
    workspace.write("image", "precious");
    let names = workspace.names();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let line = "build --paths-from list --store-dir store --level 22 -j 1 -q -o image";
        let child = start(&mut with_default_signals(&workspace, line));
        // The cache is opened right before the work begins.
        wait_for(&workspace.path("cache/v2/outputs"));
        thread::sleep(Duration::from_millis(200));
        interrupt(child, signal);
        assert_eq!(workspace.read("image"), b"precious");
        fs::remove_dir_all(workspace.path("cache")).unwrap();
        assert_eq!(workspace.names(), names);
    }
}

/// nohup(1) starts a program this way.
#[test]
fn an_ignored_hangup_does_not_end_a_build() {
    let workspace = with_noise();
    let line = "build --paths-from list --store-dir store --level 1 -j 1 -q -o image";
    let program = env!("CARGO_BIN_EXE_microvm-image");
    let script = format!("trap '' HUP; exec {program} {line}");
    let command = workspace.command_of(Path::new("sh"), ["-c", &script]);
    let mut child = start(&mut { command });
    wait_for(&workspace.path("cache/v2/outputs"));
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(workspace.path("image").is_file());
}

#[test]
fn a_signal_while_waiting_for_stdin_ends_the_program_at_once() {
    let workspace = Workspace::new();
    let child = start(&mut with_default_signals(&workspace, "plan --paths-from -"));
    // It cannot be observed that the program waits. If it does not wait yet, the signal just arrives earlier.
    thread::sleep(Duration::from_millis(200));
    interrupt(child, Signal::SIGINT);
}

#[test]
fn an_interrupted_volume_leaves_nothing_and_its_mkfs_is_stopped() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("bin")).unwrap();
    let mkfs = workspace.path("bin/mkfs.ext4");
    testing::write_program(&mkfs, "#!/bin/sh\necho $$ > started.tmp\nmv started.tmp started\nexec sleep 600\n");
    let path = format!("{}:{}", workspace.path("bin").display(), std::env::var("PATH").unwrap());
    let line = "volume create volume --size 1M --fs ext4";
    let child = start(workspace.command(line.split(' ')).env("PATH", path));
    wait_for(&workspace.path("started"));
    interrupt(child, Signal::SIGTERM);
    assert_eq!(workspace.names(), ["bin", "started"]);
    let pid: i32 = String::from_utf8(workspace.read("started")).unwrap().trim().parse().unwrap();
    assert!(kill(Pid::from_raw(pid), None).is_err(), "mkfs is still running");
}

#[test]
fn a_server_reports_readiness_is_confined_and_on_request_removes_its_socket_and_exits_with_0() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("store")).unwrap();
    fs::write(workspace.path("store").join(NOISE), "a store path").unwrap();
    workspace.write("list", NOISE);
    let manager = UnixDatagram::bind(workspace.path("notify.sock")).unwrap();
    manager.set_read_timeout(Some(TIMEOUT)).unwrap();
    let line = "serve --paths-from list --store-dir store --socket disk.sock";
    let serve = || {
        let child = start(with_default_signals(&workspace, line).env("NOTIFY_SOCKET", workspace.path("notify.sock")));
        let mut word = [0; 64];
        let length = manager.recv(&mut word).unwrap();
        assert_eq!(&word[..length], b"READY=1");
        child
    };
    let child = serve();
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.lines().any(|found| found == line), "no {line} in\n{status}");
    }
    // Only the threads for signals and for the socket can remove files: they have one filter of system calls, the serving
    // threads two.
    let mut filters = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", child.id())).unwrap() {
        let thread = thread.unwrap();
        let status = fs::read_to_string(thread.path().join("status")).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:\t")).unwrap().to_owned();
        filters.push((thread.file_name().into_string().unwrap() == child.id().to_string(), count));
    }
    assert!(filters.contains(&(true, "2".to_owned())), "{filters:?}");
    let with_one = filters.iter().filter(|(_, count)| count == "1").count();
    assert!(with_one == 2 && filters.iter().all(|(_, count)| count == "1" || count == "2"), "{filters:?}");
    // After this connection, which sends nothing, the server starts its threads again.
    assert!(UnixStream::connect(workspace.path("disk.sock")).is_ok(), "it is ready, but does not listen");
    end(child, Signal::SIGTERM, (Some(0), ""));
    assert!(!workspace.path("disk.sock").exists());

    // The socket of a killed server is replaced. One that has replaced the server's own is not removed.
    let mut killed = serve();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let child = serve();
    fs::rename(workspace.path("disk.sock"), workspace.path("moved.sock")).unwrap();
    let _other = UnixListener::bind(workspace.path("disk.sock")).unwrap();
    end(child, Signal::SIGHUP, (Some(0), ""));
    assert!(UnixStream::connect(workspace.path("disk.sock")).is_ok());
    let run = workspace.run(line);
    run.failure(
        2,
        "error: another process already listens on disk.sock\nhint: end that process, or use another --socket\n",
    );
    fs::remove_file(workspace.path("disk.sock")).unwrap();

    // A hypervisor disconnects.
    let child = serve();
    let hypervisor = Frontend::connect(workspace.path("disk.sock"), 1).unwrap();
    hypervisor.set_owner().unwrap();
    hypervisor.get_features().unwrap();
    drop(hypervisor);
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()), (Some(0), ""));
    assert!(!workspace.path("disk.sock").exists());
}
