//! Growing a volume that no machine uses, and the file system in it if the host can do that.

use crate::interruption::{ChildError, Interrupted, Interruption};
use crate::programs::{NotInstalled, find_file_system_program};
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::{Uid, geteuid};
use program::child::{become_user, pass_descriptors};
use program::place::{Place, descriptor_path};
use program::user::{Identity, user_name};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use volume_maker::{file_system, image_format};

/// Why a volume did not grow. Its content is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The image cannot be used.
    #[error("{path}: {source}")]
    File {
        /// The image.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The new size is not larger.
    #[error(
        "{path} already has {bytes} bytes, and the new size must be larger; the manual says how to shrink a volume"
    )]
    NotLarger {
        /// The image.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// It is not a raw image file.
    #[error("{path} is {what}: only raw images in files can grow")]
    NotRaw {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A program is missing.
    #[error(transparent)]
    NotInstalled(#[from] NotInstalled),
    /// The user who owns the image is unknown.
    #[error("the owner of {path} has no name on this host, so root cannot run {program} as that user")]
    NoUser {
        /// The image.
        path: PathBuf,
        /// The program.
        program: &'static str,
    },
    /// A program failed.
    #[error("{program} failed on {path} with {status}: {output}")]
    Program {
        /// The program.
        program: &'static str,
        /// The image.
        path: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its output.
        output: String,
    },
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What remains to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grown {
    /// Nothing: the file system has the new size.
    WithFileSystem,
    /// The file system has its old size. Its type, if it is known.
    ImageOnly(Option<&'static str>),
}

/// Grows a raw image, and an ext file system in it. The caller holds the lock of the volume.
///
/// # Errors
/// Returns [`GrowError`].
pub fn grow(image: &Path, size_bytes: u64, interruption: &Interruption) -> Result<Grown, GrowError> {
    let failed = |source| GrowError::File { path: image.to_owned(), source };
    let file = Place::of(image).and_then(|place| place.open(OFlag::O_RDWR)).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let not_raw = |what: &str| GrowError::NotRaw { path: image.to_owned(), what: what.to_owned() };
    if !metadata.is_file() {
        return Err(not_raw("a block device"));
    }
    if let Some(format) = image_format(&file).map_err(failed)? {
        return Err(not_raw(format.name));
    }
    let found = file_system(&file).map_err(failed)?.map(|found| found.fs_type);
    let is_ext = found.is_some_and(|fs_type| fs_type.starts_with("ext"));
    // An image that was grown, and its file system not: the power was cut in between, or resize2fs failed.
    let is_unfinished = is_ext && size_bytes == metadata.len() && ext_is_shorter(&file, size_bytes).map_err(failed)?;
    if size_bytes <= metadata.len() && !is_unfinished {
        return Err(GrowError::NotLarger { path: image.to_owned(), bytes: metadata.len() });
    }
    let tools = if is_ext { Some(ExtTools::find(image, &file)?) } else { None };
    if let Some(tools) = &tools {
        // Before the image grows, so that a damaged file system stays as it is.
        tools.run("e2fsck", &["-f", "-p"], 1, interruption)?;
    }
    file.set_len(size_bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    match tools {
        Some(tools) => {
            tools.run("resize2fs", &[], 0, interruption)?;
            file.sync_all().map_err(failed)?;
            Ok(Grown::WithFileSystem)
        }
        None => Ok(Grown::ImageOnly(found)),
    }
}

/// Whether an ext file system is at least a block shorter than its image. The superblock is described in
/// Documentation/filesystems/ext4/super.rst of the kernel; a guest has written it.
fn ext_is_shorter(image: &File, image_bytes: u64) -> io::Result<bool> {
    let mut superblock = [0; 1024];
    image.read_exact_at(&mut superblock, 1024)?;
    let word = |at: usize| {
        let bytes = [superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]];
        u64::from(u32::from_le_bytes(bytes))
    };
    let has_64_bits = word(0x60) & 0x80 != 0;
    let blocks = word(0x04) | if has_64_bits { word(0x150) << 32 } else { 0 };
    let block_bytes = 1024_u64 << word(0x18).min(6);
    Ok(blocks.saturating_add(1).saturating_mul(block_bytes) <= image_bytes)
}

/// The programs for ext2, ext3 and ext4.
struct ExtTools<'a> {
    image: &'a Path,
    file: &'a File,
    programs: [(&'static str, PathBuf); 2],
    /// The owner of the image. A guest wrote it, so root does not read it.
    owner: Option<Identity>,
}

impl<'a> ExtTools<'a> {
    fn find(image: &'a Path, file: &'a File) -> Result<Self, GrowError> {
        let program = |name: &'static str| Ok::<_, NotInstalled>((name, find_file_system_program(name)?));
        let programs = [program("e2fsck")?, program("resize2fs")?];
        let owner = fstat(file).map_err(|errno| GrowError::File { path: image.to_owned(), source: errno.into() })?;
        let owner = Uid::from_raw(owner.st_uid);
        let needs_user = geteuid().is_root() && !owner.is_root();
        let no_user = |_| GrowError::NoUser { path: image.to_owned(), program: "e2fsck" };
        let owner = needs_user.then(|| Identity::of(&user_name(owner))).transpose().map_err(no_user)?;
        Ok(Self { image, file, programs, owner })
    }

    /// Runs a program on the image. Exit codes up to `most` are a success.
    fn run(
        &self,
        name: &'static str,
        options: &[&str],
        most: i32,
        interruption: &Interruption,
    ) -> Result<(), GrowError> {
        let Some((_, program)) = self.programs.iter().find(|(known, _)| *known == name) else { return Ok(()) };
        let mut command = Command::new(program);
        command.args(options).arg(descriptor_path(self.file));
        pass_descriptors(&mut command, vec![self.file.as_raw_fd()]);
        if let Some(owner) = &self.owner {
            become_user(&mut command, owner);
        }
        let ended = interruption.run_captured(&mut command).map_err(|error| match error {
            ChildError::Interrupted(interrupted) => interrupted.into(),
            ChildError::System(source) => GrowError::File { path: program.clone(), source },
        })?;
        if ended.status.code().is_some_and(|code| code <= most) {
            return Ok(());
        }
        Err(GrowError::Program {
            program: name,
            path: self.image.to_owned(),
            status: ended.status,
            output: ended.output,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_ext4_grows_with_its_image_and_other_file_systems_keep_their_size() {
        let (Some(mkfs), Some(dump)) = (testing::find_tool("mkfs.ext4"), testing::find_tool("dumpe2fs")) else {
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("var.img");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        assert!(Command::new(mkfs).arg("-q").arg(&image).status().unwrap().success());
        let interruption = Interruption::watch().unwrap();
        assert_eq!(grow(&image, 48 << 20, &interruption).unwrap(), Grown::WithFileSystem);
        let output = Command::new(dump).arg("-h").arg(&image).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = |key: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().last().unwrap().parse().unwrap()
        };
        assert_eq!(value("Block count:") * value("Block size:"), 48 << 20);
        assert!(
            matches!(grow(&image, 48 << 20, &interruption), Err(GrowError::NotLarger { bytes, .. }) if bytes == 48 << 20)
        );

        // The power was cut before the file system grew: the same command finishes it.
        File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
        assert_eq!(grow(&image, 64 << 20, &interruption).unwrap(), Grown::WithFileSystem);
        assert!(matches!(grow(&image, 64 << 20, &interruption), Err(GrowError::NotLarger { .. })));

        let other = directory.path().join("other.img");
        let mut bytes = b"XFSB".to_vec();
        bytes.resize(1 << 20, 0);
        fs::write(&other, bytes).unwrap();
        assert_eq!(grow(&other, 2 << 20, &interruption).unwrap(), Grown::ImageOnly(Some("xfs")));
        assert_eq!(fs::metadata(&other).unwrap().len(), 2 << 20);
        fs::write(&other, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 100_000]].concat()).unwrap();
        assert!(matches!(grow(&other, 2 << 20, &interruption), Err(GrowError::NotRaw { .. })));
    }
}
