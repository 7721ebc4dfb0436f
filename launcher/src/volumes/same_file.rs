//! Finding disks that are the same file on this host, however their paths are spelt.

use super::loop_device::{Shown, shown_by};
use crate::path::HostPath;
use crate::validate::{CheckedSpec, Disk, DiskRole};
use nix::libc::{S_IFBLK, S_IFMT};
use nix::sys::stat::stat;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Two disks that are the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SameFile {
    /// The name of the machine, or of both machines.
    pub machine: String,
    /// The option of the spec that names the file.
    pub option: String,
    /// A description of the problem.
    pub reason: String,
}

impl fmt::Display for SameFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}: {}", self.machine, self.option, self.reason)
    }
}

/// The identity of a file. A loop device has that of the file that it shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum File {
    /// Device and inode.
    Inode(u64, u64),
    /// The number of a block device, regardless of which node names it.
    Block(u64),
    /// A file that does not exist yet: device and inode of its closest existing parent directory, and the components
    /// below it.
    Missing(u64, u64, Vec<OsString>),
    /// Only the path is known.
    Named(PathBuf),
}

/// Returns every pair of disks that are the same file, if at least one of the two is writable. Relative images are
/// resolved against `directory` and compared only within a machine, because each machine has its own directory. Leaves
/// out paths that are spelt alike: [`check`](crate::validate::check) finds those without access to the host.
pub fn same_files(machines: &[&CheckedSpec], directory: &HostPath) -> Vec<SameFile> {
    let mut holders: BTreeMap<File, Vec<(&CheckedSpec, &Disk)>> = BTreeMap::new();
    for machine in machines {
        for disk in &machine.disks {
            let path = disk.image.below(directory);
            holders.entry(file_at(path.as_path())).or_default().push((machine, disk));
        }
    }
    let mut found = Vec::new();
    for holders in holders.values() {
        for (place, first) in holders.iter().enumerate() {
            found.extend(holders[place + 1..].iter().filter_map(|second| clash(first, second)));
        }
    }
    found
}

fn clash((first, one): &(&CheckedSpec, &Disk), (second, other): &(&CheckedSpec, &Disk)) -> Option<SameFile> {
    let is_one_machine = std::ptr::eq(*first, *second);
    let is_shared = is_one_machine || (one.image.is_absolute() && other.image.is_absolute());
    let is_spelt_alike = plain(&one.image) == plain(&other.image);
    // The check of the files of a machine finds a volume that is its store disk.
    let is_store_disk = is_one_machine && [one, other].iter().any(|disk| disk.role == DiskRole::Store);
    if !is_shared || is_spelt_alike || is_store_disk || (one.read_only && other.read_only) {
        return None;
    }
    let machine = if is_one_machine { first.name.clone() } else { format!("{}, {}", first.name, second.name) };
    let reason = format!(
        "{} and {} ({}'s {}.image) are the same file; a file that is written to must not be used twice",
        one.image, other.image, second.name, other.option
    );
    Some(SameFile { machine, option: format!("{}.image", one.option), reason })
}

fn plain(path: &HostPath) -> &str {
    path.as_str().trim_start_matches("./")
}

/// Returns the identity of the file at a path.
pub(crate) fn file_at(path: &Path) -> File {
    let (mut there, mut missing) = (PathBuf::new(), Vec::new());
    for part in path.components() {
        match part {
            Component::CurDir => {}
            // A start creates missing directories, so `..` leads back from them. From others, the kernel resolves it.
            Component::ParentDir if missing.pop().is_some() => {}
            part if missing.is_empty() && stat(&there.join(part)).is_ok() => there.push(part),
            part => missing.push(part.as_os_str().to_owned()),
        }
    }
    let Ok(found) = stat(&there) else { return File::Named(path.to_owned()) };
    if !missing.is_empty() {
        return File::Missing(found.st_dev, found.st_ino, missing);
    }
    if found.st_mode & S_IFMT != S_IFBLK {
        return File::Inode(found.st_dev, found.st_ino);
    }
    match shown_by(&there) {
        Some(Shown::File(device, inode)) => File::Inode(device, inode),
        Some(Shown::Device(device)) => File::Block(device),
        None => File::Block(found.st_rdev),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn different_paths_to_one_file_are_recognised_as_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("real")).unwrap();
        fs::write(at("real/a.img"), "").unwrap();
        symlink("real", at("near")).unwrap();
        fs::hard_link(at("real/a.img"), at("b.img")).unwrap();
        for same in ["real/./a.img", "near/a.img", "real//a.img", "near/../real/a.img", "b.img"] {
            assert_eq!(file_at(&at(same)), file_at(&at("real/a.img")), "{same}");
        }
        assert_eq!(file_at(&at("near/new.img")), file_at(&at("real/new.img")));
        assert_ne!(file_at(&at("real/new.img")), file_at(&at("real/newer.img")));
        assert_ne!(file_at(&at("real/new.img")), file_at(&at("new.img")));
    }

    #[test]
    fn a_path_through_a_directory_that_is_created_later_leads_to_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for same in ["x/../a", "x/y/../../a", "./x/../a", "x/../y/../a"] {
            assert_eq!(file_at(&at(same)), file_at(&at("a")), "{same}");
        }
        assert_eq!(file_at(&at("x/../b/a")), file_at(&at("b/a")));
        assert_ne!(file_at(&at("x/../a")), file_at(&at("x/a")));
        let before = file_at(&at("a"));
        fs::create_dir(at("x")).unwrap();
        assert_eq!(file_at(&at("x/../a")), before);
        // Only the kernel knows where `..` of a link leads.
        fs::create_dir_all(at("far/away")).unwrap();
        symlink("far/away", at("link")).unwrap();
        assert_eq!(file_at(&at("link/../a")), file_at(&at("far/a")));
    }
}
