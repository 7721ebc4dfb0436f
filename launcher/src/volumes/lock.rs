//! Locks on volumes: while one machine writes to a volume, no other one can use it. Machines that only read it share a lock.
//!
//! The lock is a lock of an open file description (`F_OFD_SETLK` in fcntl(2)). The hypervisor inherits the descriptor,
//! so the lock survives exec, and the kernel releases it when the last process that holds the descriptor has ended for
//! any reason. It is locked on a separate file, because some hypervisors lock the image themselves, and the locks would
//! conflict.
//!
//! The lock file is `IMAGE.lock` next to the image, after following symbolic links. Block devices, images with several
//! hard links, and images in a directory that this user cannot write to are locked by their numbers, in `.volume-locks`
//! in the runtime directory.
//!
//! The lock file has a name, and an image can get further names at any time: a hard link that is made while a machine runs
//! has another lock file. Therefore the image itself is locked too, with flock(2), which does not conflict with the locks of
//! qemu and cloud-hypervisor. crosvm locks its images in the same way, so for crosvm the lock is only tried.
//!
//! A reader may not be able to create the lock file, for example on a read-only file system. It then reads without a lock.

use super::{DIRECTORY_MODE, VOLUME_MODE, VolumeError};
use crate::launch::{Access, VolumeNeed};
use crate::path::HostPath;
use crate::state::RuntimeDirectory;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, S_IFBLK, S_IFMT, S_IFREG, SEEK_SET, c_int, flock};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, major, minor};
use nix::sys::statfs::{FsType, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, fstatfs};
use nix::unistd::{Gid, Pid, Uid, fchown, geteuid};
use program::escape::one_line;
use program::place::{Directory, Place};
use program::user::Identity;
use rustix::fs::{FlockOperation, flock as flock_file};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// The directory in the runtime directory with locks by number. The dot distinguishes it from all machine names.
const LOCK_DIRECTORY: &str = ".volume-locks";
/// The ending of the lock file next to an image.
pub(crate) const LOCK_ENDING: &str = ".lock";
/// Machines of different users create lock files there.
pub(crate) const LOCK_DIRECTORY_MODE: u32 = 0o1777;
/// Errors with which a reader continues without a lock.
const CANNOT_LOCK: [io::ErrorKind; 3] =
    [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
const STORE: &str = "/nix/store";
/// The most bytes to read from a lock file.
const MAX_HOLDER_BYTES: u64 = 200;

/// File systems on which flock(2) is a lock of another kind on the server, which conflicts with the hypervisors' locks:
/// NFS, SMB and SMB 2 (linux/magic.h, fs/smb/client).
const REMOTE_FILE_SYSTEMS: [FsType; 3] = [NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, FsType(0xfe53_4d42)];

/// A lock on a volume. It is held until this is dropped and every process that has inherited the descriptor has ended.
#[derive(Debug)]
pub struct VolumeLock {
    file: File,
    /// Device and inode, if this is the image itself.
    image: Option<(u64, u64)>,
}

impl VolumeLock {
    /// Returns the number of the descriptor that holds the lock.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn of_lock_file(file: File) -> Self {
        Self { file, image: None }
    }
}

/// How the image itself is locked, as opposed to its lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageLock {
    /// The lock is held.
    Held,
    /// The lock is tried and released, because the hypervisor takes it itself.
    Tried,
}

/// Where to lock volumes, and for which machine.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest<'run> {
    /// The machine's name.
    pub machine: &'run str,
    /// The directory that relative images are in.
    pub working_directory: &'run HostPath,
    /// The runtime directory, which contains the locks by number.
    pub runtime: &'run RuntimeDirectory,
    /// The owner of lock files for images that do not exist yet; by default the current user.
    pub owner: Option<&'run Identity>,
    /// How images are locked.
    pub image_lock: ImageLock,
}

impl LockRequest<'_> {
    /// Returns the directory with the locks by number.
    fn lock_directory(&self) -> PathBuf {
        self.runtime.path().join(LOCK_DIRECTORY)
    }
}

/// An image that this start has already locked.
struct LockedImage {
    place: PathBuf,
    /// Device and inode, if the image exists.
    number: Option<(u64, u64)>,
    image: HostPath,
    access: Access,
}

/// Locks all volumes: exclusively if the guest writes to them.
///
/// # Errors
/// Returns [`VolumeError::InUse`], [`VolumeError::Twice`], [`VolumeError::Lock`], or [`VolumeError::File`].
pub fn lock_volumes(volumes: &[VolumeNeed], request: LockRequest<'_>) -> Result<Vec<VolumeLock>, VolumeError> {
    let mut locked: Vec<LockedImage> = Vec::new();
    let mut locks = Vec::new();
    // First those that are written to, so that a missing lock file gets its content and mode from a writer.
    let is_written = |volume: &&VolumeNeed| volume.access == Access::ReadWrite;
    let (written, read): (Vec<_>, Vec<_>) = volumes.iter().partition(is_written);
    for volume in written.into_iter().chain(read) {
        let path = volume.image.below(request.working_directory);
        let failed = |source| VolumeError::File { path: path.clone(), source };
        let place = match volume.access {
            Access::ReadWrite => Place::with_parents(path.as_path(), DIRECTORY_MODE, request.owner),
            _ => Place::of(path.as_path()),
        };
        let place = match place {
            Err(error) if volume.access != Access::ReadWrite && error.kind() == io::ErrorKind::NotFound => continue,
            place => place.map_err(failed)?,
        };
        let image = place.stat().map_err(failed)?;
        let number = image.as_ref().map(|stat| (stat.st_dev, stat.st_ino));
        let is_same = |other: &&LockedImage| {
            let is_written = volume.access == Access::ReadWrite || other.access == Access::ReadWrite;
            is_written && (other.place == place.path() || (number.is_some() && other.number == number))
        };
        if let Some(other) = locked.iter().find(is_same) {
            return Err(VolumeError::Twice { first: other.image.clone(), second: path });
        }
        locked.push(LockedImage { place: place.path(), number, image: path.clone(), access: volume.access });
        let by_number = |number: ImageNumber| {
            let directory = Directory::make(&request.lock_directory(), LOCK_DIRECTORY_MODE, None)?;
            Ok(Some(directory.place(number.lock_name())))
        };
        for lock in places(&place, image.as_ref(), &by_number).map_err(failed)? {
            if volume.access == Access::ReadWrite {
                locks.push(lock_to_write(&lock, &path, image.as_ref(), &request)?);
            } else {
                locks.extend(lock_to_read(&lock, &path, image.as_ref(), &request)?);
            }
        }
        locks.extend(lock_image(&place, &path, volume.access)?.filter(|_| request.image_lock == ImageLock::Held));
    }
    Ok(locks)
}

/// Locks the images that did not exist yet when the volumes were locked.
///
/// # Errors
/// Returns [`VolumeError::InUse`] or [`VolumeError::File`].
pub fn lock_created(
    volumes: &[VolumeNeed],
    request: LockRequest<'_>,
    held: &mut Vec<VolumeLock>,
) -> Result<(), VolumeError> {
    for volume in volumes.iter().filter(|volume| volume.creation.is_some()) {
        let path = volume.image.below(request.working_directory);
        let failed = |source| VolumeError::File { path: path.clone(), source };
        let place = Place::of(path.as_path()).map_err(failed)?;
        let number = place.stat().map_err(failed)?.map(|stat| (stat.st_dev, stat.st_ino));
        if request.image_lock == ImageLock::Held && held.iter().all(|lock| lock.image != number) {
            held.extend(lock_image(&place, &path, volume.access)?);
        }
    }
    Ok(())
}

/// Returns what [`lock_volumes`] would refuse, with the positions of the volumes. Creates and locks nothing.
pub fn inspect_locks(volumes: &[VolumeNeed], request: LockRequest<'_>) -> Vec<(usize, VolumeError)> {
    let inspect = |volume: &VolumeNeed| {
        let path = volume.image.below(request.working_directory);
        let failed = |source| VolumeError::File { path: path.clone(), source };
        let place = match Place::of(path.as_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            place => place.map_err(failed)?,
        };
        let image = place.stat().map_err(failed)?;
        if image.is_some() {
            place.look().map_err(failed)?;
        }
        let by_number = |number: ImageNumber| match Directory::open(&request.lock_directory()) {
            Ok(directory) => Ok(Some(directory.place(number.lock_name()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        for lock in places(&place, image.as_ref(), &by_number).map_err(failed)? {
            inspect_lock(&lock, &path, volume.access)?;
        }
        // Released again.
        lock_image(&place, &path, volume.access).map(drop)
    };
    let inspected = volumes.iter().enumerate().map(|(index, volume)| (index, inspect(volume)));
    inspected.filter_map(|(index, found)| found.err().map(|error| (index, error))).collect()
}

fn inspect_lock(lock: &Place, image: &HostPath, access: Access) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Lock { path: image.clone(), lock: lock.path(), source };
    let (flags, kind) = if access == Access::ReadWrite { (OFlag::O_RDWR, F_WRLCK) } else { (OFlag::O_RDONLY, F_RDLCK) };
    let mut file = match lock.open(flags) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && access == Access::ReadWrite => {
            return lock.check_create().map_err(failed);
        }
        Err(error) if access != Access::ReadWrite && CANNOT_LOCK.contains(&error.kind()) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mut whole = whole_file(kind);
    let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut whole));
    if asked.is_ok() && whole.l_type != F_UNLCK as i16 { Err(in_use(&mut file, &whole, image)) } else { Ok(()) }
}

/// Locks an existing image file under all its names. Returns `None` where this is not possible or not needed.
fn lock_image(place: &Place, path: &HostPath, access: Access) -> Result<Option<VolumeLock>, VolumeError> {
    let failed = |source| VolumeError::File { path: path.clone(), source };
    let Some(stat) = place.stat().map_err(failed)?.filter(|stat| stat.st_mode & S_IFMT == S_IFREG) else {
        return Ok(None);
    };
    let file = match place.open(OFlag::O_RDONLY) {
        Err(error) if access != Access::ReadWrite && CANNOT_LOCK.contains(&error.kind()) => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    if fstatfs(&file).is_ok_and(|found| REMOTE_FILE_SYSTEMS.contains(&found.filesystem_type())) {
        return Ok(None);
    }
    let operation = match access {
        Access::ReadWrite => FlockOperation::NonBlockingLockExclusive,
        _ => FlockOperation::NonBlockingLockShared,
    };
    match flock_file(&file, operation) {
        Ok(()) => Ok(Some(VolumeLock { file, image: Some((stat.st_dev, stat.st_ino)) })),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = "another process, which may use another name of this file".to_owned();
            Err(VolumeError::InUse { path: path.clone(), holder })
        }
        // The file system has no such locks.
        Err(_) => Ok(None),
    }
}

/// The number of an image that identifies it under all its names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ImageNumber {
    /// The number of a block device (`st_rdev` in stat(2)).
    BlockDevice(u64),
    /// The device and inode number of a file.
    File(u64, u64),
}

impl ImageNumber {
    /// Returns the path of the lock file by number, in a runtime directory.
    pub(crate) fn lock(self, runtime: &Path) -> PathBuf {
        runtime.join(LOCK_DIRECTORY).join(self.lock_name())
    }

    fn lock_name(self) -> String {
        match self {
            Self::BlockDevice(device) => format!("block-{}-{}", major(device), minor(device)),
            Self::File(device, inode) => format!("file-{}-{}-{inode}", major(device), minor(device)),
        }
    }
}

/// Finds the place of a lock file by number. `None` if there is none.
type FindByNumber<'find> = dyn Fn(ImageNumber) -> io::Result<Option<Place>> + 'find;

/// Returns the places of the lock files of an image.
fn places(image: &Place, stat: Option<&FileStat>, by_number: &FindByNumber<'_>) -> io::Result<Vec<Place>> {
    let beside = image.sibling(LOCK_ENDING)?;
    let Some(stat) = stat else { return Ok(vec![beside]) };
    if stat.st_mode & S_IFMT == S_IFBLK {
        return Ok(by_number(ImageNumber::BlockDevice(stat.st_rdev))?.into_iter().collect());
    }
    let file = ImageNumber::File(stat.st_dev, stat.st_ino);
    if beside.stat()?.is_none() && !beside.directory().is_writable() {
        return Ok(by_number(file)?.into_iter().collect());
    }
    let further = if stat.st_nlink > 1 { by_number(file)? } else { None };
    Ok(std::iter::once(beside).chain(further).collect())
}

fn lock_to_write(
    lock: &Place,
    image: &HostPath,
    stat: Option<&FileStat>,
    request: &LockRequest<'_>,
) -> Result<VolumeLock, VolumeError> {
    let failed = |source| VolumeError::Lock { path: image.clone(), lock: lock.path(), source };
    let mut file = open_lock(lock, stat, request.owner).map_err(failed)?;
    lock_file(&mut file, F_WRLCK, image, lock)?;
    let text = format!("machine {}, process {}\n", request.machine, Pid::this());
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
    Ok(VolumeLock::of_lock_file(file))
}

/// Returns `None` if the lock file does not exist and cannot be created, or cannot be read.
fn lock_to_read(
    lock: &Place,
    image: &HostPath,
    stat: Option<&FileStat>,
    request: &LockRequest<'_>,
) -> Result<Option<VolumeLock>, VolumeError> {
    let failed = |source| VolumeError::Lock { path: image.clone(), lock: lock.path(), source };
    let opened = match lock.open(OFlag::O_RDONLY) {
        // Nothing is written to the store, and nothing may be created in it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !lock.path().starts_with(STORE) => {
            open_lock(lock, stat, request.owner)
        }
        opened => opened,
    };
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if CANNOT_LOCK.contains(&error.kind()) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    lock_file(&mut file, F_RDLCK, image, lock)?;
    Ok(Some(VolumeLock::of_lock_file(file)))
}

fn lock_file(file: &mut File, kind: c_int, image: &HostPath, lock: &Place) -> Result<(), VolumeError> {
    let mut whole = whole_file(kind);
    match fcntl(&*file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            // If it cannot be asked for, the lock is described as a writer's.
            let _ = fcntl(&*file, FcntlArg::F_OFD_GETLK(&mut whole));
            Err(in_use(file, &whole, image))
        }
        Err(errno) => Err(VolumeError::Lock { path: image.clone(), lock: lock.path(), source: errno.into() }),
    }
}

fn whole_file(kind: c_int) -> flock {
    flock { l_type: kind as i16, l_whence: SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Returns the error for an image whose lock file has a conflicting lock.
fn in_use(file: &mut File, conflict: &flock, image: &HostPath) -> VolumeError {
    // A reader does not write its name into the lock file.
    let is_read = conflict.l_type == F_RDLCK as i16;
    let holder = if is_read { "a machine that reads it".to_owned() } else { read_owner(file) };
    VolumeError::InUse { path: image.clone(), holder }
}

/// Opens the lock file, or creates it such that any user who can use the image can lock it.
fn open_lock(lock: &Place, stat: Option<&FileStat>, owner: Option<&Identity>) -> io::Result<File> {
    let is_new = lock.stat()?.is_none();
    let file = lock.open_or_create(VOLUME_MODE)?;
    if is_new {
        copy_permissions(&file, stat, owner)?;
    }
    Ok(file)
}

/// Gives a lock file the owner and mode of its image, or those of an image that will be created.
fn copy_permissions(file: &File, image: Option<&FileStat>, owner: Option<&Identity>) -> io::Result<()> {
    match image {
        None => {
            if let Some(owner) = owner {
                fchown(file, Some(owner.user()), Some(owner.group()))?;
            }
        }
        Some(image) => {
            let own = fstat(file)?;
            if geteuid().is_root() {
                fchown(file, Some(Uid::from_raw(image.st_uid)), Some(Gid::from_raw(image.st_gid)))?;
            } else if own.st_gid != image.st_gid {
                // Fails for a user who is not in the image's group; then there is no group to share the lock with.
                let _ = fchown(file, None, Some(Gid::from_raw(image.st_gid)));
            }
            fchmod(file, Mode::from_bits_truncate(image.st_mode & 0o666 | VOLUME_MODE))?;
        }
    }
    Ok(())
}

/// Returns the owner of the lock, as recorded in the lock file.
fn read_owner(file: &mut File) -> String {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(MAX_HOLDER_BYTES).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    match (read, text.trim()) {
        (Ok(_), owner) if !owner.is_empty() => one_line(owner).into_owned(),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    struct Host {
        directory: tempfile::TempDir,
        home: HostPath,
        runtime: RuntimeDirectory,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let home = HostPath::new(directory.path().to_str().unwrap());
            let runtime = RuntimeDirectory::at(directory.path().join("run"));
            Self { directory, home, runtime }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn lock(&self, machine: &str, images: &[&str]) -> Result<Vec<VolumeLock>, String> {
            self.lock_for(machine, &images.iter().map(|image| (*image, Access::ReadWrite)).collect::<Vec<_>>())
        }

        fn lock_for(&self, machine: &str, images: &[(&str, Access)]) -> Result<Vec<VolumeLock>, String> {
            let volumes: Vec<_> = images
                .iter()
                .map(|(image, access)| VolumeNeed {
                    image: HostPath::from(*image),
                    fs_type: "ext4".to_owned(),
                    label: None,
                    access: *access,
                    image_type: crate::spec::ImageType::Raw,
                    mount_point: None,
                    creation: None,
                })
                .collect();
            let (working_directory, runtime) = (&self.home, &self.runtime);
            let image_lock = ImageLock::Held;
            let request = LockRequest { machine, working_directory, runtime, owner: None, image_lock };
            let inspected = inspect_locks(&volumes, request);
            let locks = lock_volumes(&volumes, request);
            // A check before the start reports the same, except for one volume that is listed twice.
            if !matches!(locks, Err(VolumeError::Twice { .. })) {
                assert_eq!(inspected.is_empty(), locks.is_ok(), "{inspected:?} {locks:?}");
            }
            locks.map_err(|error| error.to_string())
        }
    }

    #[test]
    fn a_second_writer_is_refused_with_an_error_that_names_the_first() {
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        symlink("var.img", host.path("link.img")).unwrap();
        let first = host.lock("web", &["var.img"]).unwrap();
        for image in ["var.img", "./var.img", "link.img"] {
            let error = host.lock("db", &[image]).unwrap_err();
            let read_owner = format!("is in use by machine web, process {}", Pid::this());
            assert!(error.contains(&read_owner), "{error}");
        }
        drop(first);
        host.lock("db", &["link.img"]).unwrap();
    }

    #[test]
    fn a_machine_does_not_read_a_volume_that_another_one_writes_to() {
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        symlink("var.img", host.path("link.img")).unwrap();
        let (read, write) = ([("link.img", Access::Read)], [("var.img", Access::ReadWrite)]);
        let readers = [host.lock_for("web", &read).unwrap(), host.lock_for("mail", &read).unwrap()];
        let error = host.lock_for("db", &write).unwrap_err();
        assert!(error.contains("is in use by a machine that reads it"), "{error}");
        drop(readers);
        let writer = host.lock_for("db", &write).unwrap();
        let error = host.lock_for("web", &read).unwrap_err();
        assert!(error.contains("is in use by machine db, process "), "{error}");
        drop(writer);
        let error = host.lock_for("web", &[read[0], write[0]]).unwrap_err();
        assert!(error.contains("are the same file"), "{error}");
        host.lock_for("web", &[read[0], ("./var.img", Access::Read), ("missing.img", Access::Read)]).unwrap();
        // A link in the place of the lock file is not followed by a reader either.
        fs::remove_file(host.path("var.img.lock")).unwrap();
        symlink("var.img", host.path("var.img.lock")).unwrap();
        host.lock_for("web", &read).unwrap_err();
    }

    #[test]
    fn a_volume_is_locked_before_it_is_created() {
        let host = Host::new();
        let _first = host.lock("web", &["images/var.img"]).unwrap();
        host.lock("db", &["images/var.img"]).unwrap_err();
    }

    #[test]
    fn two_volumes_of_a_machine_that_are_the_same_file_are_refused() {
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        symlink("var.img", host.path("link.img")).unwrap();
        fs::hard_link(host.path("var.img"), host.path("hard.img")).unwrap();
        for second in ["./var.img", "link.img", "hard.img"] {
            let error = host.lock("web", &["var.img", second]).unwrap_err();
            assert!(error.contains("are the same file"), "{error}");
        }
    }

    #[test]
    fn an_image_is_locked_under_all_its_hard_links() {
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        fs::hard_link(host.path("var.img"), host.path("hard.img")).unwrap();
        let _first = host.lock("web", &["var.img"]).unwrap();
        host.lock("db", &["hard.img"]).unwrap_err();
    }

    #[test]
    fn a_hard_link_that_is_made_while_a_machine_runs_is_refused() {
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        let first = host.lock("web", &["var.img"]).unwrap();
        fs::hard_link(host.path("var.img"), host.path("hard.img")).unwrap();
        for access in [Access::ReadWrite, Access::Read] {
            let error = host.lock_for("db", &[("hard.img", access)]).unwrap_err();
            assert!(error.contains("hard.img is in use by another process, which may use another name"), "{error}");
        }
        drop(first);
        host.lock("db", &["hard.img"]).unwrap();
    }

    #[test]
    fn a_lock_survives_exec_and_is_released_after_sigkill() {
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        let locks = host.lock("web", &["var.img"]).unwrap();
        let mut command = std::process::Command::new("sleep");
        command.arg("600");
        program::child::pass_descriptors(&mut command, locks.iter().map(VolumeLock::descriptor).collect());
        let mut hypervisor = command.spawn().unwrap();
        drop(locks);
        host.lock("db", &["var.img"]).unwrap_err();
        hypervisor.kill().unwrap();
        hypervisor.wait().unwrap();
        host.lock("db", &["var.img"]).unwrap();
    }

    #[test]
    fn a_lock_file_has_the_mode_of_its_image_and_a_symbolic_link_is_refused() {
        let host = Host::new();
        fs::write(host.path("var.img"), "").unwrap();
        fs::set_permissions(host.path("var.img"), fs::Permissions::from_mode(0o660)).unwrap();
        host.lock("web", &["var.img"]).unwrap();
        assert_eq!(fs::metadata(host.path("var.img.lock")).unwrap().mode() & 0o777, 0o660);
        fs::remove_file(host.path("var.img.lock")).unwrap();
        fs::write(host.path("victim"), "untouched").unwrap();
        symlink("victim", host.path("var.img.lock")).unwrap();
        let error = host.lock("web", &["var.img"]).unwrap_err();
        assert!(error.contains("cannot be locked"), "{error}");
        assert_eq!(fs::read_to_string(host.path("victim")).unwrap(), "untouched");
    }

    #[test]
    fn an_image_whose_directory_is_not_writable_is_locked_by_its_number() {
        let host = Host::new();
        fs::create_dir(host.path("images")).unwrap();
        fs::write(host.path("images/var.img"), "").unwrap();
        let place = Place::of(&host.path("images/var.img")).unwrap();
        let stat = place.stat().unwrap().unwrap();
        let locks = host.path("run/.volume-locks");
        let by_number = |number: ImageNumber| Ok(Some(Directory::make(&locks, 0o755, None)?.place(number.lock_name())));
        let found = |place: &Place| -> Vec<PathBuf> {
            places(place, Some(&stat), &by_number).unwrap().iter().map(Place::path).collect()
        };
        assert_eq!(found(&place), [host.path("images/var.img.lock")]);
        // Root can write to every directory except an immutable one, and not every file system supports that flag.
        let images = fs::File::open(host.path("images")).unwrap();
        if !geteuid().is_root() {
            fs::set_permissions(host.path("images"), fs::Permissions::from_mode(0o555)).unwrap();
        } else if rustix::fs::ioctl_setflags(&images, rustix::fs::IFlags::IMMUTABLE).is_err() {
            testing::skipped("directories cannot be made immutable on this file system");
            return;
        }
        let found = found(&place);
        if geteuid().is_root() {
            rustix::fs::ioctl_setflags(&images, rustix::fs::IFlags::empty()).unwrap();
        }
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(host.path("run/.volume-locks")), "{found:?}");
    }
}
