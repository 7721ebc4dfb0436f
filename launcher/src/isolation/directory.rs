//! The state directory of a machine. It belongs to root and to the machine's group, and it is sticky: the machine's
//! user can create and remove its own files in it, but cannot change `current`, `booted`, `flake` and `toplevel`.

use super::{FORMER_USER, IsolationError, contents};
use crate::identity::CLONE_FILE;
use crate::imperative::{Layout, Machine};
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, readlinkat, renameat};
use nix::libc::{S_IFDIR, S_IFLNK, S_IFMT, mode_t};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, User, fchown, symlinkat};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The environment variable that contains the first user id of the machines.
pub const FIRST_USER_ID_VARIABLE: &str = "MICROVM_FIRST_USER_ID";
/// The file that contains the flake reference.
pub const FLAKE: &str = "flake";
/// The symbolic link whose presence marks a machine of the host's configuration.
pub const TOPLEVEL: &str = "toplevel";

const CURRENT: &str = "current";
const BOOTED: &str = "booted";
/// The files that only root may change.
const ROOT_LINKS: [&str; 5] = [CURRENT, BOOTED, FLAKE, TOPLEVEL, CLONE_FILE];
/// Sticky; full access for root and the machine's group, none for others.
const MODE: mode_t = 0o1770;
/// The first id of the range up to 2147352575, which systemd's documentation of user ids (UIDS-GIDS.md) leaves
/// unassigned.
const DEFAULT_FIRST_ID: u32 = 0x7000_0000;
const ID_COUNT: u32 = 1 << 20;

/// The range of user ids for machines. A machine's group has the same number as its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIds {
    first: u32,
}

impl UserIds {
    /// Returns the range that starts at `$MICROVM_FIRST_USER_ID`.
    ///
    /// # Errors
    /// Returns [`IsolationError::BadFirstId`].
    pub fn of_environment() -> Result<Self, IsolationError> {
        let Some(text) = std::env::var_os(FIRST_USER_ID_VARIABLE).filter(|text| !text.is_empty()) else {
            return Ok(Self { first: DEFAULT_FIRST_ID });
        };
        let number = text.to_str().and_then(|text| text.parse().ok());
        let first = number.filter(|first| (1_000..=4_000_000_000).contains(first));
        first.map(|first| Self { first }).ok_or_else(|| IsolationError::BadFirstId(text.to_string_lossy().into_owned()))
    }

    fn contains(self, id: u32) -> bool {
        id >= self.first && id - self.first < ID_COUNT
    }

    /// Returns the id for a name. It is the same on every host and after every reinstallation, unless another machine
    /// uses it.
    fn choose(self, name: &str, taken: &BTreeSet<u32>) -> Result<u32, IsolationError> {
        // FNV-1a, 32 bits.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        (0..ID_COUNT)
            .map(|step| self.first + (hash.wrapping_add(step)) % ID_COUNT)
            .find(|id| !taken.contains(id))
            .ok_or(IsolationError::NoFreeId(ID_COUNT))
    }
}

/// An open state directory.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    file: OwnedFd,
    ids: UserIds,
}

impl StateDirectory {
    /// Opens an existing state directory.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`], also if the path is a symbolic link, or [`IsolationError::BadFirstId`].
    pub fn open(machine: &Machine) -> Result<Self, IsolationError> {
        let path = machine.directory.clone();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(&path, flags, Mode::empty()).map_err(IsolationError::errno(&path))?;
        Ok(Self { path, file, ids: UserIds::of_environment()? })
    }

    /// Opens the state directory, and creates it if it is missing.
    ///
    /// # Errors
    /// The same as [`Self::open`].
    pub fn make(layout: &Layout, machine: &Machine) -> Result<Self, IsolationError> {
        fs::create_dir_all(layout.machines()).map_err(IsolationError::file(layout.machines()))?;
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&machine.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(IsolationError::file(&machine.directory)(error))
            }
            _ => Self::open(machine),
        }
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the user id of the machine, which is also its group id.
    ///
    /// # Errors
    /// Returns [`IsolationError::NoUserId`] before [`Self::adopt`] was called.
    pub fn user_id(&self) -> Result<u32, IsolationError> {
        let status = fstat(&self.file).map_err(IsolationError::errno(&self.path))?;
        let is_adopted = status.st_uid == 0 && self.ids.contains(status.st_gid);
        if is_adopted { Ok(status.st_gid) } else { Err(IsolationError::NoUserId(self.path.clone())) }
    }

    /// Assigns the machine its user, once: the directory then belongs to root and to the machine's group, and files
    /// that belonged to the former shared user belong to the machine. Returns messages for the user.
    ///
    /// # Errors
    /// Returns [`IsolationError::NoFreeId`] or [`IsolationError::File`]. If this is interrupted, the next start repeats
    /// it.
    pub fn adopt(&self, layout: &Layout) -> Result<Vec<String>, IsolationError> {
        let _lock = lock(layout)?;
        if self.user_id().is_ok() {
            return Ok(Vec::new());
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        // While a machine is being created: see `Layout::unfinished`.
        let unfinished = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
        let name = unfinished.unwrap_or(&name);
        let id = self.ids.choose(name, &used_ids(layout, self.ids))?;
        let failed = || IsolationError::errno(&self.path);
        let was_shared = fstat(&self.file).map_err(failed())?.st_uid != 0;
        // From here on, only root can change the content.
        fchmod(&self.file, Mode::from_bits_truncate(0o700)).map_err(failed())?;
        fchown(&self.file, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).map_err(failed())?;
        let mut messages = Vec::new();
        if let Some(former) = User::from_name(FORMER_USER).ok().flatten() {
            messages = contents::give_to_user(&self.file, &self.path, former.uid.as_raw(), id)?;
        }
        for name in ROOT_LINKS {
            contents::give_to_root(&self.file, &self.path, name)?;
        }
        fchown(&self.file, Some(Uid::from_raw(0)), Some(Gid::from_raw(id))).map_err(failed())?;
        fchmod(&self.file, Mode::from_bits_truncate(MODE)).map_err(failed())?;
        if was_shared {
            messages.insert(0, format!("{name} now has its own user, {id}, which owns its files"));
        }
        Ok(messages)
    }

    /// Creates a directory in it, owned by the machine's user, if it is missing.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`].
    pub fn make_directory(&self, name: &Path) -> Result<(), IsolationError> {
        let id = self.user_id()?;
        let mut parent = self.file.try_clone().map_err(IsolationError::file(&self.path))?;
        let mut path = self.path.clone();
        for part in name.components() {
            let std::path::Component::Normal(part) = part else { continue };
            path.push(part);
            let made = mkdirat(&parent, part, Mode::from_bits_truncate(0o770));
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let opened = openat(&parent, part, flags, Mode::empty()).map_err(IsolationError::errno(&path))?;
            if made.is_ok() {
                let owner = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
                fchown(&opened, owner.0, owner.1).map_err(IsolationError::errno(&path))?;
            }
            parent = opened;
        }
        Ok(())
    }

    /// Points `current` to the runner.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`].
    pub fn set_current(&self, layout: &Layout, runner: &Path) -> Result<(), IsolationError> {
        self.set_link(layout, runner, CURRENT)
    }

    /// Points `booted` to the runner that `current` points to.
    ///
    /// # Errors
    /// Returns [`IsolationError::NotTrusted`] if `current` does not belong to root, or [`IsolationError::File`].
    pub fn set_booted(&self, layout: &Layout) -> Result<(), IsolationError> {
        let runner = self.trusted_link(CURRENT)?;
        self.set_link(layout, &runner, BOOTED)
    }

    /// Removes `booted`. A missing link is not an error.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`].
    pub fn clear_booted(&self) -> Result<(), IsolationError> {
        contents::remove(&self.file, &self.path, BOOTED)
    }

    /// Records the flake that the machine is built from, or, without one, that the machine is part of the host's
    /// configuration.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`].
    pub fn set_origin(&self, layout: &Layout, flake: Option<&str>, runner: &Path) -> Result<(), IsolationError> {
        let Some(flake) = flake else {
            self.set_link(layout, runner, TOPLEVEL)?;
            return contents::remove(&self.file, &self.path, FLAKE);
        };
        let new = self.sibling(layout, FLAKE);
        contents::remove_file(&new)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o644).open(&new).map_err(IsolationError::file(&new))?;
        file.write_all(flake.as_bytes()).and_then(|()| file.sync_all()).map_err(IsolationError::file(&new))?;
        let target = self.path.join(FLAKE);
        renameat(nix::fcntl::AT_FDCWD, &new, &self.file, FLAKE).map_err(IsolationError::errno(&target))?;
        contents::remove(&self.file, &self.path, TOPLEVEL)
    }

    /// Returns the path of a program in the booted runner, or `None` if the runner does not contain it.
    ///
    /// # Errors
    /// Returns [`IsolationError::NotTrusted`].
    pub fn program(&self, name: &str) -> Result<Option<PathBuf>, IsolationError> {
        let runner = self.runner()?;
        let program = runner.join("bin").join(name);
        let Ok(metadata) = fs::metadata(&program) else { return Ok(None) };
        let is_root_s = metadata.uid() == 0 && metadata.permissions().mode() & 0o022 == 0;
        if metadata.is_file() && is_root_s {
            return Ok(Some(program));
        }
        Err(IsolationError::NotTrusted {
            path: program,
            reason: "users other than root can change this program".to_owned(),
        })
    }

    /// Returns the booted runner.
    ///
    /// # Errors
    /// Returns [`IsolationError::NotTrusted`].
    pub fn runner(&self) -> Result<PathBuf, IsolationError> {
        self.trusted_link(BOOTED)
    }

    /// Returns the target of a symbolic link. The link must belong to root, and its target must be a directory that
    /// only root can change.
    fn trusted_link(&self, name: &str) -> Result<PathBuf, IsolationError> {
        let path = self.path.join(name);
        let status = self.status(name)?.ok_or_else(|| IsolationError::NotTrusted {
            path: path.clone(),
            reason: "there is no such link".to_owned(),
        })?;
        let refuse = |reason: &str| IsolationError::NotTrusted { path: path.clone(), reason: reason.to_owned() };
        if status.st_mode & S_IFMT != S_IFLNK {
            return Err(refuse("this is not a link to a runner"));
        }
        if status.st_uid != 0 {
            return Err(refuse("this link was not created by root"));
        }
        let target = readlinkat(&self.file, name).map_err(IsolationError::errno(&path))?;
        let target = self.path.join(target).canonicalize().map_err(IsolationError::file(&path))?;
        let metadata = fs::metadata(&target).map_err(IsolationError::file(&target))?;
        if metadata.uid() != 0 || metadata.permissions().mode() & 0o022 != 0 {
            return Err(refuse("users other than root can change its target"));
        }
        Ok(target)
    }

    fn status(&self, name: &str) -> Result<Option<FileStat>, IsolationError> {
        match fstatat(&self.file, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(nix::errno::Errno::ENOENT) => Ok(None),
            Err(errno) => Err(IsolationError::errno(&self.path.join(name))(errno)),
        }
    }

    /// Creates the symbolic link where only root can write, and renames it over the old one.
    fn set_link(&self, layout: &Layout, target: &Path, name: &str) -> Result<(), IsolationError> {
        let new = self.sibling(layout, name);
        contents::remove_file(&new)?;
        symlinkat(target, nix::fcntl::AT_FDCWD, &new).map_err(IsolationError::errno(&new))?;
        if self.status(name)?.is_some_and(|status| status.st_mode & S_IFMT == S_IFDIR) {
            let reason = "this is a directory, but must be a link of root".to_owned();
            return Err(IsolationError::NotTrusted { path: self.path.join(name), reason });
        }
        renameat(nix::fcntl::AT_FDCWD, &new, &self.file, name).map_err(IsolationError::errno(&self.path.join(name)))
    }

    /// Returns a path in the directory of all machines, which belongs to root. The leading dot distinguishes it from
    /// all machine names.
    fn sibling(&self, layout: &Layout, name: &str) -> PathBuf {
        let machine = self.path.file_name().unwrap_or_default().to_string_lossy();
        layout.machines().join(format!(".{machine}.{name}"))
    }
}

impl AsFd for StateDirectory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Ensures that only one process at a time assigns user ids.
fn lock(layout: &Layout) -> Result<Flock<File>, IsolationError> {
    let directory = File::open(layout.machines()).map_err(IsolationError::file(layout.machines()))?;
    Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| IsolationError::errno(layout.machines())(errno))
}

fn used_ids(layout: &Layout, ids: UserIds) -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir(layout.machines()) else { return BTreeSet::new() };
    let groups = entries.filter_map(|entry| Some(fs::symlink_metadata(entry.ok()?.path()).ok()?.gid()));
    groups.filter(|group| ids.contains(*group)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use crate::imperative::MachineName;
    use std::os::unix::fs::{chown, symlink};

    const FORMER_ID: u32 = 4711;

    fn is_root() -> bool {
        let is_root = nix::unistd::geteuid().is_root();
        if !is_root {
            testing::skipped("only root can change the owner of a file");
        }
        is_root
    }

    fn machines(directory: &Path) -> (Layout, Machine) {
        let layout = Layout::at(directory.join("machines"), directory.join("roots"));
        let machine = layout.machine(&MachineName::new("web").unwrap());
        fs::create_dir_all(&machine.directory).unwrap();
        (layout, machine)
    }

    #[test]
    fn a_machine_gets_the_same_user_id_on_every_host_unless_another_machine_has_it() {
        let ids = UserIds { first: DEFAULT_FIRST_ID };
        let id = ids.choose("web", &BTreeSet::new()).unwrap();
        assert_eq!(ids.choose("web", &BTreeSet::new()).unwrap(), id);
        assert_eq!(ids.choose("web", &BTreeSet::from([id])).unwrap(), id + 1);
        assert_ne!(ids.choose("mail", &BTreeSet::new()).unwrap(), id);
        assert!(ids.contains(id) && !ids.contains(DEFAULT_FIRST_ID - 1) && !ids.contains(0));
    }

    #[test]
    fn root_runs_only_runners_that_the_machines_user_cannot_change() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (layout, machine) = machines(directory.path());
        let state = StateDirectory::open(&machine).unwrap();
        assert!(matches!(state.user_id(), Err(IsolationError::NoUserId(_))));
        state.set_current(&layout, Path::new("/")).unwrap();
        state.adopt(&layout).unwrap();
        let id = state.user_id().unwrap();
        let metadata = fs::metadata(&machine.directory).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (0, id, 0o1770));
        state.set_booted(&layout).unwrap();
        assert_eq!(state.runner().unwrap(), Path::new("/"));
        // A link that the machine's user has created is not followed.
        state.clear_booted().unwrap();
        symlink("/", machine.booted()).unwrap();
        std::os::unix::fs::lchown(machine.booted(), Some(id), Some(id)).unwrap();
        assert!(matches!(state.runner(), Err(IsolationError::NotTrusted { .. })));
        // A link of root to a directory that others can change is not followed either.
        chown(directory.path(), Some(FORMER_ID), None).unwrap();
        state.set_current(&layout, directory.path()).unwrap();
        assert!(matches!(state.set_booted(&layout), Err(IsolationError::NotTrusted { .. })));
    }

    #[test]
    fn symbolic_links_where_root_writes_are_replaced_and_not_followed() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (layout, machine) = machines(directory.path());
        let precious = directory.path().join("precious");
        fs::write(&precious, "untouched").unwrap();
        for name in [FLAKE, CURRENT, TOPLEVEL, "flake.new", "current.new"] {
            symlink(&precious, machine.directory.join(name)).unwrap();
        }
        let state = StateDirectory::open(&machine).unwrap();
        state.set_current(&layout, Path::new("/")).unwrap();
        state.set_origin(&layout, Some("path:/srv"), Path::new("/")).unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(machine.flake_file()).unwrap(), "path:/srv");
        assert!(fs::symlink_metadata(machine.directory.join(TOPLEVEL)).is_err());
        // The state directory itself is a symbolic link.
        let other = layout.machine(&MachineName::new("other").unwrap());
        symlink(&machine.directory, &other.directory).unwrap();
        assert!(StateDirectory::open(&other).is_err());
    }

    #[test]
    fn files_of_the_former_user_get_the_machines_user_unless_they_have_several_hard_links() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        fs::create_dir(state.join("home")).unwrap();
        for file in ["var.img", "home/notes", "of-root", "linked"] {
            fs::write(state.join(file), "").unwrap();
        }
        fs::hard_link(state.join("linked"), state.join("other-name")).unwrap();
        symlink("/etc/passwd", state.join("link")).unwrap();
        for file in ["var.img", "home", "home/notes", "linked", "link"] {
            std::os::unix::fs::lchown(state.join(file), Some(FORMER_ID), Some(FORMER_ID)).unwrap();
        }
        let opened = fs::File::open(state).unwrap();
        let messages = contents::give_to_user(&opened, state, FORMER_ID, 5000).unwrap();
        assert_eq!(messages.len(), 2, "{messages:?}");
        let owner = |file: &str| fs::symlink_metadata(state.join(file)).unwrap().uid();
        let owners = ["var.img", "home", "home/notes", "of-root", "linked", "link"].map(owner);
        assert_eq!(owners, [5000, 5000, 5000, 0, FORMER_ID, 5000]);
        assert_eq!(fs::metadata("/etc/passwd").unwrap().uid(), 0);
    }
}
