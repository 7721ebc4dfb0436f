//! The processes that run beside a hypervisor, such as virtiofs daemons, and their supervisor: one for all processes of
//! a machine.
//!
//! A virtiofs daemon serves one connection and exits when it is closed. The supervisor restarts it, with a delay that
//! doubles after each failure.
//!
//! A start reuses a running process only if it provably runs the same command: the process that starts a daemon writes
//! the command into `SOCKET.command` next to its socket. A daemon of an earlier start could serve a directory that the
//! machine spec now forbids. Daemons are not left over: they end with the launcher, or with the hypervisor that it
//! becomes by exec.
//!
//! No process with root's rights creates a file in a directory that the machine's user can change. virtiofsd creates a
//! socket and `SOCKET.pid`, and follows symbolic links when it creates the latter; passt creates a socket and
//! `SOCKET.repair`, and leaves both behind. They create them in a private directory, and the launcher then moves the
//! socket to its place. passt closes all descriptors, so the private directory is its working directory. passt and the
//! server of the store disk run as the machine's user, if there is one. The directory that a virtiofs daemon serves is
//! opened in the same way: the daemon sees it in its own mount namespace.

mod proof;

use crate::interruption::{Interrupted, Interruption, end_group};
use crate::launch::{OnExit, SideProcess, SideProcessKind, VIEW};
use crate::path::HostPath;
use crate::programs::{NotInstalled, find_program, find_program_of_machine};
use crate::share_view::{ViewError, check_namespace};
use crate::sockets::{SocketError, is_bound, is_served, remove_stale, require_stale};
use crate::state::ProcessIdentity;
use crate::store_disk::named_in_environment;
use nix::sched::CloneFlags;
use nix::unistd::Group;
use program::child::{OnParentDeath, deny_others, pass_descriptors, prepare, show_directory, try_namespaces};
use program::place::{Directory, Place, PrivateDirectory, descriptor_path, require_not_modifiable_by};
use program::user::Identity;
use proof::{ServedCommand, command_place, is_proven};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use proof::serves_the_same;

/// How long a daemon may take to create its socket.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before looking for a socket again.
const SOCKET_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The options that precede the path of a socket: those of virtiofs daemons and of crosvm's graphics card, and those of
/// passt and of the server of the store disk.
const SOCKET_OPTIONS: [&str; 2] = ["--socket-path", "--socket"];
/// The option in a virtiofs daemon's arguments that precedes the directory that it serves.
const SHARED_OPTION: &str = "--shared-dir=";
/// The option in a virtiofs daemon's arguments that precedes the group of its socket.
const GROUP_OPTION: &str = "--socket-group=";
/// The option of a virtiofs daemon that selects how it isolates itself.
const SANDBOX_OPTION: &str = "--sandbox";
const FIRST_RESTART_DELAY: Duration = Duration::from_millis(100);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(10);
/// A daemon that has run this long is healthy: its next failure counts as the first.
const HEALTHY_RUN_TIME: Duration = Duration::from_secs(30);

/// Mode of a record that root writes. Any user who starts the machine must be able to check which command serves its
/// sockets.
const ROOTS_COMMAND_MODE: u32 = 0o644;
/// Mode of any other user's record, which is trusted only by this user.
const COMMAND_MODE: u32 = 0o600;

/// Why a process beside the hypervisor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SideProcessError {
    /// Its program is not installed.
    #[error("{name}: {source}")]
    NotInstalled {
        /// The process, as messages name it.
        name: String,
        /// The missing program.
        source: NotInstalled,
    },
    /// It cannot be started.
    #[error("{name}: {program}: {source}")]
    Start {
        /// The process, as messages name it.
        name: String,
        /// Its program.
        program: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The group that its socket is to belong to does not exist.
    #[error(
        "{name}: this host has no group `{group}`, to which its socket must belong; create the group, or set \
         microvm.virtiofsd.group to another one or to null"
    )]
    NoGroup {
        /// The process, as messages name it.
        name: String,
        /// The group.
        group: String,
    },
    /// It needs a user namespace, which the kernel does not allow.
    #[error(
        "{name}: {program} needs a user namespace, and the kernel does not allow one: {source}; allow them (sysctl \
         user.max_user_namespaces or kernel.unprivileged_userns_clone; on NixOS, microvm.host.machines.NAME.namespaces)"
    )]
    NoUserNamespace {
        /// The process, as messages name it.
        name: String,
        /// Its program.
        program: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The view of the store that it serves cannot be made.
    #[error("{name}: {source}")]
    View {
        /// The process, as messages name it.
        name: String,
        /// The error of the view.
        source: ViewError,
    },
    /// It ended before it had created its socket.
    #[error("{name}: {program} ended with {status} before it listened on {socket}; see its own messages")]
    Ended {
        /// The process, as messages name it.
        name: String,
        /// Its program.
        program: PathBuf,
        /// Its exit status.
        status: ExitStatus,
        /// Its socket.
        socket: HostPath,
    },
    /// It did not create its socket in time.
    #[error("{name}: {program} did not listen on {socket} within {} s", SOCKET_TIMEOUT.as_secs())]
    TooSlow {
        /// The process, as messages name it.
        name: String,
        /// Its program.
        program: PathBuf,
        /// Its socket.
        socket: HostPath,
    },
    /// Another process serves its socket.
    #[error(
        "{name}: another process serves {socket}, and nothing proves that it was started with this command; end that \
         process, or start it with `microvm virtiofsd` and this machine spec"
    )]
    Foreign {
        /// The process, as messages name it.
        name: String,
        /// Its socket.
        socket: HostPath,
    },
    /// The command could not be recorded next to its socket.
    #[error("{name}: {path}: {source}")]
    Command {
        /// The process, as messages name it.
        name: String,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file at the path of its socket is in the way.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// The program of a process: its own, or the image builder that the environment names.
pub fn program_of(process: &SideProcess) -> HostPath {
    if process.kind == SideProcessKind::ShareView
        && let Some(path) = this_program()
    {
        return path;
    }
    let named = (process.kind == SideProcessKind::StoreDisk).then(named_in_environment).flatten();
    named.unwrap_or_else(|| process.program.clone())
}

/// Finds the program of a process. Root does not run a program that the machine's user could replace.
fn find_trusted(
    process: &SideProcess,
    working_directory: &HostPath,
    client: Option<&Identity>,
) -> Result<PathBuf, SideProcessError> {
    let name = || process.description();
    let program = find_program_of_machine(&program_of(process), working_directory)
        .map_err(|source| SideProcessError::NotInstalled { name: name(), source })?;
    match client.filter(|_| !runs_as_client(process)) {
        Some(client) => match require_not_modifiable_by(&program, client) {
            Ok(()) => Ok(program),
            Err(source) => Err(SideProcessError::Start { name: name(), program, source }),
        },
        None => Ok(program),
    }
}

/// Checks that the kernel allows the namespaces that a process creates for itself.
fn check_namespaces(process: &SideProcess, program: &Path, client: Option<&Identity>) -> Result<(), SideProcessError> {
    let refused = |source| {
        let program = program.to_owned();
        SideProcessError::NoUserNamespace { name: process.description(), program, source }
    };
    if process.view.is_some() {
        return check_namespace().map_err(|source| SideProcessError::View { name: process.description(), source });
    }
    let is_root = nix::unistd::geteuid().is_root();
    match process.kind {
        // Started by root, it becomes the user nobody first: passt(1), --runas.
        SideProcessKind::Passt => {
            let nobody = Identity::of("nobody").ok().filter(|_| is_root);
            try_namespaces(CloneFlags::CLONE_NEWUSER, client.or(nobody.as_ref())).map_err(refused)
        }
        // Root's needs no user namespace, and the user's arguments can turn its sandbox off.
        SideProcessKind::Virtiofsd
            if !is_root && !process.arguments.iter().any(|word| word.starts_with(SANDBOX_OPTION)) =>
        {
            try_namespaces(CloneFlags::CLONE_NEWUSER, None).map_err(refused)
        }
        _ => Ok(()),
    }
}

/// Whether a process runs as the user who connects to its socket: it needs no more rights. The server of the store disk
/// reads what the guest reads.
fn runs_as_client(process: &SideProcess) -> bool {
    matches!(process.kind, SideProcessKind::StoreDisk | SideProcessKind::Passt)
}

/// Checks, without starting anything, that [`SideProcesses::start`] would not refuse to start the process.
///
/// # Errors
/// Returns [`SideProcessError`].
pub fn inspect(
    process: &SideProcess,
    working_directory: &HostPath,
    client: Option<&Identity>,
) -> Result<(), SideProcessError> {
    let socket = process.socket.below(working_directory);
    if is_served(socket.as_path()) {
        let is_the_same = serves_the_same(process, working_directory);
        return if is_the_same {
            Ok(())
        } else {
            Err(SideProcessError::Foreign { name: process.description(), socket })
        };
    }
    require_stale(socket.as_path())?;
    let program = find_trusted(process, working_directory, client)?;
    check_namespaces(process, &program, client)?;
    let checked = shared_directory(process, working_directory).map(drop);
    checked.map_err(|source| SideProcessError::Start { name: process.description(), program, source })
}

/// Opens the directory that a virtiofs daemon serves with root's rights. The machine's user may be able to replace the
/// directory by a symbolic link, also while the machine runs, because a daemon is started again for each connection.
fn shared_directory(process: &SideProcess, working_directory: &HostPath) -> io::Result<Option<Directory>> {
    let has_own_view = process.view.is_some() || process.kind != SideProcessKind::Virtiofsd;
    if has_own_view || !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let named = process.arguments.iter().find_map(|argument| argument.strip_prefix(SHARED_OPTION));
    let Some(path) = named.map(|path| HostPath::from(path).below(working_directory)) else { return Ok(None) };
    let opened = Directory::open(path.as_path());
    opened.map(Some).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

/// Returns the group to which a virtiofs daemon gives its socket.
fn socket_group(process: &SideProcess) -> Option<&str> {
    process.arguments.iter().filter_map(|argument| argument.strip_prefix(GROUP_OPTION)).next_back()
}

/// Returns the group of a virtiofs daemon's socket if this host does not have it. If the groups cannot be read, the
/// daemon reports what is wrong.
pub fn missing_group(process: &SideProcess) -> Option<&str> {
    socket_group(process).filter(|group| matches!(Group::from_name(group), Ok(None)))
}

/// Checks that the group of a virtiofs daemon's socket exists. The daemon creates the socket before it looks for the
/// group, so that it would seem to serve for a moment, and would end and be restarted for ever.
fn check_group(process: &SideProcess) -> Result<(), SideProcessError> {
    match missing_group(process) {
        Some(group) => Err(SideProcessError::NoGroup { name: process.description(), group: group.to_owned() }),
        None => Ok(()),
    }
}

/// The program file of this process.
fn this_program() -> Option<HostPath> {
    std::env::current_exe().ok().and_then(|path| Some(HostPath::new(path.to_str()?)))
}

/// All processes beside one hypervisor. Dropping this ends them.
#[derive(Debug, Default)]
pub struct SideProcesses {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    process: SideProcess,
    program: PathBuf,
    socket: HostPath,
    working_directory: HostPath,
    /// The user who connects to the socket, if it is another user.
    client: Option<Identity>,
    child: Option<Child>,
    started: Instant,
    delay: Duration,
    start_again: Option<Instant>,
    /// The directory in which the process creates its socket, until the socket is moved to its place.
    private: Option<PrivateDirectory>,
    /// Whether its command is recorded next to its socket.
    is_noted: bool,
    /// How it failed, if the guest cannot go on without it and it is not started again.
    loss: Option<String>,
}

impl SideProcesses {
    /// Starts the processes that are not yet running with the same command, and waits until all sockets are served. The
    /// sockets are given to `client`, the user who runs the hypervisor, if it is another user.
    ///
    /// # Errors
    /// Returns [`SideProcessError`]; the processes that were started are then ended.
    pub fn start(
        processes: &[SideProcess],
        working_directory: &HostPath,
        client: Option<&Identity>,
        interruption: &Interruption,
    ) -> Result<Self, SideProcessError> {
        let mut started = Self::default();
        for process in processes {
            let socket = process.socket.below(working_directory);
            if is_served(socket.as_path()) {
                if is_proven(process, working_directory, interruption)? {
                    continue;
                }
                return Err(SideProcessError::Foreign { name: process.description(), socket });
            }
            remove_stale(socket.as_path())?;
            check_group(process)?;
            let missing = |source| SideProcessError::NotInstalled { name: process.description(), source };
            let mut program = find_trusted(process, working_directory, client)?;
            check_namespaces(process, &program, client)?;
            if process.view.is_some() {
                let this = this_program().unwrap_or_else(|| HostPath::from("microvm"));
                program = find_program(&this).map_err(missing)?;
            }
            let mut entry = Entry {
                process: process.clone(),
                program,
                socket,
                working_directory: working_directory.clone(),
                client: client.cloned(),
                child: None,
                started: Instant::now(),
                delay: FIRST_RESTART_DELAY,
                start_again: None,
                private: None,
                is_noted: false,
                loss: None,
            };
            entry.spawn()?;
            started.entries.push(entry);
        }
        started.wait_for_sockets(interruption)?;
        Ok(started)
    }

    /// Whether there are no processes.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The processes that this launcher has started and that run.
    pub fn identities(&self) -> Vec<ProcessIdentity> {
        let children = self.entries.iter().filter_map(|entry| i32::try_from(entry.child.as_ref()?.id()).ok());
        children.filter_map(|pid| ProcessIdentity::of(pid).ok()).collect()
    }

    /// The sockets of the processes that this launcher has started.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &HostPath> {
        self.entries.iter().map(|entry| &entry.socket)
    }

    /// Returns how a process failed without which the guest cannot go on.
    pub fn loss(&self) -> Option<&str> {
        self.entries.iter().find_map(|entry| entry.loss.as_deref())
    }

    /// Reaps processes that are not restarted, after the hypervisor has ended. Returns messages for the user.
    pub fn finish(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        let entries = self.entries.iter_mut().filter(|entry| entry.process.on_exit == OnExit::Report);
        entries.for_each(|entry| entry.reap(&mut events));
        events
    }

    /// Reaps processes that have ended, and restarts those whose delay is over. Returns messages for the user, and when
    /// to call this again.
    pub fn supervise(&mut self) -> (Vec<String>, Option<Instant>) {
        let mut events = Vec::new();
        for entry in &mut self.entries {
            entry.reap(&mut events);
            entry.record_command();
            if entry.start_again.is_some_and(|time| time <= Instant::now()) {
                entry.start_again = None;
                if let Err(error) =
                    remove_stale(entry.socket.as_path()).map_err(Into::into).and_then(|()| entry.spawn())
                {
                    events.push(error.to_string());
                    entry.start_later();
                }
            }
        }
        (events, self.entries.iter().filter_map(Entry::poll).min())
    }

    fn wait_for_sockets(&mut self, interruption: &Interruption) -> Result<(), SideProcessError> {
        let end = Instant::now() + SOCKET_TIMEOUT;
        for entry in &mut self.entries {
            while !entry.serves() {
                if let Some(status) = entry.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                    return Err(SideProcessError::Ended {
                        name: entry.process.description(),
                        program: entry.program.clone(),
                        status,
                        socket: entry.socket.clone(),
                    });
                }
                if Instant::now() > end {
                    return Err(SideProcessError::TooSlow {
                        name: entry.process.description(),
                        program: entry.program.clone(),
                        socket: entry.socket.clone(),
                    });
                }
                interruption.pause(Duration::from_millis(2))?;
            }
            entry.write_command()?;
            entry.is_noted = true;
        }
        Ok(())
    }
}

impl Drop for SideProcesses {
    fn drop(&mut self) {
        for entry in &mut self.entries {
            if let Some(child) = &mut entry.child {
                end_group(child);
            }
            // A daemon leaves its socket behind, although nothing listens on it any more.
            let _ = remove_stale(entry.socket.as_path());
            let _ = command_place(entry.socket.as_path()).and_then(|place| place.remove());
            if let Some(view) = &entry.process.view {
                let _ = remove_stale(view.control.below(&entry.working_directory).as_path());
            }
        }
    }
}

/// Removes a socket that a process of an earlier run has left behind, and the record beside it. Leaves those that a process
/// serves now.
///
/// # Errors
/// Returns [`SocketError`].
pub(crate) fn remove_left_over(socket: &Path) -> Result<(), SocketError> {
    remove_stale(socket)?;
    let removed = command_place(socket).and_then(|place| place.remove());
    removed.map_err(|source| SocketError::File { path: socket.to_owned(), source })
}

impl Entry {
    fn spawn(&mut self) -> Result<(), SideProcessError> {
        let failed = |source| SideProcessError::Start {
            name: self.process.description(),
            program: self.program.clone(),
            source,
        };
        let mut command = Command::new(&self.program);
        let (private, mut arguments) = self.private_socket().map_err(failed)?;
        let shared = shared_directory(&self.process, &self.working_directory).map_err(failed)?;
        if let Some(directory) = &shared {
            let seen = show_to(&mut command, directory).map_err(failed)?;
            let named = arguments.iter_mut().find(|argument| argument.starts_with(SHARED_OPTION));
            named.into_iter().for_each(|argument| *argument = format!("{SHARED_OPTION}{}", seen.display()));
        }
        command.args(arguments).current_dir(self.working_directory.as_path()).stdin(Stdio::null());
        match &private {
            Some(private) if self.process.kind == SideProcessKind::Passt => {
                command.current_dir(private.descriptor_path());
            }
            Some(private) => pass_descriptors(&mut command, vec![private.number()]),
            None => {}
        }
        // Not inherited, because stdout is the guest's console.
        let stderr = std::os::fd::AsFd::as_fd(&io::stderr()).try_clone_to_owned().map_err(failed)?;
        command.stdout(stderr).process_group(0);
        let user = self.client.clone().filter(|_| runs_as_client(&self.process));
        // Ends with the launcher, or with the hypervisor that it becomes by exec: both are the same process.
        prepare(&mut command, OnParentDeath::Terminate, user);
        deny_others(&mut command);
        self.child = Some(command.spawn().map_err(failed)?);
        self.started = Instant::now();
        self.is_noted = false;
        self.private = private;
        Ok(())
    }

    /// Creates the directory for the daemon's socket, and returns it with the arguments that use it.
    fn private_socket(&self) -> io::Result<(Option<PrivateDirectory>, Vec<String>)> {
        let mut arguments = self.process.all_arguments();
        // A virtiofs daemon sets the group by the path of the socket, after it has begun to listen, and ends if the
        // socket has been moved by then. So the launcher sets it.
        arguments.retain(|argument| !argument.starts_with(GROUP_OPTION));
        let socket = self.process.socket.as_str();
        let names_socket = |(index, argument): (usize, &String)| {
            SOCKET_OPTIONS.iter().any(|option| {
                let joined = argument.strip_prefix(option).and_then(|rest| rest.strip_prefix('='));
                joined == Some(socket) || (argument == socket && index > 0 && arguments[index - 1] == *option)
            })
        };
        let position = arguments.iter().enumerate().position(names_socket);
        let is_passt = self.process.kind == SideProcessKind::Passt;
        // Anyone else who creates a socket in that user's directory can create it directly.
        let creates_directly = self.client.is_some() && runs_as_client(&self.process) && !is_passt;
        let Some(argument) = position.and_then(|position| arguments.get_mut(position)).filter(|_| !creates_directly)
        else {
            return Ok((None, arguments));
        };
        let private = PrivateDirectory::make(Place::nofollow(self.socket.as_path())?.directory().try_clone()?)?;
        if let Some(client) = self.client.as_ref().filter(|_| runs_as_client(&self.process)) {
            private.give_to(client)?;
        }
        let inside = if is_passt { PathBuf::from(private.name()) } else { private.path_of(private.name()) };
        let prefix = argument.strip_suffix(socket).unwrap_or_default();
        *argument = format!("{prefix}{}", inside.display());
        Ok((Some(private), arguments))
    }

    /// Whether the process listens on its socket, moved or not.
    fn serves(&self) -> bool {
        match &self.private {
            Some(private) => {
                let socket = private.path_of(private.name());
                is_bound(&socket) || is_served(&socket)
            }
            None => is_served(self.socket.as_path()),
        }
    }

    /// Moves the socket to its place, and gives it to its client.
    fn publish(&mut self) -> io::Result<()> {
        let Some(private) = &self.private else { return self.give_socket() };
        let made = private.place(private.name())?;
        if let Some(client) = self.client.as_ref().filter(|_| !runs_as_client(&self.process)) {
            made.give_socket(client)?;
        }
        let group = socket_group(&self.process).and_then(|name| Group::from_name(name).ok().flatten());
        if let Some(group) = group {
            made.open_socket_to_group(group.gid)?;
        }
        made.rename_to(&Place::nofollow(self.socket.as_path())?)?;
        self.private = None;
        Ok(())
    }

    /// Returns when to check this process again.
    fn poll(&self) -> Option<Instant> {
        let waits = self.child.is_some() && !self.is_noted && self.started.elapsed() < SOCKET_TIMEOUT;
        self.start_again.or_else(|| waits.then(|| Instant::now() + SOCKET_POLL_INTERVAL))
    }

    /// Records the command again after a restart, because the daemon has created another socket.
    fn record_command(&mut self) {
        if self.is_noted || self.child.is_none() || !self.serves() {
            return;
        }
        // Without the record, another launcher refuses to use this daemon; nothing else depends on it.
        self.is_noted = self.write_command().is_ok();
    }

    /// The sockets of root's daemons accept connections only from root.
    fn give_socket(&self) -> io::Result<()> {
        match &self.client {
            Some(client) if !runs_as_client(&self.process) && self.process.kind != SideProcessKind::ShareView => {
                Place::nofollow(self.socket.as_path())?.give_socket(client)
            }
            _ => Ok(()),
        }
    }

    fn write_command(&mut self) -> Result<(), SideProcessError> {
        let given = self.publish();
        let written =
            given.and_then(|()| ServedCommand::of(&self.process, &self.working_directory)).and_then(|command| {
                let text = serde_json::to_vec(&command)?;
                let mode = if nix::unistd::geteuid().is_root() { ROOTS_COMMAND_MODE } else { COMMAND_MODE };
                command_place(self.socket.as_path())?.replace(&text, mode, None)
            });
        written.map_err(|source| SideProcessError::Command {
            name: self.process.description(),
            path: self.socket.as_path().to_owned(),
            source,
        })
    }

    fn reap(&mut self, events: &mut Vec<String>) {
        let Some(child) = &mut self.child else { return };
        let Ok(Some(status)) = child.try_wait() else { return };
        self.child = None;
        if self.process.on_exit == OnExit::Report {
            // Without an error it has ended because the hypervisor has.
            if !status.success() {
                let failure = format!("{} ended with {status}", self.process.description());
                let effect = if self.process.kind == SideProcessKind::ShareView {
                    "no path can be added to it, and the guest may be unable to read it"
                } else {
                    self.loss = Some(failure.clone());
                    "this hypervisor does not reconnect: the guest cannot read its store any more"
                };
                events.push(format!("{failure}, and {effect}; stop the machine and start it again"));
            }
            return;
        }
        if status.success() || self.started.elapsed() >= HEALTHY_RUN_TIME {
            self.delay = FIRST_RESTART_DELAY;
        }
        // The server of the store disk ends without an error when the hypervisor does.
        if status.success() && self.process.kind == SideProcessKind::StoreDisk {
            return self.start_later();
        }
        events.push(format!(
            "{} ended with {status}; starting it again in {} ms",
            self.process.description(),
            self.delay.as_millis()
        ));
        self.start_later();
    }

    fn start_later(&mut self) {
        self.start_again = Some(Instant::now() + self.delay);
        self.delay = (self.delay * 2).min(MAX_RESTART_DELAY);
    }
}

/// Makes the command see this directory, and not what has its name later. Returns the path at which it sees it.
fn show_to(command: &mut Command, directory: &Directory) -> io::Result<PathBuf> {
    match show_directory(command, directory, Path::new(VIEW)) {
        Ok(()) => Ok(VIEW.into()),
        // Root may not mount in some containers, or the kernel is too old for it.
        Err(error) if [io::ErrorKind::PermissionDenied, io::ErrorKind::Unsupported].contains(&error.kind()) => {
            pass_descriptors(command, vec![directory.as_raw_fd()]);
            Ok(descriptor_path(directory))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
