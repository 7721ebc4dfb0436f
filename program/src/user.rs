//! Users of the host: their ids, looked up by name, and their names for messages.

use nix::unistd::{Gid, Uid, User, getgrouplist, setegid, seteuid, setgid, setgroups, setuid};
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

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

    /// Returns a user without a name, which belongs to one group only.
    pub fn of_ids(user: u32, group: u32) -> Self {
        let group = Gid::from_raw(group);
        Self { user: Uid::from_raw(user), group, groups: vec![group], home: PathBuf::from("/") }
    }

    /// Returns the user id.
    pub fn user(&self) -> Uid {
        self.user
    }

    /// Returns the id of the primary group.
    pub fn group(&self) -> Gid {
        self.group
    }

    /// Returns the user's home directory.
    pub fn home(&self) -> &Path {
        &self.home
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
    pub fn run_as<T>(&self, look: impl FnOnce() -> T) -> io::Result<T> {
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
    pub fn become_user(&self) -> io::Result<()> {
        if nix::unistd::geteuid() == self.user && nix::unistd::getegid() == self.group {
            return Ok(());
        }
        setgroups(&self.groups)?;
        setgid(self.group)?;
        setuid(self.user)?;
        Ok(())
    }
}

/// Returns the user's name, or the user id if there is none.
pub fn user_name(user: Uid) -> String {
    User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name)
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
}
