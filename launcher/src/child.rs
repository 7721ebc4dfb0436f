//! The properties of a child process: its signal mask, its user, and what happens to it when the launcher dies.

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, User, getgrouplist, setegid, seteuid, setgid, setgroups, setuid};
use std::ffi::CString;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The ids of a user. They are looked up before the fork, because the user database must not be read after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
    home: PathBuf,
}

/// A user that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no user `{0}` on this host; create it or change `user` in the machine spec")]
pub struct NoSuchUser(pub String);

impl Identity {
    /// Looks up a user and all groups that it belongs to.
    ///
    /// # Errors
    /// Returns [`NoSuchUser`].
    pub fn of(name: &str) -> Result<Self, NoSuchUser> {
        let unknown = || NoSuchUser(name.to_owned());
        let user = User::from_name(name).ok().flatten().ok_or_else(unknown)?;
        let c_name = CString::new(name).map_err(|_| unknown())?;
        let groups = getgrouplist(&c_name, user.gid).map_err(|_| unknown())?;
        Ok(Self { user: user.uid, group: user.gid, groups, home: user.dir })
    }

    /// Returns the user id.
    pub fn user(&self) -> Uid {
        self.user
    }

    /// Returns the id of the primary group.
    pub fn group(&self) -> Gid {
        self.group
    }

    /// Whether the user is in the group.
    pub fn is_member_of(&self, group: Gid) -> bool {
        self.group == group || self.groups.contains(&group)
    }

    /// Runs `look` with the effective ids of this user, and then restores those of root. Without root privileges, runs
    /// it unchanged.
    ///
    /// # Errors
    /// Fails if the ids cannot be changed or restored.
    pub fn see<T>(&self, look: impl FnOnce() -> T) -> io::Result<T> {
        if !nix::unistd::geteuid().is_root() || self.user.is_root() {
            return Ok(look());
        }
        let (group, groups) = (nix::unistd::getegid(), nix::unistd::getgroups()?);
        setgroups(&self.groups)?;
        setegid(self.group)?;
        seteuid(self.user)?;
        let seen = look();
        seteuid(Uid::from_raw(0))?;
        setegid(group)?;
        setgroups(&groups)?;
        Ok(seen)
    }

    /// Becomes this user permanently. Does nothing if the process already has its ids.
    ///
    /// # Errors
    /// Fails if the process is not permitted to.
    pub fn assume(&self) -> io::Result<()> {
        if nix::unistd::geteuid() == self.user && nix::unistd::getegid() == self.group {
            return Ok(());
        }
        setgroups(&self.groups)?;
        setgid(self.group)?;
        setuid(self.user)?;
        Ok(())
    }
}

/// What happens to a child that is running when the launcher dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnParentDeath {
    /// It continues.
    LiveOn,
    /// It receives SIGTERM.
    Terminate,
}

/// Prepares a command: gives it an empty signal mask, because std lets children inherit the launcher's, and the other
/// properties. Removes `NOTIFY_SOCKET`, because only the launcher notifies the service manager.
pub fn prepare(command: &mut Command, on_parent_death: OnParentDeath, identity: Option<Identity>) {
    command.env_remove("NOTIFY_SOCKET");
    let settle = move || -> io::Result<()> {
        if let Some(identity) = &identity {
            identity.assume()?;
        }
        // After changing the user, which clears it: prctl(2), PR_SET_PDEATHSIG.
        if on_parent_death == OnParentDeath::Terminate {
            set_pdeathsig(Signal::SIGTERM)?;
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    before_exec(command, settle);
}

/// Makes a command run as that user, with the user's home directory.
pub fn become_user(command: &mut Command, identity: &Identity) {
    let identity = identity.clone();
    command.env("HOME", &identity.home).env_remove("XDG_CACHE_HOME").env_remove("XDG_RUNTIME_DIR");
    before_exec(command, move || identity.assume());
}

/// Makes a command inherit descriptors under their current numbers, whether it is spawned or replaces this process. All
/// other programs that the launcher runs inherit none.
pub fn hand_on(command: &mut Command, descriptors: Vec<RawFd>) {
    before_exec(command, move || {
        for descriptor in &descriptors {
            keep_open(*descriptor)?;
        }
        Ok(())
    });
}

#[expect(unsafe_code, reason = "std has no safe way to borrow a descriptor by its number")]
fn keep_open(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: it is borrowed for one system call; a number that is not open is an error of that call.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

#[expect(unsafe_code, reason = "std has no safe way to set a child's signal mask, death signal or groups")]
fn before_exec(command: &mut Command, settle: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // Only async-signal-safe functions may be called between fork and exec. `settle` makes the system calls setgroups,
    // setgid, setuid, prctl, fcntl and sigprocmask with values that were prepared before, and allocates nothing.
    unsafe {
        command.pre_exec(settle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_looked_up_and_unknown_ones_are_refused() {
        let root = Identity::of("root").unwrap();
        assert!(root.user().is_root());
        assert_eq!(Identity::of("no-such-user"), Err(NoSuchUser("no-such-user".to_owned())));
        assert!(Identity::of("nul\0").is_err());
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
