//! Opening, creating and replacing files in places that another user may be able to change.
//!
//! A machine's state directory belongs to the machine's user, and root works in it: before a start, and for `microvm
//! volumes`, `tap up` and similar commands. Anyone who can write to a directory can replace a name in it with a
//! symbolic link at any moment. Therefore a path is resolved only once, component by component. The resulting directory
//! stays open, and files are then reached by its descriptor and a plain name, never by the path again. Three rules
//! apply:
//!
//! - root follows another user's symbolic link only to files of that same user;
//! - a file is written without a name, or under a temporary name created with `O_EXCL`. It gets its owner and its mode
//!   through its descriptor, and appears only when it is complete and synced;
//! - an existing file is inspected through a descriptor before it is opened: only regular files and block devices are
//!   opened.
//!
//! The launcher creates, renames, removes and chowns files through this module only; its `tests/layering.rs` enforces
//! this.

use crate::input::read_up_to;
use crate::user::{Identity, user_name};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, open, openat, readlinkat, renameat, renameat2};
use nix::libc::{S_IFBLK, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, S_ISVTX};
use nix::sys::socket::{UnixAddr, bind};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstat, fstatat};
use nix::unistd::{
    AccessFlags, Gid, Uid, UnlinkatFlags, faccessat, fchown, fchownat, geteuid, linkat, symlinkat, unlinkat,
};
use resolve::{CreateMissing, MAX_LINKS, is_link, make_below, passed_by, record_owner, split, walk};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

pub use private::PrivateDirectory;

mod private;
mod resolve;

/// The longest file that is read whole, in bytes. The largest ones are lists of store paths, with some hundred bytes
/// each.
pub const MAX_READ_BYTES: u64 = 64 << 20;

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// A resolved path: an open directory, and a name in it. A file of that name may or may not exist.
#[derive(Debug)]
pub struct Place {
    directory: Directory,
    name: OsString,
    /// The owners, other than root, of the symbolic links that were followed.
    link_owners: Vec<Uid>,
}

/// A file that is being written. It has no name yet, or only a temporary one.
#[derive(Debug)]
pub struct NewFile<'place> {
    file: File,
    place: &'place Place,
    temporary_name: Option<OsString>,
}

impl Directory {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// Fails if it does not exist, is not a directory, or is reached by a symbolic link that root must not follow.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::find(path, &mut |_, _| Err(Errno::ENOENT.into()))
    }

    /// Opens a directory. Creates it and its parents if they are missing; the new directories get `mode` and, if given,
    /// `owner`.
    ///
    /// # Errors
    /// The same as [`Directory::open`].
    pub fn make(path: &Path, mode: u32, owner: Option<&Identity>) -> io::Result<Self> {
        Self::find(path, &mut |parent, name| make_below(parent, name, mode, owner))
    }

    /// Whether [`Directory::make`] would succeed, without creating anything.
    ///
    /// # Errors
    /// The same as [`Directory::make`].
    pub fn check_make(path: &Path) -> io::Result<()> {
        without_creating(|missing| Self::find(path, missing)).map(drop)
    }

    fn find(path: &Path, missing: &mut CreateMissing<'_>) -> io::Result<Self> {
        let mut link_owners = Vec::new();
        let directory = walk(path, &mut link_owners, missing)?;
        require_same_owner(&link_owners, &fstat(&directory.descriptor)?)?;
        Ok(directory)
    }

    /// Returns the path without the symbolic links that were followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the place of a file in this directory, which need not exist. `name` must be a single component: no
    /// slash, not `.` or `..`.
    pub fn place(self, name: impl Into<OsString>) -> Place {
        Place { directory: self, name: name.into(), link_owners: Vec::new() }
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// Fails if the process has no free descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { descriptor: self.descriptor.try_clone()?, path: self.path.clone() })
    }

    /// Syncs the directory itself. Names in it survive a power cut only after this.
    ///
    /// # Errors
    /// Fails if the disk reports an error.
    pub fn sync(&self) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(&self.descriptor, ".", flags, Mode::empty()) {
            Ok(readable) => File::from(readable).sync_all(),
            // A directory that is writable but not readable cannot be opened for syncing.
            Err(Errno::EACCES) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns the owner.
    ///
    /// # Errors
    /// Fails if fstat(2) fails.
    pub fn owner(&self) -> io::Result<Uid> {
        Ok(Uid::from_raw(fstat(&self.descriptor)?.st_uid))
    }

    /// Changes the owner and the group of the directory.
    ///
    /// # Errors
    /// Fails if this process is not permitted to.
    pub fn give_to(&self, owner: &Identity) -> io::Result<()> {
        // fchown(2) does not accept a descriptor opened with `O_PATH`.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let readable = openat(&self.descriptor, ".", flags, Mode::empty())?;
        Ok(fchown(readable, Some(owner.user()), Some(owner.group()))?)
    }

    /// Whether this process can create files in it.
    pub fn is_writable(&self) -> bool {
        check_writable(&self.descriptor).is_ok()
    }

    fn entry(&self, name: &OsStr) -> io::Result<Option<FileStat>> {
        match fstatat(&self.descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsRawFd for Directory {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Place {
    /// Resolves a path. All components except the last must exist.
    ///
    /// # Errors
    /// Fails if a directory of the path is missing, or a symbolic link in it must not be followed.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::find(path, &mut |_, _| Err(Errno::ENOENT.into()))
    }

    /// Resolves a path, and creates its missing directories.
    ///
    /// # Errors
    /// The same as [`Place::of`].
    pub fn with_parents(path: &Path, mode: u32, owner: Option<&Identity>) -> io::Result<Self> {
        Self::find(path, &mut |parent, name| make_below(parent, name, mode, owner))
    }

    /// Whether a file could be created here by this process, after [`Place::with_parents`], without creating anything.
    ///
    /// # Errors
    /// The same as [`Place::with_parents`]; also fails if the directory is not writable.
    pub fn check_create_with_parents(path: &Path) -> io::Result<()> {
        without_creating(|missing| Self::find(path, missing))?.map_or(Ok(()), |place| place.check_create())
    }

    fn find(path: &Path, missing: &mut CreateMissing<'_>) -> io::Result<Self> {
        let mut path = path.to_owned();
        let mut link_owners = Vec::new();
        for _ in 0..MAX_LINKS {
            let (parent, name) = split(&path)?;
            let directory = walk(parent, &mut link_owners, missing)?;
            match directory.entry(name)? {
                Some(stat) if is_link(&stat) => {
                    record_owner(&mut link_owners, &stat);
                    let target = readlinkat(&directory.descriptor, name)?;
                    path = directory.path.join(target);
                }
                _ => {
                    let name = name.to_owned();
                    return Ok(Self { directory, name, link_owners });
                }
            }
        }
        Err(Errno::ELOOP.into())
    }

    /// Resolves the parent directory only. If the last component is a symbolic link, the place is the link itself.
    ///
    /// # Errors
    /// The same as [`Directory::open`].
    pub fn nofollow(path: &Path) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        Ok(Directory::open(parent)?.place(name))
    }

    /// Returns the directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Returns the path without the symbolic links that were followed.
    pub fn path(&self) -> PathBuf {
        self.directory.path.join(&self.name)
    }

    /// Returns the place of a file with `suffix` appended to this name: `disk.img` and `.lock` give `disk.img.lock`.
    ///
    /// # Errors
    /// Fails if the process has no free descriptor.
    pub fn sibling(&self, suffix: &str) -> io::Result<Self> {
        let mut name = self.name.clone();
        name.push(suffix);
        Ok(Self { directory: self.directory.try_clone()?, name, link_owners: self.link_owners.clone() })
    }

    /// Whether this process could create or replace a file here, without creating anything.
    ///
    /// # Errors
    /// Fails if the directory is not writable, or is one in which root must not create files.
    pub fn check_create(&self) -> io::Result<()> {
        self.require_own_directory()?;
        check_writable(&self.directory.descriptor)
    }

    /// Returns the metadata of the file, or `None` if it does not exist. Does not follow a symbolic link.
    ///
    /// # Errors
    /// Fails if fstatat(2) fails.
    pub fn stat(&self) -> io::Result<Option<FileStat>> {
        self.directory.entry(&self.name)
    }

    /// Opens an existing file of any type without access to its content (`O_PATH`), to inspect or to mount it.
    ///
    /// # Errors
    /// Fails if the file is missing, or is one that root must not open here.
    pub fn open_path(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(&self.directory.descriptor, self.name.as_os_str(), flags, Mode::empty())?;
        let stat = fstat(&found)?;
        require_same_owner(&self.link_owners, &stat)?;
        require_no_foreign_hard_link(&stat, &fstat(&self.directory.descriptor)?)?;
        Ok(found)
    }

    /// Opens an existing file, which must be a regular file or a block device.
    ///
    /// # Errors
    /// Fails if the file is missing, is of another type, or is one that root must not open here.
    pub fn open(&self, flags: OFlag) -> io::Result<File> {
        let found = self.open_path()?;
        require_file(&fstat(&found)?)?;
        // Opens the same file even if the name now refers to another one: proc(5), /proc/PID/fd.
        let again = open(descriptor_path(&found).as_path(), flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())?;
        Ok(File::from(again))
    }

    /// Reads a file and returns its content and its owner, or `None` if it does not exist.
    ///
    /// # Errors
    /// The same as [`Place::open`]; also fails if the file is longer than [`MAX_READ_BYTES`].
    pub fn read(&self) -> io::Result<Option<(Vec<u8>, Uid)>> {
        self.read_at_most(MAX_READ_BYTES)
    }

    /// Reads a file of at most that many bytes like [`Place::read`].
    ///
    /// # Errors
    /// The same as [`Place::open`]; also fails if the file is longer.
    pub fn read_at_most(&self, limit_bytes: u64) -> io::Result<Option<(Vec<u8>, Uid)>> {
        let file = match self.open(OFlag::O_RDONLY) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let owner = Uid::from_raw(fstat(&file)?.st_uid);
        Ok(Some((read_up_to(file, limit_bytes)?, owner)))
    }

    /// Opens the file, or creates an empty one with `mode`.
    ///
    /// # Errors
    /// The same as [`Place::open`].
    pub fn open_or_create(&self, mode: u32) -> io::Result<File> {
        loop {
            match self.open(OFlag::O_RDWR) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            self.require_own_directory()?;
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            match openat(&self.directory.descriptor, self.name.as_os_str(), flags, to_mode(mode)) {
                // Another process has created it in the meantime: open that one.
                Err(Errno::EEXIST) => {}
                created => {
                    let file = File::from(created?);
                    fchmod(&file, to_mode(mode))?;
                    return Ok(file);
                }
            }
        }
    }

    /// Replaces the file atomically and syncs it, so that it survives a power cut.
    ///
    /// # Errors
    /// Fails if the disk is full or the directory is not writable. The old file is then unchanged.
    pub fn replace(&self, content: &[u8], mode: u32, owner: Option<&Identity>) -> io::Result<()> {
        self.require_own_directory()?;
        let (file, name) = self.create_named()?;
        let written = fill(&file, content, mode, owner)
            .and_then(|()| Ok(renameat(&self.directory, name.as_os_str(), &self.directory, self.name.as_os_str())?));
        if let Err(error) = written {
            // The error of the write matters more than one from the cleanup.
            let _ = unlinkat(&self.directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
            return Err(error);
        }
        self.directory.sync()
    }

    /// Creates a file that becomes visible only in [`NewFile::finish`].
    ///
    /// # Errors
    /// Fails if the directory is not writable.
    pub fn create(&self) -> io::Result<NewFile<'_>> {
        self.require_own_directory()?;
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        match openat(&self.directory.descriptor, ".", flags, to_mode(0o600)) {
            Ok(file) => Ok(NewFile { file: file.into(), place: self, temporary_name: None }),
            // Some file systems do not support `O_TMPFILE`: open(2).
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {
                let (file, name) = self.create_named()?;
                Ok(NewFile { file, place: self, temporary_name: Some(name) })
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Creates a symbolic link, atomically replacing an existing file.
    ///
    /// # Errors
    /// Fails if the directory is not writable.
    pub fn replace_link(&self, target: &Path) -> io::Result<()> {
        self.require_own_directory()?;
        let name = self.temporary_name();
        self.remove_name(&name)?;
        symlinkat(target, &self.directory, name.as_os_str())?;
        renameat(&self.directory, name.as_os_str(), &self.directory, self.name.as_os_str())?;
        self.directory.sync()
    }

    /// Returns the target of a symbolic link. If this process is root, the link must belong to root.
    ///
    /// # Errors
    /// Fails if the file is not a symbolic link, is replaced during the call, or belongs to a user whom root must not
    /// trust.
    pub fn read_own_link(&self) -> io::Result<PathBuf> {
        let link = self.stat()?.ok_or(Errno::ENOENT)?;
        let target = readlinkat(&self.directory.descriptor, self.name.as_os_str())?;
        let again = self.stat()?.ok_or(Errno::ENOENT)?;
        if (link.st_ino, link.st_ctime, link.st_ctime_nsec) != (again.st_ino, again.st_ctime, again.st_ctime_nsec) {
            return Err(Errno::EAGAIN.into());
        }
        require_own(&link)?;
        Ok(target.into())
    }

    /// Reads a file. If this process is root, the file must belong to root.
    ///
    /// # Errors
    /// The same as [`Place::read`]; also fails if the file belongs to a user whom root must not trust.
    pub fn read_own(&self) -> io::Result<Vec<u8>> {
        let file = self.open(OFlag::O_RDONLY)?;
        require_own(&fstat(&file)?)?;
        read_up_to(file, MAX_READ_BYTES)
    }

    /// Renames the file, replacing an existing file at the new place.
    ///
    /// # Errors
    /// Fails if one of the directories is not writable.
    pub fn rename_to(&self, other: &Self) -> io::Result<()> {
        renameat(&self.directory, self.name.as_os_str(), &other.directory, other.name.as_os_str())?;
        other.directory.sync()
    }

    /// Binds a Unix socket here with `mode`, whatever the umask is.
    ///
    /// # Errors
    /// Fails if a file of that name exists, or the directory is not writable.
    pub fn bind(&self, socket: &impl AsRawFd, mode: u32) -> io::Result<()> {
        self.require_own_directory()?;
        // bind(2) does not follow an existing symbolic link; it fails because the name exists.
        bind(socket.as_raw_fd(), &UnixAddr::new(&self.descriptor_path())?)?;
        let made = self.own_socket()?;
        // A descriptor opened with `O_PATH` does not support fchmod(2); its path in /proc refers to the same socket.
        Ok(fchmodat(AT_FDCWD, descriptor_path(&made).as_path(), to_mode(mode), FchmodatFlags::FollowSymlink)?)
    }

    /// Gives a socket that this user has created to another user, who can then connect to it.
    ///
    /// # Errors
    /// Fails if the socket has been replaced.
    pub fn give_socket(&self, owner: &Identity) -> io::Result<()> {
        let made = self.own_socket()?;
        fchownat(&made, "", Some(owner.user()), Some(owner.group()), AtFlags::AT_EMPTY_PATH)?;
        Ok(())
    }

    /// Gives a socket that this process has created, or given away, to a group whose members can connect to it.
    ///
    /// # Errors
    /// Fails if the socket has been replaced, or this process must not give it to that group.
    pub fn open_socket_to_group(&self, group: Gid) -> io::Result<()> {
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(&self.directory.descriptor, self.name.as_os_str(), look, Mode::empty())?;
        let stat = fstat(&found)?;
        if stat.st_mode & S_IFMT != S_IFSOCK || stat.st_nlink != 1 {
            return Err(io::Error::other("this is not the socket that was created here"));
        }
        fchownat(&found, "", None, Some(group), AtFlags::AT_EMPTY_PATH)?;
        Ok(fchmodat(AT_FDCWD, descriptor_path(&found).as_path(), to_mode(0o770), FchmodatFlags::FollowSymlink)?)
    }

    /// Opens the socket that this user has created here.
    fn own_socket(&self) -> io::Result<OwnedFd> {
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(&self.directory.descriptor, self.name.as_os_str(), look, Mode::empty())?;
        let stat = fstat(&found)?;
        let is_ours = stat.st_uid == geteuid().as_raw() && stat.st_nlink == 1;
        if stat.st_mode & S_IFMT != S_IFSOCK || !is_ours {
            return Err(io::Error::other("this is not the socket that was created here"));
        }
        Ok(found)
    }

    /// Removes the file or symbolic link. A missing file is not an error.
    ///
    /// # Errors
    /// Fails if it is a directory, or the parent directory is not writable.
    pub fn remove(&self) -> io::Result<()> {
        self.remove_name(&self.name)
    }

    /// Returns a path through the directory's descriptor, for system calls that accept only a path. It is valid in this
    /// process only, and as long as `self` exists.
    pub fn descriptor_path(&self) -> PathBuf {
        descriptor_path(&self.directory.descriptor).join(&self.name)
    }

    fn remove_name(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Another user's symbolic link must not decide where root creates, replaces or removes a file.
    fn require_own_directory(&self) -> io::Result<()> {
        require_same_owner(&self.link_owners, &fstat(&self.directory.descriptor)?)
    }

    fn temporary_name(&self) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(format!(".{}.new", std::process::id()));
        name
    }

    fn create_named(&self) -> io::Result<(File, OsString)> {
        let name = self.temporary_name();
        // An existing file was left by a killed process that had the same process id.
        self.remove_name(&name)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.directory.descriptor, name.as_os_str(), flags, to_mode(0o600))?;
        Ok((file.into(), name))
    }
}

impl NewFile<'_> {
    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, unless another file of that name exists by now, and syncs it.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::AlreadyExists`], or an error of the disk.
    pub fn finish(mut self, mode: u32, owner: Option<&Identity>) -> io::Result<()> {
        fill(&self.file, &[], mode, owner)?;
        let (directory, target) = (&self.place.directory, self.place.name.as_os_str());
        match &self.temporary_name {
            None => {
                let path = descriptor_path(&self.file);
                linkat(AT_FDCWD, path.as_path(), directory, target, AtFlags::AT_SYMLINK_FOLLOW)?;
            }
            Some(name) => {
                match renameat2(directory, name.as_os_str(), directory, target, RenameFlags::RENAME_NOREPLACE) {
                    // The file system does not support the flag. A hard link does not overwrite a file either.
                    Err(Errno::EINVAL | Errno::ENOSYS) => {
                        linkat(directory, name.as_os_str(), directory, target, AtFlags::empty())?;
                        unlinkat(directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
                    }
                    renamed => renamed?,
                }
            }
        }
        self.temporary_name = None;
        self.place.directory.sync()
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.temporary_name.take() {
            // If this fails, the file stays under its temporary name and does no harm.
            let _ = self.place.remove_name(&name);
        }
    }
}

/// Resolves a path as if its missing directories were created. Returns `None` if some are missing and could be created.
fn without_creating<T>(find: impl FnOnce(&mut CreateMissing<'_>) -> io::Result<T>) -> io::Result<Option<T>> {
    let mut could_create = false;
    let found = find(&mut |parent, _| {
        check_writable(parent)?;
        could_create = true;
        Err(Errno::ENOENT.into())
    });
    if could_create { Ok(None) } else { found.map(Some) }
}

/// Checks with the effective user id.
fn check_writable(directory: &OwnedFd) -> io::Result<()> {
    Ok(faccessat(directory, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)?)
}

/// Refuses to let root run a program that the machine's user could replace.
///
/// # Errors
/// Fails if the program, or a directory or a symbolic link on the way to it, belongs to that user or is writable by
/// that user.
pub fn require_not_modifiable_by(program: &Path, user: &Identity) -> io::Result<()> {
    for path in passed_by(program)? {
        let stat = nix::sys::stat::lstat(&path)?;
        let (mode, group) = (stat.st_mode, Gid::from_raw(stat.st_gid));
        let is_sticky = mode & S_ISVTX != 0 && mode & S_IFMT == S_IFDIR;
        // The mode of a symbolic link means nothing.
        let is_writable = !is_link(&stat) && (mode & 0o002 != 0 || (mode & 0o020 != 0 && user.is_member_of(group)));
        if Uid::from_raw(stat.st_uid) == user.user() || (is_writable && !is_sticky) {
            let reason =
                format!("root does not run it, because {} can change {}", user_name(user.user()), path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
    }
    Ok(())
}

/// Returns a path that refers to an open file in this process, whatever its name refers to now: proc(5).
pub fn descriptor_path(descriptor: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

fn fill(mut file: &File, content: &[u8], mode: u32, owner: Option<&Identity>) -> io::Result<()> {
    file.write_all(content)?;
    fchmod(file, to_mode(mode))?;
    if let Some(owner) = owner {
        fchown(file, Some(owner.user()), Some(owner.group()))?;
    }
    file.sync_all()
}

fn to_mode(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}

/// Refuses what is neither a regular file nor a block device: opening a FIFO waits for another process.
///
/// # Errors
/// Names the kind of a directory and of a symbolic link.
pub fn require_file(stat: &FileStat) -> io::Result<()> {
    match stat.st_mode & S_IFMT {
        S_IFREG | S_IFBLK => Ok(()),
        S_IFLNK => Err(io::Error::other("this is a symbolic link, which is not followed here; remove it")),
        S_IFDIR => Err(Errno::EISDIR.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "this is neither a file nor a block device")),
    }
}

fn require_own(found: &FileStat) -> io::Result<()> {
    let owner = Uid::from_raw(found.st_uid);
    if !geteuid().is_root() || owner.is_root() {
        return Ok(());
    }
    let reason = format!("it belongs to {}, and root uses only files that no other user can change", user_name(owner));
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

fn require_same_owner(link_owners: &[Uid], found: &FileStat) -> io::Result<()> {
    let owner = Uid::from_raw(found.st_uid);
    match link_owners.iter().find(|link_owner| **link_owner != owner) {
        None => Ok(()),
        Some(link_owner) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "root does not follow a symbolic link of {} to a file of {}; remove the link, or give it to root with \
                 `chown -h root`",
                user_name(*link_owner),
                user_name(owner)
            ),
        )),
    }
}

/// Anyone who can write to a directory can hard-link another user's file there, unless the kernel forbids it:
/// /proc/sys/fs/protected_hardlinks.
fn require_no_foreign_hard_link(file: &FileStat, directory: &FileStat) -> io::Result<()> {
    let is_foreign = directory.st_uid != 0 && file.st_uid != directory.st_uid;
    if geteuid().is_root() && file.st_mode & S_IFMT == S_IFREG && file.st_nlink > 1 && is_foreign {
        let owner = user_name(Uid::from_raw(directory.st_uid));
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("this is a hard link in a directory of {owner} to a file of another user; remove it"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
