//! The properties of a child process: its signal mask, its user, and what happens to it when this program dies.

use crate::user::Identity;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::SYS_ftruncate;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getppid};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// What happens to a child that is running when this program dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnParentDeath {
    /// It continues.
    Continue,
    /// It receives SIGTERM.
    Terminate,
}

/// Prepares a command: gives it an empty signal mask, because std lets children inherit this program's, and the other
/// properties. Removes `NOTIFY_SOCKET`, because only this program notifies the service manager.
pub fn prepare(command: &mut Command, on_parent_death: OnParentDeath, identity: Option<Identity>) {
    command.env_remove("NOTIFY_SOCKET");
    let parent = Pid::this();
    let set_up = move || -> io::Result<()> {
        if let Some(identity) = &identity {
            identity.become_user()?;
        }
        // After changing the user, which clears it: prctl(2), PR_SET_PDEATHSIG.
        if on_parent_death == OnParentDeath::Terminate {
            set_pdeathsig(Signal::SIGTERM)?;
            // If this program has died before that, there will be no signal. A command that replaces this program has
            // no such parent.
            if Pid::this() != parent && getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    before_exec(command, set_up);
}

/// Makes a command run as that user, with the user's home directory.
pub fn become_user(command: &mut Command, identity: &Identity) {
    let identity = identity.clone();
    command.env("HOME", identity.home()).env_remove("XDG_CACHE_HOME").env_remove("XDG_RUNTIME_DIR");
    before_exec(command, move || identity.become_user());
}

/// Makes files and sockets that the command creates inaccessible to users who are neither the owner nor in the group,
/// whatever the umask of this program is.
pub fn deny_others(command: &mut Command) {
    before_exec(command, || {
        let inherited = umask(Mode::S_IRWXO);
        umask(inherited | Mode::S_IRWXO);
        Ok(())
    });
}

/// Makes the command get an error, and not SIGPIPE, when it writes to a client that has left.
pub fn ignore_broken_pipes(command: &mut Command) {
    // std has restored the default before.
    before_exec(command, || ignore_signal(Signal::SIGPIPE));
}

/// Makes a command inherit descriptors under their current numbers, whether it is spawned or replaces this process. All
/// other programs that this one runs inherit none.
pub fn pass_descriptors(command: &mut Command, descriptors: Vec<RawFd>) {
    before_exec(command, move || {
        for descriptor in &descriptors {
            clear_close_on_exec(*descriptor)?;
        }
        Ok(())
    });
}

/// Makes ftruncate(2) do nothing in this command and its children: it succeeds, and files keep their length.
///
/// # Errors
/// Fails if the processor of this host is not supported.
pub fn keep_file_lengths(command: &mut Command) -> io::Result<()> {
    let calls = BTreeMap::from([(SYS_ftruncate, Vec::new())]);
    let arch = ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, SeccompAction::Errno(0), arch);
    let filter: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    before_exec(command, move || apply_filter(&filter).map_err(|_| Errno::last().into()));
    Ok(())
}

/// Shows an open directory at another path, to this command and its children only: in a mount namespace of their own.
///
/// # Errors
/// Fails if this process is not permitted to mount.
pub fn show_directory(command: &mut Command, directory: &impl AsFd, at: &'static Path) -> io::Result<()> {
    // In the new namespace, the descriptor of the directory itself could not be mounted: it belongs to the old one.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(directory, c"", flags)?;
    before_exec(command, move || {
        let none = None::<&Path>;
        // No mount of this namespace appears on the host, but mounts of the host still appear below the directory.
        let receive_only = || mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none);
        unshare(CloneFlags::CLONE_NEWNS)?;
        receive_only()?;
        move_mount(&tree, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        receive_only()?;
        Ok(())
    });
    Ok(())
}

/// Tries to create namespaces as that user, or as this one, in a child process that ends immediately.
///
/// # Errors
/// Fails if the kernel refuses it, or if there can be no child process.
pub fn try_namespaces(namespaces: CloneFlags, identity: Option<&Identity>) -> io::Result<()> {
    // It is not executed: the child ends with this error when it has succeeded.
    const DONE: Errno = Errno::ECANCELED;
    let mut command = Command::new("/proc/self/exe");
    if let Some(identity) = identity {
        become_user(&mut command, identity);
    }
    before_exec(&mut command, move || {
        unshare(namespaces)?;
        Err(DONE.into())
    });
    match command.status() {
        Err(error) if error.raw_os_error() == Some(DONE as i32) => Ok(()),
        outcome => outcome.map(drop),
    }
}

#[expect(unsafe_code, reason = "std has no safe way to borrow a descriptor by its number")]
fn clear_close_on_exec(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: it is borrowed for one system call; a number that is not open is an error of that call.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

#[expect(unsafe_code, reason = "nix has no safe way to ignore a signal")]
fn ignore_signal(ignored: Signal) -> io::Result<()> {
    // SAFETY: no handler is installed, and none was.
    unsafe { signal(ignored, SigHandler::SigIgn) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "std has no safe way to set a child's signal mask, death signal or groups")]
fn before_exec(command: &mut Command, set_up: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: only async-signal-safe functions may be called between fork and exec. `set_up` makes the system calls setgroups,
    // setgid, setuid, prctl, seccomp, getppid, fcntl, umask, unshare, mount, move_mount, sigaction and sigprocmask with values
    // that were prepared before, and allocates nothing.
    unsafe {
        command.pre_exec(set_up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_would_shorten_a_file_keeps_its_length() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "text").unwrap();
        let mut command = Command::new("truncate");
        command.args(["--size", "1"]).arg(&file);
        keep_file_lengths(&mut command).unwrap();
        assert!(command.status().unwrap().success());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
    }

    #[test]
    fn a_child_starts_with_an_empty_signal_mask() {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTERM);
        blocked.thread_block().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "grep SigBlk /proc/self/status"]);
        prepare(&mut command, OnParentDeath::Terminate, None);
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "SigBlk:\t0000000000000000");
    }
}
