//! Where a host's machines are.

use super::{FlakeReference, ImperativeError, MachineName};
use crate::place::{Directory, Place};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The directories of a host.
#[derive(Clone, Debug)]
pub struct Layout {
    machines: PathBuf,
    gc_roots: PathBuf,
}

impl Layout {
    /// `$MICROVM_STATE_DIR` and `$MICROVM_GCROOTS_DIR`, by default those of the host module.
    pub fn of_environment() -> Self {
        let directory = |variable: &str, default: &str| {
            std::env::var_os(variable).filter(|value| !value.is_empty()).map_or_else(|| default.into(), PathBuf::from)
        };
        Self {
            machines: directory("MICROVM_STATE_DIR", "/var/lib/microvms"),
            gc_roots: directory("MICROVM_GCROOTS_DIR", "/nix/var/nix/gcroots/microvm"),
        }
    }

    /// The directories of the caller's choice.
    pub fn at(machines: impl Into<PathBuf>, gc_roots: impl Into<PathBuf>) -> Self {
        Self { machines: machines.into(), gc_roots: gc_roots.into() }
    }

    /// Where the state directories are.
    pub fn machines(&self) -> &Path {
        &self.machines
    }

    /// A machine, there or not.
    pub fn machine(&self, name: &MachineName) -> Machine {
        Machine { name: name.clone(), directory: self.machines.join(name.as_str()) }
    }

    /// A machine that is there.
    ///
    /// # Errors
    /// [`ImperativeError::Missing`].
    pub fn existing(&self, name: &MachineName) -> Result<Machine, ImperativeError> {
        let machine = self.machine(name);
        if machine.directory.is_dir() {
            Ok(machine)
        } else {
            Err(ImperativeError::Missing(name.to_string(), machine.directory))
        }
    }

    /// The machine whose state directory this is, however the path is spelled.
    pub fn machine_in(&self, directory: &Path) -> Option<Machine> {
        let directory = directory.canonicalize().ok()?;
        let machines = self.machines.canonicalize().ok()?;
        let name = directory.strip_prefix(machines).ok()?.to_str()?;
        Some(self.machine(&MachineName::new(name).ok()?))
    }

    /// All machines, by name.
    ///
    /// # Errors
    /// [`ImperativeError::File`]; a directory that is not there is empty.
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

    /// The links that keep the machine's runners from the garbage collection: what they are and where they lead.
    pub(super) fn gc_roots_of(&self, machine: &Machine) -> [(PathBuf, PathBuf); 2] {
        let name = machine.name.as_str();
        [
            (self.gc_roots.join(name), machine.current()),
            (self.gc_roots.join(format!("booted-{name}")), machine.booted()),
        ]
    }

    /// A link straight to a runner, for as long as the machine's own do not lead to it.
    pub(super) fn add_gc_root(&self, machine: &Machine, runner: &Path) -> Result<PathBuf, ImperativeError> {
        Directory::make(&self.gc_roots, 0o755, None).map_err(ImperativeError::file(&self.gc_roots))?;
        let root = self.gc_roots.join(format!(".{}.new", machine.name));
        replace_link(runner, &root)?;
        Ok(root)
    }

    /// Removes all links to the machine's runners; they need not be there.
    pub(super) fn remove_gc_roots(&self, machine: &Machine) -> Result<(), ImperativeError> {
        let [(current, _), (booted, _)] = self.gc_roots_of(machine);
        for root in [current, booted, self.gc_roots.join(format!(".{}.new", machine.name))] {
            remove_link(&root)?;
        }
        Ok(())
    }

    /// The link to the runner that an update builds. Beside the state directory, which the machine's user may change.
    pub(super) fn building(&self, machine: &Machine) -> PathBuf {
        self.machines.join(format!(".{}.building", machine.name))
    }

    /// Makes those links.
    ///
    /// # Errors
    /// [`ImperativeError::File`].
    pub fn add_gc_roots(&self, machine: &Machine) -> Result<(), ImperativeError> {
        Directory::make(&self.gc_roots, 0o755, None).map_err(ImperativeError::file(&self.gc_roots))?;
        for (root, target) in self.gc_roots_of(machine) {
            replace_link(&target, &root)?;
        }
        Ok(())
    }
}

/// A machine's state directory.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: MachineName,
    /// The directory.
    pub directory: PathBuf,
}

impl Machine {
    /// The link to the runner that the next start takes.
    pub fn current(&self) -> PathBuf {
        self.directory.join("current")
    }

    /// The runner that the next start takes, for who runs something of it.
    ///
    /// # Errors
    /// [`ImperativeError::File`], also when another user than root has made the link and root is to follow it.
    pub fn runner(&self) -> Result<PathBuf, ImperativeError> {
        let link = self.current();
        self.follow(&link)?.ok_or_else(|| ImperativeError::file(&link)(io::ErrorKind::NotFound.into()))
    }

    /// The runner that it was started with; none when it was stopped in order.
    ///
    /// # Errors
    /// As [`Machine::runner`].
    pub fn booted_runner(&self) -> Result<Option<PathBuf>, ImperativeError> {
        self.follow(&self.booted())
    }

    /// Where a link of the machine leads, if it is there. Root does not follow that of another user.
    fn follow(&self, link: &Path) -> Result<Option<PathBuf>, ImperativeError> {
        match Place::itself(link).and_then(|place| place.read_own_link()) {
            Ok(target) => Ok(Some(self.directory.join(target))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImperativeError::file(link)(error)),
        }
    }

    /// The link to the runner that runs; the service removes it at a stop.
    pub fn booted(&self) -> PathBuf {
        self.directory.join("booted")
    }

    /// The file that names the flake.
    pub fn flake_file(&self) -> PathBuf {
        self.directory.join("flake")
    }

    /// Whether it is part of the host's configuration, and the host's to update.
    pub fn is_declared(&self) -> bool {
        fs::symlink_metadata(self.directory.join("toplevel")).is_ok()
    }

    /// What it is built from.
    ///
    /// # Errors
    /// [`ImperativeError::Declared`], [`ImperativeError::NoFlake`].
    pub fn flake(&self) -> Result<FlakeReference, ImperativeError> {
        if self.is_declared() {
            return Err(ImperativeError::Declared(self.name.to_string()));
        }
        let path = self.flake_file();
        // Root builds what the file names.
        match Place::itself(&path).and_then(|place| place.read_own()) {
            Ok(text) => Ok(FlakeReference::stored(&String::from_utf8_lossy(&text))),
            Err(source) => Err(ImperativeError::NoFlake { name: self.name.to_string(), path, source }),
        }
    }
}

/// Removes a link that may not be there.
pub(super) fn remove_link(link: &Path) -> Result<(), ImperativeError> {
    match Place::itself(link).and_then(|place| place.remove()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImperativeError::file(link)(error)),
        _ => Ok(()),
    }
}

/// Renames a directory of this host's machines.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), ImperativeError> {
    Place::itself(from).and_then(|place| place.rename_to(&Place::itself(to)?)).map_err(ImperativeError::file(to))
}

/// Points the link at the target; until then it is the old one.
pub(super) fn replace_link(target: &Path, link: &Path) -> Result<(), ImperativeError> {
    Place::itself(link).and_then(|place| place.replace_link(target)).map_err(ImperativeError::file(link))
}
