//! Cleaning up after a launcher that has become the hypervisor. A small process waits until the hypervisor has ended
//! for any reason. It then ends the processes beside the hypervisor that have not ended with it, and removes the sockets
//! that are left and the network interfaces that the start has created.

use crate::interruption::Interruption;
use crate::launch::Launch;
use crate::network::remove_made;
use crate::path::HostPath;
use crate::side_processes::{SideProcesses, remove_left_over};
use crate::sockets::{SocketError, is_served, remove_stale};
use crate::state::{Activity, CONSOLE_SOCKET, MachineState, ProcessIdentity, RuntimeDirectory, StateError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use program::child::{OnParentDeath, prepare};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long the supervisor may take to clean up after its hypervisor.
const SUPERVISOR_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process beside the hypervisor may take to end.
const SIDE_PROCESS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a process that has been ended may still listen on a socket.
const LISTENER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a run leaves behind. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOvers {
    /// The machine's state directory.
    pub directory: HostPath,
    /// The sockets of the hypervisor.
    pub sockets: Vec<HostPath>,
    /// The sockets of the processes beside it, which have records.
    pub served: Vec<HostPath>,
}

impl LeftOvers {
    /// Returns what a launch leaves behind whose side processes have these sockets.
    fn of<'served>(launch: &Launch, served: impl Iterator<Item = &'served HostPath>) -> Self {
        let directory = &launch.working_directory;
        let views = launch.needs.processes.iter().filter_map(|process| Some(&process.view.as_ref()?.control));
        let sockets = launch.needs.sockets_to_clear().chain(views).map(|socket| socket.below(directory)).collect();
        let served = served.map(|socket| socket.below(directory)).collect();
        Self { directory: directory.clone(), sockets, served }
    }

    /// Removes them, unless the machine has been started again. Waits for children of the hypervisor and of the processes
    /// beside it, which listen until they, too, have ended.
    fn remove(&self, state: &MachineState) -> Result<(), StateError> {
        let end = Instant::now() + LISTENER_TIMEOUT;
        loop {
            // Locked again each time, so that a start does not have to wait.
            let Some(lock) = state.lock_to_clean_up(self.directory.as_path())? else { return Ok(()) };
            let sockets = self.sockets.iter().map(|socket| remove_stale(socket.as_path()));
            let served = self.served.iter().map(|socket| remove_left_over(socket.as_path()));
            // If this fails for another reason, the next start removes them, or reports the error.
            let is_used = |removed: Result<(), SocketError>| matches!(removed, Err(SocketError::InUse(_)));
            // Not `any`, which would leave out those that follow.
            let used = sockets.chain(served).filter_map(|removed| is_used(removed).then_some(())).count();
            drop(lock);
            if used == 0 || Instant::now() > end {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Starts that process. It detaches, so that the hypervisor does not have an unexpected child.
pub(super) fn clean_up_later(
    state: &MachineState,
    hypervisor: ProcessIdentity,
    launch: &Launch,
    side_processes: &SideProcesses,
) -> io::Result<()> {
    let left = LeftOvers::of(launch, side_processes.sockets());
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["clean-up-after", "--detach", "--state-dir", left.directory.as_str()]);
    let sockets = left.sockets.iter().map(|socket| ["--socket", socket.as_str()]);
    let served = left.served.iter().map(|socket| ["--served", socket.as_str()]);
    command.args(sockets.chain(served).flatten());
    command.args(["--", state.name()]);
    for process in std::iter::once(&hypervisor).chain(&side_processes.identities()) {
        command.args([process.pid.to_string(), process.start_ticks.to_string()]);
    }
    if let Some(runtime) = state.directory().parent() {
        command.env("MICROVM_RUNTIME_DIR", runtime);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    prepare(&mut command, OnParentDeath::Continue, None);
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("microvm clean-up-after: {status}"))) }
}

/// Waits until the first process, the hypervisor, has ended. Then removes the interfaces that were created for its machine,
/// and ends the other processes: the kernel forgets to end with its parent a process that changes its user, as passt
/// does (prctl(2), PR_SET_PDEATHSIG). Signals do not interrupt the wait, because they are meant for the hypervisor.
///
/// # Errors
/// Fails if the machine's state cannot be read.
pub fn clean_up_after(
    runtime: &RuntimeDirectory,
    name: &str,
    processes: &[ProcessIdentity],
    left: &LeftOvers,
    _held_back: &Interruption,
) -> Result<(), StateError> {
    let state = runtime.machine(name)?;
    let failed = |source| StateError::File { path: state.directory().to_owned(), source };
    let Some((hypervisor, side_processes)) = processes.split_first() else { return Ok(()) };
    wait_for_end(*hypervisor, None).map_err(failed)?;
    for process in side_processes {
        process.signal(Signal::SIGTERM).map_err(failed)?;
    }
    remove_made(&state.left_over_interfaces()?);
    let end = Instant::now() + SIDE_PROCESS_TIMEOUT;
    for process in side_processes {
        wait_for_end(*process, Some(end)).map_err(failed)?;
    }
    left.remove(&state)
}

/// Removes what the hypervisor of a machine that was stopped leaves behind. A supervisor does this itself, so this waits
/// for it first.
///
/// # Errors
/// Fails if the machine's state cannot be read.
pub fn clean_up_stopped(
    state: &MachineState,
    launch: Option<&Launch>,
    supervisor: Option<ProcessIdentity>,
) -> Result<(), StateError> {
    let end = Instant::now() + SUPERVISOR_TIMEOUT;
    while supervisor.is_some_and(|supervisor| supervisor.is_alive()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    if let Some(launch) = launch {
        // A supervisor that was killed has not removed them. A service of the host may still serve others.
        let is_served = |socket: &&HostPath| is_served(socket.below(&launch.working_directory).as_path());
        let served = launch.needs.processes.iter().map(|process| &process.socket).filter(|socket| !is_served(socket));
        let mut left = LeftOvers::of(launch, served);
        left.sockets.push(HostPath::new(state.file(CONSOLE_SOCKET).to_string_lossy()));
        // If this fails, the next start removes them.
        let _ = left.remove(state);
    }
    remove_made(&state.left_over_interfaces()?);
    if state.activity()? == Activity::Stopped {
        state.clear_running();
    }
    Ok(())
}

/// Waits for the end of a process, but not longer than until `end`.
fn wait_for_end(process: ProcessIdentity, end: Option<Instant>) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(()) };
    let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    while process.is_alive() && end.is_none_or(|end| Instant::now() < end) {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let mut descriptors = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
