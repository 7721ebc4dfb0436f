//! The output directory, and ways into it that no symbolic link can turn aside.

use super::{ExtractError, write_error};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Directories are opened for nothing but what is in them, and never through a symbolic link.
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The directory that is filled, open.
#[derive(Debug)]
pub(super) struct TargetDirectory {
    path: PathBuf,
    directory: OwnedFd,
    origin: Origin,
    parent_bytes: usize,
}

/// Whose directory it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was made for the extraction.
    Made,
    /// It was there, empty; something else may write to it as well.
    Found,
}

impl TargetDirectory {
    /// Makes the directory, or takes an empty one. The user may have put a symbolic link there: that is followed.
    ///
    /// Of the paths in the image, `parent_bytes` are left out.
    pub(super) fn create(path: &Path, parent_bytes: usize) -> Result<Self, ExtractError> {
        let fail = |action| move |source| ExtractError::Write { action, path: path.to_owned(), source };
        let origin = match fs::create_dir(path) {
            Ok(()) => Origin::Made,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut entries = fs::read_dir(path).map_err(fail("look into"))?;
                if entries.next().is_some() {
                    return Err(ExtractError::NotEmpty { path: path.to_owned() });
                }
                Origin::Found
            }
            Err(error) => return Err(fail("make directory")(error)),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(AT_FDCWD, path, flags, Mode::empty());
        let directory = directory.map_err(write_error("open directory", path.to_owned()))?;
        Ok(Self { path: path.to_owned(), directory, origin, parent_bytes })
    }

    /// Takes back what was extracted, as far as that can be done: only in a directory that was made for it is nothing else.
    pub(super) fn discard(&self) {
        if self.origin == Origin::Made {
            // Why the extraction failed counts more, and what stays behind is seen by who called.
            _ = fs::remove_dir_all(&self.path);
        }
    }

    /// Where something of the image comes to lie, for messages.
    pub(super) fn path_of(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(self.relative(path)))
    }

    fn relative<'p>(&self, path: &'p [u8]) -> &'p [u8] {
        path.get(self.parent_bytes..).unwrap_or_default()
    }

    /// Another handle of the directory itself.
    pub(super) fn open(&self) -> Result<OwnedFd, ExtractError> {
        self.directory.try_clone().map_err(|source| ExtractError::Write {
            action: "open directory",
            path: self.path.clone(),
            source,
        })
    }

    /// Opens the directory that holds `path`, name by name.
    pub(super) fn open_parent<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p OsStr), ExtractError> {
        let mut directory = self.open()?;
        let mut names: Vec<&[u8]> = self.relative(path).split(|byte| *byte == b'/').collect();
        let name = names.pop().unwrap_or_default();
        for parent in names {
            directory = open_directory(&directory, OsStr::from_bytes(parent))
                .map_err(write_error("open directory", self.path_of(path)))?;
        }
        Ok((directory, OsStr::from_bytes(name)))
    }
}

/// Makes a directory that only its owner can enter, and opens it.
pub(super) fn make_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    mkdirat(&parent, name, Mode::S_IRWXU)?;
    open_directory(parent, name)
}

/// Opens a directory in another one.
pub(super) fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, DIRECTORY, Mode::empty())
}

/// Gives a file or directory its mode and time, the time last since it is what the rest would change.
pub(super) fn set_mode_and_time(file: impl AsFd, mode: u16, modified_at: u32) -> Result<(), Errno> {
    fchmod(&file, Mode::from_bits_truncate(u32::from(mode & !super::plan::SET_ID_BITS)))?;
    let time = TimeSpec::new(i64::from(modified_at), 0);
    futimens(&file, &time, &time)
}
