//! Resolving a path component by component, from one open directory to the next.

use super::{Directory, require_same_owner, to_mode};
use crate::user::Identity;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat, readlinkat};
use nix::libc::{S_IFLNK, S_IFMT};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, lstat, mkdirat};
use nix::unistd::{Uid, fchown, geteuid};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// The number of symbolic links that the kernel follows in one path: path_resolution(7).
pub(super) const MAX_LINKS: usize = 40;

/// Called with an open directory and the name of one that is missing in it; may create it.
pub(super) type CreateMissing<'make> = dyn FnMut(&OwnedFd, &OsStr) -> io::Result<()> + 'make;

/// Opens a directory component by component. Calls `missing` for a directory that does not exist; it may create it.
pub(super) fn walk(path: &Path, link_owners: &mut Vec<Uid>, missing: &mut CreateMissing<'_>) -> io::Result<Directory> {
    let mut names = parts(path);
    let mut directory = start(path)?;
    let mut links = 0;
    while let Some(name) = names.pop_front() {
        let stat = match directory.entry(&name)? {
            Some(stat) => stat,
            None => {
                require_same_owner(link_owners, &fstat(&directory.descriptor)?)?;
                missing(&directory.descriptor, &name)?;
                directory.entry(&name)?.ok_or(Errno::ENOENT)?
            }
        };
        if is_link(&stat) {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP.into());
            }
            record_owner(link_owners, &stat);
            let target = PathBuf::from(readlinkat(&directory.descriptor, name.as_os_str())?);
            if target.is_absolute() {
                directory = start(&target)?;
            }
            for part in parts(&target).into_iter().rev() {
                names.push_front(part);
            }
            continue;
        }
        let descriptor = openat(&directory.descriptor, name.as_os_str(), directory_flags(), Mode::empty())?;
        let path = if name == ".." { parent_of(&directory.path) } else { directory.path.join(&name) };
        directory = Directory { descriptor, path };
    }
    Ok(directory)
}

/// Returns the file of a path, and each directory and symbolic link that the kernel passes on the way to it.
pub(super) fn passed_by(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = parts(&std::env::current_dir()?.join(path));
    let mut place = PathBuf::from("/");
    let (mut passed, mut links) = (vec![place.clone()], 0);
    while let Some(name) = names.pop_front() {
        if name == ".." {
            place = parent_of(&place);
            continue;
        }
        let next = place.join(&name);
        let stat = lstat(&next)?;
        passed.push(next.clone());
        if !is_link(&stat) {
            place = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        let target = PathBuf::from(readlinkat(AT_FDCWD, &next)?);
        if target.is_absolute() {
            place = PathBuf::from("/");
        }
        for part in parts(&target).into_iter().rev() {
            names.push_front(part);
        }
    }
    Ok(passed)
}

/// Splits a path into the parent directory and the last component.
pub(super) fn split(path: &Path) -> io::Result<(&Path, &OsStr)> {
    // As the kernel reports it: nothing has an empty name, and paths such as `..` are directories.
    let no_name = if path.as_os_str().is_empty() { Errno::ENOENT } else { Errno::EISDIR };
    let name = path.file_name().ok_or(no_name)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent, name))
}

pub(super) fn directory_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn start(path: &Path) -> io::Result<Directory> {
    let (name, path) = if path.is_absolute() { ("/", PathBuf::from("/")) } else { (".", std::env::current_dir()?) };
    Ok(Directory { descriptor: open(name, directory_flags(), Mode::empty())?, path })
}

/// Returns the components of a path. `..` is kept: after a symbolic link it does not refer to the previous component.
fn parts(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
}

fn parent_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

pub(super) fn make_below(parent: &OwnedFd, name: &OsStr, mode: u32, owner: Option<&Identity>) -> io::Result<()> {
    match mkdirat(parent, name, to_mode(mode)) {
        // Another process has created it in the meantime.
        Err(Errno::EEXIST) => return Ok(()),
        made => made?,
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(parent, name, flags, Mode::empty())?;
    // The owner of the parent directory could have replaced it.
    if Uid::from_raw(fstat(&made)?.st_uid) != geteuid() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user has replaced the new directory"));
    }
    fchmod(&made, to_mode(mode))?;
    if let Some(owner) = owner {
        fchown(&made, Some(owner.user()), Some(owner.group()))?;
    }
    File::from(made).sync_all()
}

/// Records the owner of a symbolic link. Only root needs this: another user can reach nothing through a link that the
/// user could not reach directly.
pub(super) fn record_owner(link_owners: &mut Vec<Uid>, link: &FileStat) {
    let owner = Uid::from_raw(link.st_uid);
    if geteuid().is_root() && !owner.is_root() {
        link_owners.push(owner);
    }
}

pub(super) fn is_link(stat: &FileStat) -> bool {
    stat.st_mode & S_IFMT == S_IFLNK
}
