//! Growing a volume that no machine uses, and the file system in it if the host can do that.

mod ranges;
mod undo_record;

use super::{VolumeLock, is_almost_full};
use crate::interruption::{ChildError, Interrupted, Interruption};
use crate::programs::{NotInstalled, find_file_system_program};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::{Uid, fchown, geteuid};
use program::child::{become_user, keep_file_lengths, pass_descriptors};
use program::place::{Directory, NewFile, Place, descriptor_path};
use program::user::{Identity, user_name};
use ranges::{clip, data_ranges, reserve};
use rustix::fs::{MemfdFlags, memfd_create};
use std::env;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use undo_record::{RecordError, UndoRecord, superblock};
use volume_maker::{file_system, image_format};

/// Why a volume did not grow.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// The image cannot be used.
    #[error("{path}: {source}")]
    File {
        /// The image.
        path: PathBuf,
        /// The error of the system.
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
    #[error("{program} failed on {path} with {status}: {output}{hint}")]
    Program {
        /// The program.
        program: String,
        /// The image.
        path: PathBuf,
        /// Its exit status.
        status: ExitStatus,
        /// Its output.
        output: String,
        /// The remedy, if the disk is almost full.
        hint: String,
    },
    /// Its file system has errors that only a person can decide about.
    #[error("{path} has errors that e2fsck does not repair without a decision, and keeps its size: {output}")]
    Damaged {
        /// The image.
        path: PathBuf,
        /// What e2fsck printed.
        output: String,
    },
    /// A copy of its file system could not grow, or there is no space for it.
    #[error("{path} cannot grow, and keeps its size: {reason}{hint}")]
    KeepsSize {
        /// The image.
        path: PathBuf,
        /// What the program printed, or the error of the system.
        reason: String,
        /// The remedy, if the disk is almost full.
        hint: String,
    },
    /// Its file system would keep its size.
    #[error(
        "{path} cannot grow to {bytes} bytes, and keeps its size: this is too little for another block group of its file \
         system; choose a larger size"
    )]
    TooLittle {
        /// The image.
        path: PathBuf,
        /// The requested length.
        bytes: u64,
    },
    /// The file system has not grown, and what was overwritten is not restored yet.
    #[error(
        "{path} is half grown, and what `resize2fs` has overwritten cannot be restored: {reason}{hint}; type the same \
         command again, which restores it first"
    )]
    HalfGrown {
        /// The image.
        path: PathBuf,
        /// What the program printed.
        reason: String,
        /// The remedy, if the disk is almost full.
        hint: String,
    },
    /// A signal asked the launcher to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// The most output of resize2fs that is kept: a guest wrote what it reports.
const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// Longer than a block of any file system.
const HOLE_BYTES: u64 = 1 << 20;
const FULL: &str = "; the disk of the image is almost full: free some space there";
/// What programs print when the disk is full.
const FULL_MESSAGES: [&str; 3] = ["No space left", "short write", "quota exceeded"];
/// How paths of descriptors begin: [`descriptor_path`].
const DESCRIPTORS: &str = "/proc/self/fd/";
/// The directory for a copy that cannot be beside the image, unless `$TMPDIR` names another one. It is on a disk.
const TEMPORARY: &str = "/var/tmp";
/// The bit in the exit code of e2fsck for errors that it has left: e2fsck(8).
const ERRORS_LEFT: i32 = 4;
/// Errors with which the copy is put there.
const CANNOT_CREATE: [io::ErrorKind; 2] = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];

/// What remains to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grown {
    /// Nothing: the file system has the new size.
    WithFileSystem,
    /// The file system has its old size. Its type, if it is known.
    ImageOnly(Option<&'static str>),
}

/// Grows a raw image, and an ext file system in it. The programs that do this hold the locks of the volume as well: they
/// may still write to it when this one has been killed.
///
/// # Errors
/// Returns [`GrowError`].
pub fn grow(
    image: &Path,
    size_bytes: u64,
    locks: &[VolumeLock],
    interruption: &Interruption,
) -> Result<Grown, GrowError> {
    let failed = |source| GrowError::File { path: image.to_owned(), source };
    let place = Place::of(image).map_err(failed)?;
    let file = place.open(OFlag::O_RDWR).map_err(failed)?;
    let not_raw = |what: &str| GrowError::NotRaw { path: image.to_owned(), what: what.to_owned() };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(not_raw("a block device"));
    }
    if let Some(format) = image_format(&file).map_err(failed)? {
        return Err(not_raw(format.name));
    }
    if let Some(record) = UndoRecord::find(&file).map_err(failed)? {
        undo(&record, image, &file, interruption)?;
    }
    let old_bytes = file.metadata().map_err(failed)?.len();
    let found = file_system(&file).map_err(failed)?.map(|found| found.fs_type);
    let is_ext = found.is_some_and(|fs_type| fs_type.starts_with("ext"));
    // Another program may have made the image longer.
    let size = is_ext.then(|| ExtSize::of(&file)).transpose().map_err(failed)?;
    let is_shorter = size.is_some_and(|size| size.is_shorter_than(old_bytes));
    if size_bytes < old_bytes || (size_bytes == old_bytes && !is_shorter) {
        return Err(GrowError::NotLarger { path: image.to_owned(), bytes: old_bytes });
    }
    let Some(tools) = is_ext.then(|| ExtTools::find(image, &file, locks)).transpose()? else {
        file.set_len(size_bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        return Ok(Grown::ImageOnly(found));
    };
    // Before the image grows, so that a damaged file system stays as it is.
    tools.check(interruption)?;
    let scratch = Scratch::of(&place, image)?;
    let rehearsed = tools.rehearse(&scratch, size_bytes, interruption)?;
    if rehearsed.size.blocks <= ExtSize::of(&file).map_err(failed)?.blocks {
        let (path, bytes) = (image.to_owned(), size_bytes);
        return Err(if size_bytes == old_bytes {
            GrowError::NotLarger { path, bytes }
        } else {
            GrowError::TooLittle { path, bytes }
        });
    }
    tools.grow(&rehearsed, old_bytes..size_bytes, interruption)?;
    Ok(Grown::WithFileSystem)
}

/// Restores a volume that was growing when the power was cut, or when all processes were killed. Returns its length if
/// there was something to restore. The caller holds the locks of the volume.
pub(super) fn undo_interrupted(image: &Path, interruption: &Interruption) -> Result<Option<u64>, GrowError> {
    let failed = |source| GrowError::File { path: image.to_owned(), source };
    let file = match Place::of(image).and_then(|place| place.open(OFlag::O_RDWR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let Some(record) = UndoRecord::find(&file).map_err(failed)? else { return Ok(None) };
    undo(&record, image, &file, interruption)?;
    Ok(Some(record.old_bytes()))
}

/// Whether the growth of this volume was interrupted, or still goes on.
pub(super) fn is_half_grown(image: &File) -> io::Result<bool> {
    Ok(UndoRecord::find(image)?.is_some())
}

fn undo(record: &UndoRecord, image: &Path, file: &File, interruption: &Interruption) -> Result<(), GrowError> {
    record.undo(file, Some(interruption)).map_err(|error| match error {
        RecordError::Interrupted(interrupted) => interrupted.into(),
        RecordError::File(source) => half_grown((image, file), &source.to_string()),
    })
}

fn half_grown((image, file): (&Path, &File), reason: &str) -> GrowError {
    let (path, reason, hint) = (image.to_owned(), reason.to_owned(), full_hint((file, None), reason, FULL));
    GrowError::HalfGrown { path, reason, hint }
}

/// Returns the error of a file operation before the image grows, which fails if the disk of the image is full.
fn no_space(image: &Path, source: io::Error, remedy: &str) -> GrowError {
    let path = image.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            GrowError::KeepsSize { path, reason: source.to_string(), hint: remedy.to_owned() }
        }
        _ => GrowError::File { path, source },
    }
}

/// The size of an ext file system, as its superblock says: Documentation/filesystems/ext4/super.rst of the kernel. A guest
/// has written it.
#[derive(Clone, Copy, Debug)]
struct ExtSize {
    blocks: u64,
    block_bytes: u64,
}

impl ExtSize {
    fn of(image: &File) -> io::Result<Self> {
        let superblock = superblock(image)?;
        let word = |at: usize| {
            let bytes = [superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]];
            u64::from(u32::from_le_bytes(bytes))
        };
        let has_64_bits = word(0x60) & 0x80 != 0;
        let blocks = word(0x04) | if has_64_bits { word(0x150) << 32 } else { 0 };
        Ok(Self { blocks, block_bytes: 1024_u64 << word(0x18).min(6) })
    }

    /// Whether it is at least a block shorter than its image.
    fn is_shorter_than(self, image_bytes: u64) -> bool {
        self.blocks.saturating_add(1).saturating_mul(self.block_bytes) <= image_bytes
    }
}

/// Where files that are needed only while an image grows are created.
struct Scratch<'image> {
    beside: &'image Place,
    /// Not everyone who can write to an image can write to its directory.
    elsewhere: Option<Place>,
    /// What to do if the disk is full there.
    remedy: String,
}

impl<'image> Scratch<'image> {
    fn of(beside: &'image Place, image: &Path) -> Result<Self, GrowError> {
        let here = Self { beside, elsewhere: None, remedy: FULL.to_owned() };
        match beside.create() {
            Ok(file) if makes_holes(file.file()) => Ok(here),
            // Without holes, all of the image would be copied. That is done only if there is no better place.
            Ok(_) => {
                let other = Self::elsewhere(beside);
                Ok(other.ok().filter(|other| other.create().is_ok_and(|file| makes_holes(file.file()))).unwrap_or(here))
            }
            Err(error) if CANNOT_CREATE.contains(&error.kind()) => Self::elsewhere(beside),
            Err(source) => Err(no_space(image, source, FULL)),
        }
    }

    fn elsewhere(beside: &'image Place) -> Result<Self, GrowError> {
        let named = env::var_os("TMPDIR").filter(|named| !named.is_empty());
        let path = named.map_or_else(|| PathBuf::from(TEMPORARY), PathBuf::from);
        let remedy = format!("; the disk of {} is almost full: free some space there, or set TMPDIR", path.display());
        let directory = Directory::open(&path).map_err(|source| GrowError::File { path, source })?;
        Ok(Self { beside, elsewhere: Some(directory.place("copy")), remedy })
    }

    fn create(&self) -> io::Result<NewFile<'_>> {
        self.elsewhere.as_ref().unwrap_or(self.beside).create()
    }
}

/// Whether the file system of a new file makes a hole of what is not written.
fn makes_holes(file: &File) -> bool {
    file.set_len(HOLE_BYTES).is_ok() && data_ranges(file).is_ok_and(|ranges| ranges.is_empty())
}

/// What growing a copy has shown.
struct Rehearsed {
    /// The ranges that contain data afterwards.
    written: Vec<Range<u64>>,
    /// The size of the file system afterwards.
    size: ExtSize,
}

/// The programs for ext2, ext3 and ext4.
struct ExtTools<'a> {
    image: &'a Path,
    file: &'a File,
    locks: Vec<RawFd>,
    programs: [(&'static str, PathBuf); 3],
    /// The owner of the image. A guest wrote it, so root does not read it.
    owner: Option<Identity>,
}

impl<'a> ExtTools<'a> {
    fn find(image: &'a Path, file: &'a File, locks: &[VolumeLock]) -> Result<Self, GrowError> {
        let program = |name: &'static str| Ok::<_, NotInstalled>((name, find_file_system_program(name)?));
        let programs = [program("e2fsck")?, program("resize2fs")?, program("e2image")?];
        let owner = fstat(file).map_err(|errno| GrowError::File { path: image.to_owned(), source: errno.into() })?;
        let owner = Uid::from_raw(owner.st_uid);
        let needs_user = geteuid().is_root() && !owner.is_root();
        let no_user = |_| GrowError::NoUser { path: image.to_owned(), program: "e2fsck" };
        let owner = needs_user.then(|| Identity::of(&user_name(owner))).transpose().map_err(no_user)?;
        let locks = locks.iter().map(VolumeLock::descriptor).collect();
        Ok(Self { image, file, locks, programs, owner })
    }

    /// Checks the file system, and repairs what can be repaired without a decision. Other repairs can delete files, and
    /// nothing in the image proves that its errors are those of an interrupted resize2fs.
    fn check(&self, interruption: &Interruption) -> Result<(), GrowError> {
        let mut check = self.command("e2fsck", &[]);
        match self.run(check.args(["-f", "-p"]).arg(descriptor_path(self.file)), 1, interruption) {
            Err(GrowError::Program { path, status, output, .. })
                if status.code().is_some_and(|code| code & ERRORS_LEFT != 0) =>
            {
                Err(GrowError::Damaged { path, output })
            }
            checked => checked,
        }
    }

    /// Creates a file that has no name, and is gone when it is closed. The programs can write to it.
    fn unnamed_file<'scratch>(&self, scratch: &'scratch Scratch<'_>) -> Result<NewFile<'scratch>, GrowError> {
        let file = scratch.create().map_err(|source| no_space(self.image, source, &scratch.remedy))?;
        if let Some(owner) = &self.owner {
            let failed = |errno: Errno| GrowError::File { path: self.image.to_owned(), source: errno.into() };
            fchown(file.file(), Some(owner.user()), Some(owner.group())).map_err(failed)?;
        }
        Ok(file)
    }

    /// Grows a copy of the file system without its files. resize2fs that fails leaves a damaged file system: so what could
    /// make it fail does so here, and the space that it needs is known.
    fn rehearse(
        &self,
        scratch: &Scratch<'_>,
        size_bytes: u64,
        interruption: &Interruption,
    ) -> Result<Rehearsed, GrowError> {
        let failed = |source| GrowError::File { path: self.image.to_owned(), source };
        let copy = self.unnamed_file(scratch)?;
        let (image, copied) = (descriptor_path(self.file), descriptor_path(copy.file()));
        let mut save = self.command("e2image", &[copy.file()]);
        let mut grow = self.command("resize2fs", &[copy.file()]);
        // Without this, it makes holes of the blocks that it fills with zeros, and they do not count as written.
        grow.env("UNIX_IO_NOZEROOUT", "1");
        self.run(save.arg("-r").arg(image).arg(&copied), 0, interruption)
            .and_then(|()| copy.file().set_len(size_bytes).map_err(failed))
            .and_then(|()| self.run(grow.arg(&copied), 0, interruption))
            .map_err(|error| match error {
                GrowError::Program { path, status, output, .. } => {
                    let hint = full_hint((copy.file(), self.owner.as_ref()), &output, &scratch.remedy);
                    GrowError::KeepsSize { path, reason: reason_of(&output, status), hint }
                }
                error => error,
            })?;
        let (written, size) = (data_ranges(copy.file()).map_err(failed)?, ExtSize::of(copy.file()).map_err(failed)?);
        Ok(Rehearsed { written, size })
    }

    /// Grows the image from one length to another, and the file system in it. If that fails, restores what resize2fs has
    /// overwritten: e2fsck could repair it only by guessing.
    fn grow(&self, rehearsed: &Rehearsed, length: Range<u64>, interruption: &Interruption) -> Result<(), GrowError> {
        let file = self.file;
        let record = self.save(rehearsed, length.clone(), interruption).map_err(|error| {
            // What is reserved beyond the old end is given back.
            let _ = file.set_len(length.start).and_then(|()| file.sync_all());
            match error {
                RecordError::Interrupted(interrupted) => interrupted.into(),
                RecordError::File(source) => no_space(self.image, source, FULL),
            }
        })?;
        let grown = self.resize(rehearsed.size);
        let Err(reason) = grown.and_then(|()| file.sync_all().map_err(|error| error.to_string())) else {
            return record.remove(file).map_err(|source| GrowError::File { path: self.image.to_owned(), source });
        };
        Err(match record.undo(file, None) {
            Ok(()) => {
                let hint = full_hint((file, self.owner.as_ref()), &reason, FULL);
                GrowError::KeepsSize { path: self.image.to_owned(), reason, hint }
            }
            Err(error) => half_grown((self.image, file), &format!("{reason}; {error}")),
        })
    }

    /// Reserves the space that resize2fs needs, and saves what it overwrites.
    fn save(
        &self,
        rehearsed: &Rehearsed,
        length: Range<u64>,
        interruption: &Interruption,
    ) -> Result<UndoRecord, RecordError> {
        let overwritten = clip(&rehearsed.written, length.start);
        let mut record = UndoRecord::new(length, overwritten)?;
        reserve(self.file, &rehearsed.written)?;
        reserve(self.file, &[record.place()])?;
        record.save(self.file, interruption)?;
        Ok(record)
    }

    /// Grows the file system to that size. No signal interrupts that. Returns the reason if it fails.
    fn resize(&self, expected: ExtSize) -> Result<(), String> {
        let failed = |source: io::Error| format!("resize2fs: {source}");
        let mut command = self.command("resize2fs", &[]);
        // The image is longer, because the record is behind its new end. resize2fs would cut it off, even if it could not
        // write the superblock.
        keep_file_lengths(&mut command).map_err(failed)?;
        command.arg(descriptor_path(self.file)).arg(expected.blocks.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let messages = message_file().map_err(failed)?;
        command.stderr(messages.try_clone().map_err(failed)?);
        let status = command.status().map_err(failed)?;
        if !status.success() {
            let output = printed(&messages).map_err(failed)?;
            return Err(reason_of(&with_image_path(output.trim(), self.image), status));
        }
        // It succeeds even if it could not write the superblock.
        match ExtSize::of(self.file) {
            Ok(size) if size.blocks == expected.blocks => Ok(()),
            Ok(_) => Err("resize2fs did not write the superblock".to_owned()),
            Err(source) => Err(source.to_string()),
        }
    }

    /// Returns a program that inherits the image and these files.
    fn command(&self, name: &'static str, files: &[&File]) -> Command {
        let program = self.programs.iter().find(|(known, _)| *known == name).map_or(Path::new(name), |(_, path)| path);
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        let files = files.iter().chain([&self.file]).map(|file| file.as_raw_fd());
        pass_descriptors(&mut command, files.chain(self.locks.iter().copied()).collect());
        if let Some(owner) = &self.owner {
            become_user(&mut command, owner);
        }
        command
    }

    /// Runs a program until it ends or the user interrupts it. Exit codes up to `most` are a success.
    fn run(&self, command: &mut Command, most: i32, interruption: &Interruption) -> Result<(), GrowError> {
        let ended = interruption.run_captured(command).map_err(|error| match error {
            ChildError::Interrupted(interrupted) => interrupted.into(),
            ChildError::System(source) => GrowError::File { path: PathBuf::from(command.get_program()), source },
        })?;
        if ended.status.code().is_some_and(|code| code <= most) {
            return Ok(());
        }
        self.require_success(command, ended.status, &ended.output)
    }

    fn require_success(&self, command: &Command, status: ExitStatus, output: &str) -> Result<(), GrowError> {
        if status.success() {
            return Ok(());
        }
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (path, output) = (self.image.to_owned(), with_image_path(output.trim(), self.image));
        let hint = full_hint((self.file, self.owner.as_ref()), &output, FULL);
        Err(GrowError::Program { program, path, status, output, hint })
    }
}

/// Creates a file for the beginning of what a program prints: writing more fails. It is not a pipe, which would end the
/// program (SIGPIPE) if this process was killed.
fn message_file() -> io::Result<File> {
    let messages = memfd_create("messages", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&messages, MAX_MESSAGE_BYTES as u64)?;
    rustix::fs::fcntl_add_seals(&messages, rustix::fs::SealFlags::GROW)?;
    Ok(File::from(messages))
}

/// Returns what a program has printed to such a file.
fn printed(messages: &File) -> io::Result<String> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    messages.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

/// Returns the remedy if the disk of a file is full for the user who writes to it. Not every program says so.
fn full_hint((file, writer): (&File, Option<&Identity>), output: &str, remedy: &str) -> String {
    let says_so = FULL_MESSAGES.iter().any(|message| output.contains(message));
    if says_so || is_almost_full(file, writer) { remedy.to_owned() } else { String::new() }
}

/// Replaces the paths of descriptors, which mean nothing to the user.
fn with_image_path(output: &str, image: &Path) -> String {
    let mut parts = output.split(DESCRIPTORS);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(&image.to_string_lossy());
        text.push_str(part.trim_start_matches(|character: char| character.is_ascii_digit()));
    }
    text
}

/// Finds the error in the output of a program, which also contains its version, and advice that is not about the image.
fn reason_of(output: &str, status: ExitStatus) -> String {
    let is_error = |line: &&str| line.contains(": ") && line.starts_with('/');
    if let Some(error) = output.lines().find(is_error) {
        return error.to_owned();
    }
    // resize2fs 1.47.0 (5-Feb-2023)
    let is_version = |line: &&str| line.ends_with(')') && line.split(' ').nth(1).is_some_and(|word| word.contains('.'));
    let lines: Vec<_> = output.lines().filter(|line| !is_version(line)).flat_map(str::split_whitespace).collect();
    if lines.is_empty() { status.to_string() } else { lines.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::process::ExitStatusExt;

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
        assert_eq!(grow(&image, 48 << 20, &[], &interruption).unwrap(), Grown::WithFileSystem);
        let output = Command::new(dump).arg("-h").arg(&image).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = |key: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().last().unwrap().parse().unwrap()
        };
        assert_eq!(value("Block count:") * value("Block size:"), 48 << 20);
        assert!(
            matches!(grow(&image, 48 << 20, &[], &interruption), Err(GrowError::NotLarger { bytes, .. }) if bytes == 48 << 20)
        );

        // The power was cut before the file system grew: the same command finishes it.
        File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
        assert_eq!(grow(&image, 64 << 20, &[], &interruption).unwrap(), Grown::WithFileSystem);
        assert!(matches!(grow(&image, 64 << 20, &[], &interruption), Err(GrowError::NotLarger { .. })));

        let other = directory.path().join("other.img");
        let mut bytes = b"XFSB".to_vec();
        bytes.resize(1 << 20, 0);
        fs::write(&other, bytes).unwrap();
        assert_eq!(grow(&other, 2 << 20, &[], &interruption).unwrap(), Grown::ImageOnly(Some("xfs")));
        assert_eq!(fs::metadata(&other).unwrap().len(), 2 << 20);
        fs::write(&other, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 100_000]].concat()).unwrap();
        assert!(matches!(grow(&other, 2 << 20, &[], &interruption), Err(GrowError::NotRaw { .. })));
    }

    /// Makes new names in a directory impossible, also for root, until it is dropped.
    struct NoNewNames(File);

    impl NoNewNames {
        fn in_directory(path: &Path) -> Option<Self> {
            let directory = File::open(path).unwrap();
            if rustix::fs::ioctl_setflags(&directory, rustix::fs::IFlags::IMMUTABLE).is_err() {
                testing::skipped("directories cannot be made immutable here");
                return None;
            }
            Some(Self(directory))
        }
    }

    impl Drop for NoNewNames {
        fn drop(&mut self) {
            let _ = rustix::fs::ioctl_setflags(&self.0, rustix::fs::IFlags::empty());
        }
    }

    #[test]
    fn an_ext4_grows_in_a_directory_in_which_no_file_can_be_created() {
        let Some(mkfs) = testing::find_tool("mkfs.ext4") else { return };
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("var.img");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        assert!(Command::new(mkfs).arg("-q").arg(&image).status().unwrap().success());
        let Some(immutable) = NoNewNames::in_directory(directory.path()) else { return };
        let grown = grow(&image, 48 << 20, &[], &Interruption::watch().unwrap());
        drop(immutable);
        assert_eq!(grown.unwrap(), Grown::WithFileSystem);
    }

    #[test]
    fn an_ext4_whose_last_group_would_be_too_small_was_reported_as_grown_every_time() {
        let Some(mkfs) = testing::find_tool("mkfs.ext4") else { return };
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("var.img");
        let interruption = Interruption::watch().unwrap();
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let created = Command::new(mkfs).args(["-q", "-b", "4096"]).arg(&image).status().unwrap();
        assert!(created.success());
        // A group has 128 MiB, and 3 MiB are too little for another one.
        assert_eq!(grow(&image, 131 << 20, &[], &interruption).unwrap(), Grown::WithFileSystem);
        assert!(matches!(grow(&image, 131 << 20, &[], &interruption), Err(GrowError::NotLarger { .. })));
        let error = grow(&image, 132 << 20, &[], &interruption).unwrap_err();
        assert!(matches!(error, GrowError::TooLittle { bytes, .. } if bytes == 132 << 20), "{error}");
        assert_eq!(fs::metadata(&image).unwrap().len(), 131 << 20);
    }

    #[test]
    fn on_a_file_system_without_holes_all_of_an_image_was_copied() {
        // No unprivileged file system here lacks holes: a file that is written is seen as one of such a file system.
        let file = tempfile::tempfile().unwrap();
        assert!(makes_holes(&file));
        file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        assert!(!makes_holes(&file));
    }

    #[test]
    fn all_messages_of_resize2fs_were_kept_in_memory() {
        let messages = message_file().unwrap();
        let mut program = Command::new("sh");
        program.args(["-c", "echo /srv/var.img: first >&2; while echo more >&2; do :; done"]);
        assert!(program.stderr(messages.try_clone().unwrap()).status().is_ok());
        let text = printed(&messages).unwrap();
        assert!(text.len() <= MAX_MESSAGE_BYTES && text.starts_with("/srv/var.img: first\nmore\n"), "{}", text.len());
    }

    #[test]
    fn the_error_of_a_full_disk_names_the_image_and_the_remedy() {
        let image = Path::new("/srv/var.img");
        let full = no_space(image, Errno::ENOSPC.into(), FULL).to_string();
        assert!(
            full.starts_with("/srv/var.img cannot grow, and keeps its size: No space left") && full.ends_with(FULL)
        );
        assert_eq!(
            with_image_path("e2image: /proc/self/fd/17: short write", image),
            "e2image: /srv/var.img: short write"
        );
        let file = tempfile::tempfile().unwrap();
        let refused = "resize2fs 1.47.0 (5-Feb-2023)\n\nResizing bigalloc file systems\nhas not been fully tested.\n";
        let (failed, killed) = (ExitStatus::from_raw(256), ExitStatus::from_raw(9));
        assert_eq!(reason_of(refused, failed), "Resizing bigalloc file systems has not been fully tested.");
        assert_eq!(reason_of("resize2fs 1.47.0 (5-Feb-2023)", killed), killed.to_string());
        for (output, hint) in [("resulted in short write", FULL), ("No space left on device", FULL), ("bad magic", "")]
        {
            assert_eq!(full_hint((&file, None), output, FULL), hint, "{output}");
        }
    }
}
