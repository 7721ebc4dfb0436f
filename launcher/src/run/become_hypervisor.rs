//! Becoming the hypervisor by exec: the process and its id stay the same, and nothing of the launcher is left.

use super::clean_up::clean_up_later;
use super::{Prepared, RunError};
use crate::interruption::Interruption;
use crate::launch::Launch;
use crate::spec::Hypervisor;
use crate::state::{MachineState, ProcessIdentity, RunningMachine, StateError, unix_seconds};
use nix::fcntl::{FcntlArg, FdFlag, Flock, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{getpgrp, getpid, setpgid, tcgetpgrp, tcsetpgrp};
use program::child::{deny_others, ignore_broken_pipes};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Returns the hypervisor's command, without stdin, stdout and user.
pub(super) fn command(launch: &Launch, prepared: &Prepared) -> Command {
    let mut command = Command::new(&prepared.program);
    command.arg0(&launch.process_name).args(&launch.arguments).current_dir(launch.working_directory.as_path());
    // Only the launcher notifies the service manager.
    command.env_remove("NOTIFY_SOCKET").envs(&launch.environment);
    // An error with a backtrace reads files, for which seccomp kills a sandboxed hypervisor together with its guest.
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        if !launch.environment.contains_key(name) {
            command.env_remove(name);
        }
    }
    prepared.pass_descriptors(&mut command);
    // It answers a client of its control socket that has given up, and would end with its guest (kvm-ipc.c).
    if launch.hypervisor == Hypervisor::Kvmtool {
        ignore_broken_pipes(&mut command);
    }
    // Anyone who can connect to its control socket controls the guest.
    deny_others(&mut command);
    command
}

/// What the launcher keeps until it becomes the hypervisor.
pub(super) struct ExecContext<'run> {
    pub(super) interruption: &'run Interruption,
    /// The lock on the state directory, which the hypervisor inherits.
    pub(super) held: Flock<File>,
}

/// Becomes the hypervisor. Returns only on failure.
pub(super) fn become_hypervisor(
    launch: &Launch,
    prepared: Prepared,
    state: &MachineState,
    context: ExecContext<'_>,
) -> RunError {
    let written = own_process(state).and_then(|hypervisor| {
        let machine = RunningMachine {
            hypervisor,
            supervisor: None,
            started_unix_seconds: unix_seconds(),
            console_socket: None,
            guest_ready: None,
            interfaces: prepared.interfaces.interfaces().to_vec(),
        };
        state.write_running(&machine).map(|()| hypervisor)
    });
    let error = match written {
        Ok(hypervisor) => exec(launch, prepared, state, (hypervisor, context)),
        Err(error) => error.into(),
    };
    state.clear_running();
    error
}

fn exec(
    launch: &Launch,
    prepared: Prepared,
    state: &MachineState,
    (hypervisor, context): (ProcessIdentity, ExecContext<'_>),
) -> RunError {
    let program = prepared.program.display().to_string();
    let failed = |source| RunError::Start { program: program.clone(), source };
    if let Err(source) = clean_up_later(state, hypervisor, launch, &prepared.side_processes) {
        return RunError::System { action: "starting the process that cleans up after the hypervisor", source };
    }
    if let Some(identity) = &prepared.identity
        && let Err(source) = identity.become_user()
    {
        return failed(source);
    }
    if let Err(interrupted) = context.interruption.check() {
        return interrupted.into();
    }
    let mut command = command(launch, &prepared);
    if let Err(errno) = fcntl(&*context.held, FcntlArg::F_SETFD(FdFlag::empty())) {
        return failed(errno.into());
    }
    if let Err(source) = context.interruption.restore_mask() {
        return failed(source);
    }
    let has_children = !prepared.interfaces.interfaces().is_empty() || !prepared.side_processes.is_empty();
    if launch.hypervisor == Hypervisor::Crosvm
        && has_children
        && let Err(errno) = leave_process_group()
    {
        return failed(errno.into());
    }
    // Everything in `prepared` is dropped only if exec fails and returns.
    failed(command.exec())
}

/// Moves this process into a process group of its own. If it is in the foreground of a terminal, it stays there.
///
/// When crosvm ends and still has children, it kills its process group. After exec, the processes beside the hypervisor are
/// its children, and the group would be that of the script that runs the launcher.
fn leave_process_group() -> nix::Result<()> {
    let (own, group) = (getpid(), getpgrp());
    if own == group {
        return Ok(());
    }
    setpgid(own, own)?;
    if tcgetpgrp(io::stdin()) == Ok(group) {
        // A process in the background gets SIGTTOU when it moves to the foreground.
        let mut stop_signal = SigSet::empty();
        stop_signal.add(Signal::SIGTTOU);
        let mask = stop_signal.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let moved = tcsetpgrp(io::stdin(), own);
        mask.thread_set_mask()?;
        moved?;
    }
    Ok(())
}

fn own_process(state: &MachineState) -> Result<ProcessIdentity, StateError> {
    ProcessIdentity::current().map_err(|source| StateError::File { path: state.directory().to_owned(), source })
}
