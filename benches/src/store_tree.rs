//! A store to pack: Debian packages unpacked as store paths by `fixtures/closure/debian-tree.sh`, in two states: before
//! and after a rebuild of one package of about 3 MB.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, file};
use crate::workspace::{self, run_loudly};

/// The state of the store directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// The original closure.
    First,
    /// One store path replaced.
    Changed,
}

/// A store directory with exactly one closure. Dropping it restores the original state.
#[derive(Debug)]
pub struct StoreTree {
    directory: PathBuf,
    revision: Revision,
}

impl StoreTree {
    /// Opens the tree of a package list in `fixtures/closure/packages/`: `server` or `desktop`. It is created if it
    /// does not exist.
    ///
    /// # Errors
    /// When it can't be created, or the original state can't be restored after a benchmark was killed.
    pub fn open(name: &str) -> Result<Self, Error> {
        let closures = workspace::root().join("fixtures/closure");
        let list = closures.join("packages").join(format!("{name}.list"));
        let directory = workspace::fixtures().join(name);
        run_loudly(Command::new(closures.join("debian-tree.sh")).arg(list).arg(&directory))?;
        let revision = if directory.join("replaced").exists() { Revision::Changed } else { Revision::First };
        let mut tree = Self { directory, revision };
        tree.set_revision(Revision::First)?;
        Ok(tree)
    }

    /// Opens a directory with `store/` and `closure-info/` that has only one state.
    #[must_use]
    pub fn unchanging(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), revision: Revision::First }
    }

    /// Returns the directory that contains the store paths.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// Returns the directory with the closure's registration in its current state.
    #[must_use]
    pub fn closure_info(&self) -> PathBuf {
        self.directory.join(match self.revision {
            Revision::First => "closure-info",
            Revision::Changed => "closure-info-changed",
        })
    }

    /// Bytes of all store paths as NARs.
    ///
    /// # Errors
    /// When the closure-info can't be read.
    pub fn nar_bytes(&self) -> Result<u64, Error> {
        let path = self.closure_info().join("total-nar-size");
        let text = fs::read_to_string(&path).map_err(file("read", &path))?;
        text.trim().parse().map_err(|_| Error::Unexpected(format!("{}: not a number: {text}", path.display())))
    }

    /// Replaces the store path with its other revision, or back, with two renames.
    ///
    /// # Errors
    /// When the directories can't be renamed.
    pub fn set_revision(&mut self, revision: Revision) -> Result<(), Error> {
        if revision == self.revision {
            return Ok(());
        }
        let (changed, replaced) = (self.directory.join("changed"), self.directory.join("replaced"));
        match revision {
            Revision::Changed => {
                let new = only_entry(&changed)?;
                let old = self.sibling_of(&new)?;
                fs::create_dir(&replaced).map_err(file("make", &replaced))?;
                self.move_path(&self.store(), &replaced, &old)?;
                self.move_path(&changed, &self.store(), &new)?;
            }
            Revision::First => {
                let old = only_entry(&replaced)?;
                let new = self.sibling_of(&old)?;
                self.move_path(&self.store(), &changed, &new)?;
                self.move_path(&replaced, &self.store(), &old)?;
                fs::remove_dir(&replaced).map_err(file("remove", &replaced))?;
            }
        }
        self.revision = revision;
        Ok(())
    }

    /// Returns the store path of the same package: the same name after another hash.
    fn sibling_of(&self, other: &str) -> Result<String, Error> {
        let package = other.get(32..).unwrap_or_default();
        for entry in fs::read_dir(self.store()).map_err(file("list", self.store()))? {
            let name = entry.map_err(file("list", self.store()))?.file_name().to_string_lossy().into_owned();
            if name.get(32..) == Some(package) && name != other {
                return Ok(name);
            }
        }
        Err(Error::Unexpected(format!("{} has no other revision of {other}", self.store().display())))
    }

    fn move_path(&self, from: &Path, to: &Path, name: &str) -> Result<(), Error> {
        let (source, target) = (from.join(name), to.join(name));
        // Moving a directory changes its `..`, so it must be writable for a moment.
        let mode =
            |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).map_err(file("chmod", path));
        mode(&source, 0o755)?;
        fs::rename(&source, &target).map_err(file("move", &source))?;
        mode(&target, 0o555)
    }
}

impl Drop for StoreTree {
    fn drop(&mut self) {
        if let Err(error) = self.set_revision(Revision::First) {
            crate::message(&format!("{error}"));
        }
    }
}

fn only_entry(directory: &Path) -> Result<String, Error> {
    let mut entries = fs::read_dir(directory).map_err(file("list", directory))?;
    let entry = entries.next().ok_or_else(|| Error::Unexpected(format!("{} is empty", directory.display())))?;
    Ok(entry.map_err(file("list", directory))?.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0000000000000000000000000000000a-tar-1";
    const NEW: &str = "0000000000000000000000000000000b-tar-1";
    const OTHER: &str = "0000000000000000000000000000000c-bash-1";

    fn tree() -> (tempfile::TempDir, StoreTree) {
        let directory = tempfile::tempdir().unwrap();
        for path in ["store", "changed"] {
            fs::create_dir(directory.path().join(path)).unwrap();
        }
        for path in [format!("store/{OLD}"), format!("store/{OTHER}"), format!("changed/{NEW}")] {
            fs::create_dir(directory.path().join(&path)).unwrap();
            fs::set_permissions(directory.path().join(path), Permissions::from_mode(0o555)).unwrap();
        }
        let tree = StoreTree { directory: directory.path().to_owned(), revision: Revision::First };
        (directory, tree)
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn one_path_is_replaced_and_restored() {
        let (directory, mut tree) = tree();
        tree.set_revision(Revision::Changed).unwrap();
        assert_eq!(names(&tree.store()), [NEW, OTHER]);
        assert!(tree.closure_info().ends_with("closure-info-changed"));
        drop(tree);
        assert_eq!(names(&directory.path().join("store")), [OLD, OTHER]);
        assert_eq!(names(&directory.path().join("changed")), [NEW]);
    }
}
