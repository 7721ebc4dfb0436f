//! The state of machines that start or run: one directory per machine in the runtime directory, which is empty after a
//! reboot.
//!
//! `stop`, `status`, `console` and `balloon` find a machine here by its name. A machine runs if the recorded process is
//! alive and is still the same process: the start time distinguishes it from a later process with the same process id.
//! Only [`MachineState::activity`] decides whether a machine runs.

mod failure;
mod process;
mod recorder;
mod request;

pub use failure::RunFailure;
pub use process::ProcessIdentity;
pub(crate) use process::{proc_file, unix_seconds};
pub use request::{RecordedStop, StartRequest};

use failure::FAILURES;
use recorder::own_records;
use request::{REQUEST, STOP};

use crate::launch::{Launch, STAMP};
use crate::name::{BadMachineName, MachineName};
use crate::network::CreatedInterface;
use crate::stamp::Stamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{AccessFlags, Uid, access, geteuid};
use program::escape::excerpt;
use program::place::{Directory, MAX_READ_BYTES, Place};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for a supervisor that cleans up after its machine.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// The most characters of a parser's error that are shown.
const MAX_REASON_CHARACTERS: usize = 200;
/// The file that is locked while a launcher starts or supervises the machine.
const LOCK: &str = "lock";
/// The file that contains the [`RunningMachine`].
const PROCESS: &str = "process.json";
/// The file that contains the [`StartingMachine`].
const STARTING: &str = "starting.json";
/// The file that contains the [`StartingMachine`] of a start that waits for the supervisor of the last run.
const WAITING: &str = "waiting.json";
/// The socket of the console, if the spec names none.
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
/// The file that contains the most recent [`Launch`].
const LAUNCH: &str = "launch.json";

/// Why the state of a machine cannot be read or written, or the machine cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No variable names a runtime directory, and this user cannot use `/run/microvm`.
    #[error("there is no runtime directory: set XDG_RUNTIME_DIR or MICROVM_RUNTIME_DIR to a directory that you own")]
    NoRuntimeDirectory,
    /// A name that is invalid or could point outside the runtime directory.
    #[error(transparent)]
    BadName(#[from] BadMachineName),
    /// The machine is running.
    #[error("{name} is already running, as process {pid}{}", elsewhere(.directory.as_deref()))]
    Running {
        /// The machine.
        name: String,
        /// Its process.
        pid: i32,
        /// Its state directory, if that is not the directory of this start.
        directory: Option<PathBuf>,
    },
    /// Another launcher is starting the machine.
    #[error("{0} is being started by another process")]
    Starting(String),
    /// A file operation failed.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A state file that is damaged or was written by another release.
    #[error("{path}: {reason}; remove it if no machine runs from it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the JSON parser, shortened: it quotes values of the machine's user.
        reason: String,
    },
}

fn elsewhere(directory: Option<&Path>) -> String {
    let Some(directory) = directory else { return String::new() };
    format!(" in {}; give this one another name with --name", directory.display())
}

/// The processes and interfaces of a running machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunningMachine {
    /// The hypervisor.
    pub hypervisor: ProcessIdentity,
    /// The launcher that supervises it; null if the launcher has become the hypervisor by exec.
    pub supervisor: Option<ProcessIdentity>,
    /// When it was started, in seconds since 1970.
    pub started_unix_seconds: u64,
    /// The socket that serves its console.
    pub console_socket: Option<PathBuf>,
    /// Whether the guest has reported that it has booted; null if the machine spec does not ask it to report.
    pub guest_ready: Option<bool>,
    /// The network interfaces that were created for it. They are removed when it ends.
    #[serde(default)]
    pub interfaces: Vec<CreatedInterface>,
}

/// A machine that is being started. Its hypervisor is not running yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartingMachine {
    /// The launcher that starts it.
    pub launcher: ProcessIdentity,
    /// The machine's state directory.
    pub working_directory: PathBuf,
    /// The network interfaces that were created for it so far.
    pub interfaces: Vec<CreatedInterface>,
}

/// What a machine is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// None of its processes is alive.
    Stopped,
    /// A launcher is preparing the start.
    Starting(StartingMachine),
    /// Its hypervisor is alive.
    Running(RunningMachine),
}

impl Activity {
    /// Returns the processes if the machine runs.
    pub fn running(&self) -> Option<&RunningMachine> {
        match self {
            Self::Running(machine) => Some(machine),
            Self::Stopped | Self::Starting(_) => None,
        }
    }
}

/// The directory that contains one directory per machine.
#[derive(Clone, Debug)]
pub struct RuntimeDirectory(PathBuf);

impl RuntimeDirectory {
    /// Returns the first of `$MICROVM_RUNTIME_DIR`, `/run/microvm` for root, `$XDG_RUNTIME_DIR/microvm`,
    /// `/run/user/UID/microvm` if the user has logged in, and `/run/microvm` if this user can enter it (a service manager
    /// creates it).
    ///
    /// # Errors
    /// Returns [`StateError::NoRuntimeDirectory`] if none of them is available.
    pub fn locate() -> Result<Self, StateError> {
        let of_system = PathBuf::from("/run/microvm");
        if let Some(directory) = std::env::var_os("MICROVM_RUNTIME_DIR").filter(|value| !value.is_empty()) {
            return Ok(Self(directory.into()));
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(Self(of_system));
        }
        if let Some(directory) = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
            return Ok(Self(PathBuf::from(directory).join("microvm")));
        }
        // `su` and `sudo` leave the variable unset, but systemd-logind has created the directory if the user has logged in.
        let of_session = PathBuf::from(format!("/run/user/{}", geteuid()));
        if fs::metadata(&of_session).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw()) {
            return Ok(Self(of_session.join("microvm")));
        }
        if access(&of_system, AccessFlags::X_OK).is_ok() {
            Ok(Self(of_system))
        } else {
            Err(StateError::NoRuntimeDirectory)
        }
    }

    /// Uses the given directory.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the state of one machine, which need not exist.
    ///
    /// # Errors
    /// Returns [`StateError::BadName`].
    pub fn machine(&self, name: &str) -> Result<MachineState, StateError> {
        let name = MachineName::new(name)?;
        let directory = self.0.join(name.as_str());
        Ok(MachineState { name, directory })
    }

    /// Returns the names of the recorded machines, sorted. A missing directory counts as empty.
    ///
    /// # Errors
    /// Returns [`StateError::File`].
    pub fn machine_names(&self) -> Result<Vec<String>, StateError> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StateError::File { path: self.0.clone(), source }),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| self.machine(name).is_ok_and(|machine| machine.directory.is_dir()))
            .collect();
        names.sort();
        Ok(names)
    }
}

/// The state of one machine.
#[derive(Clone, Debug)]
pub struct MachineState {
    name: MachineName,
    directory: PathBuf,
}

/// Prevents all other launchers from starting the machine while it is held.
#[derive(Debug)]
pub struct StartLock {
    state: MachineState,
    starting: StartingMachine,
    request: StartRequest,
    _lock: Flock<File>,
}

/// Prevents a start of the machine while it is held.
#[derive(Debug)]
pub(crate) struct CleanUpLock {
    /// `None` if a machine of the same name runs in another directory.
    _lock: Option<Flock<File>>,
}

impl StartLock {
    /// Returns the interfaces of an earlier run that were not removed.
    pub fn left_over_interfaces(&self) -> &[CreatedInterface] {
        &self.starting.interfaces
    }

    /// Returns the runtime directory that contains the machine's state.
    pub fn runtime(&self) -> RuntimeDirectory {
        self.state.runtime()
    }

    /// Returns what the caller asks of this start.
    pub fn request(&self) -> StartRequest {
        self.request
    }

    /// Records why the start failed.
    pub(crate) fn record_failure(&self, problems: Vec<String>) {
        self.state.write_failure(problems, &self.starting.working_directory);
    }

    /// Records the network interfaces that were created, so that they can be removed even if this process is killed.
    ///
    /// # Errors
    /// Returns [`StateError::File`].
    pub fn record_interfaces(&mut self, interfaces: &[CreatedInterface]) -> Result<(), StateError> {
        self.starting.interfaces = interfaces.to_vec();
        self.state.write(STARTING, &self.starting)
    }
}

impl Drop for StartLock {
    fn drop(&mut self) {
        self.state.remove(STARTING);
    }
}

impl MachineState {
    /// Returns the machine's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Returns the runtime directory that contains the machine's state.
    pub fn runtime(&self) -> RuntimeDirectory {
        RuntimeDirectory::at(self.directory.parent().unwrap_or(&self.directory))
    }

    /// Returns the directory that contains its state.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of a state file of this machine.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns the paths of all files in which this module records the machine.
    pub fn records(&self) -> impl Iterator<Item = PathBuf> {
        [LOCK, PROCESS, STARTING, WAITING, LAUNCH, STAMP, FAILURES, REQUEST, STOP]
            .into_iter()
            .map(|name| self.file(name))
    }

    /// Locks the machine for a start by this process. Refuses if it runs or another launcher starts it.
    ///
    /// # Errors
    /// Returns [`StateError::Running`], [`StateError::Starting`], or [`StateError::File`].
    pub fn lock_for_start(&self, working_directory: &Path) -> Result<StartLock, StateError> {
        self.lock_for_start_unless(working_directory, || false)
    }

    /// As [`Self::lock_for_start`], but does not wait any longer once the start is cancelled.
    pub(crate) fn lock_for_start_unless(
        &self,
        working_directory: &Path,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<StartLock, StateError> {
        let failed = |path: &Path, source| StateError::File { path: path.to_owned(), source };
        // Before the records become root's: a supervisor of another user still needs them.
        self.require_stopped(working_directory)?;
        let directory =
            Directory::make(&self.directory, 0o750, None).map_err(|error| failed(&self.directory, error))?;
        own_records(&directory).map_err(|error| failed(&self.directory, error))?;
        let path = self.file(LOCK);
        let file = directory.place(LOCK).open_or_create(0o600).map_err(|error| failed(&path, error))?;
        let lock = self.wait_for_lock(file, working_directory, is_cancelled)?;
        let launcher = ProcessIdentity::current().map_err(|error| failed(&self.directory, error))?;
        let interfaces = self.left_over_interfaces()?;
        let starting = StartingMachine { launcher, working_directory: working_directory.to_owned(), interfaces };
        self.write(STARTING, &starting)?;
        let request = self.request()?;
        self.clear_request();
        self.clear_stop_request();
        self.clear_failure_in(working_directory);
        Ok(StartLock { state: self.clone(), starting, request, _lock: lock })
    }

    /// Locks the machine so that no start in that directory begins while something is removed there. Returns `None` if a
    /// start in that directory has begun: what is there now is its own.
    ///
    /// # Errors
    /// Returns [`StateError`].
    pub(crate) fn lock_to_clean_up(&self, working_directory: &Path) -> Result<Option<CleanUpLock>, StateError> {
        let failed = |source| StateError::File { path: self.file(LOCK), source };
        let end = Instant::now() + CLEAN_UP_TIMEOUT;
        let place = Place::nofollow(&self.file(LOCK)).map_err(failed)?;
        // Missing if only the records of a machine were restored.
        let open = || place.open_or_create(0o600).map_err(failed);
        loop {
            let lock = match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Some(lock),
                Err((_, Errno::EWOULDBLOCK)) => None,
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            if self.activity_of_holder()? != Activity::Stopped {
                // A machine of the same name in another directory has other files.
                let is_elsewhere =
                    self.working_directory()?.is_some_and(|other| !is_same_directory(&other, working_directory));
                return Ok(is_elsewhere.then_some(CleanUpLock { _lock: lock }));
            }
            if lock.is_some() {
                return Ok(Some(CleanUpLock { _lock: lock }));
            }
            // A start has just begun, or has failed and ends.
            if Instant::now() > end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Refuses a start in that directory if the machine runs or another launcher starts it.
    ///
    /// # Errors
    /// Returns [`StateError::Running`], [`StateError::Starting`], or an error of the state files.
    pub fn require_stopped(&self, working_directory: &Path) -> Result<(), StateError> {
        self.refuse(self.activity()?, working_directory)
    }

    fn refuse(&self, activity: Activity, working_directory: &Path) -> Result<(), StateError> {
        match activity {
            Activity::Running(running) => {
                let other = self.last_launch()?.map(|launch| launch.working_directory.as_path().to_owned());
                let directory = other.filter(|other| !is_same_directory(other, working_directory));
                let (name, pid) = (self.name.to_string(), running.hypervisor.pid);
                Err(StateError::Running { name, pid, directory })
            }
            Activity::Starting(_) => Err(StateError::Starting(self.name.to_string())),
            Activity::Stopped => Ok(()),
        }
    }

    /// Waits for the lock: a supervisor holds it until it has cleaned up after its machine, which takes a moment.
    fn wait_for_lock(
        &self,
        mut file: File,
        working_directory: &Path,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<Flock<File>, StateError> {
        let end = Instant::now() + CLEAN_UP_TIMEOUT;
        let mut waiting = None;
        loop {
            let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
            self.refuse(self.activity_of_holder()?, working_directory)?;
            match lock {
                Ok(lock) => return Ok(lock),
                Err((again, Errno::EWOULDBLOCK)) if Instant::now() < end && !is_cancelled() => file = again,
                Err((_, Errno::EWOULDBLOCK)) => return Err(StateError::Starting(self.name.to_string())),
                Err((_, errno)) => return Err(StateError::File { path: self.file(LOCK), source: errno.into() }),
            }
            if waiting.is_none() {
                waiting = Some(WaitingStart::record(self, working_directory)?);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns what the machine is doing.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn activity(&self) -> Result<Activity, StateError> {
        let activity = self.activity_of_holder()?;
        if activity != Activity::Stopped {
            return Ok(activity);
        }
        let waiting: Option<(StartingMachine, Uid)> = self.read(WAITING)?;
        let waiting = waiting.filter(|(machine, writer)| is_of(&machine.launcher, *writer));
        Ok(waiting.map_or(Activity::Stopped, |(machine, _)| Activity::Starting(machine)))
    }

    /// As [`Self::activity`], but a start that still waits for the lock does not count.
    fn activity_of_holder(&self) -> Result<Activity, StateError> {
        // In this order, because the record of the start is removed only after the record of the hypervisor is written.
        let starting: Option<(StartingMachine, Uid)> = self.read(STARTING)?;
        let running: Option<(RunningMachine, Uid)> = self.read(PROCESS)?;
        if let Some((machine, writer)) = running
            && is_of(&machine.hypervisor, writer)
            && machine.supervisor.is_none_or(|supervisor| !supervisor.is_alive() || is_of(&supervisor, writer))
        {
            return Ok(Activity::Running(machine));
        }
        if let Some((machine, writer)) = starting
            && is_of(&machine.launcher, writer)
        {
            return Ok(Activity::Starting(machine));
        }
        Ok(Activity::Stopped)
    }

    /// Returns the machine's processes, if its hypervisor is alive.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn running(&self) -> Result<Option<RunningMachine>, StateError> {
        Ok(self.activity()?.running().cloned())
    }

    /// Returns the state directory with which the machine starts, runs, or ran last.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn working_directory(&self) -> Result<Option<PathBuf>, StateError> {
        match self.activity()? {
            Activity::Starting(machine) => Ok(Some(machine.working_directory)),
            _ => Ok(self.last_launch()?.map(|launch| launch.working_directory.as_path().to_owned())),
        }
    }

    /// Returns the interfaces that were created for the machine and not removed, because the launcher or supervisor was
    /// killed. Empty while the machine starts or runs.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn left_over_interfaces(&self) -> Result<Vec<CreatedInterface>, StateError> {
        if self.activity_of_holder()? != Activity::Stopped {
            return Ok(Vec::new());
        }
        let starting: Option<(StartingMachine, Uid)> = self.read(STARTING)?;
        let running: Option<(RunningMachine, Uid)> = self.read(PROCESS)?;
        let recorded = starting
            .map(|(machine, writer)| (machine.interfaces, writer))
            .into_iter()
            .chain(running.map(|(machine, writer)| (machine.interfaces, writer)));
        // Only records of this user count: nobody may make another user, and root in particular, remove an interface.
        let own = recorded.filter(|(_, writer)| *writer == geteuid());
        Ok(own.flat_map(|(interfaces, _)| interfaces).collect())
    }

    /// Returns the most recent launch, whether or not the machine still runs.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn last_launch(&self) -> Result<Option<Launch>, StateError> {
        Ok(self.read(LAUNCH)?.map(|(launch, _)| launch))
    }

    /// Records a launch before it starts.
    ///
    /// # Errors
    /// Returns [`StateError::File`].
    pub fn write_launch(&self, launch: &Launch) -> Result<(), StateError> {
        self.write(LAUNCH, launch)
    }

    /// Records what a machine that starts depends on, so that it can be suspended. Must follow [`Self::write_launch`].
    ///
    /// # Errors
    /// Returns [`StateError::File`].
    pub fn write_stamp(&self, stamp: &Stamp) -> Result<(), StateError> {
        self.write(STAMP, stamp)
    }

    /// Returns the most recent launch and what the machine depends on, or `None` if another user has recorded them: that
    /// user must not choose the directory in which this user saves a machine.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn started_with(&self) -> Result<Option<(Launch, Option<Stamp>)>, StateError> {
        let launch: Option<(Launch, Uid)> = self.read(LAUNCH)?;
        let stamp: Option<(Stamp, Uid)> = if self.has_stamp() { self.read(STAMP)? } else { None };
        let own = |writer: Uid| writer == geteuid();
        let launch = launch.filter(|(_, writer)| own(*writer));
        let stamp = stamp.filter(|(_, writer)| own(*writer)).map(|(stamp, _)| stamp);
        Ok(launch.map(|(launch, _)| (launch, stamp)))
    }

    /// Returns what the machine depends on, also if another user has recorded it.
    ///
    /// # Errors
    /// Returns [`StateError::File`] or [`StateError::Unreadable`].
    pub fn recorded_stamp(&self) -> Result<Option<Stamp>, StateError> {
        if !self.has_stamp() {
            return Ok(None);
        }
        Ok(self.read(STAMP)?.map(|(stamp, _)| stamp))
    }

    /// Whether the stamp belongs to the most recent launch, after which it is written. Release 0.1 wrote a launch only,
    /// and left the stamp of an earlier start.
    fn has_stamp(&self) -> bool {
        let modified = |name: &str| {
            let found = Place::nofollow(&self.file(name)).and_then(|place| place.stat()).ok().flatten();
            found.map(|stat| (stat.st_mtime, stat.st_mtime_nsec))
        };
        modified(STAMP).is_some_and(|stamp| modified(LAUNCH).is_none_or(|launch| launch <= stamp))
    }

    /// Records the processes. From then on the machine counts as running, not as starting.
    ///
    /// # Errors
    /// Returns [`StateError::File`].
    pub fn write_running(&self, machine: &RunningMachine) -> Result<(), StateError> {
        self.write(PROCESS, machine)?;
        self.remove(STARTING);
        Ok(())
    }

    /// Removes the record of the processes. The record of the launch stays, for the user to read.
    pub fn clear_running(&self) {
        self.remove(PROCESS);
        self.remove(STARTING);
        self.clear_stop_request();
    }

    fn remove(&self, name: &str) {
        // A record that cannot be removed belongs to a dead process and is ignored.
        let _ = Place::nofollow(&self.file(name)).and_then(|place| place.remove());
    }

    /// Reads a state file, and returns its content and its owner.
    fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Option<(T, Uid)>, StateError> {
        self.read_at_most(name, MAX_READ_BYTES)
    }

    fn read_at_most<T: for<'de> Deserialize<'de>>(
        &self,
        name: &str,
        limit_bytes: u64,
    ) -> Result<Option<(T, Uid)>, StateError> {
        let path = self.file(name);
        match Place::nofollow(&path).and_then(|place| place.read_at_most(limit_bytes)) {
            Ok(Some((text, writer))) => match serde_json::from_slice(&text) {
                Ok(value) => Ok(Some((value, writer))),
                Err(error) => Err(StateError::Unreadable { path, reason: parser_reason(&error) }),
            },
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::File { path, source }),
        }
    }

    /// Writes a state file atomically.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let path = self.file(name);
        let written = serde_json::to_vec_pretty(value).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            Place::nofollow(&path)?.replace(&text, 0o640, None)
        });
        written.map_err(|source| StateError::File { path, source })
    }
}

/// A start that waits for the lock, so that `stop` finds it. Its record is removed when this is dropped.
struct WaitingStart<'a>(&'a MachineState);

impl<'a> WaitingStart<'a> {
    fn record(state: &'a MachineState, working_directory: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::File { path: state.directory.clone(), source };
        let launcher = ProcessIdentity::current().map_err(failed)?;
        let working_directory = working_directory.to_owned();
        state.write(WAITING, &StartingMachine { launcher, working_directory, interfaces: Vec::new() })?;
        Ok(Self(state))
    }
}

impl Drop for WaitingStart<'_> {
    fn drop(&mut self) {
        self.0.remove(WAITING);
    }
}

/// Whether a process is alive, and the writer of the record that names it may signal it: a machine's user must not make
/// root signal another user's process.
fn is_of(process: &ProcessIdentity, writer: Uid) -> bool {
    process.is_alive() && (writer.is_root() || process.user().is_ok_and(|user| user == writer))
}

/// Returns the error of a JSON parser for a record that another user may have written.
pub(crate) fn parser_reason(error: &serde_json::Error) -> String {
    excerpt(&error.to_string(), MAX_REASON_CHARACTERS).into_owned()
}

/// Whether both paths refer to the same directory.
pub fn is_same_directory(first: &Path, second: &Path) -> bool {
    let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    first == second || resolved(first) == resolved(second)
}

#[cfg(test)]
pub(crate) mod tests;
