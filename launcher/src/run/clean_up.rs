//! Removing what a start has made when the launcher itself is no longer there to do it, because it has become the
//! hypervisor: a small process waits for the hypervisor's end, however that comes.

use crate::child::{OnParentDeath, prepare};
use crate::interruption::Interruption;
use crate::network::remove_made;
use crate::state::{MachineState, ProcessIdentity, RuntimeDirectory, StateError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Starts that process. It is no child of the hypervisor, which would wonder about one.
pub(super) fn clean_up_later(state: &MachineState, hypervisor: ProcessIdentity) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["clean-up-after", "--detach", state.name()]);
    command.args([hypervisor.pid.to_string(), hypervisor.start_ticks.to_string()]);
    if let Some(runtime) = state.directory().parent() {
        command.env("MICROVM_RUNTIME_DIR", runtime);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    prepare(&mut command, OnParentDeath::LiveOn, None);
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("microvm clean-up-after: {status}"))) }
}

/// Waits until the process has ended, and removes the interfaces that were made for its machine. Signals do not end the
/// wait: the process that they are meant for is the hypervisor.
///
/// # Errors
/// When the machine's state cannot be read.
pub fn clean_up_after(
    runtime: &RuntimeDirectory,
    name: &str,
    process: ProcessIdentity,
    _held_back: &Interruption,
) -> Result<(), StateError> {
    let state = runtime.machine(name)?;
    wait_for_end(process).map_err(|source| StateError::File { path: state.directory().to_owned(), source })?;
    remove_made(&state.left_over_interfaces()?);
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
