//! Opening, creating and replacing files in places that another user may be able to change.
//!
//! A machine's state directory belongs to the machine's user, and root works in it: before a start, and for `microvm
//! volumes`, `tap up` and the like. Anyone who may write to a directory may put a symbolic link there at any moment. So a
//! path is looked up once, name by name, and the directory that it leads to is held open; from then on files are reached
//! by that descriptor and a plain name, never by the path again. Three rules hold:
//!
//! - root follows a symbolic link of another user only to what belongs to that same user;
//! - a file is written under a name that nobody else had (`O_EXCL`, or without a name at all), and gets its owner and its
//!   mode by its descriptor before it appears, whole and on disk;
//! - a file that is there is looked at by descriptor before it is opened: only regular files and block devices are.
//!
//! The other modules of the launcher create, rename, remove and give away files through this one only; a test of the
//! layers holds them to that.

use crate::child::Identity;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, open, openat, readlinkat, renameat, renameat2};
use nix::libc::{S_IFBLK, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, S_ISVTX};
use nix::sys::socket::{UnixAddr, bind};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{
    AccessFlags, Gid, Uid, UnlinkatFlags, User, faccessat, fchown, fchownat, geteuid, linkat, symlinkat, unlinkat,
};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

pub use private::PrivateDirectory;

mod private;

/// As many symbolic links as the kernel follows in one path: path_resolution(7).
const MOST_LINKS: usize = 40;

/// A directory, held open.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// Where a path leads: a name in a directory that is held open. There may be nothing of that name yet.
#[derive(Debug)]
pub struct Place {
    directory: Directory,
    name: OsString,
    /// The owners of the symbolic links on the way that root does not trust.
    link_owners: Vec<Uid>,
}

/// A file that is being written and that nobody can see yet, or only under a name of its own.
#[derive(Debug)]
pub struct NewFile<'place> {
    file: File,
    place: &'place Place,
    temporary_name: Option<OsString>,
}

impl Directory {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// When it is not there, is no directory, or is reached by a link that is not to be followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::find(path, &mut |_, _| Err(Errno::ENOENT.into()))
    }

    /// Opens a directory, and makes it, and those above it, when they are not there. What is made gets the mode, and the
    /// owner if there is one.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn make(path: &Path, mode: u32, owner: Option<&Identity>) -> io::Result<Self> {
        Self::find(path, &mut |parent, name| make_below(parent, name, mode, owner))
    }

    fn find(path: &Path, missing: &mut MakeMissing<'_>) -> io::Result<Self> {
        let mut link_owners = Vec::new();
        let directory = walk(path, &mut link_owners, missing)?;
        require_same_owner(&link_owners, &fstat(&directory.descriptor)?)?;
        Ok(directory)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Something in it, there or not. The name is one name: without a slash, and neither `.` nor `..`.
    pub fn place(self, name: impl Into<OsString>) -> Place {
        Place { directory: self, name: name.into(), link_owners: Vec::new() }
    }

    /// Its descriptor, once more.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { descriptor: self.descriptor.try_clone()?, path: self.path.clone() })
    }

    /// Writes the directory itself to the disk: only then names in it survive a power cut.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(&self.descriptor, ".", flags, Mode::empty()) {
            Ok(readable) => File::from(readable).sync_all(),
            // A directory may be written to without being readable, and cannot be synced then.
            Err(Errno::EACCES) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Who owns it.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn owner(&self) -> io::Result<Uid> {
        Ok(Uid::from_raw(fstat(&self.descriptor)?.st_uid))
    }

    /// Gives the directory to a user.
    ///
    /// # Errors
    /// When this process may not.
    pub fn give_to(&self, owner: &Identity) -> io::Result<()> {
        // Not by the descriptor itself, which is of the kind `O_PATH`.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let readable = openat(&self.descriptor, ".", flags, Mode::empty())?;
        Ok(fchown(readable, Some(owner.user()), Some(owner.group()))?)
    }

    /// Whether this process may create files in it.
    pub fn is_writable(&self) -> bool {
        faccessat(&self.descriptor, ".", AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
    }

    fn entry(&self, name: &OsStr) -> io::Result<Option<FileStat>> {
        match fstatat(&self.descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Place {
    /// Looks the path up. Everything but the last name must be there.
    ///
    /// # Errors
    /// When a directory on the way is not there, or a link is not to be followed.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::find(path, &mut |_, _| Err(Errno::ENOENT.into()))
    }

    /// Looks the path up, and makes the directories on the way that are not there.
    ///
    /// # Errors
    /// As [`Place::of`].
    pub fn with_parents(path: &Path, mode: u32, owner: Option<&Identity>) -> io::Result<Self> {
        Self::find(path, &mut |parent, name| make_below(parent, name, mode, owner))
    }

    fn find(path: &Path, missing: &mut MakeMissing<'_>) -> io::Result<Self> {
        let mut path = path.to_owned();
        let mut link_owners = Vec::new();
        for _ in 0..MOST_LINKS {
            let (parent, name) = split(&path)?;
            let directory = walk(parent, &mut link_owners, missing)?;
            match directory.entry(name)? {
                Some(stat) if is_link(&stat) => {
                    note_owner(&mut link_owners, &stat);
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

    /// Looks up the directory only: a symbolic link of that name is not followed but replaced or removed itself.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn itself(path: &Path) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        Ok(Directory::open(parent)?.place(name))
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The path, without symbolic links as far as they have been followed.
    pub fn path(&self) -> PathBuf {
        self.directory.path.join(&self.name)
    }

    /// The same place with something behind its name: `disk.img` and `.lock` give `disk.img.lock`.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn beside(&self, suffix: &str) -> io::Result<Self> {
        let mut name = self.name.clone();
        name.push(suffix);
        Ok(Self { directory: self.directory.try_clone()?, name, link_owners: self.link_owners.clone() })
    }

    /// What is there; a symbolic link is itself.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn stat(&self) -> io::Result<Option<FileStat>> {
        self.directory.entry(&self.name)
    }

    /// Opens the file that is there, which must be a regular file or a block device.
    ///
    /// # Errors
    /// When it is not there, something else, or not to be touched by root.
    pub fn open(&self, flags: OFlag) -> io::Result<File> {
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(&self.directory.descriptor, self.name.as_os_str(), look, Mode::empty())?;
        let stat = fstat(&found)?;
        require_file(&stat)?;
        require_same_owner(&self.link_owners, &stat)?;
        require_no_foreign_hard_link(&stat, &fstat(&self.directory.descriptor)?)?;
        // The very same file, whatever the name leads to by now: proc(5), /proc/PID/fd.
        let again = open(descriptor_path(&found).as_path(), flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())?;
        Ok(File::from(again))
    }

    /// Reads the file that is there, and says who owns it; none when there is nothing.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub fn read(&self) -> io::Result<Option<(Vec<u8>, Uid)>> {
        let mut file = match self.open(OFlag::O_RDONLY) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(Some((content, Uid::from_raw(fstat(&file)?.st_uid))))
    }

    /// Opens the file, or creates it empty with that mode.
    ///
    /// # Errors
    /// As [`Place::open`].
    pub fn open_or_create(&self, mode: u32) -> io::Result<File> {
        loop {
            match self.open(OFlag::O_RDWR) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            self.require_own_directory()?;
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            match openat(&self.directory.descriptor, self.name.as_os_str(), flags, to_mode(mode)) {
                // Another process was faster: then it is there.
                Err(Errno::EEXIST) => {}
                created => {
                    let file = File::from(created?);
                    fchmod(&file, to_mode(mode))?;
                    return Ok(file);
                }
            }
        }
    }

    /// Writes the file whole or not at all, over what is there, and so that it survives a power cut.
    ///
    /// # Errors
    /// When the disk is full or the directory not writable; nothing is left behind then.
    pub fn replace(&self, content: &[u8], mode: u32, owner: Option<&Identity>) -> io::Result<()> {
        self.require_own_directory()?;
        let (file, name) = self.create_named()?;
        let written = fill(&file, content, mode, owner)
            .and_then(|()| Ok(renameat(&self.directory, name.as_os_str(), &self.directory, self.name.as_os_str())?));
        if let Err(error) = written {
            // The error of the write is worth more than that of clearing up.
            let _ = unlinkat(&self.directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
            return Err(error);
        }
        self.directory.sync()
    }

    /// Begins a new file that nobody sees before it is finished.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub fn create(&self) -> io::Result<NewFile<'_>> {
        self.require_own_directory()?;
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        match openat(&self.directory.descriptor, ".", flags, to_mode(0o600)) {
            Ok(file) => Ok(NewFile { file: file.into(), place: self, temporary_name: None }),
            // Some file systems cannot have files without a name: open(2).
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {
                let (file, name) = self.create_named()?;
                Ok(NewFile { file, place: self, temporary_name: Some(name) })
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Puts a symbolic link there, over what is there.
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub fn replace_link(&self, target: &Path) -> io::Result<()> {
        self.require_own_directory()?;
        let name = self.temporary_name();
        self.remove_name(&name)?;
        symlinkat(target, &self.directory, name.as_os_str())?;
        renameat(&self.directory, name.as_os_str(), &self.directory, self.name.as_os_str())?;
        self.directory.sync()
    }

    /// Where the symbolic link that is there leads to. Root takes no other user's word for it.
    ///
    /// # Errors
    /// When it is no link, or that of a user who could make root do something by it.
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

    /// What the file says that is there. Root takes no other user's word for it.
    ///
    /// # Errors
    /// As [`Place::open`], or when it is a file of a user who could make root do something by it.
    pub fn read_own(&self) -> io::Result<Vec<u8>> {
        let mut file = self.open(OFlag::O_RDONLY)?;
        require_own(&fstat(&file)?)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Gives what is there another name, over what has that name.
    ///
    /// # Errors
    /// When one of the directories cannot be written to.
    pub fn rename_to(&self, other: &Self) -> io::Result<()> {
        renameat(&self.directory, self.name.as_os_str(), &other.directory, other.name.as_os_str())?;
        other.directory.sync()
    }

    /// Binds a unix socket here, with that mode whatever the umask.
    ///
    /// # Errors
    /// When there is something of that name, or the directory cannot be written to.
    pub fn bind(&self, socket: &impl AsRawFd, mode: u32) -> io::Result<()> {
        self.require_own_directory()?;
        // The kernel binds no symbolic link that is there: it refuses the name as taken.
        bind(socket.as_raw_fd(), &UnixAddr::new(&self.descriptor_path())?)?;
        let made = self.own_socket()?;
        // A descriptor of the kind `O_PATH` has no fchmod; the path below /proc leads to the very same socket.
        Ok(fchmodat(AT_FDCWD, descriptor_path(&made).as_path(), to_mode(mode), FchmodatFlags::FollowSymlink)?)
    }

    /// Gives a socket that this user has made to another user, who can then connect to it.
    ///
    /// # Errors
    /// When there is something else by now.
    pub fn give_socket(&self, owner: &Identity) -> io::Result<()> {
        let made = self.own_socket()?;
        fchownat(&made, "", Some(owner.user()), Some(owner.group()), AtFlags::AT_EMPTY_PATH)?;
        Ok(())
    }

    /// The socket that this user has made here.
    fn own_socket(&self) -> io::Result<OwnedFd> {
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(&self.directory.descriptor, self.name.as_os_str(), look, Mode::empty())?;
        let stat = fstat(&found)?;
        let is_ours = stat.st_uid == geteuid().as_raw() && stat.st_nlink == 1;
        if stat.st_mode & S_IFMT != S_IFSOCK || !is_ours {
            return Err(io::Error::other("it is not the socket that was made here"));
        }
        Ok(found)
    }

    /// Removes the file or link; it need not be there.
    ///
    /// # Errors
    /// When it is a directory, or the directory cannot be written to.
    pub fn remove(&self) -> io::Result<()> {
        self.remove_name(&self.name)
    }

    /// The place by its directory's descriptor, for system calls that take nothing but a path. Valid as long as this
    /// lives, in this process only.
    pub fn descriptor_path(&self) -> PathBuf {
        descriptor_path(&self.directory.descriptor).join(&self.name)
    }

    fn remove_name(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A link of another user does not decide where root creates, replaces or removes something.
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
        // One that is there is of a process that had the same number and was killed.
        self.remove_name(&name)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.directory.descriptor, name.as_os_str(), flags, to_mode(0o600))?;
        Ok((file.into(), name))
    }
}

impl NewFile<'_> {
    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, unless something of that name has appeared in the meantime, and writes it to the disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], or when the disk is full.
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
                    // A file system that does not know the flag: a hard link does not overwrite either.
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
            // It is of no use to anybody, and in nobody's way.
            let _ = self.place.remove_name(&name);
        }
    }
}

/// Refuses a program that root would run although the user could put another one in its place.
///
/// # Errors
/// When the program, or a directory above it, is that user's or can be written to by that user.
pub fn require_out_of_reach(program: &Path, user: &Identity) -> io::Result<()> {
    let program = program.canonicalize()?;
    for path in program.ancestors() {
        let stat = nix::sys::stat::stat(path)?;
        let (mode, group) = (stat.st_mode, Gid::from_raw(stat.st_gid));
        let is_sticky = mode & S_ISVTX != 0 && mode & S_IFMT == S_IFDIR;
        let is_writable = mode & 0o002 != 0 || (mode & 0o020 != 0 && user.is_member_of(group));
        if Uid::from_raw(stat.st_uid) == user.user() || (is_writable && !is_sticky) {
            let reason =
                format!("root does not run it, because {} can change {}", user_name(user.user()), path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
    }
    Ok(())
}

/// The path by which a descriptor of this process can be opened again.
pub fn descriptor_path(descriptor: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

type MakeMissing<'make> = dyn FnMut(&OwnedFd, &OsStr) -> io::Result<()> + 'make;

/// Looks up a directory name by name. What is missing is left to `missing`, which may make it.
fn walk(path: &Path, link_owners: &mut Vec<Uid>, missing: &mut MakeMissing<'_>) -> io::Result<Directory> {
    let mut names = parts(path);
    let mut directory = start(path)?;
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        let stat = match directory.entry(&name)? {
            Some(stat) => stat,
            None => {
                require_same_owner(link_owners, &fstat(&directory.descriptor)?)?;
                missing(&directory.descriptor, &name)?;
                directory.entry(&name)?.ok_or(Errno::ENOENT)?
            }
        };
        if is_link(&stat) {
            links += 1;
            if links > MOST_LINKS {
                return Err(Errno::ELOOP.into());
            }
            note_owner(link_owners, &stat);
            let target = PathBuf::from(readlinkat(&directory.descriptor, name.as_os_str())?);
            if target.is_absolute() {
                directory = start(&target)?;
            }
            for part in parts(&target).into_iter().rev() {
                names.push_front(part);
            }
            continue;
        }
        let descriptor = openat(&directory.descriptor, name.as_os_str(), directory_flags(), Mode::empty())?;
        let path = if name == ".." { parent_of(&directory.path) } else { directory.path.join(&name) };
        directory = Directory { descriptor, path };
    }
    Ok(directory)
}

/// The directory and the name in it.
fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent, name))
}

fn directory_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn start(path: &Path) -> io::Result<Directory> {
    let (name, path) = if path.is_absolute() { ("/", PathBuf::from("/")) } else { (".", std::env::current_dir()?) };
    Ok(Directory { descriptor: open(name, directory_flags(), Mode::empty())?, path })
}

/// The names of a path. `..` stays one: behind a symbolic link it is not the directory before.
fn parts(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
}

fn parent_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

fn make_below(parent: &OwnedFd, name: &OsStr, mode: u32, owner: Option<&Identity>) -> io::Result<()> {
    match mkdirat(parent, name, to_mode(mode)) {
        // Another process was faster.
        Err(Errno::EEXIST) => return Ok(()),
        made => made?,
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(parent, name, flags, Mode::empty())?;
    // The owner of the directory above may have put another one in its place.
    if Uid::from_raw(fstat(&made)?.st_uid) != geteuid() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user has replaced the new directory"));
    }
    fchmod(&made, to_mode(mode))?;
    if let Some(owner) = owner {
        fchown(&made, Some(owner.user()), Some(owner.group()))?;
    }
    File::from(made).sync_all()
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

fn is_link(stat: &FileStat) -> bool {
    stat.st_mode & S_IFMT == S_IFLNK
}

fn require_file(stat: &FileStat) -> io::Result<()> {
    match stat.st_mode & S_IFMT {
        S_IFREG | S_IFBLK => Ok(()),
        S_IFLNK => Err(io::Error::other("this is a symbolic link, which is not followed here; remove it")),
        S_IFDIR => Err(Errno::EISDIR.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "this is neither a file nor a block device")),
    }
}

/// Notes the owner of a link that root must not follow just anywhere. Who is not root has nothing to lend.
fn note_owner(link_owners: &mut Vec<Uid>, link: &FileStat) {
    let owner = Uid::from_raw(link.st_uid);
    if geteuid().is_root() && !owner.is_root() {
        link_owners.push(owner);
    }
}

fn require_own(found: &FileStat) -> io::Result<()> {
    let owner = Uid::from_raw(found.st_uid);
    if !geteuid().is_root() || owner.is_root() {
        return Ok(());
    }
    let reason = format!("it belongs to {}, who must not decide what root does", user_name(owner));
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

/// Who may write to a directory may give a foreign file another name there, where the kernel does not forbid it:
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

/// The user's name, or the number of one that has none.
pub fn user_name(user: Uid) -> String {
    User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests;
