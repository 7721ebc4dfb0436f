//! The user who records a machine. Under the host module, each machine has a user of its own, which writes the records in
//! its runtime directory. They name sockets, directories and processes, so root must not act on them with its own
//! privileges: it would send requests to other machines, or remove other users' files.

use super::{Activity, LAUNCH, MachineState, PROCESS, STARTING, StateError};
use nix::unistd::{Gid, Uid, User, geteuid};
use program::place::{Directory, Place};
use program::user::Identity;
use std::io;

impl MachineState {
    /// Returns the other user who records this machine or can replace its records, if this process is root. Root must
    /// become that user before it uses what the records name.
    ///
    /// # Errors
    /// Returns [`StateError::File`].
    pub fn other_recorder(&self) -> Result<Option<Identity>, StateError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let failed = |source| StateError::File { path: self.directory.clone(), source };
        let directory = match Directory::open(&self.directory) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // The owner of the directory can replace all files in it.
        let mut owners = vec![directory.owner().map_err(failed)?];
        for name in [PROCESS, STARTING, LAUNCH] {
            let record = Place::nofollow(&self.file(name)).and_then(|place| place.stat()).map_err(failed)?;
            owners.extend(record.map(|record| Uid::from_raw(record.st_uid)));
        }
        Ok(owners.into_iter().find(|owner| !owner.is_root()).map(identity_of))
    }

    /// Makes the directory of the records root's own if root has started the machine that runs. Release 0.1 left the
    /// directory to the user of the machine's service, so root would become that user, which cannot stop the machine.
    ///
    /// # Errors
    /// Returns [`StateError`].
    pub fn own_records_of_root(&self) -> Result<(), StateError> {
        let failed = |source| StateError::File { path: self.directory.clone(), source };
        let directory = match Directory::open(&self.directory) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        if !geteuid().is_root() || directory.owner().map_err(failed)?.is_root() {
            return Ok(());
        }
        // Only root can have written these files, and the user can have replaced them only by older ones of this machine.
        for name in [PROCESS, LAUNCH] {
            let record = directory.try_clone().map_err(failed)?.place(name).stat().map_err(failed)?;
            if !record.is_some_and(|record| record.st_uid == 0 && record.st_nlink == 1) {
                return Ok(());
            }
        }
        let Activity::Running(machine) = self.activity()? else { return Ok(()) };
        if machine.hypervisor.user().is_ok_and(Uid::is_root) {
            own_records(&directory).map_err(failed)?;
        }
        Ok(())
    }
}

/// Returns a user, with its groups if it has a name: the users of systemd's dynamic users may have none.
fn identity_of(user: Uid) -> Identity {
    let known = User::from_uid(user).ok().flatten();
    let named = known.as_ref().and_then(|known| Identity::of(&known.name).ok());
    let group = known.map_or(Gid::from_raw(user.as_raw()), |known| known.gid);
    named.unwrap_or_else(|| Identity::of_ids(user.as_raw(), group.as_raw()))
}

/// Makes the directory of the records root's own, if this process is root: another user could replace the records of the
/// machine that root starts. A service creates the directory again for its machine's user.
pub(super) fn own_records(directory: &Directory) -> io::Result<()> {
    if geteuid().is_root() && !directory.owner()?.is_root() {
        directory.give_to(&Identity::of_ids(0, 0))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use crate::state::RuntimeDirectory;
    use nix::unistd::{Uid, chown};
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    #[test]
    fn records_that_a_machines_user_wrote_or_can_replace_are_those_of_that_user() {
        if !nix::unistd::geteuid().is_root() {
            return testing::skipped("only root can give files away");
        }
        let directory = tempfile::tempdir().unwrap();
        let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
        assert_eq!(machine.other_recorder().unwrap(), None);
        let stranger = Uid::from_raw(65534);
        fs::create_dir(machine.directory()).unwrap();
        fs::write(machine.file("launch.json"), "{}").unwrap();
        assert_eq!(machine.other_recorder().unwrap(), None);
        for path in [machine.file("launch.json"), machine.directory().to_owned()] {
            chown(&path, Some(stranger), None).unwrap();
            assert_eq!(machine.other_recorder().unwrap().map(|user| user.user()), Some(stranger));
            chown(&path, Some(Uid::from_raw(0)), None).unwrap();
        }
        // Root starts the machine: from then on, that user can no longer replace the records.
        chown(machine.directory(), Some(stranger), None).unwrap();
        let _lock = machine.lock_for_start(Path::new("/var/lib/web")).unwrap();
        assert_eq!(fs::metadata(machine.directory()).unwrap().uid(), 0);
        assert_eq!(machine.other_recorder().unwrap(), None);
    }
}
