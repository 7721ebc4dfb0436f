//! Suspending a machine: its memory and devices are saved in its state directory, and its hypervisor ends. The next start
//! resumes it.
//!
//! `MACHINE.suspended/complete` in the state directory contains what was saved. It appears by a rename when it is
//! complete and synced, while the guest is paused, and the hypervisor is ended only after that. So at any moment there
//! is a running machine, or a saved one. A machine is saved again at each suspend, and removed when it runs again.

mod clone;
mod files;
mod on_demand;
mod same_mac;

pub use clone::{ClonedState, copy_to_clone, is_inside as is_inside_state_directory};
pub use files::SuspendedState;
pub use same_mac::{SameMac, StartingGuest, require_own_macs};

use crate::control::{ControlError, Controller, SavedMachine, saves_to_file};
use crate::hypervisor::suspend_refusals;
use crate::identity::CLONE_FILE;
use crate::launch::{Access, Launch};
use crate::path::HostPath;
use crate::refusal::Refusal;
use crate::shutdown::{StopError, StopTarget, stop};
use crate::spec::MachineSpec;
use crate::stamp::{self, BorrowedIdentity, Stamp, StampError};
use crate::state::{Activity, MachineState, ProcessIdentity, StateError, parser_reason};
use crate::validate::{CheckedSpec, check};
use crate::volumes::{CopyError, is_almost_full};
use files::Unfinished;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, fchmod};
use program::place::{Directory, Place};
use program::user::{Identity, NoSuchUser};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The file in the runtime directory that is locked while a machine is saved. It exists while the guest is paused for
/// that.
pub(crate) const LOCK: &str = "suspend.lock";
/// How long saving or loading a machine may take, plus [`SECONDS_PER_GIB`].
const MIN_TIMEOUT: Duration = Duration::from_secs(120);
/// A slow disk writes 16 MiB in a second.
const SECONDS_PER_GIB: u64 = 64;

/// Why a machine could not be suspended or resumed.
#[derive(Debug, thiserror::Error)]
pub enum SuspendError {
    /// The machine is not running.
    #[error("{0} is not running")]
    NotRunning(String),
    /// The machine is not suspended.
    #[error("{0} is not suspended")]
    NotSuspended(String),
    /// Another process is suspending the machine.
    #[error("{0} is being suspended by another process")]
    InProgress(String),
    /// A signal asked this process to stop.
    #[error("interrupted")]
    Interrupted,
    /// The machine was started by an older release, which did not record what it depends on.
    #[error("{0} was started by another release of microvm; restart it before you suspend it")]
    NoStamp(String),
    /// The machine was started by another user.
    #[error("{0} was started by another user; only that user can suspend it")]
    OtherUser(String),
    /// The hypervisor cannot save this machine.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Refusal>),
    /// The machine has changed since it was suspended.
    #[error("{}", changes(.machine, .differences).join("\n"))]
    Changed {
        /// The machine.
        machine: String,
        /// The differences; at least one.
        differences: Vec<String>,
    },
    /// What it depends on cannot be described.
    #[error(transparent)]
    Stamp(#[from] StampError),
    /// A volume of the machine cannot be described.
    #[error("{machine}: {source}")]
    Volume {
        /// The machine.
        machine: String,
        /// Why the stamp could not be made.
        source: StampError,
    },
    /// A file operation failed.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// The description of the suspended machine cannot be read.
    #[error("{path}: {reason}; it was written by another release, or is damaged")]
    Unreadable {
        /// The file.
        path: HostPath,
        /// The error of the JSON parser, shortened: it quotes values of the machine's user.
        reason: String,
    },
    /// The disk is probably full.
    #[error(
        "{directory}: {source}; the disk is almost full, and what is saved needs up to {memory_mib} MiB: free some space \
         there"
    )]
    AlmostFull {
        /// The directory.
        directory: HostPath,
        /// The memory of the machine.
        memory_mib: u64,
        /// The error of the hypervisor, which wrote the file.
        source: ControlError,
    },
    /// The hypervisor did not save the machine, which keeps running.
    #[error("{machine} keeps running, because it could not be saved: {source}")]
    NotSaved {
        /// The machine.
        machine: String,
        /// Why the machine could not be saved.
        source: Box<SuspendError>,
    },
    /// The machine could not be saved, and could not be continued either. It runs if the request to pause it has failed.
    #[error(
        "{machine} could not be saved: {reason}; it may still be paused, because it could not be continued: {source}"
    )]
    StillPaused {
        /// The machine.
        machine: String,
        /// Why it could not be continued.
        source: ControlError,
        /// Why it could not be saved.
        reason: Box<SuspendError>,
    },
    /// The machine ended while it was being saved, for example because its launcher was killed.
    #[error("{machine} has ended and is not suspended: {reason}")]
    Ended {
        /// The machine.
        machine: String,
        /// Why it could not be saved.
        reason: Box<SuspendError>,
    },
    /// A file of the machine could not be copied.
    #[error(transparent)]
    Copy(CopyError),
    /// The hypervisor refused a request.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The state of the machine cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The hypervisor could not be ended.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The machine's user does not exist.
    #[error(transparent)]
    NoSuchUser(#[from] NoSuchUser),
}

fn changes(machine: &str, differences: &[String]) -> Vec<String> {
    differences.iter().map(|difference| format!("{machine} has changed since it was suspended: {difference}")).collect()
}

impl SuspendError {
    /// Returns the error as one line per problem.
    pub fn problems(&self) -> Vec<String> {
        self.to_string().lines().map(str::to_owned).collect()
    }
}

/// What happens to the hypervisor when the machine is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterSave {
    /// It is ended.
    End,
    /// It stays paused, because its service ends it.
    StayPaused,
    /// It stays paused, because its service ends it, and the host shuts down. A machine that has changed until its next
    /// start boots.
    StayPausedAtShutdown,
}

/// A machine that was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Saved {
    /// How long the guest was paused until it was saved.
    pub paused: Duration,
    /// The space that it occupies on disk.
    pub disk_bytes: u64,
}

/// Suspends a running machine.
///
/// # Errors
/// Returns [`SuspendError`]. Except for [`SuspendError::StillPaused`], [`SuspendError::Ended`] and
/// [`SuspendError::Stop`], the machine still runs.
pub fn suspend(
    state: &MachineState,
    after_save: AfterSave,
    is_interrupted: &AtomicBool,
    message: &mut dyn FnMut(&str),
) -> Result<Saved, SuspendError> {
    let name = || state.name().to_owned();
    let Activity::Running(running) = state.activity()? else { return Err(SuspendError::NotRunning(name())) };
    let (launch, stamp) = state.started_with()?.ok_or_else(|| SuspendError::OtherUser(name()))?;
    let mut stamp = stamp.ok_or_else(|| SuspendError::NoStamp(name()))?;
    stamp.at_shutdown = after_save == AfterSave::StayPausedAtShutdown;
    require_suspendable(&stamp, &launch)?;
    let socket = launch.control.as_ref().ok_or_else(|| SuspendError::NoStamp(name()))?;
    let controller = Controller::new(socket, &launch.working_directory);
    let owner = owner_of(&launch)?;
    let _lock = lock(state)?;
    let began = Instant::now();
    // From here on, the guest must be continued after a failure.
    let saved = controller
        .pause()
        .map_err(SuspendError::from)
        .and_then(|()| save(&launch, &controller, stamp, owner.as_ref()))
        .and_then(|unpublished| {
            if is_interrupted.load(Ordering::Relaxed) { Err(SuspendError::Interrupted) } else { unpublished.publish() }
        });
    let disk_bytes = match saved {
        Ok(disk_bytes) => disk_bytes,
        Err(reason) if !running.hypervisor.is_alive() => {
            let (machine, reason) = (name(), Box::new(reason));
            return Err(SuspendError::Ended { machine, reason });
        }
        Err(reason) => return Err(continue_after(state, &controller, reason)),
    };
    let saved = Saved { paused: began.elapsed(), disk_bytes };
    if after_save == AfterSave::End {
        let (process, console_socket) = (Some(running.hypervisor), running.console_socket);
        let target = StopTarget { launch: &launch, process, console_socket, is_saved: true };
        stop(&target, Duration::ZERO, message)?;
        forget_pause(state);
    }
    Ok(saved)
}

/// Lets a machine continue that is still paused, because the command that suspended it was killed. Returns whether it was
/// paused.
///
/// # Errors
/// Returns [`SuspendError`].
pub fn continue_paused(state: &MachineState) -> Result<bool, SuspendError> {
    let name = || state.name().to_owned();
    let lock_file = Place::nofollow(&state.file(LOCK)).and_then(|place| place.stat());
    if !matches!(lock_file, Ok(Some(_))) {
        return Ok(false);
    }
    let (launch, _) = state.started_with()?.ok_or_else(|| SuspendError::OtherUser(name()))?;
    let _lock = lock(state)?;
    let socket = launch.control.as_ref().ok_or_else(|| SuspendError::NotRunning(name()))?;
    // First, because the guest changes its volumes from then on.
    SuspendedState::of_launch(&launch).remove(Some(&launch))?;
    Controller::new(socket, &launch.working_directory).unpause()?;
    forget_pause(state);
    Ok(true)
}

/// Records that the guest is no longer paused.
pub(crate) fn forget_pause(state: &MachineState) {
    // If this fails, `microvm resume` sends a running guest another request to continue.
    let _ = Place::nofollow(&state.file(LOCK)).and_then(|place| place.remove());
}

/// Returns how long saving or loading a machine with that much memory may take.
pub fn timeout_of(stamp: &Stamp) -> Duration {
    MIN_TIMEOUT + Duration::from_secs(memory_mib(stamp).saturating_mul(SECONDS_PER_GIB) / 1024)
}

/// Returns the memory that the machine may have, including all of its hotplug memory.
fn memory_mib(stamp: &Stamp) -> u64 {
    let mib = |option: &str| stamp.machine_spec.get(option).and_then(serde_json::Value::as_u64).unwrap_or(0);
    mib("mem").saturating_add(mib("hotplugMem"))
}

/// Refuses a machine that cannot be suspended, before anything happens.
fn require_suspendable(stamp: &Stamp, launch: &Launch) -> Result<(), SuspendError> {
    let refusals = suspend_refusals(&checked_spec(stamp, launch)?);
    if !refusals.is_empty() {
        return Err(SuspendError::Refused(refusals));
    }
    let stamps = stamp::volume_stamps(launch);
    stamps.map(drop).map_err(|source| SuspendError::Volume { machine: launch.name.clone(), source })
}

fn checked_spec(stamp: &Stamp, launch: &Launch) -> Result<CheckedSpec, SuspendError> {
    let spec: MachineSpec = serde_json::from_value(stamp.machine_spec.clone()).map_err(|error| {
        SuspendError::Unreadable { path: launch.working_directory.clone(), reason: parser_reason(&error) }
    })?;
    // It was valid when the machine was started.
    check(&spec).map_err(|_| SuspendError::NoStamp(launch.name.clone()))
}

/// Returns the user that the files must belong to, if that is not the user of this process.
fn owner_of(launch: &Launch) -> Result<Option<Identity>, SuspendError> {
    let identity = launch.user.as_deref().map(Identity::of).transpose()?;
    Ok(identity.filter(|_| nix::unistd::geteuid().is_root()))
}

/// Locks the machine for saving it.
pub(crate) fn lock(state: &MachineState) -> Result<Flock<File>, SuspendError> {
    let path = state.file(LOCK);
    let failed = |source| SuspendError::File { path: HostPath::new(path.to_string_lossy()), source };
    let file = Place::nofollow(&path).and_then(|place| place.open_or_create(0o600)).map_err(failed)?;
    // The machine's user starts it, and must see that root is saving it, whatever the umask is.
    fchmod(&file, Mode::from_bits_truncate(0o644)).map_err(|errno| failed(errno.into()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => Err(SuspendError::InProgress(state.name().to_owned())),
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// Saves the paused machine. The saved state does not have its final name yet.
fn save<'owner>(
    launch: &Launch,
    controller: &Controller,
    mut stamp: Stamp,
    owner: Option<&'owner Identity>,
) -> Result<Unfinished<'owner>, SuspendError> {
    let unfinished = Unfinished::make(SuspendedState::of_launch(launch), owner)?;
    let saved = if launch.control.as_ref().is_some_and(|socket| saves_to_file(socket.protocol)) {
        SavedMachine::File(unfinished.file()?)
    } else {
        SavedMachine::Directory(unfinished.path())
    };
    controller.clone().with_timeout(timeout_of(&stamp)).save(&saved).map_err(|source| {
        // What the hypervisor has written is still there.
        let directory = Directory::open(unfinished.path().as_path());
        match directory.is_ok_and(|directory| is_almost_full(&directory, owner)) {
            true => SuspendError::AlmostFull { directory: unfinished.path(), memory_mib: memory_mib(&stamp), source },
            false => source.into(),
        }
    })?;
    sync_volumes(launch)?;
    stamp.suspended_unix_seconds = Some(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()));
    stamp.volumes = stamp::volume_stamps(launch)?;
    unfinished.write_stamp(&stamp)?;
    Ok(unfinished)
}

/// Writes the volumes to the disk: a guest that is resumed after a power cut remembers what it has written.
fn sync_volumes(launch: &Launch) -> Result<(), SuspendError> {
    for volume in launch.needs.volumes.iter().filter(|volume| volume.access == Access::ReadWrite) {
        let path = volume.image.below(&launch.working_directory);
        Place::of(path.as_path())
            .and_then(|place| place.open(OFlag::O_RDONLY))
            .and_then(|file| file.sync_all())
            .map_err(|source| SuspendError::File { path, source })?;
    }
    Ok(())
}

fn continue_after(state: &MachineState, controller: &Controller, reason: SuspendError) -> SuspendError {
    let machine = state.name().to_owned();
    let continued = controller.unpause();
    if continued.is_ok() {
        forget_pause(state);
    }
    match continued {
        Ok(()) => SuspendError::NotSaved { machine, source: Box::new(reason) },
        Err(source) => SuspendError::StillPaused { machine, source, reason: Box::new(reason) },
    }
}

/// A start that resumes a machine instead of booting it.
#[derive(Debug)]
pub struct Resumption {
    state: SuspendedState,
    stamp: Box<Stamp>,
}

impl Resumption {
    /// Returns the suspended machine that this start must resume. `launch` is the launch with which the machine would
    /// boot. `now` describes this start of the machine, or of the machine whose identity the guest of a clone has; it
    /// returns `None` if this machine is not a clone.
    ///
    /// # Errors
    /// Returns [`SuspendError::Changed`] if the machine has changed since it was suspended, or the errors of `now`.
    pub fn find<E: From<SuspendError>>(
        launch: &Launch,
        now: impl FnOnce(Option<&BorrowedIdentity>) -> Result<Option<Stamp>, E>,
        message: &mut dyn FnMut(&str),
    ) -> Result<Option<Self>, E> {
        let state = SuspendedState::of_launch(launch);
        let Some(stamp) = state.stamp()? else { return Ok(None) };
        let differences = match now(stamp.borrowed.as_ref())? {
            Some(now) => stamp.differences_to(&now, launch).map_err(SuspendError::from)?,
            None => vec![format!("{CLONE_FILE}: was a file, is missing")],
        };
        if differences.is_empty() {
            return Ok(Some(Self { state, stamp: Box::new(stamp) }));
        }
        if state.was_resumed() && differences.iter().any(|difference| difference.starts_with("volumes: ")) {
            // The machine ran again, and its launcher was killed before it could remove the saved one.
            message(&format!("{} has run since it was suspended, so it boots", launch.name));
            state.remove(Some(launch))?;
            return Ok(None);
        }
        if stamp.at_shutdown {
            // No user has asked to resume it, and an update of the host must not keep it from starting.
            for line in changes(&launch.name, &differences) {
                message(&line);
            }
            let kept = state.set_aside()?;
            message(&format!("{} boots instead; what was saved is kept in {kept} until the next suspend", launch.name));
            return Ok(None);
        }
        Err(SuspendError::Changed { machine: launch.name.clone(), differences }.into())
    }

    /// Returns what the machine depends on while it runs again.
    pub fn stamp(&self) -> Stamp {
        self.stamp.while_running()
    }

    /// Checks that a start would not refuse to resume a suspended machine, without changing anything. If the host suspended it
    /// when it shut down, it boots instead of being refused. What the guest of a clone depends on is checked by its start.
    ///
    /// # Errors
    /// Returns [`SuspendError::Changed`] if it could not, or an error of the files.
    pub fn inspect(launch: &Launch, now: &Stamp) -> Result<(), SuspendError> {
        let state = SuspendedState::of_launch(launch);
        let is_refused = |stamp: &Stamp| !stamp.at_shutdown && stamp.borrowed.is_none() && !state.was_resumed();
        let Some(stamp) = state.stamp()?.filter(is_refused) else { return Ok(()) };
        let differences = stamp.differences_to(now, launch)?;
        let machine = launch.name.clone();
        if differences.is_empty() { Ok(()) } else { Err(SuspendError::Changed { machine, differences }) }
    }

    /// Returns the directory with the saved machine, an absolute path.
    pub fn directory(&self) -> HostPath {
        self.state.complete()
    }

    /// Records that the guest may run from now on.
    ///
    /// # Errors
    /// Returns [`SuspendError::File`].
    pub fn mark(&self, owner: Option<&Identity>) -> Result<(), SuspendError> {
        self.state.mark_resumed(owner)
    }

    /// Loads the machine into its hypervisor, which may still be starting, and lets the guest continue.
    ///
    /// # Errors
    /// Returns [`SuspendError`]. The hypervisor must be ended then; the machine stays suspended.
    pub fn load(&self, launch: &Launch, hypervisor: ProcessIdentity) -> Result<(), SuspendError> {
        let Some(socket) = &launch.control else { return Ok(()) };
        let controller = Controller::new(socket, &launch.working_directory).with_timeout(timeout_of(&self.stamp));
        // What was saved of another machine names that machine's interfaces and sockets.
        let renamed = launch.expected_configuration.as_ref().filter(|_| self.stamp.borrowed.is_some());
        let saved = if saves_to_file(socket.protocol) {
            SavedMachine::File(self.state.file()?)
        } else {
            SavedMachine::Directory(self.directory())
        };
        let memory = on_demand::memory_loading(launch, hypervisor);
        loop {
            match controller.load(&saved, memory, renamed) {
                Err(ControlError::NotListening { .. }) if hypervisor.is_alive() => {
                    std::thread::sleep(CONNECT_INTERVAL);
                }
                loaded => return Ok(loaded?),
            }
        }
    }

    /// Removes the saved machine, which now runs.
    ///
    /// # Errors
    /// Returns [`SuspendError::File`].
    pub fn finish(&self, launch: &Launch) -> Result<(), SuspendError> {
        self.state.remove(Some(launch))
    }
}

/// How often to try to connect to a hypervisor that is starting.
const CONNECT_INTERVAL: Duration = Duration::from_millis(2);

/// Whether the machine of a launch is suspended: it was saved and has not run since.
pub fn is_suspended(launch: &Launch) -> bool {
    let state = SuspendedState::of_launch(launch);
    matches!(state.stamp(), Ok(Some(_))) && !state.was_resumed()
}

/// Whether a suspended machine must keep the image of its store disk: it still has the image that the guest used, and
/// the image belongs to the plan from which the host would build it. The image of a clone is a copy, which its builder
/// would replace. `image` is where the image is on this host, if not at the path that the machine sees.
pub fn keeps_store_disk(launch: &Launch, image: Option<&Path>) -> bool {
    let state = SuspendedState::of_launch(launch);
    let (Ok(Some(stamp)), Some(need)) = (state.stamp(), &launch.needs.store_disk) else { return false };
    let absolute = |path: &HostPath| path.below(&launch.working_directory);
    let (plan, own) = (absolute(&need.plan), absolute(&need.image));
    !state.was_resumed() && stamp.has_store_disk(need, plan.as_path(), image.unwrap_or(own.as_path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_plugged_later_is_saved_too() {
        let stamp: Stamp = serde_json::from_value(serde_json::json!({
            "version": 1, "suspendedUnixSeconds": 5, "machineSpec": {"mem": 1024, "hotplugMem": 3072}, "cpu": null,
            "files": {}, "volumes": {},
            "hypervisor": {
                "version": "1.0.0", "program": "/bin/qemu", "arguments": [],
                "file": {"sizeBytes": 1, "modified": "1.000000000"},
            },
        }))
        .expect("a stamp");
        assert_eq!(memory_mib(&stamp), 4096);
        assert_eq!(timeout_of(&stamp), Duration::from_secs(120 + 4 * 64));
    }
}
