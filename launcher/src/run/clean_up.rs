//! Cleaning up after a launcher that has become the hypervisor. A small process waits until the hypervisor has ended
//! for any reason, and then removes the network interfaces that the start has created and ends the processes
//! beside the hypervisor that have not ended with it.

use crate::interruption::Interruption;
use crate::launch::Launch;
use crate::network::remove_made;
use crate::sockets::remove_stale;
use crate::state::{Activity, MachineState, ProcessIdentity, RuntimeDirectory, StateError};
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

/// Starts that process. It detaches, so that the hypervisor does not have an unexpected child.
pub(super) fn clean_up_later(
    state: &MachineState,
    hypervisor: ProcessIdentity,
    side_processes: &[ProcessIdentity],
) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["clean-up-after", "--detach", state.name()]);
    for process in std::iter::once(&hypervisor).chain(side_processes) {
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
    _held_back: &Interruption,
) -> Result<(), StateError> {
    let state = runtime.machine(name)?;
    let failed = |source| StateError::File { path: state.directory().to_owned(), source };
    let Some((hypervisor, side_processes)) = processes.split_first() else { return Ok(()) };
    wait_for_end(*hypervisor).map_err(failed)?;
    for process in side_processes {
        process.signal(Signal::SIGTERM).map_err(failed)?;
    }
    remove_made(&state.left_over_interfaces()?);
    Ok(())
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
        for socket in launch.needs.sockets_to_clear() {
            // If this fails, the next start removes them, or reports the error.
            let _ = remove_stale(socket.below(&launch.working_directory).as_path());
        }
    }
    remove_made(&state.left_over_interfaces()?);
    if state.activity()? == Activity::Stopped {
        state.clear_running();
    }
    Ok(())
}

fn wait_for_end(process: ProcessIdentity) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(()) };
    let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    while process.is_alive() {
        let mut descriptors = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
