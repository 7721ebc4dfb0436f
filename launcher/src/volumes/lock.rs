//! Locks on volumes: while one machine writes to a volume, no other one can use it. Machines that only read it share a
//! lock.
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
//! The lock file has a name, and an image can get further names at any time: a hard link that is made while a machine
//! runs has another lock file. Therefore the image itself is locked too, with flock(2), which does not conflict with
//! the locks of qemu and cloud-hypervisor. crosvm locks its images in the same way, so for crosvm the lock is only
//! tried.
//!
//! A reader may not be able to create the lock file, for example on a read-only file system. It then reads without a
//! lock.

use super::loop_device::{LoopDevice, devices_of, open_shown_file};
use super::same_file::{File as SameFile, file_at};
use super::{DIRECTORY_MODE, VOLUME_MODE, VolumeError};
use crate::launch::{Access, LOCK_ENDING, VolumeNeed};
use crate::path::HostPath;
use crate::state::RuntimeDirectory;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, S_IFBLK, S_IFMT, S_IFREG, SEEK_SET, c_int, flock};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, major, minor};
use nix::sys::statfs::{FsType, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, fstatfs};
use nix::unistd::{Gid, Pid, Uid, fchown, geteuid, gethostname};
use program::escape::one_line;
use program::place::{Directory, Place, require_file};
use program::user::Identity;
use rustix::fs::{FlockOperation, flock as flock_file};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// The directory in the runtime directory with locks by number. The dot distinguishes it from all machine names.
const LOCK_DIRECTORY: &str = ".volume-locks";
/// Machines of different users create lock files there.
pub(crate) const LOCK_DIRECTORY_MODE: u32 = 0o1777;
/// Errors with which a reader continues without a lock.
const CANNOT_LOCK: [io::ErrorKind; 3] =
    [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
const STORE: &str = "/nix/store";
/// What precedes the host's name in a lock file. Other hosts may share the volume.
const ON_HOST: &str = " on ";
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
    /// Whether this claims a block device, or locks the file that a loop device shows. No hypervisor does that itself.
    is_claim: bool,
    /// What is needed to lock the file; `None` once it is locked.
    unlocked: Option<Unlocked>,
}

#[derive(Debug)]
struct Unlocked {
    /// `F_WRLCK` or `F_RDLCK`.
    kind: c_int,
    image: HostPath,
    /// The lock file; `None` for the lock on the image itself.
    lock: Option<PathBuf>,
    machine: String,
}

/// When the files are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockTime {
    /// When they are opened.
    Now,
    /// By [`VolumeLock::take`]: a machine that migrates to this host holds the locks until it has left the other one.
    Later,
}

/// The owner of a lock, as its lock file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder(String);

impl LockHolder {
    /// Whether the lock file names another host, with which this one shares the volume.
    pub fn is_on_another_host(&self) -> bool {
        self.0.rsplit_once(ON_HOST).is_some_and(|(_, host)| host != host_name())
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl VolumeLock {
    /// Returns the number of the descriptor that holds the lock.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Locks the file, unless that is done already. The processes that have inherited the descriptor hold the lock as
    /// well, because it belongs to the open file description.
    ///
    /// # Errors
    /// Returns [`VolumeError::InUse`] or [`VolumeError::Lock`]. It can be called again then.
    pub fn take(&mut self) -> Result<(), VolumeError> {
        let Some(Unlocked { kind, image, lock, machine }) = &self.unlocked else { return Ok(()) };
        match lock {
            None => lock_image_file(&self.file, *kind, image)?,
            Some(lock) => {
                lock_file(&mut self.file, *kind, image, lock)?;
                if *kind == F_WRLCK {
                    let failed = |source| VolumeError::Lock { path: image.clone(), lock: lock.clone(), source };
                    write_owner(&mut self.file, machine).map_err(failed)?;
                }
            }
        }
        self.unlocked = None;
        Ok(())
    }

    /// Returns the lock of a lock file.
    fn of_lock_file(
        file: File,
        kind: c_int,
        (image, lock): (&HostPath, &Place),
        request: &LockRequest<'_>,
    ) -> Result<Self, VolumeError> {
        let (lock, machine) = (Some(lock.path()), request.machine.to_owned());
        let unlocked = Unlocked { kind, image: image.clone(), lock, machine };
        Self { file, image: None, is_claim: false, unlocked: Some(unlocked) }.at(request.time)
    }

    fn at(mut self, time: LockTime) -> Result<Self, VolumeError> {
        match time {
            LockTime::Now => self.take().map(|()| self),
            LockTime::Later => Ok(self),
        }
    }
}

/// How the image itself is locked, as opposed to its lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageLock {
    /// The lock is held.
    Held,
    /// The lock is held, and the image does not change meanwhile: this host may have mounted it read-only by a loop device.
    HeldUnchanged,
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
    /// When they are locked.
    pub time: LockTime,
}

impl LockRequest<'_> {
    /// Returns the directory with the locks by number.
    fn lock_directory(&self) -> PathBuf {
        self.runtime.path().join(LOCK_DIRECTORY)
    }
}

/// An image that this start has already locked.
struct LockedImage {
    file: SameFile,
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
        if path.is_device() && !path.as_path().exists() {
            // Nothing else belongs in /dev, not even a lock file.
            return Err(VolumeError::Missing { path });
        }
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
        if let Some(stat) = &image {
            // Before a lock file is made beside it.
            require_file(stat).map_err(failed)?;
        }
        let number = image.as_ref().map(|stat| (stat.st_dev, stat.st_ino));
        // Missing directories have just been created, so this is known for images that do not exist yet, too.
        let file = file_at(path.as_path());
        let is_same = |other: &&LockedImage| {
            let is_written = volume.access == Access::ReadWrite || other.access == Access::ReadWrite;
            is_written && (other.file == file || (number.is_some() && other.number == number))
        };
        if let Some(other) = locked.iter().find(is_same) {
            return Err(VolumeError::Twice { first: other.image.clone(), second: path });
        }
        locked.push(LockedImage { file, number, image: path.clone(), access: volume.access });
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
        let image_locks = lock_image(&place, &path, volume.access, (request.image_lock, request.time))?;
        locks.extend(image_locks.into_iter().filter(|lock| request.image_lock != ImageLock::Tried || lock.is_claim));
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
        if request.image_lock != ImageLock::Tried && held.iter().all(|lock| lock.image != number) {
            held.extend(lock_image(&place, &path, volume.access, (request.image_lock, request.time))?);
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
            place.open_path().map_err(failed)?;
        }
        let by_number = |number: ImageNumber| match Directory::open(&request.lock_directory()) {
            Ok(directory) => Ok(Some(directory.place(number.lock_name()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        for lock in places(&place, image.as_ref(), &by_number).map_err(failed)? {
            inspect_lock(&lock, &path, volume.access)?;
        }
        // Dropped at once: this only tests whether another program has the lock.
        lock_image(&place, &path, volume.access, (request.image_lock, LockTime::Now)).map(drop)
    };
    let inspected = volumes.iter().enumerate().map(|(index, volume)| (index, inspect(volume)));
    inspected.filter_map(|(index, found)| found.err().map(|error| (index, error))).collect()
}

fn inspect_lock(lock: &Place, image: &HostPath, access: Access) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Lock { path: image.clone(), lock: lock.path(), source };
    let (flags, kind) = if access == Access::ReadWrite { (OFlag::O_RDWR, F_WRLCK) } else { (OFlag::O_RDONLY, F_RDLCK) };
    let mut file = match lock.open(flags).and_then(|file| require_lock_file(&file).map(|()| file)) {
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

/// Locks an existing image under all its names. Returns nothing where this is not possible or not needed.
fn lock_image(
    place: &Place,
    path: &HostPath,
    access: Access,
    (image_lock, time): (ImageLock, LockTime),
) -> Result<Vec<VolumeLock>, VolumeError> {
    let stat = place.stat().map_err(|source| VolumeError::File { path: path.clone(), source })?;
    let Some(stat) = stat else { return Ok(Vec::new()) };
    let is_written = access == Access::ReadWrite;
    match stat.st_mode & S_IFMT {
        // A claim is local to a host, so a machine that migrates to this host claims the device at once, too.
        S_IFBLK if is_written => {
            let shown = lock_shown_file(&place.path(), &stat, path)?;
            Ok(claim_device(place, &stat, path)?.into_iter().chain(shown).collect())
        }
        S_IFREG => {
            let attached = if is_written { claim_loop_devices(&stat, path, image_lock)? } else { Vec::new() };
            Ok(lock_file_itself(place, &stat, path, (access, time))?.into_iter().chain(attached).collect())
        }
        _ => Ok(Vec::new()),
    }
}

fn lock_file_itself(
    place: &Place,
    stat: &FileStat,
    path: &HostPath,
    (access, time): (Access, LockTime),
) -> Result<Option<VolumeLock>, VolumeError> {
    let failed = |source| VolumeError::File { path: path.clone(), source };
    let file = match place.open(OFlag::O_RDONLY) {
        Err(error) if access != Access::ReadWrite && CANNOT_LOCK.contains(&error.kind()) => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    if is_remote(&file) {
        return Ok(None);
    }
    let kind = if access == Access::ReadWrite { F_WRLCK } else { F_RDLCK };
    let unlocked = Unlocked { kind, image: path.clone(), lock: None, machine: String::new() };
    let image = Some((stat.st_dev, stat.st_ino));
    VolumeLock { file, image, is_claim: false, unlocked: Some(unlocked) }.at(time).map(Some)
}

/// Whether locks with flock(2) are locks on a server.
fn is_remote(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| REMOTE_FILE_SYSTEMS.contains(&found.filesystem_type()))
}

/// Locks the file that a loop device shows, because a machine may use the file by its own name. Returns `None` for another
/// device, and for a file that this user cannot open.
fn lock_shown_file(device: &Path, stat: &FileStat, path: &HostPath) -> Result<Option<VolumeLock>, VolumeError> {
    let Some(file) = open_shown_file(device, stat.st_rdev).filter(|file| !is_remote(file)) else { return Ok(None) };
    lock_image_file(&file, F_WRLCK, path)?;
    Ok(Some(VolumeLock { file, image: None, is_claim: true, unlocked: None }))
}

/// Whether no other process uses an existing volume by a loop device, or the file of the volume's loop device. Keeps no lock.
///
/// # Errors
/// Returns [`VolumeError::Attached`] or [`VolumeError::InUse`].
pub(crate) fn require_no_loop_user(stat: &FileStat, volume: &VolumeNeed) -> Result<(), VolumeError> {
    match stat.st_mode & S_IFMT {
        _ if volume.access != Access::ReadWrite => Ok(()),
        S_IFBLK => lock_shown_file(volume.image.as_path(), stat, &volume.image).map(drop),
        S_IFREG => claim_loop_devices(stat, &volume.image, ImageLock::Held).map(drop),
        _ => Ok(()),
    }
}

/// Claims the loop devices that show a file.
fn claim_loop_devices(file: &FileStat, path: &HostPath, image_lock: ImageLock) -> Result<Vec<VolumeLock>, VolumeError> {
    let mut claims = Vec::new();
    let may_be_used = |device: &LoopDevice| device.is_read_only && image_lock == ImageLock::HeldUnchanged;
    for device in devices_of(file).into_iter().filter(|device| !may_be_used(device)) {
        // Without access to the device, nothing is known about its users.
        match Place::of(&device.path).and_then(|place| place.open(OFlag::O_RDONLY | OFlag::O_EXCL)) {
            Ok(file) => claims.push(VolumeLock { file, image: None, is_claim: true, unlocked: None }),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(VolumeError::Attached { path: path.clone(), device: device.path });
            }
            Err(_) => {}
        }
    }
    Ok(claims)
}

/// Claims a block device, as mount(8) does: open(2), `O_EXCL`. The hypervisor opens it without a claim of its own. The kernel
/// refuses the claim while the device is mounted, or a part of another device that is claimed. Returns `None` for a device
/// that cannot be opened now; the hypervisor reports why.
fn claim_device(place: &Place, stat: &FileStat, path: &HostPath) -> Result<Option<VolumeLock>, VolumeError> {
    let image = Some((stat.st_dev, stat.st_ino));
    match place.open(OFlag::O_RDONLY | OFlag::O_EXCL) {
        Ok(file) => Ok(Some(VolumeLock { file, image, is_claim: true, unlocked: None })),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(VolumeError::Claimed(path.clone())),
        Err(_) => Ok(None),
    }
}

/// Locks the image itself. Does nothing if the file system has no such locks.
fn lock_image_file(file: &File, kind: c_int, path: &HostPath) -> Result<(), VolumeError> {
    let operation = match kind {
        F_WRLCK => FlockOperation::NonBlockingLockExclusive,
        _ => FlockOperation::NonBlockingLockShared,
    };
    match flock_file(file, operation) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder =
                LockHolder("another process, which may use another name of this file, or a loop device".to_owned());
            Err(VolumeError::InUse { path: path.clone(), holder })
        }
        Ok(()) | Err(_) => Ok(()),
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
    let file = open_lock(lock, stat, request.owner).map_err(failed)?;
    VolumeLock::of_lock_file(file, F_WRLCK, (image, lock), request)
}

/// Records the owner of the lock in the lock file, for the error of others. On a full disk, the machine starts without
/// that: the kernel has the lock.
fn write_owner(file: &mut File, machine: &str) -> io::Result<()> {
    match try_to_write_owner(file, machine) {
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Ok(()),
        written => written,
    }
}

fn try_to_write_owner(file: &mut File, machine: &str) -> io::Result<()> {
    let text = format!("machine {machine}, process {}{ON_HOST}{}\n", Pid::this(), host_name());
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    // On a network file system, other hosts read it while the lock is held.
    file.sync_data()
}

fn host_name() -> String {
    gethostname().unwrap_or_default().to_string_lossy().into_owned()
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
    match opened {
        Ok(file) => VolumeLock::of_lock_file(file, F_RDLCK, (image, lock), request).map(Some),
        Err(error) if CANNOT_LOCK.contains(&error.kind()) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn lock_file(file: &mut File, kind: c_int, image: &HostPath, lock: &Path) -> Result<(), VolumeError> {
    let mut whole = whole_file(kind);
    match fcntl(&*file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            // If the kernel does not report it, the lock is described as a writer's.
            let _ = fcntl(&*file, FcntlArg::F_OFD_GETLK(&mut whole));
            Err(in_use(file, &whole, image))
        }
        Err(errno) => Err(VolumeError::Lock { path: image.clone(), lock: lock.to_owned(), source: errno.into() }),
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
    VolumeError::InUse { path: image.clone(), holder: LockHolder(holder) }
}

/// Opens the lock file, or creates it such that any user who can use the image can lock it.
fn open_lock(lock: &Place, stat: Option<&FileStat>, owner: Option<&Identity>) -> io::Result<File> {
    let is_new = lock.stat()?.is_none();
    let file = lock.open_or_create(VOLUME_MODE)?;
    require_lock_file(&file)?;
    if is_new {
        copy_permissions(&file, stat, owner)?;
    }
    Ok(file)
}

/// Refuses a file that is not a lock file, because its content will be replaced: another machine's volume, for example,
/// with the name `a.lock` beside the volume `a`.
fn require_lock_file(file: &File) -> io::Result<()> {
    if file.metadata()?.len() <= MAX_HOLDER_BYTES {
        return Ok(());
    }
    let reason = "this is not a lock file; move it away, or give the volume another name";
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
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
mod tests;
