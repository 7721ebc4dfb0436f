//! The state directory of a machine. It is root's, its group is the machine's own, and it is sticky: the machine's user
//! makes and removes files of its own in it, but cannot touch `current`, `booted`, `flake` and `toplevel`.

use super::{FORMER_USER, IsolationError, contents};
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

/// The environment variable with the first of the machines' user ids.
pub const FIRST_USER_ID_VARIABLE: &str = "MICROVM_FIRST_USER_ID";
/// The file that names the flake.
pub const FLAKE: &str = "flake";
/// The link that says that the machine is part of the host's configuration.
pub const TOPLEVEL: &str = "toplevel";

const CURRENT: &str = "current";
const BOOTED: &str = "booted";
/// What only root may change.
const OF_ROOT: [&str; 4] = [CURRENT, BOOTED, FLAKE, TOPLEVEL];
/// Sticky; root and the machine's group may do all, others nothing.
const MODE: mode_t = 0o1770;
/// systemd's documentation of user ids (UIDS-GIDS.md) leaves everything from here to 2147352575 free.
const DEFAULT_FIRST_ID: u32 = 0x7000_0000;
const COUNT_OF_IDS: u32 = 1 << 20;

/// The user ids that machines may have. The group of a machine has the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIds {
    first: u32,
}

impl UserIds {
    /// Those from `$MICROVM_FIRST_USER_ID` on.
    ///
    /// # Errors
    /// [`IsolationError::BadFirstId`].
    pub fn of_environment() -> Result<Self, IsolationError> {
        let Some(text) = std::env::var_os(FIRST_USER_ID_VARIABLE).filter(|text| !text.is_empty()) else {
            return Ok(Self { first: DEFAULT_FIRST_ID });
        };
        let number = text.to_str().and_then(|text| text.parse().ok());
        let first = number.filter(|first| (1_000..=4_000_000_000).contains(first));
        first.map(|first| Self { first }).ok_or_else(|| IsolationError::BadFirstId(text.to_string_lossy().into_owned()))
    }

    fn contains(self, id: u32) -> bool {
        id >= self.first && id - self.first < COUNT_OF_IDS
    }

    /// The id for a name: the same on every host and after every new installation, unless another machine has it.
    fn choose(self, name: &str, taken: &BTreeSet<u32>) -> Result<u32, IsolationError> {
        // FNV-1a, 32 bits.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        (0..COUNT_OF_IDS)
            .map(|step| self.first + (hash.wrapping_add(step)) % COUNT_OF_IDS)
            .find(|id| !taken.contains(id))
            .ok_or(IsolationError::NoFreeId(COUNT_OF_IDS))
    }
}

/// A machine's state directory, held open.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    file: OwnedFd,
    ids: UserIds,
}

impl StateDirectory {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// [`IsolationError::File`], also when a link is in its place; [`IsolationError::BadFirstId`].
    pub fn open(machine: &Machine) -> Result<Self, IsolationError> {
        let path = machine.directory.clone();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(&path, flags, Mode::empty()).map_err(IsolationError::errno(&path))?;
        Ok(Self { path, file, ids: UserIds::of_environment()? })
    }

    /// Opens the directory, and makes it first when it is not there.
    ///
    /// # Errors
    /// Those of [`Self::open`].
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

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The user id of the machine, which is also that of its group.
    ///
    /// # Errors
    /// [`IsolationError::NoUserId`] before [`Self::adopt`].
    pub fn user_id(&self) -> Result<u32, IsolationError> {
        let status = fstat(&self.file).map_err(IsolationError::errno(&self.path))?;
        let is_adopted = status.st_uid == 0 && self.ids.contains(status.st_gid);
        if is_adopted { Ok(status.st_gid) } else { Err(IsolationError::NoUserId(self.path.clone())) }
    }

    /// Gives the machine its user, once: the directory becomes root's and the group's, and what the former user of all
    /// machines owned in it becomes the machine's. Returns what should be reported.
    ///
    /// # Errors
    /// [`IsolationError::NoFreeId`], [`IsolationError::File`]. What is interrupted is done again at the next start.
    pub fn adopt(&self, layout: &Layout) -> Result<Vec<String>, IsolationError> {
        let _lock = lock(layout)?;
        if self.user_id().is_ok() {
            return Ok(Vec::new());
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let id = self.ids.choose(&name, &taken(layout, self.ids))?;
        let failed = || IsolationError::errno(&self.path);
        let was_shared = fstat(&self.file).map_err(failed())?.st_uid != 0;
        // From here on nobody but root changes what is in it.
        fchmod(&self.file, Mode::from_bits_truncate(0o700)).map_err(failed())?;
        fchown(&self.file, Some(Uid::from_raw(0)), Some(Gid::from_raw(0))).map_err(failed())?;
        let mut told = Vec::new();
        if let Some(former) = User::from_name(FORMER_USER).ok().flatten() {
            told = contents::hand_over(&self.file, &self.path, former.uid.as_raw(), id)?;
        }
        for name in OF_ROOT {
            contents::take_for_root(&self.file, &self.path, name)?;
        }
        fchown(&self.file, Some(Uid::from_raw(0)), Some(Gid::from_raw(id))).map_err(failed())?;
        fchmod(&self.file, Mode::from_bits_truncate(MODE)).map_err(failed())?;
        if was_shared {
            told.insert(0, format!("{name} has a user of its own now, {id}: its files were given to it"));
        }
        Ok(told)
    }

    /// Makes a directory in it for the machine, where nothing is.
    ///
    /// # Errors
    /// [`IsolationError::File`].
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
    /// [`IsolationError::File`].
    pub fn set_current(&self, layout: &Layout, runner: &Path) -> Result<(), IsolationError> {
        self.point(layout, runner, CURRENT)
    }

    /// Points `booted` to the runner that `current` points to.
    ///
    /// # Errors
    /// [`IsolationError::NotTrusted`] when `current` is not root's; [`IsolationError::File`].
    pub fn set_booted(&self, layout: &Layout) -> Result<(), IsolationError> {
        let runner = self.trusted_link(CURRENT)?;
        self.point(layout, &runner, BOOTED)
    }

    /// Removes `booted`; it need not be there.
    ///
    /// # Errors
    /// [`IsolationError::File`].
    pub fn clear_booted(&self) -> Result<(), IsolationError> {
        contents::remove(&self.file, &self.path, BOOTED)
    }

    /// Says that the machine is built from the flake, or, without one, that it is part of the host's configuration.
    ///
    /// # Errors
    /// [`IsolationError::File`].
    pub fn set_origin(&self, layout: &Layout, flake: Option<&str>, runner: &Path) -> Result<(), IsolationError> {
        let Some(flake) = flake else {
            self.point(layout, runner, TOPLEVEL)?;
            return contents::remove(&self.file, &self.path, FLAKE);
        };
        let new = self.beside(layout, FLAKE);
        contents::remove_file(&new)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o644).open(&new).map_err(IsolationError::file(&new))?;
        file.write_all(flake.as_bytes()).and_then(|()| file.sync_all()).map_err(IsolationError::file(&new))?;
        let target = self.path.join(FLAKE);
        renameat(nix::fcntl::AT_FDCWD, &new, &self.file, FLAKE).map_err(IsolationError::errno(&target))?;
        contents::remove(&self.file, &self.path, TOPLEVEL)
    }

    /// A program of the runner that was booted, if it has such a program.
    ///
    /// # Errors
    /// [`IsolationError::NotTrusted`].
    pub fn program(&self, name: &str) -> Result<Option<PathBuf>, IsolationError> {
        let runner = self.runner()?;
        let program = runner.join("bin").join(name);
        let Ok(metadata) = fs::metadata(&program) else { return Ok(None) };
        let is_root_s = metadata.uid() == 0 && metadata.permissions().mode() & 0o022 == 0;
        if metadata.is_file() && is_root_s {
            return Ok(Some(program));
        }
        Err(IsolationError::NotTrusted { path: program, reason: "others than root can change this program".to_owned() })
    }

    /// The runner that was booted.
    ///
    /// # Errors
    /// [`IsolationError::NotTrusted`].
    pub fn runner(&self) -> Result<PathBuf, IsolationError> {
        self.trusted_link(BOOTED)
    }

    /// Where a link of root leads: to a directory that only root can change.
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
            return Err(refuse("this link was not made by root"));
        }
        let target = readlinkat(&self.file, name).map_err(IsolationError::errno(&path))?;
        let target = self.path.join(target).canonicalize().map_err(IsolationError::file(&path))?;
        let metadata = fs::metadata(&target).map_err(IsolationError::file(&target))?;
        if metadata.uid() != 0 || metadata.permissions().mode() & 0o022 != 0 {
            return Err(refuse("others than root can change the directory that it leads to"));
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

    /// A link is made where only root can make one, then renamed over the old one.
    fn point(&self, layout: &Layout, target: &Path, name: &str) -> Result<(), IsolationError> {
        let new = self.beside(layout, name);
        contents::remove_file(&new)?;
        symlinkat(target, nix::fcntl::AT_FDCWD, &new).map_err(IsolationError::errno(&new))?;
        if self.status(name)?.is_some_and(|status| status.st_mode & S_IFMT == S_IFDIR) {
            let reason = "this is a directory, but must be a link of root".to_owned();
            return Err(IsolationError::NotTrusted { path: self.path.join(name), reason });
        }
        renameat(nix::fcntl::AT_FDCWD, &new, &self.file, name).map_err(IsolationError::errno(&self.path.join(name)))
    }

    /// A name in the directory of all machines, which is root's. A dot makes it no machine's.
    fn beside(&self, layout: &Layout, name: &str) -> PathBuf {
        let machine = self.path.file_name().unwrap_or_default().to_string_lossy();
        layout.machines().join(format!(".{machine}.{name}"))
    }
}

impl AsFd for StateDirectory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One process at a time gives out user ids.
fn lock(layout: &Layout) -> Result<Flock<File>, IsolationError> {
    let directory = File::open(layout.machines()).map_err(IsolationError::file(layout.machines()))?;
    Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| IsolationError::errno(layout.machines())(errno))
}

fn taken(layout: &Layout, ids: UserIds) -> BTreeSet<u32> {
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

    const FORMER: u32 = 4711;

    fn is_root() -> bool {
        let is_root = nix::unistd::geteuid().is_root();
        if !is_root {
            crate::test_skip::skipped("only root gives files to users");
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
    fn a_machine_gets_the_same_user_everywhere_and_no_other_machines() {
        let ids = UserIds { first: DEFAULT_FIRST_ID };
        let id = ids.choose("web", &BTreeSet::new()).unwrap();
        assert_eq!(ids.choose("web", &BTreeSet::new()).unwrap(), id);
        assert_eq!(ids.choose("web", &BTreeSet::from([id])).unwrap(), id + 1);
        assert_ne!(ids.choose("mail", &BTreeSet::new()).unwrap(), id);
        assert!(ids.contains(id) && !ids.contains(DEFAULT_FIRST_ID - 1) && !ids.contains(0));
    }

    #[test]
    fn a_machines_user_owns_its_files_but_not_what_root_runs() {
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
        // One that the machine's user has made is not followed.
        state.clear_booted().unwrap();
        symlink("/", machine.booted()).unwrap();
        std::os::unix::fs::lchown(machine.booted(), Some(id), Some(id)).unwrap();
        assert!(matches!(state.runner(), Err(IsolationError::NotTrusted { .. })));
        // Nor is one of root to a directory that others can change.
        chown(directory.path(), Some(FORMER), None).unwrap();
        state.set_current(&layout, directory.path()).unwrap();
        assert!(matches!(state.set_booted(&layout), Err(IsolationError::NotTrusted { .. })));
    }

    #[test]
    fn links_where_root_writes_are_replaced_not_followed() {
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
        // A link in the place of the directory itself.
        let other = layout.machine(&MachineName::new("other").unwrap());
        symlink(&machine.directory, &other.directory).unwrap();
        assert!(StateDirectory::open(&other).is_err());
    }

    #[test]
    fn files_of_the_former_user_become_the_machines_but_for_those_with_several_names() {
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
            std::os::unix::fs::lchown(state.join(file), Some(FORMER), Some(FORMER)).unwrap();
        }
        let opened = fs::File::open(state).unwrap();
        let told = contents::hand_over(&opened, state, FORMER, 5000).unwrap();
        assert_eq!(told.len(), 2, "{told:?}");
        let owner = |file: &str| fs::symlink_metadata(state.join(file)).unwrap().uid();
        let owners = ["var.img", "home", "home/notes", "of-root", "linked", "link"].map(owner);
        assert_eq!(owners, [5000, 5000, 5000, 0, FORMER, 5000]);
        assert_eq!(fs::metadata("/etc/passwd").unwrap().uid(), 0);
    }
}
