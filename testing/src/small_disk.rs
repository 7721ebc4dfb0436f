//! A small file system that can be filled.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, which is unmounted on drop.
pub struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    /// Mounts it on a new directory, or on an existing one whose content it copies. If that is not possible here, calls
    /// [`missing`](crate::missing).
    #[track_caller]
    pub fn mount(place: &Path, kib: u64) -> Option<Self> {
        let before = name_beside(place);
        fs::create_dir_all(place).unwrap();
        let copied = Command::new("cp").arg("-a").arg(place).arg(&before).status();
        let size = format!("size={kib}k,nr_inodes=300,mode=755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "small"]).arg(place).output();
        let is_mounted = copied.is_ok_and(|status| status.success()) && mounted.is_ok_and(|done| done.status.success());
        let disk = is_mounted.then(|| Self { place: place.to_owned() });
        if disk.is_some() {
            let all = before.join(".");
            assert!(Command::new("cp").arg("-a").arg(all).arg(place).status().unwrap().success());
        } else {
            crate::missing("a tmpfs cannot be mounted here");
        }
        // It does not exist if nothing could be copied.
        match fs::remove_dir_all(&before) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed.unwrap(),
        }
        disk
    }

    /// Fills all but these bytes.
    pub fn fill(&self, left_bytes: u64) {
        let mut file = File::create(self.fills()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let filled_bytes = file.metadata().unwrap().len();
        let kept_bytes = filled_bytes.checked_sub(left_bytes);
        file.set_len(kept_bytes.unwrap_or_else(|| panic!("only {filled_bytes} of {left_bytes} bytes were free")))
            .unwrap();
    }

    /// Creates so many files that no other one can be created.
    pub fn fill_with_files(&self) {
        fs::create_dir(self.fills()).unwrap();
        let mut names = 0..;
        while names.next().is_some_and(|name: u32| File::create(self.fills().join(name.to_string())).is_ok()) {}
    }

    /// Removes what has filled the disk.
    pub fn free(&self) {
        if fs::remove_file(self.fills()).is_err() {
            fs::remove_dir_all(self.fills()).unwrap();
        }
    }

    fn fills(&self) -> PathBuf {
        self.place.join(".fills-the-disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}

/// Returns a free name beside a directory.
fn name_beside(place: &Path) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(".before");
    PathBuf::from(name)
}
