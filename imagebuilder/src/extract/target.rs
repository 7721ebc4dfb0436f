//! The output directory. Everything in it is opened without following symbolic links.

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

/// Flags for opening a directory: read-only, and never through a symbolic link.
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The open output directory.
#[derive(Debug)]
pub(super) struct TargetDirectory {
    path: PathBuf,
    directory: OwnedFd,
    origin: Origin,
    parent_bytes: usize,
}

/// Whether the directory existed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was created for this extraction.
    Made,
    /// It existed and was empty; others may write to it too.
    Found,
}

impl TargetDirectory {
    /// Creates the directory, or opens an existing empty one. A symbolic link at `path` is followed, because the user
    /// gave it.
    ///
    /// The first `parent_bytes` bytes of the paths in the image are removed.
    pub(super) fn create(path: &Path, parent_bytes: usize) -> Result<Self, ExtractError> {
        let fail = |action| move |source| ExtractError::Write { action, path: path.to_owned(), source };
        let origin = match fs::create_dir(path) {
            Ok(()) => Origin::Made,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut entries = fs::read_dir(path).map_err(fail("new into"))?;
                if entries.next().is_some() {
                    return Err(ExtractError::NotEmpty { path: path.to_owned() });
                }
                Origin::Found
            }
            Err(error) => return Err(fail("create directory")(error)),
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(AT_FDCWD, path, flags, Mode::empty());
        let directory = directory.map_err(write_error("open directory", path.to_owned()))?;
        Ok(Self { path: path.to_owned(), directory, origin, parent_bytes })
    }

    /// Removes the output directory if this extraction created it. An existing directory may contain files of others.
    pub(super) fn discard(&self) {
        if self.origin == Origin::Made {
            // The reason why the extraction failed is more important, and the caller mentions what remains.
            _ = fs::remove_dir_all(&self.path);
        }
    }

    /// Returns the path of a file of the image in the output directory, for messages.
    pub(super) fn path_of(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(self.relative(path)))
    }

    fn relative<'p>(&self, path: &'p [u8]) -> &'p [u8] {
        path.get(self.parent_bytes..).unwrap_or_default()
    }

    /// Returns another descriptor of the directory itself.
    pub(super) fn open(&self) -> Result<OwnedFd, ExtractError> {
        self.directory.try_clone().map_err(|source| ExtractError::Write {
            action: "open directory",
            path: self.path.clone(),
            source,
        })
    }

    /// Opens the parent directory of `path`, one name at a time.
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

/// Creates a directory that only its owner can enter, and opens it.
pub(super) fn make_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    mkdirat(&parent, name, Mode::S_IRWXU)?;
    open_directory(parent, name)
}

/// Opens a directory in another one.
pub(super) fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, DIRECTORY, Mode::empty())
}

/// Sets the mode and then the modification time of a file or directory.
pub(super) fn set_mode_and_time(file: impl AsFd, mode: u16, modified_at: u32) -> Result<(), Errno> {
    fchmod(&file, Mode::from_bits_truncate(u32::from(mode & !super::plan::SET_ID_BITS)))?;
    let time = TimeSpec::new(i64::from(modified_at), 0);
    futimens(&file, &time, &time)
}
