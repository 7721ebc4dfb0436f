use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) fn running(hypervisor: ProcessIdentity) -> RunningMachine {
    RunningMachine {
        hypervisor,
        supervisor: None,
        started_unix_seconds: 1,
        console_socket: None,
        guest_ready: None,
        interfaces: Vec::new(),
    }
}

#[test]
fn a_machine_starts_once() {
    let directory = tempfile::tempdir().unwrap();
    let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
    let lock = machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
    assert!(matches!(machine.lock_for_start(Path::new("/var/lib/web")), Err(StateError::Starting(_))));
    machine.write_running(&running(ProcessIdentity::current().unwrap())).unwrap();
    drop(lock);
    assert!(matches!(machine.lock_for_start(Path::new("/var/lib/web")), Err(StateError::Running { .. })));
    machine.clear_running();
    machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
}

#[test]
fn a_start_that_waited_for_the_last_supervisor_was_invisible_to_stop() {
    let directory = tempfile::tempdir().unwrap();
    let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
    let path = Path::new("/var/lib/web");
    drop(machine.lock_for_start(path).unwrap());
    let open = || File::options().read(true).write(true).open(machine.file(LOCK)).unwrap();
    let held = Flock::lock(open(), FlockArg::LockExclusiveNonblock).unwrap();
    let is_cancelled = AtomicBool::new(false);
    let wait_until = |activity: &dyn Fn(&Activity) -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !activity(&machine.activity().unwrap()) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    std::thread::scope(|scope| {
        let start = scope.spawn(|| machine.lock_for_start_unless(path, || is_cancelled.load(Ordering::Relaxed)));
        wait_until(&|activity| matches!(activity, Activity::Starting(start) if start.working_directory == path));
        // Neither a second start nor what the supervisor does meanwhile is affected.
        assert!(matches!(machine.require_stopped(path), Err(StateError::Starting(_))));
        assert_eq!(machine.activity_of_holder().unwrap(), Activity::Stopped);
        is_cancelled.store(true, Ordering::Relaxed);
        assert!(start.join().unwrap().is_err());
        assert_eq!(machine.activity().unwrap(), Activity::Stopped);

        let start = scope.spawn(|| machine.lock_for_start(path).map(drop));
        wait_until(&|activity| *activity != Activity::Stopped);
        drop(held);
        start.join().unwrap().unwrap();
    });
    assert!(!machine.file(WAITING).exists());
}

#[test]
fn a_machine_starts_then_runs_then_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
    assert_eq!(machine.activity().unwrap(), Activity::Stopped);
    let mut lock = machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
    let made = CreatedInterface { name: "vm-web".to_owned(), index: 7 };
    lock.record_interfaces(std::slice::from_ref(&made)).unwrap();
    let own = ProcessIdentity::current().unwrap();
    let Activity::Starting(starting) = machine.activity().unwrap() else { panic!("it is not starting") };
    assert_eq!((starting.launcher, starting.interfaces.as_slice()), (own, [made.clone()].as_slice()));
    assert_eq!(machine.working_directory().unwrap().as_deref(), Some(Path::new("/var/lib/web")));
    assert_eq!(machine.left_over_interfaces().unwrap(), []);
    machine.write_running(&running(own)).unwrap();
    assert!(matches!(machine.activity().unwrap(), Activity::Running(_)));
    machine.clear_running();
    assert_eq!(machine.activity().unwrap(), Activity::Stopped);
}

#[test]
fn a_machine_whose_launcher_was_killed_counts_as_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
    let lock = machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
    let own = ProcessIdentity::current().unwrap();
    let made = CreatedInterface { name: "vm-web".to_owned(), index: 7 };
    let killed = StartingMachine {
        launcher: ProcessIdentity { start_ticks: own.start_ticks + 1, ..own },
        working_directory: "/var/lib/web".into(),
        interfaces: vec![made.clone()],
    };
    machine.write(STARTING, &killed).unwrap();
    assert_eq!(machine.activity().unwrap(), Activity::Stopped);
    assert_eq!(machine.left_over_interfaces().unwrap(), [made]);
    drop(lock);
}

#[test]
fn a_later_process_with_the_same_pid_does_not_count_as_the_machine() {
    let directory = tempfile::tempdir().unwrap();
    let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
    let _lock = machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
    let own = ProcessIdentity::current().unwrap();
    machine.write_running(&running(ProcessIdentity { start_ticks: own.start_ticks + 1, ..own })).unwrap();
    assert_eq!(machine.running().unwrap(), None);
    machine.write_running(&running(own)).unwrap();
    assert_eq!(machine.running().unwrap(), Some(running(own)));
}

#[test]
fn a_machines_user_cannot_make_root_take_another_process_for_the_machine() {
    if !nix::unistd::geteuid().is_root() {
        testing::skipped("only root can give files away");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
    let _lock = machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
    let own = ProcessIdentity::current().unwrap();
    machine.write_running(&running(own)).unwrap();
    nix::unistd::chown(&machine.file("process.json"), Some(Uid::from_raw(65534)), None).unwrap();
    assert_eq!(machine.running().unwrap(), None);
}

#[test]
fn writing_a_state_file_replaces_a_symbolic_link_instead_of_following_it() {
    let directory = tempfile::tempdir().unwrap();
    let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
    let _lock = machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
    let victim = directory.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    for name in ["process.json", "process.json.new"] {
        std::os::unix::fs::symlink(&victim, machine.file(name)).unwrap();
    }
    machine.write_running(&running(ProcessIdentity::current().unwrap())).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert!(machine.running().unwrap().is_some());
}

#[test]
fn the_error_for_a_damaged_state_file_names_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
    let _lock = machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
    fs::write(machine.file("process.json"), "{").unwrap();
    let message = machine.running().unwrap_err().to_string();
    assert!(message.contains("process.json"), "{message}");
}

#[test]
fn only_directories_are_listed_as_machines() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = RuntimeDirectory::at(directory.path());
    fs::write(directory.path().join("facts.json"), "").unwrap();
    runtime.machine("b").unwrap().lock_for_start(Path::new("/var/lib/web")).unwrap();
    runtime.machine("a").unwrap().lock_for_start(Path::new("/var/lib/web")).unwrap();
    assert_eq!(runtime.machine_names().unwrap(), ["a", "b"]);
    assert_eq!(RuntimeDirectory::at(directory.path().join("none")).machine_names().unwrap(), [""; 0]);
}
