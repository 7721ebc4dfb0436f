//! Changing the content of a state directory as root, without following symbolic links of the machine's user.

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

/// Changes the owner of all files of the user `former`, in the directory and recursively, to `new`. Skips files with
/// several hard links, because they may belong to another machine too. Returns a message for each of those.
pub(super) fn give_to_user(
    directory: impl AsFd,
    path: &Path,
    former: u32,
    new: u32,
) -> Result<Vec<String>, IsolationError> {
    let mut messages = Vec::new();
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
                messages.push(format!(
                    "{} has {} hard links, so its owner was not changed; if only this machine uses it, run: \
                     chown {new}:{new} {0}",
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
            messages.extend(give_to_user(below, &child, former, new)?);
        }
    }
    Ok(messages)
}

/// Makes root the owner of a file or symbolic link, if it exists.
pub(super) fn give_to_root(directory: impl AsFd, path: &Path, name: &str) -> Result<(), IsolationError> {
    let root = (Some(Uid::from_raw(0)), Some(Gid::from_raw(0)));
    match fchownat(directory, name, root.0, root.1, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(IsolationError::errno(&path.join(name))(errno)),
    }
}

/// Removes a file or symbolic link. A missing one is not an error.
pub(super) fn remove(directory: impl AsFd, path: &Path, name: &str) -> Result<(), IsolationError> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(IsolationError::errno(&path.join(name))(errno)),
    }
}

/// Removes a file by its path. A missing one is not an error.
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
