//! Starting a machine: creates everything that it needs; then this process becomes the hypervisor or its supervisor.

mod become_hypervisor;
mod clean_up;
mod cpu_model;
mod incoming;
mod output;
mod prepare;
mod refusals;
mod resources;
mod saving;
mod supervise;
mod vsock;

use crate::console::ConsoleError;
use crate::facts::HostFacts;
use crate::host::HostProblem;
use crate::hypervisor::{lower_with_script_output, receiving, resumed};
use crate::identity::CloneOrigin;
use crate::initrd::InitrdError;
use crate::interruption::{Interrupted, Interruption};
use crate::isolation::is_confined;
use crate::launch::Launch;
use crate::network::{NetworkError, remove_made};
use crate::own_files::OwnFileError;
use crate::path::HostPath;
use crate::programs::NotInstalled;
use crate::readiness::ReadinessError;
use crate::share_view::ViewError;
use crate::side_processes::SideProcessError;
use crate::sockets::{SocketError, remove_stale};
use crate::spec::MachineSpec;
use crate::stamp::{BorrowedIdentity, Stamp, StampInputs};
use crate::state::{MachineState, RuntimeDirectory, StartLock, StartRequest, StateError};
use crate::store_disk::StoreDiskError;
use crate::store_seal::SealError;
use crate::suspend::{
    Resumption, SameMac, StartingGuest, SuspendError, SuspendedState, forget_pause, require_own_macs,
};
use crate::validate::{CheckedSpec, check};
use crate::volumes::VolumeError;
use incoming::IncomingState;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use output::OutputWriter;
use program::failure::chain;
use program::presence::is_still_at;
use program::user::NoSuchUser;
use std::fs::File;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

pub use clean_up::{LeftOvers, clean_up_after, clean_up_stopped};
pub use prepare::Prepared;
pub use refusals::refusals;

/// The time for the guest to shut down, if the caller has not chosen one.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to wait before trying again to lock a state directory.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// Why a machine could not be started, or failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The hypervisor is not installed.
    #[error(transparent)]
    NotInstalled(#[from] NotInstalled),
    /// Requirements that this host does not meet.
    #[error("{}", list(.0))]
    Missing(Vec<HostProblem>),
    /// The state of the machine cannot be read or written, or the machine cannot be started now.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest's vsock address is in use.
    #[error("{machine}: the vsock address {cid} is in use by {holder}; stop it, or give one of them another vsock.cid")]
    CidInUse {
        /// The machine.
        machine: String,
        /// The address.
        cid: u32,
        /// What uses it.
        holder: String,
    },
    /// A command of `preStart` failed.
    #[error("preStart: {command}: {reason}")]
    PreStart {
        /// The command.
        command: String,
        /// Why it failed, as it follows a colon.
        reason: String,
    },
    /// A file could not be written, or a directory could not be created.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// The store disk could not be built.
    #[error(transparent)]
    StoreDisk(#[from] StoreDiskError),
    /// The store disk is not sealed as the spec says.
    #[error("storeDisk.verity: {0}")]
    Seal(#[from] SealError),
    /// The hypervisor does not accept the machine with the root hash.
    #[error("storeDisk.verity: {}", .0.join("\n"))]
    SealRefused(Vec<String>),
    /// A file of the machine would be in the way of another one.
    #[error(transparent)]
    OwnFile(#[from] OwnFileError),
    /// A volume could not be prepared.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A socket could not be prepared.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A network interface could not be prepared.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A process beside the hypervisor could not be started.
    #[error(transparent)]
    SideProcess(#[from] SideProcessError),
    /// The view of a closure-only share cannot be used.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The initrd with the credentials could not be composed.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The socket for the guest's notification could not be prepared.
    #[error(transparent)]
    Readiness(#[from] ReadinessError),
    /// The console could not be served.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The user that runs the hypervisor does not exist.
    #[error(transparent)]
    NoSuchUser(#[from] NoSuchUser),
    /// The program that adds arguments failed.
    #[error("extraArgsScript {script}: {reason}")]
    ExtraArguments {
        /// The program.
        script: HostPath,
        /// Why it failed, as it follows a colon.
        reason: String,
    },
    /// The hypervisor does not accept the arguments that the program has printed.
    #[error("{}", describe(.script, .reasons).join("\n"))]
    ArgumentsRefused {
        /// The program.
        script: HostPath,
        /// The reasons; at least one.
        reasons: Vec<String>,
    },
    /// The hypervisor could not be started.
    #[error("{program} could not be started: {source}")]
    Start {
        /// Its program.
        program: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The hypervisor has failed.
    #[error("{hypervisor} ended with {status} after {seconds:.1} s; see its own messages")]
    Failed {
        /// The hypervisor.
        hypervisor: String,
        /// Its exit status.
        status: ExitStatus,
        /// How long it ran.
        seconds: f64,
    },
    /// A process without which the guest cannot go on has failed, and the hypervisor has ended: crosvm does so without an
    /// error.
    #[error("{hypervisor} ended after {seconds:.1} s, and a process beside it has failed: {failure}")]
    LostProcess {
        /// The hypervisor.
        hypervisor: String,
        /// How long it ran.
        seconds: f64,
        /// The process, and how it failed.
        failure: String,
    },
    /// The guest ended before it reported that it had booted.
    #[error(
        "the guest ended after {seconds:.1} s and had not reported that it had booted; its kernel may have \
         panicked, or its store or init is missing: see its own messages"
    )]
    EndedBeforeBoot {
        /// How long its hypervisor ran.
        seconds: f64,
    },
    /// The machine was deleted while it was being started.
    #[error("{0} was deleted while the machine was being started")]
    Deleted(HostPath),
    /// A system call of the launcher itself failed.
    #[error("{action}: {source}")]
    System {
        /// What the launcher was doing.
        action: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// Another guest has the same MAC address.
    #[error(transparent)]
    SameMac(#[from] SameMac),
    /// The machine is suspended, and cannot be resumed.
    #[error(transparent)]
    Suspended(#[from] SuspendError),
    /// The machine is to migrate to this host, but its hypervisor does not support that.
    #[error("{0} does not receive a machine while it runs")]
    NotReceived(String),
    /// The hypervisor has waited for a machine that migrates to this host, and ended without it.
    #[error(
        "{0} has not arrived: its migration to this host was cancelled or has failed; see the hypervisor's messages"
    )]
    NotArrived(String),
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl RunError {
    /// Whether the machine has failed. One that was to migrate to this host and has not arrived still runs where it was.
    fn is_failure_of_machine(&self) -> bool {
        !self.is_interruption() && !matches!(self, Self::NotArrived(_))
    }

    /// Whether a signal interrupted the start.
    pub fn is_interruption(&self) -> bool {
        matches!(
            self,
            Self::Interrupted(_)
                | Self::StoreDisk(StoreDiskError::Interrupted(_))
                | Self::Volume(VolumeError::Interrupted(_))
                | Self::SideProcess(SideProcessError::Interrupted(_))
        )
    }
}

fn describe(script: &HostPath, reasons: &[String]) -> Vec<String> {
    reasons.iter().map(|reason| format!("extraArgsScript {script}: {reason}")).collect()
}

fn list(problems: &[HostProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A launch, and what it was lowered from: the output of `extraArgsScript` is known only during the start, and can
/// change the launch.
#[derive(Clone, Copy, Debug)]
pub struct Lowered<'start> {
    /// The machine.
    pub spec: &'start CheckedSpec,
    /// The machine spec that was checked.
    pub document: &'start MachineSpec,
    /// What the spec describes, if the machine is a clone.
    pub origin: Option<&'start CloneOrigin>,
    /// The facts about this host.
    pub facts: &'start HostFacts,
    /// Its launch without the output of the script.
    pub launch: &'start Launch,
}

/// What this process does once the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervision {
    /// It becomes the hypervisor by exec.
    Become,
    /// It supervises the hypervisor. When it receives a signal, it gives the guest this much time to shut down.
    Supervise {
        /// The time for the guest to shut down.
        stop_timeout: Duration,
    },
}

impl Supervision {
    fn stop_timeout(self) -> Duration {
        match self {
            Self::Become => STOP_TIMEOUT,
            Self::Supervise { stop_timeout } => stop_timeout,
        }
    }
}

/// A start that excludes all other launchers and is visible to `stop` and `status`.
#[derive(Debug)]
pub struct Start {
    state: MachineState,
    lock: StartLock,
    /// The lock on the state directory; `None` if it does not exist yet.
    held: Option<Flock<File>>,
}

impl Start {
    /// Locks the machine for a start in that directory. Call this before anything else is checked or created. Removes
    /// what an earlier run has left behind.
    ///
    /// # Errors
    /// Fails if the machine runs, is already being started, or is deleted at the same time.
    pub fn begin(
        runtime: &RuntimeDirectory,
        name: &str,
        working_directory: &HostPath,
        interruption: &Interruption,
    ) -> Result<Self, RunError> {
        let state = runtime.machine(name)?;
        let lock = state.lock_for_start_unless(working_directory.as_path(), || interruption.check().is_err());
        interruption.check()?;
        let lock = lock?;
        // Before anything is made in it: a machine that is deleted in the meantime must not start.
        let held = match lock_directory(working_directory, interruption) {
            Err(RunError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            held => Some(held?),
        };
        remove_made(lock.left_over_interfaces());
        Ok(Self { state, lock, held })
    }

    /// Records that this start has failed before [`run`], so that `status` shows the reasons. `run` does that itself.
    pub fn record_failure(&self, problems: Vec<String>) {
        self.lock.record_failure(problems);
    }
}

/// Starts the machine. If this process becomes the hypervisor, this returns only on failure; as the supervisor, it
/// returns when the machine has ended.
///
/// # Errors
/// Returns [`RunError`]; everything that was created for the start is then removed.
pub fn run(
    lowered: &Lowered<'_>,
    start: Start,
    supervision: Supervision,
    interruption: &Interruption,
) -> Result<(), RunError> {
    // A write that waits for a reader of stderr would keep the start from noticing signals.
    let messages = OutputWriter::start(io::stderr());
    let ended = run_until_it_ends(lowered, start, supervision, (interruption, &messages));
    messages.finish();
    ended
}

fn run_until_it_ends(
    lowered: &Lowered<'_>,
    start: Start,
    supervision: Supervision,
    (interruption, messages): (&Interruption, &OutputWriter),
) -> Result<(), RunError> {
    let Start { state, mut lock, held } = start;
    let ended = run_locked(lowered, (&state, &mut lock, held), supervision, (interruption, messages));
    if let Err(error) = &ended
        && error.is_failure_of_machine()
    {
        lock.record_failure(chain(error).lines().map(str::to_owned).collect());
    }
    ended
}

fn run_locked(
    lowered: &Lowered<'_>,
    (state, lock, held): (&MachineState, &mut StartLock, Option<Flock<File>>),
    supervision: Supervision,
    (interruption, messages): (&Interruption, &OutputWriter),
) -> Result<(), RunError> {
    let message = &mut |text: &str| messages.push_line(text);
    for warning in &lowered.launch.warnings {
        message(&format!("warning: {warning}"));
    }
    // Before anything is made that would have to be removed.
    saving::wait_until_saved(state, interruption)?;
    let mut prepared = Prepared::make(lowered, lock, interruption, message)?;
    if !is_confined() {
        let macs: Vec<_> = lowered.document.interfaces.iter().map(|interface| interface.mac.clone()).collect();
        require_own_macs(StartingGuest { launch: &prepared.launch, macs: &macs }, &state.runtime())?;
    }
    // Before the launch is changed to resume or to receive the machine.
    let as_booted = stamp_of(lowered, &prepared, None)?;
    let incoming = find_incoming(lowered, &mut prepared, lock.request(), message)?;
    let stamp = match &incoming {
        Some(IncomingState::Resumption(resumption)) => Some(resumption.stamp()),
        _ => as_booted,
    };
    let launch = &prepared.launch.clone();
    forget_pause(state);
    state.write_launch(launch)?;
    if let Some(stamp) = &stamp {
        state.write_stamp(stamp)?;
    }
    let held = held.map_or_else(|| lock_directory(&launch.working_directory, interruption), Ok)?;
    match supervision {
        Supervision::Become if incoming.is_none() => {
            // The thread that writes them ends when this process becomes the hypervisor.
            messages.finish();
            let context = become_hypervisor::ExecContext { interruption, held };
            Err(become_hypervisor::become_hypervisor(launch, prepared, state, context))
        }
        // Only a supervisor can load a machine into its hypervisor.
        supervision => {
            let stop_timeout = supervision.stop_timeout();
            let messages = messages.clone();
            let supervisor = supervise::Supervisor { launch, state, stop_timeout, interruption, messages };
            let ended = supervisor.run(prepared, incoming);
            for socket in launch.needs.sockets_to_clear() {
                // A hypervisor that was killed leaves them. If this fails, the next start removes them, or reports the error.
                let _ = remove_stale(socket.below(&launch.working_directory).as_path());
            }
            state.clear_running();
            drop(held);
            ended
        }
    }
}

/// Returns how the machine gets into its hypervisor if it does not boot, and changes the launch for that.
fn find_incoming(
    lowered: &Lowered<'_>,
    prepared: &mut Prepared,
    request: StartRequest,
    message: &mut dyn FnMut(&str),
) -> Result<Option<IncomingState>, RunError> {
    if request.is_incoming {
        let launch = receiving(prepared.launch.clone());
        prepared.launch = launch.ok_or_else(|| RunError::NotReceived(prepared.launch.hypervisor.to_string()))?;
        return Ok(Some(IncomingState::Migration));
    }
    let now = |borrowed: Option<&BorrowedIdentity>| stamp_of(lowered, prepared, borrowed);
    let found = Resumption::find(&prepared.launch, now, message);
    let resumption = match found {
        Err(RunError::Suspended(SuspendError::Changed { differences, .. })) if request.boots_if_changed => {
            for difference in differences {
                message(&format!("{} boots instead of being resumed: {difference}", prepared.launch.name));
            }
            SuspendedState::of_launch(&prepared.launch).remove(Some(&prepared.launch))?;
            None
        }
        found => found?,
    };
    let Some(resumption) = resumption else { return Ok(None) };
    resumption.mark(prepared.identity.as_ref())?;
    prepared.launch = resumed(prepared.launch.clone(), &resumption.directory());
    Ok(Some(IncomingState::Resumption(resumption)))
}

/// Describes what this start depends on, or what a start of the machine depends on whose identity a clone's guest has.
/// Returns `None` if the machine is not a clone.
fn stamp_of(
    lowered: &Lowered<'_>,
    prepared: &Prepared,
    borrowed: Option<&BorrowedIdentity>,
) -> Result<Option<Stamp>, RunError> {
    let (facts, program) = (&prepared.facts, prepared.program.as_path());
    let of = |spec: &MachineSpec, launch: &Launch| Stamp::of(&StampInputs { spec, facts, launch, program });
    let Some(borrowed) = borrowed else {
        return Ok(Some(of(lowered.document, &prepared.launch).map_err(SuspendError::from)?));
    };
    let Some(origin) = lowered.origin else { return Ok(None) };
    let document = origin.spec_of(&borrowed.machine);
    let refused = |reasons: Vec<String>| SuspendError::Changed { machine: document.name.clone(), differences: reasons };
    let spec = check(&document).map_err(|problems| refused(problems.iter().map(ToString::to_string).collect()))?;
    let launch = lower_with_script_output(&spec, facts, prepared.launch.hypervisor, &[]).map_err(refused)?;
    Ok(Some(of(&document, &launch).map_err(SuspendError::from)?.with_identity_of(borrowed)))
}

/// Locks a state directory while a machine starts and runs in it, for programs that do not know which runtime directory
/// records the machine. The lock ends with the process. Waits for a program that looks whether the directory is locked,
/// or deletes it.
fn lock_directory(directory: &HostPath, interruption: &Interruption) -> Result<Flock<File>, RunError> {
    let failed = |source| RunError::File { path: directory.clone(), source };
    let mut opened = File::open(directory.as_path()).map_err(failed)?;
    loop {
        match Flock::lock(opened, FlockArg::LockSharedNonblock) {
            Ok(lock) if is_still_at(&lock, directory.as_path()) => return Ok(lock),
            Ok(_) => return Err(RunError::Deleted(directory.clone())),
            Err((again, Errno::EWOULDBLOCK)) => opened = again,
            Err((_, errno)) => return Err(failed(errno.into())),
        }
        interruption.pause(LOCK_INTERVAL)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;

    #[test]
    fn a_machine_that_is_deleted_while_it_is_being_started_does_not_start() {
        let home = tempfile::tempdir().unwrap();
        let (directory, renamed) = (home.path().join("web"), home.path().join(".web.new"));
        std::fs::create_dir(&directory).unwrap();
        let runtime = RuntimeDirectory::at(home.path().join("run"));
        let path = HostPath::from(directory.to_str().unwrap());
        let interruption = Interruption::watch().unwrap();
        let deleting = Flock::lock(File::open(&directory).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        let deleter = std::thread::spawn(move || {
            std::fs::rename(&directory, &renamed).unwrap();
            drop(deleting);
        });
        let begun = Start::begin(&runtime, "web", &path, &interruption);
        deleter.join().unwrap();
        match &begun {
            Err(RunError::Deleted(deleted)) => assert_eq!(deleted, &path),
            // The rename came first.
            Ok(Start { held: None, .. }) => {}
            other => panic!("{other:?}"),
        }
        drop(begun);
        assert_eq!(runtime.machine("web").unwrap().activity().unwrap(), crate::state::Activity::Stopped);
    }
    #[test]
    fn a_signal_ends_the_wait_for_a_supervisor_that_still_cleans_up() {
        let home = tempfile::tempdir().unwrap();
        let runtime = RuntimeDirectory::at(home.path().join("run"));
        let state = runtime.machine("web").unwrap();
        drop(state.lock_for_start(home.path()).unwrap());
        let _held = Flock::lock(File::open(state.file("lock")).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        let interruption = Interruption::watch().unwrap();
        nix::sys::pthread::pthread_kill(nix::sys::pthread::pthread_self(), nix::sys::signal::Signal::SIGTERM).unwrap();
        let path = HostPath::from(home.path().to_str().unwrap());
        let begun = Start::begin(&runtime, "web", &path, &interruption);
        assert!(matches!(begun, Err(RunError::Interrupted(_))), "{begun:?}");
    }
}
