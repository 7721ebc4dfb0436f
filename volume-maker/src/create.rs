//! Creating a volume.

use crate::file_system::TooSmall;
use crate::read_back::{self, ReadBackError};
use crate::request::{VolumeRequest, plain_path};
use crate::{mkfs, sparse};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};
use program::child::pass_descriptors;
use program::place::{Place, descriptor_path};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use tempfile::{NamedTempFile, TempDir};

/// The mode of the directories in a volume.
const DIRECTORY_MODE: u32 = 0o755;

/// A program that has ended.
#[derive(Debug)]
pub struct CommandOutput {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed on stdout and stderr.
    pub output: String,
}

/// A program could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The user interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// It cannot be started or waited for.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Runs a command to its end, without input and with its messages captured. The caller decides how to wait for it, and
/// what interrupts it.
pub type Run<'a> = dyn FnMut(&mut Command) -> Result<CommandOutput, RunError> + 'a;

/// A volume could not be created. Nothing remains of it.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The file cannot be created or written to.
    #[error(transparent)]
    File(io::Error),
    /// Something else has its name, which appeared in the meantime.
    #[error("a file of this name was created by another process in the meantime")]
    Exists,
    /// Its size is too small for the file system.
    #[error(transparent)]
    TooSmall(#[from] TooSmall),
    /// The directories cannot be prepared.
    #[error("cannot prepare the directories of the volume")]
    Tree(#[source] io::Error),
    /// A program is not installed.
    #[error("the program {program} is not installed")]
    NoProgram {
        /// The program.
        program: &'static str,
    },
    /// A program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: ExitStatus,
        /// Its messages, without its usage.
        message: String,
    },
    /// mkfs succeeded, but the volume is not the requested one.
    #[error("{program} did not create the requested volume")]
    ReadBack {
        /// The program.
        program: &'static str,
        /// What differs from the request.
        source: ReadBackError,
    },
    /// The user interrupted it.
    #[error("interrupted")]
    Interrupted,
}

/// Creates a volume at a place where nothing has its name.
///
/// # Errors
/// The mkfs program is missing or fails, the disk is full, or another process has created a file of that name. Nothing
/// remains then.
pub fn create(place: &Place, request: &VolumeRequest<'_>, run: &mut Run<'_>) -> Result<(), CreateError> {
    request.file_system.check_size(request.size_bytes, request.mkfs_arguments)?;
    let program = request.file_system.mkfs_program();
    // Before anything is created.
    mkfs::find(program).ok_or(CreateError::NoProgram { program })?;
    let image = place.create().map_err(CreateError::File)?;
    avoid_copy_on_write(image.file());
    image.file().set_len(request.size_bytes).map_err(CreateError::File)?;
    let tree = tree(request.directories).map_err(CreateError::Tree)?;
    let mut arguments = request.file_system.mkfs_arguments(request.label);
    if let Some(tree) = &tree {
        arguments.extend(["-d".into(), tree.path().into()]);
    }
    arguments.extend(request.mkfs_arguments.iter().cloned());
    arguments.push(descriptor_path(image.file()).into());
    run_program(program, &arguments, image.file(), run)?;
    if !request.directories.is_empty() && !nix::unistd::geteuid().is_root() {
        give_to_root(request.directories, image.file(), run)?;
    }
    sparse::punch_holes(image.file()).map_err(CreateError::File)?;
    read_back::check(image.file(), request).map_err(|source| CreateError::ReadBack { program, source })?;
    image.finish(request.mode, request.owner).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CreateError::Exists,
        _ => CreateError::File(error),
    })
}

/// Turns copy-on-write off on btrfs, where it slows down disk images that are written in place; the flag can be set
/// only while the file is empty. Other file systems need nothing.
fn avoid_copy_on_write(image: &File) {
    let is_btrfs = fstatfs(image).is_ok_and(|statistics| statistics.filesystem_type() == BTRFS_SUPER_MAGIC);
    if is_btrfs && let Ok(flags) = ioctl_getflags(image) {
        let _ = ioctl_setflags(image, flags | IFlags::NOCOW);
    }
}

/// Creates a tree of empty directories for mkfs to copy, with the right modes.
fn tree(directories: &[PathBuf]) -> io::Result<Option<TempDir>> {
    if directories.is_empty() {
        return Ok(None);
    }
    let tree = TempDir::new()?;
    // mkfs copies the mode of the tree itself to the root directory.
    set_mode(tree.path())?;
    for inner in directories.iter().filter_map(|directory| plain_path(directory)) {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(tree.path().join(&inner))?;
        // The umask may have removed bits of the modes.
        for part in inner.ancestors() {
            set_mode(&tree.path().join(part))?;
        }
    }
    Ok(Some(tree))
}

fn set_mode(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE))
}

/// Gives the directories in the file system to root. mkfs.ext4 copies the owners of the tree, and users other than root
/// cannot create a tree that root owns.
fn give_to_root(directories: &[PathBuf], image: &File, run: &mut Run<'_>) -> Result<(), CreateError> {
    let mut commands = String::new();
    for inner in directories.iter().filter_map(|directory| plain_path(directory)) {
        for part in inner.ancestors() {
            for owner in ["uid", "gid"] {
                commands.push_str(&format!("set_inode_field \"/{}\" {owner} 0\n", part.display()));
            }
        }
    }
    let script = NamedTempFile::new().map_err(CreateError::Tree)?;
    fs::write(script.path(), commands).map_err(CreateError::Tree)?;
    let arguments = ["-w".into(), "-f".into(), script.path().into(), descriptor_path(image).into()];
    run_program("debugfs", &arguments, image, run)
}

/// Runs a program of the file system's package, with English messages and the image as an open descriptor.
fn run_program(
    program: &'static str,
    arguments: &[OsString],
    image: &File,
    run: &mut Run<'_>,
) -> Result<(), CreateError> {
    let path = mkfs::find(program).ok_or(CreateError::NoProgram { program })?;
    let mut command = Command::new(path);
    command.args(arguments).env("LC_ALL", "C");
    pass_descriptors(&mut command, vec![image.as_raw_fd()]);
    let finished = run(&mut command).map_err(|error| match error {
        RunError::Interrupted => CreateError::Interrupted,
        RunError::System(source) => CreateError::Run { program, source },
    })?;
    if finished.status.success() {
        return Ok(());
    }
    let message = mkfs::without_usage(&finished.output);
    Err(CreateError::Failed { program, status: finished.status, message })
}
