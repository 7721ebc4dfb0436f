use super::*;
use crate::launch::{Console, ControlProtocol, ControlSocket, LAUNCH_VERSION, Needs, Shutdown};
use crate::path::HostPath;
use crate::spec::Hypervisor;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command};

fn launch(directory: &Path) -> Launch {
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

/// A process that stands for the hypervisor.
fn sleeper(script: &str) -> (Child, ProcessIdentity) {
    let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
    let identity = ProcessIdentity::of(child.id() as i32).unwrap();
    (child, identity)
}

/// A qemu that carries out one command by killing the process, and writes down all it is asked.
fn qemu(directory: &Path, obeys: &'static str, pid: i32) -> std::sync::mpsc::Receiver<String> {
    let listener = UnixListener::bind(directory.join("web.sock")).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
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
    let mut talk = Vec::new();
    let stopped =
        stop(&StopTarget { launch, process, console_socket: None }, timeout, &mut |text| talk.push(text.to_owned()))
            .unwrap();
    (stopped, talk)
}

#[test]
fn a_machine_that_does_not_run_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let launch = launch(directory.path());
    assert_eq!(stop_quietly(&launch, None, Duration::from_secs(9)).0, Stopped::WasNotRunning);
    let (mut child, identity) = sleeper("exec sleep 100");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(stop_quietly(&launch, Some(identity), Duration::from_secs(9)).0, Stopped::WasNotRunning);
}

#[test]
fn the_guest_is_asked_first() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 100");
    let commands = qemu(directory.path(), "system_powerdown", identity.pid);
    let (stopped, talk) = stop_quietly(&launch(directory.path()), Some(identity), Duration::from_secs(60));
    assert_eq!((stopped, talk), (Stopped::Gracefully, Vec::new()));
    assert_eq!(commands.try_iter().collect::<Vec<_>>(), ["qmp_capabilities", "system_powerdown"]);
    child.wait().unwrap();
}

#[test]
fn a_guest_that_overhears_the_button_gets_ctrl_alt_delete() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 100");
    let _commands = qemu(directory.path(), "input-send-event", identity.pid);
    let (stopped, _) = stop_quietly(&launch(directory.path()), Some(identity), Duration::from_secs(2));
    assert_eq!(stopped, Stopped::Gracefully);
    child.wait().unwrap();
}

#[test]
fn a_guest_that_does_nothing_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 100");
    let commands = qemu(directory.path(), "quit", identity.pid);
    let (stopped, talk) = stop_quietly(&launch(directory.path()), Some(identity), Duration::from_millis(300));
    assert_eq!(stopped, Stopped::Forced);
    assert!(talk[0].contains("the guest has not shut down within 0 s; ending qemu"), "{talk:?}");
    let asked: Vec<String> = commands.try_iter().filter(|command| command != "qmp_capabilities").collect();
    assert_eq!(asked, ["system_powerdown", "input-send-event", "quit"]);
    child.wait().unwrap();
}

#[test]
fn a_control_socket_that_nobody_answers_is_told_and_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let (mut child, identity) = sleeper("exec sleep 100");
    let _silent = UnixListener::bind(directory.path().join("web.sock")).unwrap();
    let (stopped, talk) = stop_quietly(&launch(directory.path()), Some(identity), Duration::from_millis(300));
    assert_eq!(stopped, Stopped::Forced);
    assert!(talk[0].contains("web.sock takes connections but does not answer"), "{talk:?}");
    child.wait().unwrap();
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
    let (stopped, talk) = stop_quietly(&launch, Some(identity), Duration::ZERO);
    assert_eq!(stopped, Stopped::Killed);
    assert!(talk.iter().any(|text| text.contains("does not end; killing it")), "{talk:?}");
    child.wait().unwrap();
}
