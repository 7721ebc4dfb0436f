//! Copies of volumes: backups, and restoring them. A copy never replaces an existing file, appears completely or not at
//! all, keeps holes, and shares its blocks with the original where the file system can do that.

use super::VOLUME_MODE;
use crate::interruption::{Interrupted, Interruption};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid, Whence, fchown, geteuid, lseek64};
use program::place::Place;
use program::user::Identity;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Number of bytes that are copied between two checks for signals.
const CHUNK_BYTES: u64 = 8 << 20;

/// Why a volume was not copied. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target exists.
    #[error("{0} already exists, and a copy never replaces a file: move it away or choose another name")]
    Exists(PathBuf),
    /// The copy would be in the way of something else.
    #[error("{path} {reason}; choose another name")]
    Reserved {
        /// The copy.
        path: PathBuf,
        /// What has this name.
        reason: String,
    },
    /// The original cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The original.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The copy cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The copy.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Who owns a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyOwner<'owner> {
    /// The current user.
    Current,
    /// If root copies, the owner of the directory, who runs the machine.
    OwnerOfDirectory,
    /// This user.
    User(&'owner Identity),
}

/// A file that was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The length in bytes.
    pub length_bytes: u64,
    /// Whether it shares its blocks with the original, so that it takes no space until one of them is written to.
    pub shares_blocks: bool,
}

/// Copies a volume to a new file that only its owner can access. The caller holds the lock of the volume.
///
/// # Errors
/// Returns [`CopyError`].
pub fn copy(from: &Path, to: &Path, owner: CopyOwner<'_>, interruption: &Interruption) -> Result<Copied, CopyError> {
    let read = |source| CopyError::Read { path: from.to_owned(), source };
    let write = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => CopyError::Exists(to.to_owned()),
        _ => CopyError::Write { path: to.to_owned(), source },
    };
    let original = Place::of(from).and_then(|place| place.open(OFlag::O_RDONLY)).map_err(read)?;
    let place = Place::of(to).map_err(write)?;
    // Checked again at the end; this avoids a long copy that would be refused.
    if place.stat().map_err(write)?.is_some() {
        return Err(CopyError::Exists(to.to_owned()));
    }
    let new = place.create().map_err(write)?;
    let length = length_of(&original).map_err(read)?;
    let shares_blocks = rustix::fs::ioctl_ficlone(new.file(), &original).is_ok();
    if !shares_blocks {
        new.file().set_len(length).map_err(write)?;
        copy_data(&original, new.file(), length, interruption).map_err(|problem| match problem {
            Problem::Read(source) => read(source),
            Problem::Write(source) => write(source),
            Problem::Interrupted(interrupted) => interrupted.into(),
        })?;
    }
    if owner == CopyOwner::OwnerOfDirectory && geteuid().is_root() {
        let directory = fstat(place.directory()).map_err(|errno| write(errno.into()))?;
        fchown(new.file(), Some(Uid::from_raw(directory.st_uid)), Some(Gid::from_raw(directory.st_gid)))
            .map_err(|errno| write(errno.into()))?;
    }
    let owner = match owner {
        CopyOwner::User(identity) => Some(identity),
        CopyOwner::Current | CopyOwner::OwnerOfDirectory => None,
    };
    new.finish(VOLUME_MODE, owner).map_err(write)?;
    Ok(Copied { length_bytes: length, shares_blocks })
}

/// Returns the length of a file or a block device.
fn length_of(file: &File) -> io::Result<u64> {
    let end = lseek64(file, 0, Whence::SeekEnd)?;
    u64::try_from(end).map_err(|_| io::ErrorKind::InvalidData.into())
}

enum Problem {
    Read(io::Error),
    Write(io::Error),
    Interrupted(Interrupted),
}

/// Copies everything except holes and blocks of zeros.
fn copy_data(from: &File, to: &File, length: u64, interruption: &Interruption) -> Result<(), Problem> {
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut at = 0;
    while at < length {
        interruption.check().map_err(Problem::Interrupted)?;
        let Some(data) = next_data(from, at).map_err(Problem::Read)? else { break };
        at = data;
        let chunk = &mut buffer[..usize::try_from(CHUNK_BYTES.min(length - at)).unwrap_or(CHUNK_BYTES as usize)];
        from.read_exact_at(chunk, at).map_err(Problem::Read)?;
        for (block, number) in chunk.chunks(HOLE_BYTES).zip(0..) {
            if block.iter().any(|byte| *byte != 0) {
                to.write_all_at(block, at + number * HOLE_BYTES as u64).map_err(Problem::Write)?;
            }
        }
        at += chunk.len() as u64;
    }
    Ok(())
}

/// Blocks of this length become holes if they contain only zeros.
const HOLE_BYTES: usize = 64 << 10;

/// Returns the position of the next byte that is not in a hole, rounded down to a block; `None` if there is none.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    let position = i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    match lseek64(file, position, Whence::SeekData) {
        Ok(data) => Ok(Some(u64::try_from(data).unwrap_or(at) / HOLE_BYTES as u64 * HOLE_BYTES as u64)),
        Err(Errno::ENXIO) => Ok(None),
        // A block device has no holes.
        Err(Errno::EINVAL) => Ok(Some(at)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_content_and_the_holes_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (volume, backup) = (directory.path().join("var.img"), directory.path().join("var.backup"));
        let file = File::create(&volume).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(&[7; 200_000], 20_000_001).unwrap();
        // Zeros that are written take space in the original, but not in the copy.
        file.write_all_at(&vec![0; 4 << 20], 40 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) - 3).unwrap();
        file.sync_all().unwrap();
        let interruption = Interruption::watch().unwrap();
        let copied = copy(&volume, &backup, CopyOwner::Current, &interruption).unwrap();
        assert_eq!(copied.length_bytes, 64 << 20);
        assert!(fs::read(&backup).unwrap() == fs::read(&volume).unwrap());
        let metadata = fs::metadata(&backup).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert!(metadata.blocks() * 512 < 5 << 20, "{} sectors", metadata.blocks());
        fs::write(&volume, "changed").unwrap();
        let error = copy(&volume, &backup, CopyOwner::Current, &interruption).unwrap_err();
        assert!(matches!(error, CopyError::Exists(_)), "{error}");
        assert_eq!(fs::metadata(&backup).unwrap().len(), 64 << 20);
    }

    #[test]
    fn a_copy_on_btrfs_and_xfs_takes_no_space() {
        let scratch = tempfile::tempdir().unwrap();
        if !geteuid().is_root() {
            return testing::missing("only root can mount a file system");
        }
        let run = |program: &str, arguments: &[&str]| {
            let output = std::process::Command::new(program).args(arguments).output();
            output.is_ok_and(|output| output.status.success())
        };
        for (mkfs, options, mib) in [("mkfs.btrfs", "-q", 128), ("mkfs.xfs", "-q", 320)] {
            let (image, mounted) = (scratch.path().join(mkfs), scratch.path().join(format!("{mkfs}.mounted")));
            File::create(&image).unwrap().set_len(mib << 20).unwrap();
            fs::create_dir(&mounted).unwrap();
            let [image, path] = [&image, &mounted].map(|path| path.to_str().unwrap());
            if !run(mkfs, &[options, image]) || !run("mount", &["-o", "loop", image, path]) {
                testing::missing(&format!("no {mkfs}, or its file system cannot be mounted here"));
                continue;
            }
            let (volume, backup) = (mounted.join("var.img"), mounted.join("var.backup"));
            let content = vec![7; 24 << 20];
            fs::write(&volume, &content).unwrap();
            rustix::fs::syncfs(File::open(&mounted).unwrap()).unwrap();
            let free = || rustix::fs::statvfs(&mounted).map(|stat| stat.f_bfree * stat.f_frsize).unwrap();
            let before = free();
            let copied = copy(&volume, &backup, CopyOwner::Current, &Interruption::watch().unwrap());
            rustix::fs::syncfs(File::open(&mounted).unwrap()).unwrap();
            let (after, is_same) = (free(), fs::read(&backup).unwrap() == content);
            assert!(run("umount", &[path]));
            assert!(copied.unwrap().shares_blocks && is_same, "{mkfs}");
            assert!(before - after < 4 << 20, "{mkfs}: {before} bytes were free, now {after}");
        }
    }
}
