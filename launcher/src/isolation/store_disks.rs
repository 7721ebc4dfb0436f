//! The images of the store disks that this host builds: one for all machines with the same plan.
//!
//! `HASH.image` is the image of the plan with this SHA-256, and `NAME.link` is a symbolic link to the image of a
//! machine. `NAME.HASH.saved` is a link to an image that the memory of a suspended machine may depend on: a guest fits
//! only the file with which it was saved, not one that is built again. The directory belongs to the user of the image
//! cache; no machine can access it, and each one sees its own image as a file that it can only read.

use super::IsolationError;
use crate::interruption::{Interrupted, Interruption};
use program::place::Place;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The end of the name of an image.
const IMAGE: &str = ".image";
/// What else belongs to an image: the lock of its builder, and the root hash of a sealed image.
const BESIDE: [&str; 2] = [".lock", ".verity.json"];
/// The end of the name of a machine's link.
const LINK: &str = ".link";
/// The end of the name of a link to an image that a suspended machine had before.
const SAVED: &str = ".saved";
/// The directory of the images under the host module.
pub const STORE_DISKS: &str = "/var/cache/microvm-store-disks";
/// The mode of the lock files.
const LOCK_MODE: u32 = 0o600;
/// How often a lock is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// The directory of the images.
#[derive(Clone, Copy, Debug)]
pub struct StoreDisks<'host>(&'host Path);

/// A lock on an image: only one process builds it.
#[derive(Debug)]
pub struct ImageLock {
    _file: File,
}

impl<'host> StoreDisks<'host> {
    /// Uses this directory, which must exist.
    pub fn at(directory: &'host Path) -> Self {
        Self(directory)
    }

    /// Records which image a machine uses, and returns its path. The image may still have to be built. A suspended
    /// machine keeps its former image: its start may be refused, and the new runner taken back.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`].
    pub fn assign(
        self,
        machine: &str,
        plan: &Path,
        is_suspended: impl Fn(&str) -> bool,
    ) -> Result<PathBuf, IsolationError> {
        let plan = fs::read(plan).map_err(failed(plan))?;
        let hash: String = Sha256::digest(&plan).iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{hash}{IMAGE}");
        let _lock = self.lock_directory()?;
        let link = format!("{machine}{LINK}");
        let former = self.target(&link)?.filter(|former| is_suspended(machine) && *former != name);
        if let Some(former) = former {
            let hash = former.strip_suffix(IMAGE).unwrap_or(&former);
            self.link(&format!("{machine}.{hash}{SAVED}"), &former)?;
        }
        self.link(&link, &name)?;
        Ok(self.0.join(name))
    }

    /// Gives a clone the images of its original. Returns whether the original has one, and the lock on the links: until
    /// it is dropped, no image is removed, so the clone must exist by then.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`].
    pub fn share(self, original: &str, clone: &str) -> Result<(bool, File), IsolationError> {
        let lock = self.lock_directory()?;
        for name in self.names()? {
            let Some((machine, hash)) = saved_of(&name) else { continue };
            if machine == original
                && let Some(image) = self.target(&name)?
            {
                self.link(&format!("{clone}.{hash}{SAVED}"), &image)?;
            }
        }
        let image = self.target(&format!("{original}{LINK}"))?;
        if let Some(image) = &image {
            self.link(&format!("{clone}{LINK}"), image)?;
        }
        Ok((image.is_some(), lock))
    }

    /// Waits until no other process builds the image.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`], or [`IsolationError::Interrupted`] if a signal ended the wait.
    pub fn lock(self, image: &Path, interruption: &Interruption) -> Result<ImageLock, IsolationError> {
        let mut path = image.as_os_str().to_owned();
        path.push(BESIDE[0]);
        let path = PathBuf::from(path);
        let file = open(&path)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(ImageLock { _file: file }),
                Err(TryLockError::WouldBlock) => interruption.pause(LOCK_INTERVAL)?,
                Err(TryLockError::Error(source)) => return Err(failed(&path)(source)),
            }
        }
    }

    /// Removes the images that no machine uses any more, and the links of machines that do not exist. A running machine
    /// keeps the image that it was started with, because its link changes only when it is started again.
    ///
    /// # Errors
    /// Returns [`IsolationError::File`].
    pub fn remove_unused(
        self,
        is_machine: impl Fn(&str) -> bool,
        is_suspended: impl Fn(&str) -> bool,
    ) -> Result<(), IsolationError> {
        let _lock = self.lock_directory()?;
        let names = self.names()?;
        let mut used = HashSet::new();
        for name in &names {
            let is_needed = match (name.strip_suffix(LINK), saved_of(name)) {
                (Some(machine), _) => is_machine(machine),
                (None, Some((machine, _))) => is_machine(machine) && is_suspended(machine),
                (None, None) => continue,
            };
            if is_needed {
                used.extend(self.target(name)?);
            } else {
                self.remove(name)?;
            }
        }
        for name in &names {
            let image = BESIDE.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            if image.ends_with(IMAGE) && !used.contains(image) {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    fn names(self) -> Result<Vec<String>, IsolationError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.0).map_err(failed(self.0))? {
            names.extend(entry.map_err(failed(self.0))?.file_name().into_string());
        }
        Ok(names)
    }

    fn link(self, name: &str, image: &str) -> Result<(), IsolationError> {
        let link = self.0.join(name);
        Place::nofollow(&link).and_then(|place| place.replace_link(Path::new(image))).map_err(failed(&link))
    }

    /// Returns the name of the image that a link refers to; `None` if there is no link.
    fn target(self, name: &str) -> Result<Option<String>, IsolationError> {
        let link = self.0.join(name);
        match fs::read_link(&link) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&link)(error)),
        }
    }

    fn remove(self, name: &str) -> Result<(), IsolationError> {
        let path = self.0.join(name);
        Place::nofollow(&path).and_then(|place| place.remove()).map_err(failed(&path))
    }

    /// Locks the links. The lock is held for a moment only.
    fn lock_directory(self) -> Result<File, IsolationError> {
        let path = self.0.join(BESIDE[0]);
        let file = open(&path)?;
        file.lock().map_err(failed(&path))?;
        Ok(file)
    }
}

/// Splits the name of a link to an image that a suspended machine had before into the machine and the hash.
fn saved_of(name: &str) -> Option<(&str, &str)> {
    name.strip_suffix(SAVED)?.rsplit_once('.')
}

fn open(path: &Path) -> Result<File, IsolationError> {
    Place::nofollow(path).and_then(|place| place.open_or_create(LOCK_MODE)).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> IsolationError {
    let path = path.to_owned();
    move |source| IsolationError::File { path, source }
}

impl From<Interrupted> for IsolationError {
    fn from(interrupted: Interrupted) -> Self {
        Self::Interrupted(interrupted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_with_the_same_plan_share_an_image_until_the_last_one_is_updated_or_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let disks = directory.path().join("disks");
        fs::create_dir(&disks).unwrap();
        let plan = |content: &str| {
            let path = directory.path().join(content);
            fs::write(&path, content).unwrap();
            path
        };
        let (old, new) = (plan("old"), plan("new"));
        let shared = StoreDisks::at(&disks);
        let interruption = Interruption::watch().unwrap();
        let image = shared.assign("web", &old, |_| false).unwrap();
        assert_eq!(shared.assign("mail", &old, |_| false).unwrap(), image);
        drop(shared.lock(&image, &interruption).unwrap());
        fs::write(&image, "an image").unwrap();
        fs::write(disks.join(format!("{}.verity.json", image.file_name().unwrap().to_str().unwrap())), "{}").unwrap();
        // Of an earlier release, and not of this program.
        fs::write(disks.join("web.image"), "").unwrap();
        fs::write(disks.join("notes"), "").unwrap();
        let others = shared.assign("db", &new, |_| false).unwrap();
        fs::write(&others, "another image").unwrap();
        assert_ne!(image, others);
        shared.remove_unused(|_| true, |_| false).unwrap();
        assert!(image.exists() && others.exists() && !disks.join("web.image").exists());

        // One of them is updated, and the other one deleted.
        shared.assign("web", &new, |_| false).unwrap();
        shared.remove_unused(|_| true, |_| false).unwrap();
        assert!(image.exists());
        shared.remove_unused(|name| name != "mail", |_| true).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(&disks).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        let mut expected = [".lock", "db.link", "notes", others.file_name().unwrap().to_str().unwrap(), "web.link"];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }

    #[test]
    fn the_image_of_saved_memory_stays_while_its_machine_or_a_clone_of_it_is_suspended() {
        let directory = tempfile::tempdir().unwrap();
        let disks = directory.path().join("disks");
        fs::create_dir(&disks).unwrap();
        let [old, new] = ["old", "new"].map(|content| {
            let path = directory.path().join(content);
            fs::write(&path, content).unwrap();
            path
        });
        let shared = StoreDisks::at(&disks);
        let image = shared.assign("web", &old, |_| false).unwrap();
        fs::write(&image, "an image").unwrap();
        // The suspended machine was updated. Its start is refused, and another machine starts.
        let replaced = shared.assign("web", &new, |_| true).unwrap();
        fs::write(&replaced, "another image").unwrap();
        shared.remove_unused(|_| true, |_| true).unwrap();
        assert!(image.exists() && replaced.exists());
        // The original of a clone is deleted before the clone is started.
        let (found, lock) = shared.share("web", "worker.1").unwrap();
        drop(lock);
        assert!(found);
        shared.remove_unused(|name| name == "worker.1", |_| true).unwrap();
        assert!(image.exists() && replaced.exists());
        assert_eq!(shared.assign("worker.1", &old, |_| true).unwrap(), image);
        // The machine is running now.
        shared.remove_unused(|name| name == "worker.1", |_| false).unwrap();
        assert!(image.exists() && !replaced.exists());
        shared.remove_unused(|_| false, |_| false).unwrap();
        assert!(!image.exists());
        assert!(!shared.share("web", "worker.2").unwrap().0);
    }
}
