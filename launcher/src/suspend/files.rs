//! The directory of a suspended machine. Root reaches its files by descriptors only, because it belongs to the machine's
//! user.

use super::SuspendError;
use crate::launch::{COMPLETE, INCOMPLETE, Launch, REFUSED, SAVED_FILE, STAMP, suspended_directory};
use crate::path::HostPath;
use crate::stamp::Stamp;
use crate::state::parser_reason;
use nix::fcntl::OFlag;
use nix::libc::{S_IFDIR, S_IFMT, S_IFREG};
use program::place::{Directory, Place, descriptor_path};
use program::user::Identity;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

/// Only the machine's user may read what is in a machine's memory.
pub(super) const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// The unit of `st_blocks`: stat(2).
pub(super) const BLOCK_BYTES: u64 = 512;
/// The file that exists from the moment at which the guest may run again.
const RESUMED: &str = "resumed";

/// The place where a machine is saved, whether it is suspended or not.
#[derive(Clone, Debug)]
pub struct SuspendedState {
    directory: HostPath,
}

impl SuspendedState {
    /// Returns the place in a state directory, an absolute path.
    pub fn new(state_directory: &HostPath, machine: &str) -> Self {
        Self { directory: suspended_directory(machine).below(state_directory) }
    }

    /// Returns the place of the machine of a launch.
    pub fn of_launch(launch: &Launch) -> Self {
        Self::new(&launch.working_directory, &launch.name)
    }

    /// Returns the path of the directory with the saved machine.
    pub fn complete(&self) -> HostPath {
        self.below(COMPLETE)
    }

    /// Returns the stamp of the suspended machine, or `None` if the machine is not suspended.
    ///
    /// # Errors
    /// Returns [`SuspendError::File`] or [`SuspendError::Unreadable`].
    pub fn stamp(&self) -> Result<Option<Stamp>, SuspendError> {
        let path = HostPath::from(STAMP).below(&self.complete());
        match Place::nofollow(path.as_path()).and_then(|place| place.read()) {
            Ok(Some((text, _))) => {
                let unreadable = |error| SuspendError::Unreadable { path, reason: parser_reason(&error) };
                serde_json::from_slice(&text).map(Some).map_err(unreadable)
            }
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SuspendError::File { path, source }),
        }
    }

    /// Whether the machine is suspended, as far as this user can see: other users' machines may be saved in directories
    /// that only they can enter.
    ///
    /// # Errors
    /// The same as [`SuspendedState::stamp`].
    pub fn is_visible(&self) -> Result<bool, SuspendError> {
        match self.stamp() {
            Err(SuspendError::File { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            stamp => Ok(stamp?.is_some()),
        }
    }

    /// Whether the guest may have run since the machine was suspended.
    pub(super) fn was_resumed(&self) -> bool {
        let path = HostPath::from(RESUMED).below(&self.complete());
        Place::nofollow(path.as_path()).and_then(|place| place.stat()).is_ok_and(|stat| stat.is_some())
    }

    pub(super) fn mark_resumed(&self, owner: Option<&Identity>) -> Result<(), SuspendError> {
        let path = HostPath::from(RESUMED).below(&self.complete());
        Place::nofollow(path.as_path())
            .and_then(|place| place.replace(&[], FILE_MODE, owner))
            .map_err(|source| SuspendError::File { path, source })
    }

    /// Opens the saved machine of a hypervisor that uses one file.
    pub(super) fn file(&self) -> Result<File, SuspendError> {
        let path = HostPath::from(SAVED_FILE).below(&self.complete());
        Place::nofollow(path.as_path())
            .and_then(|place| place.open(OFlag::O_RDONLY))
            .map_err(|source| SuspendError::File { path, source })
    }

    /// Removes the saved machine, if there is one. The directory of a running machine stays if its launch needs it.
    ///
    /// # Errors
    /// Returns [`SuspendError::File`].
    pub fn remove(&self, running: Option<&Launch>) -> Result<(), SuspendError> {
        let is_needed = |launch: &Launch| {
            let needs = launch.needs.directories.iter();
            needs.map(|directory| directory.below(&launch.working_directory)).any(|needed| needed == self.directory)
        };
        let removed = remove_all(&self.below(INCOMPLETE))
            .and_then(|()| remove_all(&self.below(REFUSED)))
            .and_then(|()| self.remove_complete())
            .and_then(|()| if running.is_some_and(is_needed) { Ok(()) } else { remove_all(&self.directory) });
        removed.map_err(|source| self.failed(source))
    }

    /// Moves the saved machine to another place, such as a directory that another host shares. It is copied, and appears
    /// there when it is complete and synced; then it is removed here.
    ///
    /// # Errors
    /// Returns [`SuspendError::File`]. It is still here then.
    pub fn move_to(&self, other: &Self, owner: Option<&Identity>) -> Result<(), SuspendError> {
        let unfinished = Unfinished::make(other.clone(), owner)?;
        let copied = || {
            let target = Directory::open(unfinished.path().as_path())?;
            copy_all(&Directory::open(self.complete().as_path())?, &target, owner)
        };
        copied().map_err(|source| self.failed(source))?;
        unfinished.publish()?;
        self.remove(None)
    }

    /// Keeps the saved machine under another name, which is returned. The machine is no longer suspended.
    pub(super) fn set_aside(&self) -> Result<HostPath, SuspendError> {
        let (complete, refused) = (self.complete(), self.below(REFUSED));
        remove_all(&refused)
            .and_then(|()| Place::nofollow(complete.as_path())?.rename_to(&Place::nofollow(refused.as_path())?))
            .map_err(|source| self.failed(source))?;
        Ok(refused)
    }

    /// Removes the stamp first, so that a directory that is removed in part does not count as a suspended machine.
    fn remove_complete(&self) -> io::Result<()> {
        let complete = self.complete();
        match Place::nofollow(HostPath::from(STAMP).below(&complete).as_path()) {
            Ok(stamp) => {
                stamp.remove()?;
                stamp.directory().sync()?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        remove_all(&complete)
    }

    fn below(&self, name: &str) -> HostPath {
        HostPath::from(name).below(&self.directory)
    }

    fn failed(&self, source: io::Error) -> SuspendError {
        SuspendError::File { path: self.directory.clone(), source }
    }
}

/// A machine that is being saved. Dropping it removes the files.
#[derive(Debug)]
pub(super) struct Unfinished<'owner> {
    state: SuspendedState,
    owner: Option<&'owner Identity>,
    is_published: bool,
    /// Whether the directory of the machine's saved states was created for it. A running hypervisor may need an earlier one.
    has_new_parent: bool,
}

impl<'owner> Unfinished<'owner> {
    /// Creates an empty directory, and removes what a killed process has left.
    pub(super) fn make(state: SuspendedState, owner: Option<&'owner Identity>) -> Result<Self, SuspendError> {
        let incomplete = state.below(INCOMPLETE);
        let parent = Place::nofollow(state.directory.as_path()).and_then(|place| place.stat());
        let has_new_parent = matches!(parent, Ok(None));
        let made = remove_all(&incomplete)
            .and_then(|()| remove_all(&state.below(REFUSED)))
            .and_then(|()| Directory::make(incomplete.as_path(), DIRECTORY_MODE, owner).map(drop));
        let unfinished = Self { state, owner, is_published: false, has_new_parent };
        made.map_err(|source| unfinished.state.failed(source))?;
        Ok(unfinished)
    }

    /// Returns its path.
    pub(super) fn path(&self) -> HostPath {
        self.state.below(INCOMPLETE)
    }

    /// Creates the file of a hypervisor that uses one file.
    pub(super) fn file(&self) -> Result<File, SuspendError> {
        let path = HostPath::from(SAVED_FILE).below(&self.path());
        let created = || {
            let place = Place::nofollow(path.as_path())?;
            place.replace(&[], FILE_MODE, self.owner)?;
            place.open(OFlag::O_WRONLY)
        };
        created().map_err(|source| SuspendError::File { path: path.clone(), source })
    }

    /// Writes the stamp, without which nothing counts as saved.
    pub(super) fn write_stamp(&self, stamp: &Stamp) -> Result<(), SuspendError> {
        let path = HostPath::from(STAMP).below(&self.path());
        let written = serde_json::to_vec_pretty(stamp).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            Place::nofollow(path.as_path())?.replace(&text, FILE_MODE, self.owner)
        });
        written.map_err(|source| SuspendError::File { path, source })
    }

    /// Syncs all files and gives the directory its final name. Returns the space that it occupies.
    pub(super) fn publish(mut self) -> Result<u64, SuspendError> {
        let (incomplete, complete) = (self.path(), self.state.complete());
        let publish = || {
            let disk_bytes = sync_all(&Directory::open(incomplete.as_path())?)?;
            // An earlier one is of no use: the machine has run since.
            self.state.remove_complete()?;
            Place::nofollow(incomplete.as_path())?.rename_to(&Place::nofollow(complete.as_path())?)?;
            Directory::open(self.state.directory.as_path())?.sync()?;
            // The directory itself may be new.
            Place::nofollow(self.state.directory.as_path())?.directory().sync()?;
            Ok(disk_bytes)
        };
        let disk_bytes = publish().map_err(|source| self.state.failed(source))?;
        self.is_published = true;
        Ok(disk_bytes)
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_published {
            // If this fails, the next suspend removes it.
            let _ = remove_all(&self.path());
            if self.has_new_parent {
                let _ = Place::nofollow(self.state.directory.as_path())
                    .and_then(|place| fs::remove_dir(place.descriptor_path()));
            }
        }
    }
}

/// Removes a directory with its content. A missing one is not an error.
fn remove_all(path: &HostPath) -> io::Result<()> {
    let removed = Place::nofollow(path.as_path()).and_then(|place| fs::remove_dir_all(place.descriptor_path()));
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies all files and directories below a directory. Other kinds of files are refused: a hypervisor saves none.
fn copy_all(from: &Directory, to: &Directory, owner: Option<&Identity>) -> io::Result<()> {
    for entry in fs::read_dir(descriptor_path(&from.as_fd()))? {
        let name = entry?.file_name();
        let (source, target) = (from.try_clone()?.place(&name), to.try_clone()?.place(&name));
        let Some(stat) = source.stat()? else { continue };
        match stat.st_mode & S_IFMT {
            S_IFDIR => {
                let made = Directory::make(&target.path(), DIRECTORY_MODE, owner)?;
                copy_all(&Directory::open(&source.path())?, &made, owner)?;
            }
            S_IFREG if name == RESUMED => {}
            S_IFREG => {
                let new = target.create()?;
                io::copy(&mut source.open(OFlag::O_RDONLY)?, &mut new.file())?;
                new.finish(FILE_MODE, owner)?;
            }
            _ => return Err(io::Error::other(format!("{} is not a file", source.path().display()))),
        }
    }
    Ok(())
}

/// Syncs all files below a directory, and the directory. Returns the space that they occupy.
fn sync_all(directory: &Directory) -> io::Result<u64> {
    let mut disk_bytes = 0;
    for entry in fs::read_dir(descriptor_path(&directory.as_fd()))? {
        let place = directory.try_clone()?.place(entry?.file_name());
        let Some(stat) = place.stat()? else { continue };
        if stat.st_mode & S_IFMT == S_IFDIR {
            disk_bytes += sync_all(&Directory::open(&place.path())?)?;
        } else {
            let file = place.open(OFlag::O_RDONLY)?;
            file.sync_all()?;
            disk_bytes += file.metadata()?.blocks() * BLOCK_BYTES;
        }
    }
    directory.sync()?;
    Ok(disk_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn stamp(version: &str) -> Stamp {
        let text = serde_json::json!({
            "version": 1, "suspendedUnixSeconds": 5, "machineSpec": {"mem": 64}, "cpu": null, "files": {}, "volumes": {},
            "hypervisor": {
                "version": version, "program": "/bin/qemu", "arguments": [],
                "file": {"sizeBytes": 1, "modified": "1.000000000"},
            },
        });
        serde_json::from_value(text).unwrap()
    }

    fn saved(state: &SuspendedState, version: &str) -> Unfinished<'static> {
        let unfinished = Unfinished::make(state.clone(), None).unwrap();
        drop(unfinished.file().unwrap());
        unfinished.write_stamp(&stamp(version)).unwrap();
        unfinished
    }

    #[test]
    fn a_saved_machine_appears_when_it_is_complete_and_replaces_the_one_before() {
        let home = tempfile::tempdir().unwrap();
        let state = SuspendedState::new(&HostPath::new(home.path().to_str().unwrap()), "web");
        drop(saved(&state, "1.0.0"));
        assert_eq!(state.stamp().unwrap(), None);
        assert!(!home.path().join("web.suspended").exists(), "an attempt that failed leaves nothing");
        // A running hypervisor may have opened an earlier directory.
        fs::create_dir(home.path().join("web.suspended")).unwrap();
        drop(saved(&state, "1.0.0"));
        assert_eq!(fs::read_dir(home.path().join("web.suspended")).unwrap().count(), 0);
        // What a killed process has left is removed.
        fs::create_dir_all(home.path().join("web.suspended/incomplete/left")).unwrap();
        saved(&state, "1.0.0").publish().unwrap();
        assert_eq!(state.stamp().unwrap(), Some(stamp("1.0.0")));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let complete = home.path().join("web.suspended/complete");
        assert_eq!((mode(&complete), mode(&complete.join("state"))), (0o700, 0o600));
        state.mark_resumed(None).unwrap();
        assert!(state.was_resumed());
        saved(&state, "2.0.0").publish().unwrap();
        assert_eq!((state.stamp().unwrap(), state.was_resumed()), (Some(stamp("2.0.0")), false));
        state.remove(None).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
        state.remove(None).unwrap();
    }

    #[test]
    fn a_saved_machine_that_moves_is_only_in_the_other_place() {
        let (home, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = |directory: &tempfile::TempDir| {
            SuspendedState::new(&HostPath::new(directory.path().to_str().unwrap()), "web")
        };
        let (here, there) = (place(&home), place(&shared));
        saved(&here, "1.0.0").publish().unwrap();
        fs::create_dir(home.path().join("web.suspended/complete/snapshot")).unwrap();
        fs::write(home.path().join("web.suspended/complete/snapshot/memory"), "pages").unwrap();
        here.mark_resumed(None).unwrap();
        here.move_to(&there, None).unwrap();
        assert_eq!((here.stamp().unwrap(), there.stamp().unwrap()), (None, Some(stamp("1.0.0"))));
        assert!(!there.was_resumed(), "the guest has not run in the new place");
        let memory = shared.path().join("web.suspended/complete/snapshot/memory");
        assert_eq!(fs::read(&memory).unwrap(), b"pages");
        assert_eq!(fs::metadata(&memory).unwrap().permissions().mode() & 0o7777, 0o600);
        // A machine that cannot be copied stays.
        fs::remove_file(&memory).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &memory).unwrap();
        there.move_to(&here, None).unwrap_err();
        assert_eq!((here.stamp().unwrap(), there.stamp().unwrap()), (None, Some(stamp("1.0.0"))));
    }

    #[test]
    fn a_link_instead_of_the_directory_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let victim = tempfile::tempdir().unwrap();
        fs::create_dir(victim.path().join("complete")).unwrap();
        fs::write(victim.path().join("complete/stamp.json"), "untouched").unwrap();
        let state = SuspendedState::new(&HostPath::new(home.path().to_str().unwrap()), "web");
        std::os::unix::fs::symlink(victim.path(), home.path().join("web.suspended")).unwrap();
        if nix::unistd::geteuid().is_root() {
            nix::unistd::fchownat(
                nix::fcntl::AT_FDCWD,
                &home.path().join("web.suspended"),
                Some(nix::unistd::Uid::from_raw(65534)),
                None,
                nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
            )
            .unwrap();
            assert!(state.stamp().is_err(), "root does not follow the link of another user");
            assert!(state.remove(None).is_err());
            assert!(victim.path().join("complete/stamp.json").exists());
        }
    }
}
