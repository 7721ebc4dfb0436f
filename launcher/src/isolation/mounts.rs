//! Making a machine's root directory by mounts, and removing it.

use super::tree::{Entry, PathOnHost, Tree};
use super::{FORMER_USER, IsolationError, locks};
use crate::interruption::Interruption;
use crate::volumes::{VolumeState, make_ready};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mknod};
use nix::unistd::{Gid, Uid, User, chown, fchown};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// Makes the root directory at `root`, a directory that only root can change. One that is there is removed first.
///
/// # Errors
/// [`IsolationError`]; what was made is then removed.
pub fn make(tree: &Tree, root: &Path) -> Result<(), IsolationError> {
    remove(root)?;
    let made = Maker { tree, root }.make();
    if made.is_err() {
        // The first error is the one that helps.
        let _ = remove(root);
    }
    made
}

/// Removes what [`make`] made; it need not be there.
///
/// # Errors
/// [`IsolationError::File`].
pub fn remove(root: &Path) -> Result<(), IsolationError> {
    let mut below = mounts_below(root)?;
    // The last mount is the topmost.
    below.reverse();
    for path in below {
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It went with what it lay on.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(IsolationError::errno(&path)(errno)),
        }
    }
    match fs::remove_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(IsolationError::file(root)(error)),
        _ => Ok(()),
    }
}

/// All that is mounted there or below, in the order in which it was mounted.
fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, IsolationError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(IsolationError::file(path))?;
    Ok(mounts.lines().filter_map(mount_point).filter(|mounted| mounted.starts_with(path)).collect())
}

/// The fifth field of a line of /proc/PID/mountinfo, where space, tab, newline and backslash are written in octal.
fn mount_point(line: &str) -> Option<PathBuf> {
    let escaped = line.split(' ').nth(4)?;
    let mut text = String::new();
    let mut rest = escaped;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4)?;
        text.push(char::from(u8::from_str_radix(code, 8).ok()?));
        rest = &rest[at + 4..];
    }
    text.push_str(rest);
    Some(text.into())
}

struct Maker<'tree> {
    tree: &'tree Tree,
    root: &'tree Path,
}

impl Maker<'_> {
    fn make(&self) -> Result<(), IsolationError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(self.root).map_err(IsolationError::file(self.root))?;
        mount_memory(self.root, "mode=0755,size=1m", MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
        for entry in &self.tree.entries {
            self.add(entry)?;
        }
        // Nobody adds to it: a path that is not in the spec is not in it.
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
            Entry::Host(path) => self.bind(path),
            Entry::Renamed { from, to, writable } => {
                let access = if *writable { MsFlags::empty() } else { MsFlags::MS_RDONLY };
                self.bind_file(from, to, access)
            }
            Entry::Device(path) => self.device(path),
            Entry::CommonDevice { to, number } => self.node(to, *number, SFlag::S_IFCHR, (0, 0o666)),
            Entry::Text { to, text } => self.file(to, text.as_bytes(), (0, 0o644)),
            Entry::Secret(path) => {
                let content = fs::read(path).map_err(IsolationError::file(path))?;
                self.file(path, &content, (self.tree.user_id, 0o400))
            }
            Entry::Link { to, target } => symlink(target, self.inside(to)).map_err(IsolationError::file(to)),
        }
    }

    /// The path on the host. `..` would lead out of the root directory.
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
        self.parents(to)?;
        let place = self.inside(to);
        let failed = || IsolationError::file(&place);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&place).map_err(failed())?;
        file.write_all(content).map_err(failed())?;
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed())?;
        fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).map_err(IsolationError::errno(&place))
    }

    fn bind(&self, path: &PathOnHost) -> Result<(), IsolationError> {
        let source = match path.path.canonicalize() {
            Ok(source) => source,
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
        // Held open: what is mounted over is what was looked at.
        let opened = if source.is_dir() { self.mount_directory(&path.path)? } else { self.mount_file(&path.path)? };
        let target = by_descriptor(&opened);
        // What is mounted below it comes along, so that a share is what it is on the host. Below /sys that is the kernel's
        // inside, which no machine needs.
        let recursive = if source.is_dir() && source != Path::new("/sys") { MsFlags::MS_REC } else { MsFlags::empty() };
        mount(Some(&source), target.as_str(), None::<&str>, MsFlags::MS_BIND | recursive, None::<&str>)
            .map_err(IsolationError::errno(&place))?;
        // What is mounted on it here stays here: it is the host's own directory otherwise.
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
        let opened = self.mount_file(to)?;
        mount(Some(from), by_descriptor(&opened).as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(IsolationError::errno(&place))?;
        remount(&place, access | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
    }

    /// A directory to mount over.
    fn mount_directory(&self, to: &Path) -> Result<OwnedFd, IsolationError> {
        self.directory(to, 0o755)?;
        let place = self.inside(to);
        open(&place, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(IsolationError::errno(&place))
    }

    /// A file to mount over. In the state directory the machine's user may have put something there, which is then
    /// replaced.
    fn mount_file(&self, to: &Path) -> Result<OwnedFd, IsolationError> {
        let place = self.inside(to);
        self.parents(to)?;
        let look = || open(&place, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        match look() {
            Ok(found) => {
                let kind = fstat(&found).map_err(IsolationError::errno(&place))?.st_mode & SFlag::S_IFMT.bits();
                if [SFlag::S_IFREG, SFlag::S_IFSOCK].iter().any(|usable| usable.bits() == kind) {
                    return Ok(found);
                }
                fs::remove_file(&place).map_err(IsolationError::file(&place))?;
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(IsolationError::errno(&place)(errno)),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        open(&place, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(IsolationError::errno(&place))
    }

    /// The machine's own node of a device of the host; on a host that lets nobody make nodes, the host's.
    fn device(&self, path: &Path) -> Result<(), IsolationError> {
        // What is missing is reported by the machine's own start, with a hint.
        let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
        let kind = metadata.file_type();
        let flag = match (kind.is_block_device(), kind.is_char_device()) {
            (true, _) => SFlag::S_IFBLK,
            (_, true) => SFlag::S_IFCHR,
            // A volume below /dev that is a file, such as one in /dev/shm.
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

/// The path that leads to what is open, and to nothing else.
fn by_descriptor(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn mount_memory(place: &Path, options: &str, flags: MsFlags) -> Result<(), IsolationError> {
    mount(Some("microvm"), place, Some("tmpfs"), flags, Some(options)).map_err(IsolationError::errno(place))
}

fn remount(place: &Path, flags: MsFlags) -> Result<(), IsolationError> {
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, None::<&str>)
        .map_err(IsolationError::errno(place))
}

/// Makes the volumes outside of the state directory that are not there yet, and gives the machine what is to be its own.
///
/// # Errors
/// [`IsolationError::Volume`], and those of giving.
pub fn make_volumes(tree: &mut Tree, runtime: &Path, interruption: &Interruption) -> Result<(), IsolationError> {
    for volume in &tree.volumes {
        let is_new = match make_ready(volume, None, interruption)? {
            VolumeState::Created => IsNew::Yes,
            VolumeState::Present => IsNew::No,
        };
        give_volume(volume.image.as_path(), tree.user_id, is_new)?;
        for lock in locks::of_volume(volume, runtime)? {
            tree.entries.push(Entry::Renamed { from: lock.on_host, to: lock.inside, writable: true });
        }
    }
    Ok(())
}

/// Gives a volume outside of the state directory to the machine, if it belonged to the former user of all machines or was
/// just made by root.
///
/// # Errors
/// [`IsolationError::File`]; [`IsolationError::NotTrusted`] for a file with several names.
fn give_volume(path: &Path, user_id: u32, is_new: IsNew) -> Result<(), IsolationError> {
    let failed = || IsolationError::errno(path);
    let file = match open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(failed()(errno)),
    };
    let status = fstat(&file).map_err(failed())?;
    let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
    let former = User::from_name(FORMER_USER).ok().flatten().map(|user| user.uid.as_raw());
    let is_ours = is_new == IsNew::Yes || former == Some(status.st_uid);
    if kind != SFlag::S_IFREG || !is_ours {
        return Ok(());
    }
    if status.st_nlink > 1 {
        let reason = format!("has {} names, so it may be another machine's too", status.st_nlink);
        return Err(IsolationError::NotTrusted { path: path.to_owned(), reason });
    }
    // A path descriptor is enough for nothing but its entry in /proc.
    let by_descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let owner = Some(Uid::from_raw(user_id));
    chown(by_descriptor.as_str(), owner, Some(Gid::from_raw(user_id))).map_err(failed())
}

/// Whether root has just made a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IsNew {
    /// It has.
    Yes,
    /// It was there.
    No,
}
