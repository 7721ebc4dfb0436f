//! A directory that no other user can change, for a program that is given a path and may create other files next to it.

use super::resolve::directory_flags;
use super::{Directory, Place, descriptor_path, to_mode};
use crate::user::Identity;
use nix::errno::Errno;
use nix::fcntl::openat;
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{Uid, UnlinkatFlags, geteuid, unlinkat};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

const MODE: u32 = 0o700;
/// The number of names to try. An existing directory was left by a killed process that had the same process id.
const MAX_TRIES: u32 = 1000;

/// A new directory, removed with the files in it when this is dropped. It is reached by its descriptor: a user who can
/// change the parent directory can only rename it.
#[derive(Debug)]
pub struct PrivateDirectory {
    parent: Directory,
    name: OsString,
    directory: Directory,
}

impl PrivateDirectory {
    /// Creates the directory.
    ///
    /// # Errors
    /// Fails if the parent directory is not writable.
    pub fn make(parent: Directory) -> io::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        for _ in 0..MAX_TRIES {
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let name = OsString::from(format!(".microvm-{}-{number}", std::process::id()));
            match mkdirat(&parent, name.as_os_str(), to_mode(MODE)) {
                Err(Errno::EEXIST) => continue,
                made => made?,
            }
            let descriptor = openat(&parent, name.as_os_str(), directory_flags(), Mode::empty())?;
            let stat = fstat(&descriptor)?;
            if Uid::from_raw(stat.st_uid) != geteuid() || stat.st_mode & 0o077 != 0 {
                let reason = "another user has replaced the new directory";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
            }
            let path = parent.path().join(&name);
            return Ok(Self { parent, name, directory: Directory { descriptor, path } });
        }
        Err(Errno::EEXIST.into())
    }

    /// Returns its name, which is unique in this process.
    pub fn name(&self) -> &OsString {
        &self.name
    }

    /// Returns the number of the descriptor that [`PrivateDirectory::path_of`] refers to.
    pub fn number(&self) -> RawFd {
        self.directory.descriptor.as_raw_fd()
    }

    /// Makes another user its owner, who can then create files in it.
    ///
    /// # Errors
    /// Fails if this process is not permitted to.
    pub fn give_to(&self, owner: &Identity) -> io::Result<()> {
        self.directory.give_to(owner)
    }

    /// Returns its path through its descriptor, valid in this process and in a child until it runs another program.
    pub fn descriptor_path(&self) -> PathBuf {
        descriptor_path(&self.directory.descriptor)
    }

    /// Returns a path of a file in it, valid in this process and in children that inherit the descriptor.
    pub fn path_of(&self, name: &OsString) -> PathBuf {
        descriptor_path(&self.directory.descriptor).join(name)
    }

    /// Returns the place of a file in it.
    ///
    /// # Errors
    /// Fails if the process has no free descriptor.
    pub fn place(&self, name: &OsString) -> io::Result<Place> {
        Ok(self.directory.try_clone()?.place(name))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // If something cannot be removed, it stays and does no harm.
        let entries = std::fs::read_dir(descriptor_path(&self.directory.descriptor)).into_iter().flatten().flatten();
        for entry in entries {
            let _ = unlinkat(&self.directory, entry.file_name().as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
        let _ = unlinkat(&self.parent, self.name.as_os_str(), UnlinkatFlags::RemoveDir);
    }
}
