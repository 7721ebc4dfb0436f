//! Volumes: created whole or not at all, never over a file that is there, and checked for type and label.

mod superblock;

pub use superblock::{FileSystem, file_system};

use crate::interruption::{ChildError, Interrupted, Interruption};
use crate::launch::{Access, VolumeCreation, VolumeNeed};
use crate::path::HostPath;
use crate::programs::{NotInstalled, find_program};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a volume is not ready.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It is not there, and is not to be created.
    #[error("volume {0} is not there, and `autoCreate` is off: create it or turn that on")]
    Missing(HostPath),
    /// A file operation failed.
    #[error("volume {path}: {source}")]
    File {
        /// The image.
        path: HostPath,
        /// Why.
        source: io::Error,
    },
    /// No program makes such a file system.
    #[error("volume {path} needs a file system: {source}")]
    NoMkfs {
        /// The image.
        path: HostPath,
        /// What is missing.
        source: NotInstalled,
    },
    /// mkfs did not succeed; nothing was left behind.
    #[error("volume {path}: {program} ended with {status}: {said}")]
    MkfsFailed {
        /// The image.
        path: HostPath,
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// What it wrote.
        said: String,
    },
    /// What mkfs made is something else.
    #[error("volume {path}: {program} succeeded but left {found}, where {wanted} was asked for")]
    MkfsMade {
        /// The image.
        path: HostPath,
        /// The program.
        program: String,
        /// What is there.
        found: String,
        /// What should be there.
        wanted: String,
    },
    /// The volume holds something else.
    #[error(
        "volume {path} holds {found}, but the machine spec says {wanted}: change the spec, or move the file away to have a new volume created"
    )]
    Other {
        /// The image.
        path: HostPath,
        /// What is there.
        found: String,
        /// What should be there.
        wanted: String,
    },
    /// Another process is creating it.
    #[error("volume {0} is being created by another process")]
    Busy(HostPath),
    /// Somebody asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What became of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// It was there.
    Present,
    /// It was created.
    Created,
}

/// Makes sure that a volume is there and is what the spec says. `image` must be absolute.
///
/// # Errors
/// [`VolumeError`].
pub fn make_ready(volume: &VolumeNeed, interruption: &Interruption) -> Result<VolumeState, VolumeError> {
    let path = volume.image.as_path();
    match fs::metadata(path) {
        Ok(metadata) => {
            if !metadata.file_type().is_block_device() {
                check_content(volume)?;
            }
            Ok(VolumeState::Present)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match &volume.creation {
            Some(creation) => create(volume, creation, interruption).map(|()| VolumeState::Created),
            None => Err(VolumeError::Missing(volume.image.clone())),
        },
        Err(source) => Err(VolumeError::File { path: volume.image.clone(), source }),
    }
}

/// A volume that the launcher would create must hold what it would have made; another is the user's own affair.
fn check_content(volume: &VolumeNeed) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::File { path: volume.image.clone(), source };
    let mut options = OpenOptions::new();
    let image =
        options.read(true).write(volume.access == Access::ReadWrite).open(volume.image.as_path()).map_err(failed)?;
    if volume.creation.is_none() {
        return Ok(());
    }
    let found = file_system(&image).map_err(failed)?;
    if matches(found.as_ref(), volume) {
        return Ok(());
    }
    Err(VolumeError::Other { path: volume.image.clone(), found: described(found.as_ref()), wanted: wanted(volume) })
}

fn matches(found: Option<&FileSystem>, volume: &VolumeNeed) -> bool {
    match found {
        // Only what the superblock reader knows can be told to be wrong.
        None => !superblock_is_known(&volume.fs_type),
        Some(found) => {
            let same_label = volume.label.as_ref().is_none_or(|label| *label == found.label);
            found.is_of_type(&volume.fs_type) && same_label
        }
    }
}

fn superblock_is_known(fs_type: &str) -> bool {
    matches!(fs_type, "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "vfat" | "fat" | "msdos")
}

fn described(found: Option<&FileSystem>) -> String {
    match found {
        None => "no known file system".to_owned(),
        Some(found) if found.label.is_empty() => format!("{} without a label", found.fs_type),
        Some(found) => format!("{} with label `{}`", found.fs_type, found.label),
    }
}

fn wanted(volume: &VolumeNeed) -> String {
    match &volume.label {
        None => volume.fs_type.clone(),
        Some(label) => format!("{} with label `{label}`", volume.fs_type),
    }
}

/// Removes the half-made image unless it was finished.
struct Unfinished {
    path: PathBuf,
    finished: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // The next start removes it otherwise: it is recognised by its name.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn create(volume: &VolumeNeed, creation: &VolumeCreation, interruption: &Interruption) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::File { path: volume.image.clone(), source };
    let program = HostPath::new(format!("mkfs.{}", volume.fs_type));
    let mkfs = find_program(&program).map_err(|source| VolumeError::NoMkfs { path: volume.image.clone(), source })?;
    let target = volume.image.as_path();
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let partial = beside(target);
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).create(true).truncate(false).mode(0o660).open(&partial).map_err(failed)?;
    // A killed launcher leaves its half behind: whoever gets the lock may take that over.
    let file =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| VolumeError::Busy(volume.image.clone()))?;
    let mut unfinished = Unfinished { path: partial, finished: false };
    file.set_len(0).map_err(failed)?;
    avoid_copy_on_write(&unfinished.path, interruption)?;
    file.set_len(creation.size_mib << 20).map_err(failed)?;

    let mut command = Command::new(&mkfs);
    command.args(mkfs_arguments(volume, creation)).arg(&unfinished.path);
    let ended = interruption.run_quietly(&mut command).map_err(|error| match error {
        ChildError::Interrupted(interrupted) => interrupted.into(),
        ChildError::System(source) => failed(source),
    })?;
    if !ended.status.success() {
        return Err(VolumeError::MkfsFailed {
            path: volume.image.clone(),
            program: program.to_string(),
            status: ended.status.to_string(),
            said: ended.said,
        });
    }
    let found = file_system(&file).map_err(failed)?;
    if !matches(found.as_ref(), volume) {
        return Err(VolumeError::MkfsMade {
            path: volume.image.clone(),
            program: program.to_string(),
            found: described(found.as_ref()),
            wanted: wanted(volume),
        });
    }
    file.sync_all().map_err(failed)?;
    move_without_overwriting(&unfinished.path, target).map_err(failed)?;
    unfinished.finished = true;
    Ok(())
}

/// The name under which an image is made.
fn beside(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".creating");
    name.into()
}

fn mkfs_arguments(volume: &VolumeNeed, creation: &VolumeCreation) -> Vec<String> {
    let (fixed, label_option): (&[&str], &str) = match volume.fs_type.as_str() {
        "ext2" | "ext3" | "ext4" => (&["-q"], "-L"),
        // The file was emptied by us: there is nothing to be careful of.
        "xfs" => (&["-q", "-f"], "-L"),
        "btrfs" => (&["-q", "-f"], "-L"),
        "vfat" | "fat" | "msdos" => (&[], "-n"),
        "f2fs" => (&["-q"], "-l"),
        _ => (&[], "-L"),
    };
    let mut arguments: Vec<String> = fixed.iter().map(|argument| (*argument).to_owned()).collect();
    if let Some(label) = &volume.label {
        arguments.extend([label_option.to_owned(), label.clone()]);
    }
    arguments.extend(creation.mkfs_extra_args.iter().cloned());
    arguments
}

/// On btrfs a disk image written in place is better off without copy on write; the flag can be set only while it is
/// empty. Elsewhere there is no such thing, and no harm in not having it.
fn avoid_copy_on_write(path: &Path, interruption: &Interruption) -> Result<(), VolumeError> {
    let is_btrfs = nix::sys::statfs::statfs(path)
        .is_ok_and(|statistics| statistics.filesystem_type() == nix::sys::statfs::BTRFS_SUPER_MAGIC);
    if !is_btrfs {
        return Ok(());
    }
    match interruption.run_quietly(Command::new("chattr").arg("+C").arg(path)) {
        Err(ChildError::Interrupted(interrupted)) => Err(interrupted.into()),
        _ => Ok(()),
    }
}

/// Renames, but never over a file that appeared meanwhile.
fn move_without_overwriting(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        // A file system that does not know the flag: a hard link does not overwrite either.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests;
