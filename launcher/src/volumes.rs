//! Volumes: created atomically, never over an existing file, and checked for file system and label.

mod copy;
mod format;
mod grow;
mod lock;
mod loop_device;
mod same_file;

pub use copy::{Copied, CopyError, CopyOwner, copy};
pub use format::check_format;
pub use grow::{GrowError, Grown, grow};
pub use lock::{ImageLock, LockHolder, LockRequest, LockTime, VolumeLock, inspect_locks, lock_created, lock_volumes};
pub(crate) use lock::{ImageNumber, LOCK_DIRECTORY_MODE, require_no_loop_user};
pub(crate) use same_file::file_at;
pub use same_file::{SameFile, same_files};
pub use volume_maker::{FoundFileSystem, file_system};

use crate::interruption::{ChildError, Interrupted, Interruption};
use crate::launch::{Access, VolumeCreation, VolumeNeed};
use crate::path::HostPath;
use crate::programs::{NotInstalled, not_installed};
use crate::shell::quote;
use crate::spec::ImageType;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statvfs::fstatvfs;
use nix::unistd::geteuid;
use program::place::Place;
use program::plural::counted;
use program::user::Identity;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use volume_maker::{CommandOutput, CreateError, FileSystem, RunError, TooSmall, VolumeRequest, is_recognised};

/// The mode of a new volume: only the user who runs the machine can access it.
const VOLUME_MODE: u32 = 0o600;
/// The mode of a directory that is created for a volume.
const DIRECTORY_MODE: u32 = 0o755;
/// No file system is smaller.
const SMALLEST_BYTES: u64 = 4096;

/// Returns what makes a volume of another user usable for the user of this process, which is the machine's.
fn owner_remedy(image: &HostPath, lock: &Path, error: &io::Error) -> String {
    let user = rustix::process::geteuid();
    let is_beside_image = lock.parent() == image.as_path().parent();
    if error.kind() != io::ErrorKind::PermissionDenied || user.is_root() || !is_beside_image {
        return String::new();
    }
    let (user, group) = (user.as_raw(), rustix::process::getegid().as_raw());
    let files = [image.as_str(), &lock.to_string_lossy()].map(quote).join(" ");
    format!("; the machine runs as user {user}, so run as root: chown {user}:{group} {files}")
}

/// Returns why a volume that does not exist is not created, and the remedy.
pub(crate) fn not_created(image: &HostPath) -> &'static str {
    if image.is_device() {
        "does not exist, and devices are not created: connect the device, or change `image`"
    } else {
        "does not exist, and `autoCreate` is off: create it or turn `autoCreate` on"
    }
}

/// Why a volume is not ready.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It does not exist, and is not created.
    #[error("volume {path} {}", not_created(.path))]
    Missing {
        /// The image.
        path: HostPath,
    },
    /// A file operation failed.
    #[error("volume {path}: {source}")]
    File {
        /// The image.
        path: HostPath,
        /// The error of the system.
        source: io::Error,
    },
    /// No installed program creates such a file system.
    #[error("volume {path} needs a file system: {source}")]
    NoMkfs {
        /// The image.
        path: HostPath,
        /// The missing program.
        source: NotInstalled,
    },
    /// Its file system cannot be created; nothing was left behind.
    #[error("volume {path}: {source}")]
    Create {
        /// The image.
        path: HostPath,
        /// The error of the program that creates file systems.
        source: CreateError,
    },
    /// The volume contains something else.
    #[error("volume {path} contains {found}, but the machine spec says {wanted}: change the spec, or {remedy}")]
    Other {
        /// The image.
        path: HostPath,
        /// What the image contains.
        found: String,
        /// What the machine spec requires.
        wanted: String,
        /// What to do if the spec is right.
        remedy: &'static str,
    },
    /// The end of its file system is missing.
    #[error(
        "volume {path} has {bytes} bytes, but its {fs_type} has {needed_bytes}: its end is missing, for example because a copy \
         was incomplete; restore it from a backup"
    )]
    Short {
        /// The image.
        path: HostPath,
        /// Its length.
        bytes: u64,
        /// The file system in it.
        fs_type: &'static str,
        /// The length that the file system needs.
        needed_bytes: u64,
    },
    /// Another machine uses it, and one of the two machines writes to it.
    #[error(
        "volume {path} is in use by {holder}; a machine that writes to a volume must be the only one that uses it, so stop \
         that machine first"
    )]
    InUse {
        /// The image.
        path: HostPath,
        /// The owner of the lock, as its lock file names it.
        holder: LockHolder,
    },
    /// The host uses the block device.
    #[error(
        "volume {0}: this host uses the block device: it is mounted, belongs to LVM or a RAID, or another machine has it; \
         only one may use a volume at a time"
    )]
    Claimed(HostPath),
    /// A loop device shows the file, and is in use.
    #[error(
        "volume {path}: the loop device {} shows this file and is in use: it is mounted, or another machine has it; only \
         one may use a volume at a time, so unmount it or stop that machine", .device.display()
    )]
    Attached {
        /// The image.
        path: HostPath,
        /// The loop device.
        device: PathBuf,
    },
    /// The lock file cannot be used.
    #[error("volume {path} cannot be locked: {}: {source}{}", .lock.display(), owner_remedy(.path, .lock, .source))]
    Lock {
        /// The image.
        path: HostPath,
        /// The lock file.
        lock: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// It would be too small for its file system.
    #[error("volume {path}: {source}; set `size`, whose unit is MiB, or create the volume yourself")]
    TooSmall {
        /// The image.
        path: HostPath,
        /// The sizes.
        source: TooSmall,
    },
    /// Two volumes are the same file.
    #[error("volumes {first} and {second} are the same file; a file that is written to must not be used twice")]
    Twice {
        /// One of them.
        first: HostPath,
        /// The other one.
        second: HostPath,
    },
    /// A machine that only reads it cannot restore it.
    #[error(
        "volume {0} is half grown, because `microvm volume grow` was interrupted: repeat that command, or start a machine \
         that writes to the volume, which restores its old size"
    )]
    HalfGrown(HostPath),
    /// It is half grown, and cannot be restored.
    #[error("volume {0}")]
    Unrestored(GrowError),
    /// The hypervisor would detect another format.
    #[error(
        "{option}: {path} looks like {found}, but the machine spec says {wanted}: {hypervisor} detects the format by \
         the content, and would open any file of this host that the header names; set imageType if you created the \
         image in this format, otherwise overwrite the header, which the guest may have written"
    )]
    Format {
        /// The option of the spec that names the disk.
        option: String,
        /// The image.
        path: HostPath,
        /// The format that its content looks like.
        found: String,
        /// The format in the machine spec.
        wanted: &'static str,
        /// The hypervisor.
        hypervisor: String,
    },
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A disk with less space than this is almost full: the last blocks are too few for most writes.
const ALMOST_NO_BYTES: u64 = 1 << 20;

/// Whether the disk with this file or directory is almost full for `writer`, or for the user of this process. Programs
/// that cannot write do not all say so. Root can also use the blocks that are reserved for it.
pub(crate) fn is_almost_full(place: &impl AsFd, writer: Option<&Identity>) -> bool {
    let is_root = writer.map_or_else(geteuid, Identity::user).is_root();
    fstatvfs(place).is_ok_and(|found| {
        let blocks = if is_root { found.blocks_free() } else { found.blocks_available() };
        blocks * found.fragment_size() < ALMOST_NO_BYTES
    })
}

/// Whether a volume was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// It already existed.
    Present,
    /// It was created.
    Created,
}

/// Restores a volume whose growth was interrupted, before a guest uses it. `image` must be absolute, and the caller holds
/// the locks. Returns its length if there was something to restore.
///
/// # Errors
/// Returns [`VolumeError`].
pub fn restore_half_grown(volume: &VolumeNeed, interruption: &Interruption) -> Result<Option<u64>, VolumeError> {
    if volume.access != Access::ReadWrite || volume.image_type != ImageType::Raw {
        return Ok(None);
    }
    grow::undo_interrupted(volume.image.as_path(), interruption).map_err(|error| match error {
        GrowError::Interrupted(interrupted) => interrupted.into(),
        GrowError::File { source, .. } => VolumeError::File { path: volume.image.clone(), source },
        error => VolumeError::Unrestored(error),
    })
}

/// Creates a volume if it is missing, and checks that it is what the machine spec requires. `image` must be absolute. A
/// new volume belongs to `owner` if given, otherwise to the current user.
///
/// # Errors
/// Returns [`VolumeError`].
pub fn make_ready(
    volume: &VolumeNeed,
    owner: Option<&Identity>,
    interruption: &Interruption,
) -> Result<VolumeState, VolumeError> {
    let failed = |source| VolumeError::File { path: volume.image.clone(), source };
    loop {
        let flags = if volume.access == Access::ReadWrite { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        match Place::of(volume.image.as_path()).and_then(|place| place.open(flags)) {
            Ok(image) => return check_content(volume, &image).map(|()| VolumeState::Present),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let Some(creation) = &volume.creation else { return Err(VolumeError::Missing { path: volume.image.clone() }) };
        match create(volume, creation, owner, interruption) {
            // Another process has created it in the meantime: check that one.
            Err(VolumeError::File { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created.map(|()| VolumeState::Created),
        }
    }
}

/// Checks that a volume that does not exist is large enough for its file system, without creating it.
///
/// # Errors
/// Returns [`VolumeError::TooSmall`].
pub fn check_size(volume: &VolumeNeed, creation: &VolumeCreation) -> Result<(), VolumeError> {
    // A file system that cannot be created is reported with the missing programs.
    let Some(file_system) = FileSystem::from_name(&volume.fs_type) else { return Ok(()) };
    file_system
        .check_size(creation.size_mib << 20, &creation.mkfs_extra_args)
        .map_err(|source| VolumeError::TooSmall { path: volume.image.clone(), source })
}

/// Checks an existing volume against the machine spec, without changing anything.
///
/// # Errors
/// Returns [`VolumeError`].
pub fn inspect(volume: &VolumeNeed) -> Result<(), VolumeError> {
    let flags = if volume.access == Access::ReadWrite { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    match Place::of(volume.image.as_path()).and_then(|place| place.open(flags)) {
        Ok(image) => check_content(volume, &image),
        Err(source) => Err(VolumeError::File { path: volume.image.clone(), source }),
    }
}

/// Checks the content: a volume that the launcher may create must be what it would create, and any other volume must be
/// what the guest mounts.
fn check_content(volume: &VolumeNeed, mut image: &File) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::File { path: volume.image.clone(), source };
    let is_foreign = volume.creation.is_none() || image.metadata().map_err(failed)?.file_type().is_block_device();
    let other = |found: String, wanted: String| {
        let remedy = if is_foreign { "use another image" } else { "move the file away to get a new volume" };
        VolumeError::Other { path: volume.image.clone(), found, wanted, remedy }
    };
    if volume.image_type != ImageType::Raw {
        let (found, image_type) = format::describe(image).map_err(failed)?;
        if image_type == Some(volume.image_type) {
            return Ok(());
        }
        return Err(other(found.to_owned(), format!("a {} image", volume.image_type.as_str())));
    }
    if volume.access != Access::ReadWrite && grow::is_half_grown(image).map_err(failed)? {
        return Err(VolumeError::HalfGrown(volume.image.clone()));
    }
    let found = file_system(image).map_err(failed)?;
    // The metadata of a block device does not contain its length.
    let bytes = image.seek(SeekFrom::End(0)).map_err(failed)?;
    if volume.mount_point.is_some() && bytes < SMALLEST_BYTES {
        return Err(other(format!("only {}", counted(bytes, "byte")), wanted(volume)));
    }
    // A volume that the launcher does not create is checked only if the guest mounts it, and it may still be empty.
    if is_foreign && (volume.mount_point.is_none() || found.is_none()) {
        return Ok(());
    }
    if !matches(found.as_ref(), volume) {
        return Err(other(describe(found.as_ref()), wanted(volume)));
    }
    match found {
        Some(FoundFileSystem { fs_type, size_bytes: Some(needed_bytes), .. }) if bytes < needed_bytes => {
            Err(VolumeError::Short { path: volume.image.clone(), bytes, fs_type, needed_bytes })
        }
        _ => Ok(()),
    }
}

/// Returns what an existing volume contains: a file system, or something else that has a name. `image` must be absolute.
///
/// # Errors
/// Returns [`VolumeError::File`].
pub fn content(volume: &VolumeNeed) -> Result<Option<&'static str>, VolumeError> {
    let failed = |source| VolumeError::File { path: volume.image.clone(), source };
    let image = Place::of(volume.image.as_path()).and_then(|place| place.open(OFlag::O_RDONLY)).map_err(failed)?;
    if volume.image_type != ImageType::Raw {
        return Ok(Some(format::describe(&image).map_err(failed)?.0));
    }
    Ok(file_system(&image).map_err(failed)?.map(|found| found.fs_type))
}

fn matches(found: Option<&FoundFileSystem>, volume: &VolumeNeed) -> bool {
    match found {
        // Only file systems that the superblock reader recognises can be reported as wrong.
        None => !is_recognised(&volume.fs_type),
        Some(found) => {
            let label = volume.label.as_ref().zip(found.label.as_ref());
            found.is_of_type(&volume.fs_type) && label.is_none_or(|(wanted, found)| wanted == found)
        }
    }
}

fn describe(found: Option<&FoundFileSystem>) -> String {
    let Some(found) = found else { return "no known file system".to_owned() };
    match found.label.as_deref() {
        None => found.fs_type.to_owned(),
        Some("") => format!("{} without a label", found.fs_type),
        Some(label) => format!("{} with label `{label}`", found.fs_type),
    }
}

fn wanted(volume: &VolumeNeed) -> String {
    match &volume.label {
        None => volume.fs_type.clone(),
        Some(label) => format!("{} with label `{label}`", volume.fs_type),
    }
}

/// Creates the volume, for its owner if there is one.
fn create(
    volume: &VolumeNeed,
    creation: &VolumeCreation,
    owner: Option<&Identity>,
    interruption: &Interruption,
) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::File { path: volume.image.clone(), source };
    let no_mkfs = |program: &str| VolumeError::NoMkfs {
        path: volume.image.clone(),
        source: not_installed(program, "it is not in any directory of $PATH"),
    };
    let Some(file_system) = FileSystem::from_name(&volume.fs_type) else {
        return Err(no_mkfs(&format!("mkfs.{}", volume.fs_type)));
    };
    let mkfs_arguments: Vec<OsString> = creation.mkfs_extra_args.iter().map(OsString::from).collect();
    let request = VolumeRequest {
        size_bytes: creation.size_mib << 20,
        file_system,
        label: volume.label.as_deref(),
        directories: &[],
        mkfs_arguments: &mkfs_arguments,
        mode: VOLUME_MODE,
        owner,
    };
    let place = Place::with_parents(volume.image.as_path(), DIRECTORY_MODE, owner).map_err(failed)?;
    let mut run = |command: &mut Command| match interruption.run_captured(command) {
        Ok(ended) => Ok(CommandOutput { status: ended.status, output: ended.output }),
        Err(ChildError::Interrupted(_)) => Err(RunError::Interrupted),
        Err(ChildError::System(source)) => Err(RunError::System(source)),
    };
    volume_maker::create(&place, &request, &mut run).map_err(|error| match error {
        CreateError::File(source) => failed(source),
        CreateError::Exists => failed(Errno::EEXIST.into()),
        CreateError::NoProgram { program } => no_mkfs(program),
        CreateError::TooSmall(source) => VolumeError::TooSmall { path: volume.image.clone(), source },
        source => match interruption.check() {
            Err(interrupted) => interrupted.into(),
            Ok(()) => VolumeError::Create { path: volume.image.clone(), source },
        },
    })
}

#[cfg(test)]
mod tests;
