//! Changing what is in a state directory, by root, without following a link of the machine's user.

use super::IsolationError;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::libc::{S_IFDIR, S_IFMT, S_IFREG};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Gives what belongs to the one user to the other, in the directory and all below it. A file with several names stays: it
/// may be another machine's too. Returns which those are.
pub(super) fn hand_over(
    directory: impl AsFd,
    path: &Path,
    former: u32,
    new: u32,
) -> Result<Vec<String>, IsolationError> {
    let mut told = Vec::new();
    for name in names(&directory, path)? {
        let child = path.join(&name);
        let failed = || IsolationError::errno(&child);
        let status = match fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(failed()(errno)),
        };
        let kind = status.st_mode & S_IFMT;
        if status.st_uid == former {
            if kind == S_IFREG && status.st_nlink > 1 {
                told.push(format!(
                    "{} has {} names and stays as it is; if it is this machine's alone, run: chown {new}:{new} {0}",
                    child.display(),
                    status.st_nlink
                ));
                continue;
            }
            let owner = (Some(Uid::from_raw(new)), Some(Gid::from_raw(new)));
            fchownat(&directory, name.as_os_str(), owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed())?;
        }
        if kind == S_IFDIR {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let below = nix::fcntl::openat(&directory, name.as_os_str(), flags, Mode::empty()).map_err(failed())?;
            told.extend(hand_over(below, &child, former, new)?);
        }
    }
    Ok(told)
}

/// Makes root the owner of a link or file, if there is one.
pub(super) fn take_for_root(directory: impl AsFd, path: &Path, name: &str) -> Result<(), IsolationError> {
    let root = (Some(Uid::from_raw(0)), Some(Gid::from_raw(0)));
    match fchownat(directory, name, root.0, root.1, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(IsolationError::errno(&path.join(name))(errno)),
    }
}

/// Removes a file or link; it need not be there.
pub(super) fn remove(directory: impl AsFd, path: &Path, name: &str) -> Result<(), IsolationError> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(IsolationError::errno(&path.join(name))(errno)),
    }
}

/// Removes a file by its path; it need not be there.
pub(super) fn remove_file(path: &Path) -> Result<(), IsolationError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(IsolationError::file(path)(error)),
        _ => Ok(()),
    }
}

fn names(directory: impl AsFd, path: &Path) -> Result<Vec<OsString>, IsolationError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listed = Dir::openat(directory, ".", flags, Mode::empty()).map_err(IsolationError::errno(path))?;
    let mut names = Vec::new();
    for entry in listed.iter() {
        let entry = entry.map_err(IsolationError::errno(path))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
