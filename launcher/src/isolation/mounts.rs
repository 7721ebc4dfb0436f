//! Building a machine's root directory from mounts, and removing it.

use super::tree::{Entry, PathOnHost, Tree};
use super::{FORMER_USER, IsolationError, locks};
use crate::interruption::Interruption;
use crate::launch::Access;
use crate::volumes::{VolumeState, make_ready};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mkdirat, mknod};
use nix::sys::statfs::{FsType, statfs};
use nix::unistd::{Gid, Uid, UnlinkatFlags, User, chown, fchown, unlinkat};
use program::place::{Place, descriptor_path};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// SYSFS_MAGIC of statfs(2).
const SYSFS: FsType = FsType(0x6265_6572);

/// Builds the root directory at `root`. Only root may be able to change its parent. Removes an existing root directory
/// first.
///
/// # Errors
/// Returns [`IsolationError`]; everything that was mounted is then removed.
pub fn make(tree: &Tree, root: &Path) -> Result<(), IsolationError> {
    remove(root)?;
    let made = TreeBuilder { tree, root }.make();
    if made.is_err() {
        // The first error is the useful one.
        let _ = remove(root);
    }
    made
}

/// Removes what [`make`] has built. A missing directory is not an error.
///
/// # Errors
/// Returns [`IsolationError::File`].
pub fn remove(root: &Path) -> Result<(), IsolationError> {
    let mut below = mounts_below(root)?;
    // The last mount is the topmost.
    below.reverse();
    for path in below {
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It was unmounted together with the mount below it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(IsolationError::errno(&path)(errno)),
        }
    }
    match fs::remove_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(IsolationError::file(root)(error)),
        _ => Ok(()),
    }
}

/// Returns all mount points at or below the path, in the order of mounting.
fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, IsolationError> {
    // Any user who can mount a file system can use a name that is not UTF-8.
    let mounts = fs::read("/proc/self/mountinfo").map_err(IsolationError::file(path))?;
    let lines = mounts.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(mount_point).filter(|mounted| mounted.starts_with(path)).collect())
}

/// Returns the fifth field of a line of /proc/PID/mountinfo, in which space, tab, newline and backslash are escaped in
/// octal.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let mut rest = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::new();
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        path.extend_from_slice(&rest[..at]);
        let code = std::str::from_utf8(rest.get(at + 1..at + 4)?).ok()?;
        path.push(u8::from_str_radix(code, 8).ok()?);
        rest = &rest[at + 4..];
    }
    path.extend_from_slice(rest);
    Some(OsString::from_vec(path).into())
}

struct TreeBuilder<'tree> {
    tree: &'tree Tree,
    root: &'tree Path,
}

impl TreeBuilder<'_> {
    fn make(&self) -> Result<(), IsolationError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(self.root).map_err(IsolationError::file(self.root))?;
        mount_memory(self.root, "mode=0755,size=1m", MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
        for entry in &self.tree.entries {
            self.add(entry)?;
        }
        // Read-only, so that nothing is added to it later.
        remount(self.root, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
    }

    fn add(&self, entry: &Entry) -> Result<(), IsolationError> {
        match entry {
            Entry::Directory { to, mode } => self.directory(to, *mode),
            Entry::Memory { to, options, devices } => {
                self.directory(to, 0o755)?;
                let devices = if *devices { MsFlags::empty() } else { MsFlags::MS_NODEV };
                mount_memory(&self.inside(to), options, MsFlags::MS_NOSUID | devices)
            }
            Entry::Terminals => {
                self.directory(Path::new("/dev/pts"), 0o755)?;
                let place = self.inside(Path::new("/dev/pts"));
                let options = "newinstance,ptmxmode=0666,mode=0620";
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
                mount(Some("devpts"), &place, Some("devpts"), flags, Some(options))
                    .map_err(IsolationError::errno(&place))
            }
            Entry::HugePages(to) => {
                self.directory(to, 0o755)?;
                let place = self.inside(to);
                let options = format!("uid={0},gid={0},mode=0700", self.tree.user_id);
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                mount(Some("microvm"), &place, Some("hugetlbfs"), flags, Some(options.as_str()))
                    .map_err(IsolationError::errno(&place))
            }
            Entry::Host(path) => self.bind(path),
            Entry::Renamed { from, to, writable } => {
                let access = if *writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
                self.bind_file(from, to, access)
            }
            Entry::Device(path) => self.device(path),
            Entry::CommonDevice { to, number } => self.node(to, *number, SFlag::S_IFCHR, (0, 0o666)),
            Entry::Text { to, text } => self.file(to, text.as_bytes(), (0, 0o644)),
            Entry::Secret(path) => {
                let (content, _) = Place::of(path)
                    .and_then(|place| place.read())
                    .and_then(|read| read.ok_or_else(|| Errno::ENOENT.into()))
                    .map_err(IsolationError::file(path))?;
                self.file(path, &content, (self.tree.user_id, 0o400))
            }
            Entry::Link { to, target } => symlink(target, self.inside(to)).map_err(IsolationError::file(to)),
        }
    }

    /// Returns the path on the host. `..` is removed, because it could leave the root directory.
    fn inside(&self, path: &Path) -> PathBuf {
        let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
        self.root.join(parts.collect::<PathBuf>())
    }

    fn directory(&self, to: &Path, mode: u32) -> Result<(), IsolationError> {
        let place = self.inside(to);
        if place.is_dir() {
            return Ok(());
        }
        self.parents(to)?;
        fs::create_dir(&place).map_err(IsolationError::file(&place))?;
        fs::set_permissions(&place, fs::Permissions::from_mode(mode)).map_err(IsolationError::file(&place))
    }

    fn parents(&self, to: &Path) -> Result<(), IsolationError> {
        let place = self.inside(to);
        let Some(parent) = place.parent() else { return Ok(()) };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(parent).map_err(IsolationError::file(parent))
    }

    fn file(&self, to: &Path, content: &[u8], (owner, mode): (u32, u32)) -> Result<(), IsolationError> {
        let place = self.inside(to);
        let failed = || IsolationError::file(&place);
        let (directory, name) = self.open_parent(to)?;
        let created = openat(&directory, name, new_file_flags(), Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(created.map_err(IsolationError::errno(&place))?);
        file.write_all(content).map_err(failed())?;
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed())?;
        fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).map_err(IsolationError::errno(&place))
    }

    fn bind(&self, path: &PathOnHost) -> Result<(), IsolationError> {
        // Kept open, so that exactly the file or directory that was checked is mounted.
        let found = Place::of(&path.path).and_then(|place| Ok((place.open_path()?, place.path())));
        let (opened, source) = match found {
            Ok(found) => found,
            Err(error) if path.optional && error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => {
                return Err(IsolationError::Path {
                    option: path.option.clone(),
                    path: path.path.clone(),
                    reason: source.to_string(),
                });
            }
        };
        let place = self.inside(&path.path);
        let kind = fstat(&opened).map_err(IsolationError::errno(&source))?.st_mode & SFlag::S_IFMT.bits();
        let is_directory = kind == SFlag::S_IFDIR.bits();
        let target = if is_directory { self.open_directory(&path.path)? } else { self.mount_file(&path.path)? };
        // Mounts below it are included, so that a share has the same content as on the host. The exception is /sys,
        // whose submounts expose kernel internals that no machine needs. In a container, /sys can consist of submounts only.
        let is_sysfs = || statfs(&source).is_ok_and(|found| found.filesystem_type() == SYSFS);
        let is_whole = source == Path::new("/sys") && is_sysfs();
        let recursive = if is_directory && !is_whole { MsFlags::MS_REC } else { MsFlags::empty() };
        let (from, to) = (descriptor_path(&opened), descriptor_path(&target));
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND | recursive, None::<&str>)
            .map_err(IsolationError::errno(&place))?;
        // Mounts that are made here do not propagate to the host's directory.
        mount(None::<&str>, &place, None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
            .map_err(IsolationError::errno(&place))?;
        let is_device_directory = path.path.starts_with("/dev");
        let mut flags = MsFlags::MS_NOSUID;
        flags.set(MsFlags::MS_NODEV, !is_device_directory);
        flags.set(MsFlags::MS_RDONLY, !path.writable);
        mounts_below(&place)?.iter().try_for_each(|mounted| remount(mounted, flags))
    }

    fn bind_file(&self, from: &Path, to: &Path, access: MsFlags) -> Result<(), IsolationError> {
        let place = self.inside(to);
        let target = self.mount_file(to)?;
        mount(Some(from), &descriptor_path(&target), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(IsolationError::errno(&place))?;
        remount(&place, access | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
    }

    /// Opens a directory of the root directory, and creates it and its parents if they are missing. Refuses symbolic links:
    /// in a directory of the host, the machine's user may have created them.
    fn open_directory(&self, to: &Path) -> Result<OwnedFd, IsolationError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut path = self.root.to_owned();
        let mut directory = open(&path, flags, Mode::empty()).map_err(IsolationError::errno(&path))?;
        for part in to.components() {
            let Component::Normal(part) = part else { continue };
            path.push(part);
            let below = match openat(&directory, part, flags, Mode::empty()) {
                Err(Errno::ENOENT) => mkdirat(&directory, part, Mode::from_bits_truncate(0o755))
                    .and_then(|()| openat(&directory, part, flags, Mode::empty())),
                opened => opened,
            };
            directory = below.map_err(IsolationError::errno(&path))?;
        }
        Ok(directory)
    }

    /// Opens the directory of a file as [`Self::open_directory`] does, and returns it with the file's name.
    fn open_parent<'path>(&self, to: &'path Path) -> Result<(OwnedFd, &'path OsStr), IsolationError> {
        let parent = to.parent().unwrap_or(Path::new("/"));
        Ok((self.open_directory(parent)?, to.file_name().unwrap_or_default()))
    }

    /// Opens a file to mount over, and creates it if it is missing. In the state directory, the machine's user may have
    /// created something else at this path, which is then replaced.
    fn mount_file(&self, to: &Path) -> Result<OwnedFd, IsolationError> {
        let path = self.inside(to);
        let failed = || IsolationError::errno(&path);
        let (directory, name) = self.open_parent(to)?;
        let look = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&directory, name, look, Mode::empty()) {
            Ok(found) => {
                let kind = fstat(&found).map_err(failed())?.st_mode & SFlag::S_IFMT.bits();
                if [SFlag::S_IFREG, SFlag::S_IFSOCK].iter().any(|usable| usable.bits() == kind) {
                    return Ok(found);
                }
                unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir).map_err(failed())?;
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed()(errno)),
        }
        openat(&directory, name, new_file_flags(), Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed())
    }

    /// Creates the machine's own node of a host device. Where creating nodes is not permitted, binds the host's node.
    fn device(&self, path: &Path) -> Result<(), IsolationError> {
        // The machine's start reports a missing device, with a hint.
        let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
        let kind = metadata.file_type();
        let flag = match (kind.is_block_device(), kind.is_char_device()) {
            (true, _) => SFlag::S_IFBLK,
            (_, true) => SFlag::S_IFCHR,
            // A volume below /dev that is a regular file, for example in /dev/shm.
            _ => {
                let option = "volumes".to_owned();
                return self.bind(&PathOnHost { path: path.to_owned(), writable: true, optional: false, option });
            }
        };
        let number = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        self.node(path, number, flag, (self.tree.user_id, 0o600))
    }

    fn node(
        &self,
        to: &Path,
        (major, minor): (u64, u64),
        kind: SFlag,
        (owner, mode): (u32, u32),
    ) -> Result<(), IsolationError> {
        self.parents(to)?;
        let place = self.inside(to);
        match mknod(&place, kind, Mode::from_bits_truncate(mode), makedev(major, minor)) {
            Ok(()) => {}
            Err(Errno::EPERM) => {
                self.file(to, &[], (0, 0o600))?;
                return mount(Some(to), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .map_err(IsolationError::errno(&place));
            }
            Err(errno) => return Err(IsolationError::errno(&place)(errno)),
        }
        fs::set_permissions(&place, fs::Permissions::from_mode(mode)).map_err(IsolationError::file(&place))?;
        chown(&place, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).map_err(IsolationError::errno(&place))
    }
}

fn new_file_flags() -> OFlag {
    OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn mount_memory(place: &Path, options: &str, flags: MsFlags) -> Result<(), IsolationError> {
    mount(Some("microvm"), place, Some("tmpfs"), flags, Some(options)).map_err(IsolationError::errno(place))
}

fn remount(place: &Path, flags: MsFlags) -> Result<(), IsolationError> {
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, None::<&str>)
        .map_err(IsolationError::errno(place))
}

/// Creates the missing volumes outside the state directory, and makes the machine their owner.
///
/// # Errors
/// Returns [`IsolationError::Volume`], or an error of changing the owner.
pub fn make_volumes(tree: &mut Tree, runtime: &Path, interruption: &Interruption) -> Result<(), IsolationError> {
    for volume in &tree.volumes {
        let is_new = match make_ready(volume, None, interruption)? {
            VolumeState::Created => IsNew::Yes,
            VolumeState::Present => IsNew::No,
        };
        give_volume(volume.image.as_path(), tree.user_id, is_new)?;
        let is_written = volume.access == Access::ReadWrite;
        let locks = match locks::of_volume(volume, runtime) {
            // On a read-only file system, for example, a reader has no lock.
            Err(_) if !is_written => Vec::new(),
            locks => locks?,
        };
        for lock in locks {
            tree.entries.push(Entry::Renamed { from: lock.on_host, to: lock.inside, writable: is_written });
        }
    }
    Ok(())
}

/// Makes the machine the owner of a volume outside the state directory, if the volume belongs to the former shared user
/// or was just created by root.
///
/// # Errors
/// Returns [`IsolationError::File`], or [`IsolationError::NotTrusted`] for a file with several hard links.
fn give_volume(path: &Path, user_id: u32, is_new: IsNew) -> Result<(), IsolationError> {
    let failed = || IsolationError::errno(path);
    let file = match Place::nofollow(path).and_then(|place| place.open_path()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(IsolationError::file(path)(error)),
    };
    let status = fstat(&file).map_err(failed())?;
    let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
    let former = User::from_name(FORMER_USER).ok().flatten().map(|user| user.uid.as_raw());
    let is_ours = is_new == IsNew::Yes || former == Some(status.st_uid);
    if kind != SFlag::S_IFREG || !is_ours {
        return Ok(());
    }
    if status.st_nlink > 1 {
        let reason = format!("has {} hard links, so it may belong to another machine too", status.st_nlink);
        return Err(IsolationError::NotTrusted { path: path.to_owned(), reason });
    }
    // A descriptor opened with `O_PATH` can be passed to chown(2) only by its path in /proc.
    let owner = Some(Uid::from_raw(user_id));
    chown(&descriptor_path(&file), owner, Some(Gid::from_raw(user_id))).map_err(failed())
}

/// Whether root has just created a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IsNew {
    /// It was just created.
    Yes,
    /// It already existed.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_whose_name_is_not_utf_8_is_read() {
        let point = |line: &[u8]| mount_point(line).map(|path| path.into_os_string().into_vec());
        let line = b"36 35 98:0 /mnt1 /mnt/\\040a\xff\\134 rw,noatime - fuse a rw";
        assert_eq!(point(line).as_deref(), Some(&b"/mnt/ a\xff\\"[..]));
        assert_eq!(point(b""), None);
        assert_eq!(point(b"1 2 3 4 /a\\04"), None);
    }
}
