//! Files that have no name until they are complete, so that a program that is killed leaves nothing behind.

use crate::atomic_file::temporary_sibling;
use crate::place::descriptor_path;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use rustix::fs::{CWD, RenameFlags};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A file without a name. If it is dropped before [`Self::publish`], nothing remains.
#[derive(Debug)]
pub struct UnnamedFile {
    file: File,
    /// A temporary name until it is published, if it needs one. It is removed when the file is dropped.
    temporary: OnceLock<PathBuf>,
}

impl UnnamedFile {
    /// Creates an empty file in the directory of `target`, open for reading and writing, with the mode 0644 minus the
    /// umask.
    ///
    /// # Errors
    /// The directory is missing or not writable.
    pub fn create_sibling(target: &Path) -> io::Result<Self> {
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o644);
        match options.clone().custom_flags(nix::libc::O_TMPFILE).open(directory) {
            Ok(file) => Ok(Self { file, temporary: OnceLock::new() }),
            Err(error) if is_unsupported(&error) => {
                let path = temporary_sibling(target);
                let file = options.create_new(true).open(&path)?;
                Ok(Self { file, temporary: path.into() })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, which must be on the same file system, and replaces an existing file. It can be called
    /// again after an error.
    ///
    /// # Errors
    /// It cannot be linked or renamed.
    pub fn publish(&self, target: &Path) -> io::Result<()> {
        if self.temporary.get().is_none() {
            match self.link(target) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
            // A link never replaces a file, so the file gets a temporary name first and is renamed. It keeps that name
            // if renaming fails, because a file that has lost its last name cannot be linked again.
            let path = temporary_sibling(target);
            self.link(&path)?;
            let _ = self.temporary.set(path);
        }
        self.temporary.get().map_or(Ok(()), |temporary| fs::rename(temporary, target))
    }

    /// Gives the file its name, which must be on the same file system. An existing file is never replaced.
    ///
    /// # Errors
    /// It cannot be linked or renamed. If there is a file of this name, the error is of the kind `AlreadyExists`.
    pub fn publish_new(&self, target: &Path) -> io::Result<()> {
        match self.temporary.get() {
            None => self.link(target),
            Some(temporary) => Ok(rustix::fs::renameat_with(CWD, temporary, CWD, target, RenameFlags::NOREPLACE)?),
        }
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        Ok(linkat(AT_FDCWD, &descriptor_path(&self.file), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
    }
}

impl Drop for UnnamedFile {
    fn drop(&mut self) {
        if let Some(path) = self.temporary.get() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Returns whether an error means that `O_TMPFILE` is not supported. File systems without it report that; kernels and
/// sandboxes without it try to open the path as a directory.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::EOPNOTSUPP | nix::libc::EISDIR | nix::libc::EINVAL | nix::libc::ENOENT)
    )
}
