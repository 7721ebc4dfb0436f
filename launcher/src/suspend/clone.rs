//! Copying a suspended machine, with the files in its state directory, to the state directory of a clone.

use super::files::SuspendedState;
use super::{SuspendError, files};
use crate::interruption::Interruption;
use crate::launch::{Access, Launch, seal_of};
use crate::path::HostPath;
use crate::stamp::BorrowedIdentity;
use crate::stamp::Stamp;
use crate::volumes::{CopyError, CopyOwner, copy};
use nix::fcntl::OFlag;
use nix::libc::{S_IFDIR, S_IFMT};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use program::place::{Directory, Place, descriptor_path};
use program::user::Identity;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

/// The mode of directories that contain a machine's files.
const DIRECTORY_MODE: u32 = 0o750;

/// Where a suspended machine is copied to.
#[derive(Clone, Copy, Debug)]
pub struct ClonedState<'clone> {
    /// The launch of the machine that is suspended.
    pub original: &'clone Launch,
    /// The state directory of the clone, an absolute path. It exists.
    pub directory: &'clone HostPath,
    /// The clone's name.
    pub name: &'clone str,
    /// The identity that the guest keeps.
    pub borrowed: &'clone BorrowedIdentity,
    /// The owner of the files; none if it is this user.
    pub owner: Option<&'clone Identity>,
}

/// Copies the files that a suspended machine uses in its state directory, and what was saved. Returns the number of
/// bytes that were copied because the file system does not share blocks. The caller holds the locks of the volumes.
///
/// # Errors
/// Returns [`SuspendError`].
pub fn copy_to_clone(clone: &ClonedState<'_>, interruption: &Interruption) -> Result<u64, SuspendError> {
    let saved = SuspendedState::of_launch(clone.original);
    let stamp = stamp_of(&saved, clone.original)?;
    let differences = stamp.changed_volumes(clone.original)?;
    if !differences.is_empty() {
        return Err(SuspendError::Changed { machine: clone.original.name.clone(), differences });
    }
    let copying = Copying { owner: clone.owner, interruption };
    let mut copied_bytes = 0;
    for image in files_of(clone.original) {
        let to = image.below(clone.directory);
        copied_bytes += copying.file(&image.below(&clone.original.working_directory), &to)?;
    }
    let target = SuspendedState::new(clone.directory, clone.name);
    let unfinished = files::Unfinished::make(target, clone.owner)?;
    copied_bytes += copying.directory(&saved.complete(), &unfinished.path())?;
    // Only now is it certain that the saved state was complete during the whole copy.
    if stamp_of(&saved, clone.original)? != stamp {
        return Err(SuspendError::NotSuspended(clone.original.name.clone()));
    }
    let of_clone = Launch { working_directory: clone.directory.clone(), ..clone.original.clone() };
    unfinished.write_stamp(&stamp.of_clone(&of_clone, clone.borrowed.clone())?)?;
    unfinished.publish()?;
    Ok(copied_bytes)
}

/// Returns the stamp of a machine that is suspended and has not run since.
fn stamp_of(saved: &SuspendedState, launch: &Launch) -> Result<Stamp, SuspendError> {
    let stamp = saved.stamp()?.filter(|_| !saved.was_resumed());
    stamp.ok_or_else(|| SuspendError::NotSuspended(launch.name.clone()))
}

/// Returns the files in the state directory that a guest uses.
fn files_of(launch: &Launch) -> BTreeSet<HostPath> {
    let volumes = launch.needs.volumes.iter().map(|volume| &volume.image);
    let read = launch.needs.present.iter().filter(|need| need.access == Access::Read).map(|need| &need.path);
    let others = read.chain(launch.disks.iter().map(|disk| &disk.image)).cloned();
    let others = others.chain(launch.needs.sealed_image.as_ref().map(seal_of));
    // An image that the host builds elsewhere is not in the state directory.
    let is_there = |path: &HostPath| path.below(&launch.working_directory).as_path().is_file();
    volumes.cloned().chain(others.filter(is_there)).filter(is_inside).collect()
}

/// Whether a path refers to a file in the state directory.
pub fn is_inside(path: &HostPath) -> bool {
    path.as_path().components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

struct Copying<'clone> {
    owner: Option<&'clone Identity>,
    interruption: &'clone Interruption,
}

impl Copying<'_> {
    /// Copies a file with its modification time, which is part of the stamp. Returns the bytes that were copied.
    fn file(&self, from: &HostPath, to: &HostPath) -> Result<u64, SuspendError> {
        let failed = |path: &HostPath| {
            let path = path.clone();
            move |source: io::Error| SuspendError::File { path, source }
        };
        if let Some(parent) = to.as_path().parent() {
            Directory::make(parent, DIRECTORY_MODE, self.owner).map_err(failed(to))?;
        }
        let owner = self.owner.map_or(CopyOwner::Current, CopyOwner::User);
        let copied = copy(from.as_path(), to.as_path(), owner, self.interruption)?;
        let open = |path: &Path| Place::of(path).and_then(|place| place.open(OFlag::O_RDONLY));
        let original = open(from.as_path()).and_then(|file| file.metadata()).map_err(failed(from))?;
        let modified = TimeSpec::new(original.mtime(), original.mtime_nsec());
        let new = open(to.as_path()).map_err(failed(to))?;
        futimens(&new, &TimeSpec::UTIME_OMIT, &modified).map_err(|errno| failed(to)(errno.into()))?;
        let blocks = new.metadata().map_err(failed(to))?.blocks();
        Ok(if copied.shares_blocks { 0 } else { blocks * files::BLOCK_BYTES })
    }

    /// Copies the files of a directory that exists into another one.
    fn directory(&self, from: &HostPath, to: &HostPath) -> Result<u64, SuspendError> {
        let failed = |source| SuspendError::File { path: from.clone(), source };
        let directory = Directory::open(from.as_path()).map_err(failed)?;
        let mut copied_bytes = 0;
        for entry in fs::read_dir(descriptor_path(&directory.as_fd())).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let place = directory.try_clone().map_err(failed)?.place(&name);
            let Some(name) = name.to_str() else { continue };
            let Some(stat) = place.stat().map_err(failed)? else { continue };
            let (from, to) = (HostPath::from(name).below(from), HostPath::from(name).below(to));
            if stat.st_mode & S_IFMT == S_IFDIR {
                let made = Directory::make(to.as_path(), files::DIRECTORY_MODE, self.owner);
                made.map_err(|source| SuspendError::File { path: to.clone(), source })?;
                copied_bytes += self.directory(&from, &to)?;
            } else if name != crate::launch::STAMP {
                copied_bytes += self.file(&from, &to)?;
            }
        }
        Ok(copied_bytes)
    }
}

impl From<CopyError> for SuspendError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Interrupted(_) => Self::Interrupted,
            error => Self::Copy(error),
        }
    }
}
