//! The user who records a machine. Under the host module, each machine has a user of its own, which writes the records
//! in its runtime directory. They name sockets, directories and processes, so root must not act on them with its own
//! privileges: it would send requests to other machines, or remove other users' files.

use super::{LAUNCH, MachineState, PROCESS, ProcessIdentity, RunningMachine, STARTING, StateError, WAITING};
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
        for name in [PROCESS, STARTING, WAITING, LAUNCH] {
            let record = Place::nofollow(&self.file(name)).and_then(|place| place.stat()).map_err(failed)?;
            owners.extend(record.map(|record| Uid::from_raw(record.st_uid)));
        }
        Ok(owners.into_iter().find(|owner| !owner.is_root()).map(identity_of))
    }

    /// Gives the directory of the records to root if root started the running machine. Release 0.1 left the
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
        let place = |name: &str| directory.try_clone().map(|directory| directory.place(name)).map_err(failed);
        // Only root can have written these files, and the user can have replaced them only with older ones of this
        // machine.
        for name in [PROCESS, LAUNCH] {
            let record = place(name)?.stat().map_err(failed)?;
            if !record.is_some_and(|record| record.st_uid == 0 && record.st_nlink == 1) {
                return Ok(());
            }
        }
        // The user can replace the files until the directory is root's own. Code that uses them afterwards must read
        // them again, and ask who has recorded the machine.
        let Some((text, writer)) = place(PROCESS)?.read().map_err(failed)? else { return Ok(()) };
        let Ok(machine) = serde_json::from_slice::<RunningMachine>(&text) else { return Ok(()) };
        let is_roots = |process: &ProcessIdentity| process.is_alive() && process.user().is_ok_and(Uid::is_root);
        // A hypervisor may run as another user under a supervisor of root.
        if writer.is_root() && [Some(machine.hypervisor), machine.supervisor].iter().flatten().any(is_roots) {
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

/// Makes the directory of the records root's own, if this process is root: another user could replace the records of
/// the machine that root starts. A service creates the directory again for its machine's user.
pub(super) fn own_records(directory: &Directory) -> io::Result<()> {
    if geteuid().is_root() && !directory.owner()?.is_root() {
        directory.give_to(&Identity::of_ids(0, 0))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use crate::state::tests::running;
    use crate::state::{ProcessIdentity, RunningMachine, RuntimeDirectory, StateError};
    use nix::unistd::{Uid, chown};
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, Command};

    /// Starts a process of another user, which ends by itself.
    fn process_of(user: Uid) -> (Child, ProcessIdentity) {
        let mut command = Command::new("sleep");
        let child = command.arg("600").uid(user.as_raw()).spawn().unwrap();
        let identity = ProcessIdentity::of(child.id().cast_signed()).unwrap();
        (child, identity)
    }

    #[test]
    fn the_records_of_a_machine_that_root_runs_as_another_user_become_roots_own() {
        if !nix::unistd::geteuid().is_root() {
            return testing::skipped("only root can give files away");
        }
        let directory = tempfile::tempdir().unwrap();
        let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
        fs::create_dir(machine.directory()).unwrap();
        fs::write(machine.file("launch.json"), "{}").unwrap();
        let stranger = Uid::from_raw(65534);
        let (mut child, hypervisor) = process_of(stranger);
        let own = ProcessIdentity::current().unwrap();
        let ended = ProcessIdentity { start_ticks: own.start_ticks + 1, ..own };
        // The supervisor, and who owns the directory in the end.
        for (supervisor, owner) in [(hypervisor, stranger.as_raw()), (ended, stranger.as_raw()), (own, 0)] {
            machine.write_running(&RunningMachine { supervisor: Some(supervisor), ..running(hypervisor) }).unwrap();
            chown(machine.directory(), Some(stranger), None).unwrap();
            machine.own_records_of_root().unwrap();
            assert_eq!(fs::metadata(machine.directory()).unwrap().uid(), owner, "{supervisor:?}");
            // A record that the user replaced until then is the user's.
            assert_eq!(machine.other_recorder().unwrap().map(|user| user.user()), (owner != 0).then_some(stranger));
            chown(&machine.file("launch.json"), Some(stranger), None).unwrap();
            assert_eq!(machine.other_recorder().unwrap().map(|user| user.user()), Some(stranger));
            chown(&machine.file("launch.json"), Some(Uid::from_raw(0)), None).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

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

    #[test]
    fn a_refused_start_by_root_took_the_records_from_the_user_whose_machine_runs() {
        if !nix::unistd::geteuid().is_root() {
            return testing::skipped("only root can give files away");
        }
        let directory = tempfile::tempdir().unwrap();
        let machine = RuntimeDirectory::at(directory.path()).machine("web").unwrap();
        fs::create_dir(machine.directory()).unwrap();
        let stranger = Uid::from_raw(65534);
        let (mut child, process) = process_of(stranger);
        machine.write_running(&RunningMachine { supervisor: Some(process), ..running(process) }).unwrap();
        for path in [machine.file("process.json"), machine.directory().to_owned()] {
            chown(&path, Some(stranger), None).unwrap();
        }
        let refused = machine.lock_for_start(Path::new("/var/lib/web")).unwrap_err();
        assert!(matches!(refused, StateError::Running { .. }), "{refused}");
        assert_eq!(fs::metadata(machine.directory()).unwrap().uid(), stranger.as_raw());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
