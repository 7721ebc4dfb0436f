//! Watching over a hypervisor: its console, its side processes, the guest's word that it is ready, and the signals that
//! ask for its end. One thread waits for all of them; what may take long, as stopping does, has a thread of its own.

use super::hand_over::{command, unix_seconds};
use super::{Prepared, RunError};
use crate::child::{OnParentDeath, prepare};
use crate::console::ConsoleServer;
use crate::console::terminal::{RawTerminal, make_raw};
use crate::control::Controller;
use crate::interruption::{Interruption, end_group};
use crate::launch::Launch;
use crate::readiness::{GuestListener, ServiceManager};
use crate::shutdown::{StopTarget, stop};
use crate::side_processes::SideProcesses;
use crate::state::{MachineState, ProcessIdentity, RunningMachine, StateError};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait when nothing else says when to look again.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often to ask a starting hypervisor whether it runs.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// What may wait to be typed before more is not read from the clients.
const LONGEST_INPUT_BYTES: usize = 64 << 10;

pub(super) struct Supervisor<'run> {
    pub(super) launch: &'run Launch,
    pub(super) state: &'run MachineState,
    pub(super) stop_timeout: Duration,
    pub(super) interruption: &'run Interruption,
    pub(super) talk: &'run mut dyn FnMut(&str),
}

/// What other threads report.
enum Report {
    HypervisorRuns,
    Talk(String),
}

impl Supervisor<'_> {
    /// Runs the machine to its end.
    pub(super) fn run(mut self, mut prepared: Prepared) -> Result<(), RunError> {
        let manager = ServiceManager::of_environment();
        let listener = self.listen_for_guest()?;
        let path = self.console_path();
        let server = ConsoleServer::listen(&path)?;
        let began = Instant::now();
        let (mut child, master) = self.spawn(&mut prepared)?;
        let watched = self.write_state(&child, &server);
        let machine = match watched {
            Ok(machine) => machine,
            Err(error) => {
                end_group(&mut child);
                return Err(error);
            }
        };
        let Prepared { side_processes, interfaces, .. } = prepared;
        interfaces.keep();
        let mut watch = Watch {
            console: Console::new(server, master),
            side_processes,
            listener,
            machine,
            reports: self.ask_whether_it_runs(),
            manager,
            stopping: None,
        };
        let status = self.wait(&mut child, &mut watch)?;
        // What it wrote right before its end.
        watch.console.print();
        // The end itself is what is to be told; who does not listen has it from the exit code.
        let _ = watch.manager.tell("STOPPING=1");
        self.outcome(status, &watch, began)
    }

    fn outcome(&self, status: ExitStatus, watch: &Watch, began: Instant) -> Result<(), RunError> {
        match &watch.stopping {
            // Ctrl-C ends the command as interrupted; a service manager's SIGTERM is an orderly end.
            Some(stopping) if stopping.signal == Signal::SIGINT => {
                Err(crate::interruption::Interrupted(Signal::SIGINT).into())
            }
            Some(_) => Ok(()),
            None if status.success() => Ok(()),
            None => Err(RunError::Failed {
                hypervisor: self.launch.hypervisor.to_string(),
                status,
                seconds: began.elapsed().as_secs_f64(),
            }),
        }
    }

    fn console_path(&self) -> std::path::PathBuf {
        match &self.launch.console.socket {
            Some(path) => path.below(&self.launch.working_directory).as_path().to_owned(),
            None => self.state.file("console.sock"),
        }
    }

    fn listen_for_guest(&self) -> Result<Option<GuestListener>, RunError> {
        let notification = self.launch.notification.as_ref();
        let listener =
            notification.map(|notification| GuestListener::listen(notification, &self.launch.working_directory));
        Ok(listener.transpose()?)
    }

    /// Starts the hypervisor on a terminal of its own: some behave differently on a pipe.
    fn spawn(&self, prepared: &mut Prepared) -> Result<(Child, File), RunError> {
        let failed = |source| RunError::System { action: "making a terminal for the hypervisor", source };
        let terminal = openpty(None, None).map_err(|errno| failed(errno.into()))?;
        make_raw(&terminal.slave).map_err(failed)?;
        let input = terminal.slave.try_clone().map_err(failed)?;
        let mut command = command(self.launch, prepared);
        command.stdin(Stdio::from(input)).stdout(Stdio::from(terminal.slave));
        // A group of its own: ctrl-C is for the supervisor, who asks the guest first.
        command.process_group(0);
        prepare(&mut command, OnParentDeath::Terminate, prepared.identity.clone());
        let program = prepared.program.display().to_string();
        let child = command.spawn().map_err(|source| RunError::Start { program, source })?;
        prepared.close_descriptors();
        fcntl(&terminal.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| failed(errno.into()))?;
        Ok((child, File::from(terminal.master)))
    }

    fn write_state(&self, child: &Child, server: &ConsoleServer) -> Result<RunningMachine, RunError> {
        let failed = |source| StateError::File { path: self.state.directory().to_owned(), source };
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let supervisor = ProcessIdentity::own().map_err(failed)?;
        // It may have ended already: then there is nothing to stop, and the wait below tells how it ended.
        let hypervisor = ProcessIdentity::of(pid).unwrap_or(ProcessIdentity { pid, start_ticks: 0 });
        let machine = RunningMachine {
            hypervisor,
            supervisor: Some(supervisor),
            started_unix_seconds: unix_seconds(),
            console_socket: Some(server.path().to_owned()),
            guest_ready: self.launch.notification.as_ref().map(|_| false),
        };
        self.state.write_running(&machine)?;
        Ok(machine)
    }

    fn ask_whether_it_runs(&self) -> Receiver<Report> {
        let (sender, receiver) = channel();
        let socket = self.launch.control.clone();
        let working_directory = self.launch.working_directory.clone();
        thread::spawn(move || {
            let runs = |controller: &Controller| controller.status().is_ok();
            let controller = socket.map(|socket| Controller::new(&socket, &working_directory));
            while controller.as_ref().is_some_and(|controller| !runs(controller)) {
                // Ends with the process; a dead hypervisor ends the process.
                thread::sleep(ASK_EVERY);
            }
            // The receiver is gone when the machine is.
            let _ = sender.send(Report::HypervisorRuns);
        });
        receiver
    }

    fn wait(&mut self, child: &mut Child, watch: &mut Watch) -> Result<ExitStatus, RunError> {
        loop {
            let failed = |source| RunError::System { action: "waiting for the hypervisor", source };
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Ok(status);
            }
            let (events, next) = watch.side_processes.tend();
            events.iter().for_each(|event| (self.talk)(event));
            self.hear_reports(watch);
            self.hear_guest(watch);
            if let Err(interrupted) = self.interruption.check() {
                self.interruption.forget();
                self.begin_to_stop(interrupted.0, child, watch);
            }
            let until_next = next.map_or(LOOK_EVERY, |time| time.saturating_duration_since(Instant::now()));
            watch.console.wait_and_serve(self.interruption, watch.listener.as_ref(), until_next.min(LOOK_EVERY));
        }
    }

    fn hear_reports(&mut self, watch: &mut Watch) {
        while let Ok(report) = watch.reports.try_recv() {
            match report {
                Report::Talk(text) => (self.talk)(&text),
                Report::HypervisorRuns => {
                    let waits_for_guest = watch.listener.is_some();
                    let told = if waits_for_guest { "STATUS=the guest boots" } else { "READY=1\nSTATUS=runs" };
                    self.tell_manager(watch, told);
                }
            }
        }
        let talk = watch.stopping.as_ref().map(|stopping| &stopping.talk);
        while let Some(Ok(Report::Talk(text))) = talk.map(Receiver::try_recv) {
            (self.talk)(&text);
        }
    }

    fn hear_guest(&mut self, watch: &mut Watch) {
        while let Some(word) = watch.listener.as_ref().and_then(GuestListener::take) {
            if let Some(status) = word.status {
                self.tell_manager(watch, &format!("STATUS=guest: {status}"));
            }
            if word.is_ready && watch.machine.guest_ready == Some(false) {
                watch.machine.guest_ready = Some(true);
                if let Err(error) = self.state.write_running(&watch.machine) {
                    (self.talk)(&error.to_string());
                }
                self.tell_manager(watch, "READY=1\nSTATUS=the guest has booted");
            }
        }
    }

    fn tell_manager(&mut self, watch: &Watch, lines: &str) {
        if let Err(error) = watch.manager.tell(lines) {
            (self.talk)(&format!("the service manager does not listen: {error}"));
        }
    }

    /// The first signal asks the guest; the second one does not ask any more.
    fn begin_to_stop(&mut self, signal: Signal, child: &mut Child, watch: &mut Watch) {
        if watch.stopping.is_some() {
            (self.talk)("asked again: killing the hypervisor");
            // It may have ended this moment, and then need not be killed.
            let _ = child.kill();
            return;
        }
        self.tell_manager(watch, "STOPPING=1\nSTATUS=stopping");
        let (sender, talk) = channel();
        let (launch, process, timeout) = (self.launch.clone(), watch.machine.hypervisor, self.stop_timeout);
        let console_socket = watch.machine.console_socket.clone();
        thread::spawn(move || {
            let target = StopTarget { launch: &launch, process: Some(process), console_socket };
            // Nobody hears it when the machine has ended meanwhile.
            let mut say = |text: &str| drop(sender.send(Report::Talk(text.to_owned())));
            if let Err(error) = stop(&target, timeout, &mut say) {
                say(&error.to_string());
            }
        });
        watch.stopping = Some(Stopping { signal, talk });
    }
}

struct Watch {
    console: Console,
    side_processes: SideProcesses,
    listener: Option<GuestListener>,
    machine: RunningMachine,
    reports: Receiver<Report>,
    manager: ServiceManager,
    stopping: Option<Stopping>,
}

struct Stopping {
    signal: Signal,
    talk: Receiver<Report>,
}

/// The hypervisor's terminal, between the console's clients and this process's own stdin and stdout.
struct Console {
    server: ConsoleServer,
    master: File,
    /// Typed, but not yet taken by the hypervisor.
    input: VecDeque<u8>,
    /// stdin, when a person sits there.
    _raw: Option<RawTerminal>,
    reads_stdin: bool,
}

impl Console {
    fn new(server: ConsoleServer, master: File) -> Self {
        let stdin = io::stdin();
        let raw = if stdin.is_terminal() { RawTerminal::enter(&stdin).ok() } else { None };
        let reads_stdin = raw.is_some();
        Self { server, master, input: VecDeque::new(), _raw: raw, reads_stdin }
    }

    fn wait_and_serve(&mut self, interruption: &Interruption, listener: Option<&GuestListener>, longest: Duration) {
        let stdin = io::stdin();
        let wants_input = self.input.len() < LONGEST_INPUT_BYTES;
        let mut master = PollFlags::POLLIN;
        if !self.input.is_empty() {
            master |= PollFlags::POLLOUT;
        }
        let mut descriptors =
            vec![PollFd::new(self.master.as_fd(), master), PollFd::new(interruption.as_fd(), PollFlags::POLLIN)];
        for (descriptor, waits_to_write) in self.server.descriptors() {
            let mut flags = if wants_input { PollFlags::POLLIN } else { PollFlags::empty() };
            if waits_to_write {
                flags |= PollFlags::POLLOUT;
            }
            descriptors.push(PollFd::new(descriptor, flags));
        }
        if let Some(listener) = listener {
            descriptors.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        if self.reads_stdin && wants_input {
            descriptors.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        // An error means that it did not wait; the caller looks at everything anyway.
        let _ = poll(&mut descriptors, PollTimeout::try_from(longest).unwrap_or(PollTimeout::ZERO));
        let typed_here = self.reads_stdin && wants_input && descriptors.last().and_then(PollFd::any).unwrap_or(false);
        drop(descriptors);
        if typed_here {
            self.read_stdin();
        }
        self.input.extend(self.server.serve());
        self.type_input();
        self.print();
    }

    fn read_stdin(&mut self) {
        let mut buffer = [0; 4096];
        match io::stdin().read(&mut buffer) {
            Ok(count) if count > 0 => self.input.extend(&buffer[..count]),
            _ => self.reads_stdin = false,
        }
    }

    fn type_input(&mut self) {
        while !self.input.is_empty() {
            match self.master.write(self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                // Full, or gone; the wait for the child tells which.
                Err(_) => return,
            }
        }
    }

    /// Passes on everything that the hypervisor has written by now.
    fn print(&mut self) {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.master.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    self.server.print(&buffer[..count]);
                    let mut stdout = io::stdout().lock();
                    // A reader that went away does not stop the machine: its console is on the socket too.
                    let _ = stdout.write_all(&buffer[..count]).and_then(|()| stdout.flush());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing for now, or nothing any more.
                Err(_) => return,
            }
        }
    }
}
