//! Disks of machines that are one and the same file, however their paths are spelt.

use crate::launch::Launch;
use crate::path::HostPath;
use nix::libc::{S_IFBLK, S_IFMT};
use nix::sys::stat::stat;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// A clash of two disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SameFile {
    /// The machine and the path of the first.
    pub first: (String, HostPath),
    /// The machine and the path of the second.
    pub second: (String, HostPath),
}

impl std::fmt::Display for SameFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((first, one), (second, other)) = (&self.first, &self.second);
        write!(formatter, "image: {one} of {first} and {other} of {second} are the same file; only one can write to it")
    }
}

/// What tells a file from all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum File {
    /// Device and inode.
    Inode(u64, u64),
    /// The device itself, whatever node leads to it.
    Block(u64),
    /// A file that is not there yet: the directory above it that is there, and the names below that.
    Missing(u64, u64, Vec<OsString>),
    /// Nothing is known of it but its path.
    Named(PathBuf),
}

/// Every pair of disks of the machines that are one file, of which at least one is written to. Relative images are in the
/// working directory of their launch, which machines of different names do not share: those are compared within a machine
/// only.
pub fn same_files(launches: &[&Launch]) -> Vec<SameFile> {
    let mut holders: BTreeMap<File, Vec<(usize, &HostPath, bool)>> = BTreeMap::new();
    for (index, launch) in launches.iter().enumerate() {
        for disk in &launch.disks {
            let path = disk.image.below(&launch.working_directory);
            holders.entry(file_at(path.as_path())).or_default().push((index, &disk.image, !disk.read_only));
        }
    }
    let mut found = Vec::new();
    for holders in holders.values() {
        for (place, (first, one, first_writes)) in holders.iter().enumerate() {
            for (second, other, second_writes) in &holders[place + 1..] {
                let is_shared = first == second || (one.is_absolute() && other.is_absolute());
                if is_shared && (*first_writes || *second_writes) {
                    let named = |index: usize, path: &HostPath| (launches[index].name.clone(), path.clone());
                    found.push(SameFile { first: named(*first, one), second: named(*second, other) });
                }
            }
        }
    }
    found
}

fn file_at(path: &Path) -> File {
    let mut missing = Vec::new();
    let mut there = normal(path);
    loop {
        if let Ok(found) = stat(there.as_path()) {
            if !missing.is_empty() {
                missing.reverse();
                return File::Missing(found.st_dev, found.st_ino, missing);
            }
            if found.st_mode & S_IFMT == S_IFBLK {
                return File::Block(found.st_rdev);
            }
            return File::Inode(found.st_dev, found.st_ino);
        }
        match there.file_name().map(OsString::from) {
            Some(name) => missing.push(name),
            None => return File::Named(path.to_owned()),
        }
        there.pop();
    }
}

/// Without `.` and doubled slashes; `..` is left to the kernel as far as the directories are there.
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_are_compared_by_the_files_that_they_lead_to() {
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
}
