//! The directories that contain a host's machines.

use super::lock::NamesLock;
use super::{FlakeReference, ImperativeError, MachineName};
use crate::identity::{CLONE_FILE, CloneRecord};
use nix::errno::Errno;
use nix::unistd::geteuid;
use program::place::{Directory, Place};
use program::presence::is_directory;
use program::spelling::nearest;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The mode of a state directory, and of the directory that contains all of them.
pub(super) const DIRECTORY_MODE: u32 = 0o755;
/// The beginning of the name of the root of a started runner. Those of microvm.nix are called so, too.
const BOOTED_ROOT: &str = "booted-";

/// The directories of a host.
#[derive(Clone, Debug)]
pub struct Layout {
    machines: PathBuf,
    gc_roots: PathBuf,
}

impl Layout {
    /// Reads `$MICROVM_STATE_DIR` and `$MICROVM_GCROOTS_DIR`. The defaults are the directories of the host module.
    pub fn of_environment() -> Self {
        let directory = |variable: &str, default: &str| {
            std::env::var_os(variable).filter(|value| !value.is_empty()).map_or_else(|| default.into(), PathBuf::from)
        };
        Self {
            machines: directory("MICROVM_STATE_DIR", "/var/lib/microvms"),
            gc_roots: directory("MICROVM_GCROOTS_DIR", "/nix/var/nix/gcroots/microvm"),
        }
    }

    /// Uses another directory for the state directories.
    #[must_use]
    pub fn with_machines(self, machines: impl Into<PathBuf>) -> Self {
        Self { machines: machines.into(), ..self }
    }

    /// Uses the given directories.
    pub fn at(machines: impl Into<PathBuf>, gc_roots: impl Into<PathBuf>) -> Self {
        Self { machines: machines.into(), gc_roots: gc_roots.into() }
    }

    /// Returns the directory that contains the state directories.
    pub fn machines(&self) -> &Path {
        &self.machines
    }

    /// Returns a machine, which need not exist.
    pub fn machine(&self, name: &MachineName) -> Machine {
        Machine { name: name.clone(), directory: self.machines.join(name.as_str()) }
    }

    /// Returns an existing machine.
    ///
    /// # Errors
    /// Returns [`ImperativeError::Missing`].
    pub fn existing(&self, name: &MachineName) -> Result<Machine, ImperativeError> {
        let machine = self.machine(name);
        match is_directory(&machine.directory) {
            Ok(true) => Ok(machine),
            Ok(false) => Err(self.missing(name)),
            Err(error) => Err(ImperativeError::file(&machine.directory)(error)),
        }
    }

    /// Returns the error for a machine that does not exist, with the name of the one that was probably meant.
    fn missing(&self, name: &MachineName) -> ImperativeError {
        let machines = self.all().unwrap_or_default();
        let near = nearest(name.as_str(), machines.iter().map(|machine| machine.name.as_str()));
        let near = near.map(str::to_owned);
        ImperativeError::Missing { name: name.to_string(), directory: self.machine(name).directory, near }
    }

    /// Returns the machine that has this state directory, however the path is spelt.
    pub fn machine_in(&self, directory: &Path) -> Option<Machine> {
        let directory = directory.canonicalize().ok()?;
        let machines = self.machines.canonicalize().ok()?;
        let name = directory.strip_prefix(machines).ok()?.to_str()?;
        Some(self.machine(&MachineName::new(name).ok()?))
    }

    /// Returns all machines, sorted by name.
    ///
    /// # Errors
    /// Returns [`ImperativeError::File`]. A missing directory counts as empty.
    pub fn all(&self) -> Result<Vec<Machine>, ImperativeError> {
        let entries = match fs::read_dir(&self.machines) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ImperativeError::file(&self.machines)(error)),
        };
        let names = entries.filter_map(|entry| MachineName::new(entry.ok()?.file_name().to_str()?).ok());
        let mut machines: Vec<_> =
            names.map(|name| self.machine(&name)).filter(|machine| machine.directory.is_dir()).collect();
        machines.sort_by(|first, second| first.name.cmp(&second.name));
        Ok(machines)
    }

    /// Returns the paths and targets of the links that protect the machine's runners from garbage collection.
    pub(super) fn gc_roots_of(&self, machine: &Machine) -> [(PathBuf, PathBuf); 2] {
        let name = machine.name.as_str();
        [
            (self.gc_roots.join(name), machine.current()),
            (self.gc_roots.join(format!("{BOOTED_ROOT}{name}")), machine.booted()),
        ]
    }

    /// Refuses a new machine that would have a root of another one, such as `booted-web` beside `web`: one of them would
    /// lose its runner to the garbage collection.
    pub(super) fn refuse_shared_root(&self, machine: &Machine) -> Result<(), ImperativeError> {
        let name = machine.name.as_str();
        let others = [name.strip_prefix(BOOTED_ROOT).map(str::to_owned), Some(format!("{BOOTED_ROOT}{name}"))];
        let others = others.into_iter().flatten().filter_map(|other| MachineName::new(&other).ok());
        let existing = others.map(|other| self.machine(&other)).find(|other| other.directory.is_dir());
        existing.map_or(Ok(()), |other| Err(ImperativeError::SharedRoot([name.to_owned(), other.name.to_string()])))
    }

    /// Repeats the check of `refuse_shared_root` for a machine that does not exist yet. Until the lock is
    /// dropped, no other process gives a machine its name.
    ///
    /// # Errors
    /// Returns [`ImperativeError::SharedRoot`] or [`ImperativeError::File`].
    pub fn reserve_name(&self, machine: &Machine) -> Result<NamesLock, ImperativeError> {
        let lock = NamesLock::take(self)?;
        if fs::symlink_metadata(&machine.directory).is_err() {
            self.refuse_shared_root(machine)?;
        }
        Ok(lock)
    }

    /// Creates a temporary root that refers directly to a runner, until the machine's own roots refer to it.
    pub(super) fn add_temporary_gc_root(&self, machine: &Machine, runner: &Path) -> Result<(), ImperativeError> {
        Directory::make(&self.gc_roots, 0o755, None).map_err(ImperativeError::file(&self.gc_roots))?;
        replace_link(runner, &self.temporary_gc_root(machine))
    }

    /// Returns the path of the temporary root.
    pub(super) fn temporary_gc_root(&self, machine: &Machine) -> PathBuf {
        self.gc_roots.join(format!(".{}.new", machine.name))
    }

    /// Removes the links that a killed process had created, but not yet renamed to the name of a root. The caller holds
    /// the machine's lock.
    pub(super) fn remove_unfinished_links(&self, machine: &Machine) -> Result<(), ImperativeError> {
        let entries = match fs::read_dir(&self.gc_roots) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(ImperativeError::file(&self.gc_roots)(error)),
        };
        let targets = self.gc_roots_of(machine).map(|(_, target)| target);
        let temporary = format!("..{}.new.", machine.name);
        for entry in entries {
            let path = entry.map_err(ImperativeError::file(&self.gc_roots))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // By its target, because another machine's temporary root can have a name like this.
            let is_of_machine = || fs::read_link(&path).is_ok_and(|target| targets.contains(&target));
            if name.ends_with(".new") && (name.starts_with(&temporary) || (name.starts_with('.') && is_of_machine())) {
                remove_link(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the links to a new runner that a killed process had created in the machine's directory, but not yet
    /// renamed to `current`. The caller holds the machine's lock.
    pub(super) fn remove_unfinished_updates(&self, machine: &Machine) -> Result<(), ImperativeError> {
        let current = machine.current();
        let directory = current.parent().unwrap_or(&current);
        for entry in fs::read_dir(directory).map_err(ImperativeError::file(directory))? {
            let path = entry.map_err(ImperativeError::file(directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(".current.") && name.ends_with(".new") && path.is_symlink() {
                remove_link(&path)?;
            }
        }
        Ok(())
    }

    /// Returns the machine's roots that exist. A link of the same name that refers to another machine is not among them.
    pub(super) fn existing_gc_roots(&self, machine: &Machine) -> Vec<PathBuf> {
        let roots = self.gc_roots_of(machine).into_iter();
        let own = roots.filter(|(root, target)| fs::read_link(root).is_ok_and(|found| found == *target));
        let temporary = self.temporary_gc_root(machine);
        let temporary = fs::symlink_metadata(&temporary).is_ok().then_some(temporary);
        own.map(|(root, _)| root).chain(temporary).collect()
    }

    /// Removes all roots of the machine. Missing ones are not an error.
    pub(super) fn remove_gc_roots(&self, machine: &Machine) -> Result<(), ImperativeError> {
        self.existing_gc_roots(machine).iter().try_for_each(|root| remove_link(root))
    }

    /// Returns the directory of a machine that is being created or deleted. The leading dot distinguishes it from all
    /// machine names.
    pub(super) fn unfinished(&self, machine: &Machine) -> PathBuf {
        self.machines.join(format!(".{}.new", machine.name))
    }

    /// Returns the path of the link to the runner that an update builds. It is outside the state directory, which the
    /// machine's user can change.
    pub(super) fn building(&self, machine: &Machine) -> PathBuf {
        self.machines.join(format!(".{}.building", machine.name))
    }

    /// Creates the roots of the machine.
    ///
    /// # Errors
    /// Returns [`ImperativeError::File`].
    pub fn add_gc_roots(&self, machine: &Machine) -> Result<(), ImperativeError> {
        Directory::make(&self.gc_roots, 0o755, None).map_err(ImperativeError::file(&self.gc_roots))?;
        for (root, target) in self.gc_roots_of(machine) {
            replace_link(&target, &root)?;
        }
        Ok(())
    }
}

/// A machine and its state directory.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: MachineName,
    /// Its state directory, `STATE/NAME`.
    pub directory: PathBuf,
}

impl Machine {
    /// Returns the path of the link to the runner that the next start uses.
    pub fn current(&self) -> PathBuf {
        self.directory.join("current")
    }

    /// Returns the runner that the next start uses, for callers that run programs from it.
    ///
    /// # Errors
    /// Returns [`ImperativeError::File`], also if this process is root and another user has created the link.
    pub fn runner(&self) -> Result<PathBuf, ImperativeError> {
        let link = self.current();
        self.resolve_link(&link)?.ok_or_else(|| ImperativeError::file(&link)(Errno::ENOENT.into()))
    }

    /// Returns the runner that the machine was started with; `None` if it was stopped normally.
    ///
    /// # Errors
    /// The same as [`Machine::runner`].
    pub fn booted_runner(&self) -> Result<Option<PathBuf>, ImperativeError> {
        self.resolve_link(&self.booted())
    }

    /// Returns the target of a link of the machine, or `None` if it does not exist. Root does not follow another user's
    /// link.
    fn resolve_link(&self, link: &Path) -> Result<Option<PathBuf>, ImperativeError> {
        match Place::nofollow(link).and_then(|place| place.read_own_link()) {
            Ok(target) => Ok(Some(self.directory.join(target))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImperativeError::file(link)(error)),
        }
    }

    /// Returns the path of the link to the running runner. The service removes the link when the machine stops.
    pub fn booted(&self) -> PathBuf {
        self.directory.join("booted")
    }

    /// Returns the path of the file that contains the flake reference.
    pub fn flake_file(&self) -> PathBuf {
        self.directory.join("flake")
    }

    /// Returns the machine of which it is a clone. Only a file of root, or of the user who runs this process, counts.
    pub fn clone_of(&self) -> Option<String> {
        let text = Place::nofollow(&self.directory.join(CLONE_FILE)).and_then(|place| place.read_own()).ok()?;
        serde_json::from_slice(&text).ok().map(|record: CloneRecord| record.clone_of)
    }

    /// Whether it is part of the host's configuration, and is updated with the host. Only the link of root, or of the
    /// user who runs this process, counts: the machine's user can create one, too.
    pub fn is_declared(&self) -> bool {
        let trusted = |link: fs::Metadata| link.uid() == 0 || link.uid() == geteuid().as_raw();
        fs::symlink_metadata(self.directory.join("toplevel")).is_ok_and(trusted)
    }

    /// Returns the flake that it is built from.
    ///
    /// # Errors
    /// Returns [`ImperativeError::Declared`], [`ImperativeError::Clone`], [`ImperativeError::InstalledFromElsewhere`]
    /// or [`ImperativeError::NoFlake`].
    pub fn flake(&self) -> Result<FlakeReference, ImperativeError> {
        if self.is_declared() {
            return Err(ImperativeError::Declared(self.name.to_string()));
        }
        if let Some(original) = self.clone_of() {
            return Err(ImperativeError::Clone { name: self.name.to_string(), original });
        }
        let path = self.flake_file();
        // Refuses another user's file, because root builds what it names.
        match Place::nofollow(&path).and_then(|place| place.read_own()) {
            Ok(text) => Ok(FlakeReference::stored(&String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ImperativeError::InstalledFromElsewhere(self.name.to_string()))
            }
            Err(source) => Err(ImperativeError::NoFlake { name: self.name.to_string(), path, source }),
        }
    }
}

/// Removes a symbolic link. A missing one is not an error.
pub(super) fn remove_link(link: &Path) -> Result<(), ImperativeError> {
    match Place::nofollow(link).and_then(|place| place.remove()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImperativeError::file(link)(error)),
        _ => Ok(()),
    }
}

/// Renames a directory.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), ImperativeError> {
    Place::nofollow(from).and_then(|place| place.rename_to(&Place::nofollow(to)?)).map_err(ImperativeError::file(to))
}

/// Atomically points a symbolic link at the target.
pub(super) fn replace_link(target: &Path, link: &Path) -> Result<(), ImperativeError> {
    Place::nofollow(link).and_then(|place| place.replace_link(target)).map_err(ImperativeError::file(link))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{lchown, symlink};

    #[test]
    fn the_name_of_a_machine_that_was_probably_meant_is_suggested() {
        let host = tempfile::tempdir().expect("a directory");
        let layout = Layout::at(host.path(), host.path().join("gcroots"));
        fs::create_dir(host.path().join("web")).expect("a state directory");
        let error =
            |name: &str| layout.existing(&MachineName::new(name).expect("a name")).map_err(|error| error.to_string());
        let missing =
            |name: &str| format!("there is no machine {name}: {}/{name} does not exist", host.path().display());
        assert_eq!(error("wbe").err(), Some(missing("wbe") + "; did you mean `web`?"));
        assert_eq!(error("mailserver").err(), Some(missing("mailserver")));
        error("web").expect("the machine");
    }

    #[test]
    fn a_machine_named_like_a_root_of_another_one_is_refused() {
        let host = tempfile::tempdir().expect("a directory");
        let layout = Layout::at(host.path(), host.path().join("gcroots"));
        let refused = |name: &str| {
            layout
                .refuse_shared_root(&layout.machine(&MachineName::new(name).expect("a name")))
                .map_err(|e| e.to_string())
        };
        refused("booted-web").expect("there is no machine web");
        fs::create_dir(host.path().join("web")).expect("a state directory");
        fs::create_dir(host.path().join("booted-db")).expect("a state directory");
        for (name, other) in [("booted-web", "web"), ("db", "booted-db")] {
            let error = refused(name).expect_err("one root for both");
            assert!(error.starts_with(&format!("{name} and {other} would have the same root")), "{error}");
        }
        refused("web-booted").expect("another root");
    }

    #[test]
    fn a_root_that_refers_to_another_machine_is_not_removed() {
        let host = tempfile::tempdir().expect("a directory");
        let layout = Layout::at(host.path(), host.path().join("gcroots"));
        let machine = |name: &str| layout.machine(&MachineName::new(name).expect("a name"));
        let roots = || fs::read_dir(host.path().join("gcroots")).expect("the roots").count();
        layout.add_gc_roots(&machine("web")).expect("the roots of web");
        layout.remove_gc_roots(&machine("booted-web")).expect("nothing to remove");
        assert_eq!(roots(), 2);
        layout.remove_gc_roots(&machine("web")).expect("the roots of web");
        assert_eq!(roots(), 0);
    }

    #[test]
    fn a_link_of_the_machines_user_does_not_make_a_machine_declared() {
        if !geteuid().is_root() {
            return testing::missing("only root can give a link to another user");
        }
        let host = tempfile::tempdir().expect("a directory");
        let name = MachineName::new("web").expect("a name");
        let machine = Layout::at(host.path(), host.path().join("gcroots")).machine(&name);
        fs::create_dir(&machine.directory).expect("a state directory");
        fs::write(machine.flake_file(), "github:good/flake").expect("a flake");
        assert!(!machine.is_declared());
        let link = machine.directory.join("toplevel");
        symlink("/nix/store/system", &link).expect("a link");
        assert!(machine.is_declared());
        assert!(matches!(machine.flake(), Err(ImperativeError::Declared(_))));
        lchown(&link, Some(65534), Some(65534)).expect("another owner");
        assert!(!machine.is_declared());
        machine.flake().expect("the flake is read");
    }
}
