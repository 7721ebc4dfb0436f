//! Supervising the hypervisor: its console, the service manager, the processes beside it, and the graceful stop.
//!
//! One loop polls all descriptors, and nothing in it blocks: separate threads write the output and ask the guest to
//! stop. The loop sleeps while there are no events.

use super::become_hypervisor::command;
use super::incoming::{IncomingMachine, IncomingState};
use super::output::OutputWriter;
use super::{Prepared, RunError};
use crate::console::ConsoleServer;
use crate::console::server::InputState;
use crate::console::terminal::{RawTerminal, make_raw};
use crate::control::Controller;
use crate::interruption::{Interrupted, Interruption, end_group};
use crate::launch::Launch;
use crate::network::CreatedInterfaces;
use crate::readiness::{GuestListener, GuestMessage, ServiceManager};
use crate::shutdown::{StopTarget, stop};
use crate::side_processes::SideProcesses;
use crate::state::{CONSOLE_SOCKET, MachineState, ProcessIdentity, RunningMachine, StateError, unix_seconds};
use crate::suspend::is_suspended;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use program::child::{OnParentDeath, prepare};
use program::user::Identity;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait before asking a starting hypervisor again whether it runs; doubled up to
/// [`MAX_STATUS_REQUEST_INTERVAL`].
const FIRST_STATUS_REQUEST_AFTER: Duration = Duration::from_millis(20);
const MAX_STATUS_REQUEST_INTERVAL: Duration = Duration::from_secs(1);
/// The size of the input queue. While it is full, nothing is read from the clients.
const MAX_INPUT_BYTES: usize = 64 << 10;
/// The most reads from the hypervisor's terminal in one turn of the loop.
const MAX_READS: usize = 16;

pub(super) struct Supervisor<'run> {
    pub(super) launch: &'run Launch,
    pub(super) state: &'run MachineState,
    pub(super) stop_timeout: Duration,
    pub(super) interruption: &'run Interruption,
    pub(super) messages: OutputWriter,
}

/// How the event loop ended.
enum End {
    /// The hypervisor has ended.
    Exited(ExitStatus),
    /// The hypervisor could not load the machine, and was killed.
    NotArrived(RunError),
}

/// The state of a running machine.
struct Supervised {
    console: Console,
    side_processes: SideProcesses,
    listener: Option<GuestListener>,
    machine: RunningMachine,
    manager: ServiceManager,
    /// Becomes readable once the hypervisor responds on its control socket.
    hypervisor_runs: Option<UnixStream>,
    /// The machine that is loaded instead of booted.
    incoming_machine: Option<IncomingMachine>,
    /// Whether the guest has reported that it is about to power off or reboot.
    guest_is_ending: bool,
    /// The signal that started the stop.
    stopping: Option<Signal>,
    messages: OutputWriter,
    /// Removed when the machine has ended for any reason.
    _interfaces: CreatedInterfaces,
}

impl Supervised {
    fn message(&self, text: &str) {
        self.messages.push_line(text);
    }

    fn notify(&mut self, lines: &str) {
        if let Err(error) = self.manager.notify(lines) {
            self.message(&format!("cannot notify the service manager: {error}"));
        }
    }

    /// Waits for an event, at most until the deadline.
    fn wait(&self, interruption: &Interruption, deadline: Option<Instant>) {
        let mut interests = vec![(interruption.as_fd(), PollFlags::POLLIN)];
        interests.extend(self.console.interests());
        // One time for both calls: otherwise a connection whose pause ends between them would be in neither.
        let now = Instant::now();
        interests.extend(self.listener.iter().flat_map(|listener| listener.interests(now)));
        interests.extend(self.manager.interest());
        interests.extend(self.hypervisor_runs.iter().map(|stream| (stream.as_fd(), PollFlags::POLLIN)));
        interests.extend(
            self.incoming_machine.iter().map(|incoming_machine| (incoming_machine.descriptor(), PollFlags::POLLIN)),
        );
        let own = [self.console.server.deadline(), self.listener.as_ref().and_then(|listener| listener.deadline(now))];
        let deadline = own.into_iter().flatten().chain(deadline).min();
        let timeout = deadline.map_or(PollTimeout::NONE, |time| {
            // Rounded up, because a wait that ends slightly early would be repeated until the deadline.
            let left = time.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut descriptors: Vec<_> = interests.into_iter().map(|(fd, flags)| PollFd::new(fd, flags)).collect();
        // After an error, the caller checks everything, as after an event.
        let _ = poll(&mut descriptors, timeout);
    }
}

impl Supervisor<'_> {
    /// Runs the machine until it ends. Loads a suspended one first.
    pub(super) fn run(self, mut prepared: Prepared, incoming: Option<IncomingState>) -> Result<(), RunError> {
        let messages = self.messages.clone();
        let manager = ServiceManager::of_environment().unwrap_or_else(|error| {
            messages.push_line(&format!("cannot notify the service manager: {error}"));
            ServiceManager::default()
        });
        let listener = self.listen_for_guest(prepared.identity.as_ref())?;
        let server = ConsoleServer::listen(&self.console_path())?;
        let began = Instant::now();
        let (mut child, master) = self.spawn(&mut prepared)?;
        let machine = match self.write_state(&child, &server, &prepared) {
            Ok(machine) => machine,
            Err(error) => {
                end_group(&mut child);
                return Err(error);
            }
        };
        let Prepared { side_processes, interfaces, locks, .. } = prepared;
        let mut supervised = Supervised {
            console: Console::new(server, master),
            side_processes,
            listener,
            hypervisor_runs: incoming.is_none().then(|| self.check_that_it_runs(&manager)).flatten(),
            incoming_machine: incoming
                .map(|incoming| IncomingMachine::start(incoming, self.launch, machine.hypervisor, locks))
                .transpose()?,
            manager,
            machine,
            guest_is_ending: false,
            stopping: None,
            messages,
            _interfaces: interfaces,
        };
        let end = self.supervise(&mut child, &mut supervised)?;
        // Now, because the command that stops the machine does not wait without limit.
        let is_stop_requested = self.state.is_stop_requested(supervised.machine.hypervisor);
        // What it wrote and reported just before it ended.
        supervised.console.print();
        let last = supervised.listener.as_mut().map(GuestListener::finish).unwrap_or_default();
        self.use_messages(last, &mut supervised);
        supervised.notify("STOPPING=1");
        supervised.console.stdout.finish();
        supervised.messages.finish();
        match supervised.stopping {
            // Ctrl-C makes the command end as interrupted; SIGTERM from a service manager is a normal end.
            Some(Signal::SIGINT) => Err(Interrupted(Signal::SIGINT).into()),
            Some(_) => Ok(()),
            None if is_stop_requested => Ok(()),
            None => self.outcome(end, supervised, began),
        }
    }

    /// Returns how a machine ended that nobody stopped.
    fn outcome(&self, end: End, supervised: Supervised, began: Instant) -> Result<(), RunError> {
        let status = match end {
            End::Exited(status) => status,
            End::NotArrived(error) => return Err(error),
        };
        if let Some(incoming_machine) = supervised.incoming_machine {
            return Err(incoming_machine.refusal().unwrap_or_else(|| self.failed(status, began)));
        }
        if is_suspended(self.launch) {
            return Ok(());
        }
        if !status.success() {
            return Err(self.failed(status, began));
        }
        if let Some(failure) = supervised.side_processes.loss() {
            let (hypervisor, failure) = (self.launch.hypervisor.to_string(), failure.to_owned());
            return Err(RunError::LostProcess { hypervisor, seconds: began.elapsed().as_secs_f64(), failure });
        }
        // No hypervisor reports that the guest's kernel has panicked: it ends as after a reboot.
        if supervised.machine.guest_ready == Some(false) && !supervised.guest_is_ending {
            return Err(RunError::EndedBeforeBoot { seconds: began.elapsed().as_secs_f64() });
        }
        Ok(())
    }

    fn failed(&self, status: ExitStatus, began: Instant) -> RunError {
        let hypervisor = self.launch.hypervisor.to_string();
        RunError::Failed { hypervisor, status, seconds: began.elapsed().as_secs_f64() }
    }

    fn console_path(&self) -> std::path::PathBuf {
        match &self.launch.console.socket {
            Some(path) => path.below(&self.launch.working_directory).as_path().to_owned(),
            None => self.state.file(CONSOLE_SOCKET),
        }
    }

    fn listen_for_guest(&self, hypervisor: Option<&Identity>) -> Result<Option<GuestListener>, RunError> {
        let notification = self.launch.notification.as_ref();
        let listener = notification
            .map(|notification| GuestListener::listen(notification, &self.launch.working_directory, hypervisor));
        Ok(listener.transpose()?)
    }

    /// Starts the hypervisor on its own terminal, because some hypervisors behave differently on a pipe.
    fn spawn(&self, prepared: &mut Prepared) -> Result<(Child, File), RunError> {
        let failed = |source| RunError::System { action: "creating a terminal for the hypervisor", source };
        let terminal = openpty(None, None).map_err(|errno| failed(errno.into()))?;
        make_raw(&terminal.slave).map_err(failed)?;
        let input = terminal.slave.try_clone().map_err(failed)?;
        let mut command = command(self.launch, prepared);
        command.stdin(Stdio::from(input)).stdout(Stdio::from(terminal.slave));
        // In its own process group, because Ctrl-C is for the supervisor, which asks the guest first.
        command.process_group(0);
        prepare(&mut command, OnParentDeath::Terminate, prepared.identity.clone());
        let program = prepared.program.display().to_string();
        let child = command.spawn().map_err(|source| RunError::Start { program, source })?;
        prepared.close_descriptors();
        fcntl(&terminal.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| failed(errno.into()))?;
        Ok((child, File::from(terminal.master)))
    }

    fn write_state(
        &self,
        child: &Child,
        server: &ConsoleServer,
        prepared: &Prepared,
    ) -> Result<RunningMachine, RunError> {
        let failed = |source| StateError::File { path: self.state.directory().to_owned(), source };
        let pid = i32::try_from(child.id()).unwrap_or(0);
        let supervisor = ProcessIdentity::current().map_err(failed)?;
        // It may have ended already. Then there is nothing to stop, and the event loop finds out its exit status.
        let hypervisor = ProcessIdentity::of(pid).unwrap_or(ProcessIdentity { pid, start_ticks: 0 });
        let machine = RunningMachine {
            hypervisor,
            supervisor: Some(supervisor),
            started_unix_seconds: unix_seconds(),
            console_socket: Some(server.path().to_owned()),
            guest_ready: self.launch.notification.as_ref().map(|_| false),
            interfaces: prepared.interfaces.interfaces().to_vec(),
        };
        self.state.write_running(&machine)?;
        Ok(machine)
    }

    /// Asks in a separate thread, and only if a service manager waits for the answer.
    fn check_that_it_runs(&self, manager: &ServiceManager) -> Option<UnixStream> {
        if !manager.is_present() {
            return None;
        }
        let (ours, mut theirs) = UnixStream::pair().ok()?;
        let socket = self.launch.control.clone();
        let controller = socket.map(|socket| Controller::new(&socket, &self.launch.working_directory));
        thread::spawn(move || {
            let mut gap = FIRST_STATUS_REQUEST_AFTER;
            while controller.as_ref().is_some_and(|controller| controller.status().is_err()) {
                // The thread ends with the process, which ends with the hypervisor.
                thread::sleep(gap);
                gap = (gap * 2).min(MAX_STATUS_REQUEST_INTERVAL);
            }
            // Fails if the machine has ended in the meantime; nothing waits for the answer then.
            let _ = theirs.write_all(b".");
        });
        Some(ours)
    }

    /// Runs the event loop until the hypervisor has ended.
    fn supervise(&self, child: &mut Child, supervised: &mut Supervised) -> Result<End, RunError> {
        loop {
            // Signals come first: if the child ends after the check below, its SIGCHLD ends the wait at the bottom of
            // the loop.
            if let Err(interrupted) = self.interruption.check() {
                self.interruption.forget();
                self.begin_to_stop(interrupted.0, child, supervised);
            }
            let failed = |source| RunError::System { action: "waiting for the hypervisor", source };
            if let Some(status) = child.try_wait().map_err(failed)? {
                // A process that failed in the same turn may be why the hypervisor ended.
                supervised.side_processes.finish().iter().for_each(|event| supervised.message(event));
                return Ok(End::Exited(status));
            }
            let (events, next) = supervised.side_processes.supervise();
            events.iter().for_each(|event| supervised.message(event));
            if let Err(error) = self.finish_arrival(supervised) {
                end_group(child);
                return Ok(End::NotArrived(error));
            }
            self.receive_from_hypervisor(supervised);
            self.receive_from_guest(supervised);
            supervised.notify_pending();
            supervised.console.serve();
            supervised.wait(self.interruption, next);
        }
    }

    /// Reports a machine that was resumed or has migrated. Fails if its hypervisor could not load it.
    fn finish_arrival(&self, supervised: &mut Supervised) -> Result<(), RunError> {
        let Some(incoming_machine) =
            supervised.incoming_machine.take_if(|incoming_machine| is_readable(incoming_machine.descriptor()))
        else {
            return Ok(());
        };
        let Some(arrived) = incoming_machine.result() else { return Ok(()) };
        arrived?;
        let (text, finished) = incoming_machine.finish(self.launch);
        supervised.message(&text);
        if let Err(error) = finished {
            supervised.message(&error.to_string());
        }
        if supervised.machine.guest_ready == Some(false) {
            supervised.machine.guest_ready = Some(true);
            if let Err(error) = self.state.write_running(&supervised.machine) {
                supervised.message(&error.to_string());
            }
        }
        supervised.notify("READY=1\nSTATUS=running");
        Ok(())
    }

    fn receive_from_hypervisor(&self, supervised: &mut Supervised) {
        let Some(stream) = &mut supervised.hypervisor_runs else { return };
        if !is_readable(stream.as_fd()) {
            return;
        }
        supervised.hypervisor_runs = None;
        let waits_for_guest = supervised.listener.is_some();
        supervised.notify(if waits_for_guest { "STATUS=the guest is booting" } else { "READY=1\nSTATUS=running" });
    }

    fn receive_from_guest(&self, supervised: &mut Supervised) {
        let messages = supervised.listener.as_mut().map(GuestListener::receive).unwrap_or_default();
        self.use_messages(messages, supervised);
    }

    fn use_messages(&self, messages: Vec<GuestMessage>, supervised: &mut Supervised) {
        for GuestMessage { is_ready, is_ending, status } in messages {
            supervised.guest_is_ending |= is_ending;
            if let Some(status) = status {
                supervised.notify(&format!("STATUS=guest: {status}"));
            }
            if is_ready && supervised.machine.guest_ready == Some(false) {
                supervised.machine.guest_ready = Some(true);
                if let Err(error) = self.state.write_running(&supervised.machine) {
                    supervised.message(&error.to_string());
                }
                supervised.notify("READY=1\nSTATUS=the guest has booted");
            }
        }
    }

    /// Starts the stop at the first signal; at the second one, kills the hypervisor.
    fn begin_to_stop(&self, signal: Signal, child: &mut Child, supervised: &mut Supervised) {
        if supervised.stopping.is_some() {
            supervised.message("asked to stop again: killing the hypervisor");
            // Fails if it has just ended.
            let _ = child.kill();
            return;
        }
        supervised.notify("STOPPING=1\nSTATUS=stopping");
        let (launch, process, timeout) = (self.launch.clone(), supervised.machine.hypervisor, self.stop_timeout);
        let console_socket = supervised.machine.console_socket.clone();
        let messages = supervised.messages.clone();
        thread::spawn(move || {
            let is_saved = is_suspended(&launch);
            let target = StopTarget { launch: &launch, process: Some(process), console_socket, is_saved };
            let mut message = |text: &str| messages.push_line(text);
            if let Err(error) = stop(&target, timeout, &mut message) {
                message(&error.to_string());
            }
        });
        supervised.stopping = Some(signal);
    }
}

impl Supervised {
    fn notify_pending(&mut self) {
        if let Err(error) = self.manager.flush() {
            self.message(&format!("cannot notify the service manager: {error}"));
        }
    }
}

/// The hypervisor's terminal, connected to the console's clients and to this process's stdin and stdout.
struct Console {
    server: ConsoleServer,
    /// `None` after the hypervisor has closed its end.
    master: Option<File>,
    /// Input that the hypervisor has not yet read.
    input: VecDeque<u8>,
    stdin: Option<OwnTerminal>,
    stdout: OutputWriter,
}

/// The terminal of the user who started the machine.
struct OwnTerminal {
    input: OwnedFd,
    _raw: RawTerminal,
}

impl OwnTerminal {
    /// Returns stdin if it is a terminal. It is reopened, because the flags of stdin itself are shared with other
    /// programs.
    fn of_user() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let raw = RawTerminal::enter(&stdin).ok()?;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let input =
            open("/proc/self/fd/0", flags, Mode::empty()).ok().or_else(|| stdin.as_fd().try_clone_to_owned().ok());
        Some(Self { input: input?, _raw: raw })
    }
}

impl Console {
    fn new(server: ConsoleServer, master: File) -> Self {
        let stdout = OutputWriter::start(io::stdout());
        Self { server, master: Some(master), input: VecDeque::new(), stdin: OwnTerminal::of_user(), stdout }
    }

    fn typing(&self) -> InputState {
        if self.input.len() < MAX_INPUT_BYTES { InputState::Accepted } else { InputState::Held }
    }

    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let typing = self.typing();
        let mut interests = self.server.interests(typing);
        if let Some(master) = &self.master {
            let output = if self.input.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            interests.push((master.as_fd(), PollFlags::POLLIN | output));
        }
        if let (Some(stdin), InputState::Accepted) = (&self.stdin, typing) {
            interests.push((stdin.input.as_fd(), PollFlags::POLLIN));
        }
        interests
    }

    /// Does all work that does not block.
    fn serve(&mut self) {
        let typing = self.typing();
        if typing == InputState::Accepted {
            self.read_stdin();
        }
        let typed = self.server.serve(typing);
        self.input.extend(typed);
        self.type_input();
        self.print();
    }

    fn read_stdin(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        if !is_readable(stdin.input.as_fd()) {
            return;
        }
        let mut buffer = [0; 4096];
        match nix::unistd::read(&stdin.input, &mut buffer) {
            Ok(count) if count > 0 => self.input.extend(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // The terminal was closed.
            _ => self.stdin = None,
        }
    }

    fn type_input(&mut self) {
        let Some(master) = &mut self.master else {
            self.input.clear();
            return;
        };
        while !self.input.is_empty() {
            match master.write(self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                // The terminal is full, or closed, which the next read detects.
                Err(_) => return,
            }
        }
    }

    /// Forwards the hypervisor's output. The number of reads is limited, so that a hypervisor that never stops writing
    /// cannot block the rest of the loop.
    fn print(&mut self) {
        let mut buffer = [0; 16 << 10];
        for _ in 0..MAX_READS {
            let Some(master) = &mut self.master else { return };
            match master.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    self.server.print(&buffer[..count]);
                    self.stdout.push(&buffer[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // EIO: all descriptors of the other end are closed.
                _ => self.master = None,
            }
        }
    }
}

fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut descriptors = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
