//! Creates a volume: a sparse file with an empty file system, for a machine to write to.
//!
//! The file system's mkfs program creates it in a hidden file beside the output. The result is checked, and then
//! renamed by a call that fails if the output exists. So a volume is never overwritten, and never incomplete.

pub use volume_maker::{FileSystem, LabelProblem, ReadBackError, TooSmall};

use nix::sys::stat::{Mode, umask};
use program::place::Place;
use program::plural::counted;
use program::presence::is_directory;
use std::ffi::OsString;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use thiserror::Error;
use volume_maker::{CommandOutput, CreateError, RunError, plain_path};

/// Interval between checks whether a program has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Length of a sector in bytes. The size of a disk is a multiple of it.
const SECTOR_BYTES: u64 = 512;

/// The requested volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRequest {
    /// The file to create, which must not exist.
    pub path: PathBuf,
    /// Its size in bytes. The file is sparse: it takes only the space of what mkfs writes.
    pub size_bytes: u64,
    /// The file system in it.
    pub file_system: FileSystem,
    /// The file system's label.
    pub label: Option<String>,
    /// Directories to create in it, with their parents; for ext4 only.
    pub directories: Vec<PathBuf>,
    /// More arguments for the mkfs program, before the name of the file.
    pub mkfs_arguments: Vec<OsString>,
}

/// A problem with a request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestProblem {
    /// The output exists.
    #[error("{} exists, and a volume never replaces an existing file", .path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The directory of the output is missing.
    #[error("there is no directory {}", .directory.display())]
    NoDirectory {
        /// The directory of the output.
        directory: PathBuf,
    },
    /// The size is not a multiple of the sector size.
    #[error("the size is {}, but it must be a multiple of {SECTOR_BYTES} bytes and not 0", counted(*bytes, "byte"))]
    Size {
        /// The size.
        bytes: u64,
    },
    /// The file system does not fit.
    #[error(transparent)]
    TooSmall(TooSmall),
    /// No file is that long.
    #[error("the size is {bytes} bytes, but no file can be longer than {} bytes", i64::MAX)]
    TooLong {
        /// The size.
        bytes: u64,
    },
    /// The file system does not support the label.
    #[error("{} does not support the label {label:?}: {problem}", .file_system.name())]
    Label {
        /// The file system.
        file_system: FileSystem,
        /// The label.
        label: String,
        /// The problem with the label.
        problem: LabelProblem,
    },
    /// Directories were requested, but only mkfs.ext4 can create them.
    #[error("directories can be created in ext4 only, not in {}", .file_system.name())]
    Directories {
        /// The file system.
        file_system: FileSystem,
    },
    /// The name of a directory is not supported.
    #[error("{:?} cannot be created in the volume: it must be a path of plain names, without `..`, quotes and control characters", .directory.display())]
    DirectoryName {
        /// The directory.
        directory: PathBuf,
    },
}

/// A volume could not be created. Nothing remains of it.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// The request is invalid.
    #[error("cannot create the volume {}:{}", .path.display(), list(.problems))]
    Request {
        /// The output.
        path: PathBuf,
        /// All problems, at least one.
        problems: Vec<RequestProblem>,
    },
    /// The file cannot be created.
    #[error("cannot create the volume {}", .path.display())]
    File {
        /// The output.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The program is not installed.
    #[error("the program {program} is not installed")]
    NoProgram {
        /// The program.
        program: &'static str,
        /// The Debian package that contains it.
        debian_package: &'static str,
        /// The Nixpkgs package that contains it.
        nix_package: &'static str,
    },
    /// Creating the file system failed.
    #[error(transparent)]
    Create(CreateError),
    /// Another process created the output in the meantime.
    #[error("{} was created by another process in the meantime, and a volume never replaces an existing file", .path.display())]
    CreatedMeanwhile {
        /// The output.
        path: PathBuf,
    },
    /// The caller cancelled the work.
    #[error("interrupted")]
    Interrupted,
}

fn list(problems: &[RequestProblem]) -> String {
    match problems {
        [problem] => format!(" {problem}"),
        problems => problems.iter().map(|problem| format!("\n  {problem}")).collect(),
    }
}

/// Creates a volume. `cancel` is checked often; if it becomes true, no volume is created.
///
/// # Errors
/// The request is invalid, the mkfs program is missing or fails, or the disk is full. Nothing remains then.
pub fn create(request: &VolumeRequest, cancel: &AtomicBool) -> Result<(), VolumeError> {
    let problems = problems(request);
    if !problems.is_empty() {
        return Err(VolumeError::Request { path: request.path.clone(), problems });
    }
    let file_error = |source| VolumeError::File { path: request.path.clone(), source };
    let wanted = volume_maker::VolumeRequest {
        size_bytes: request.size_bytes,
        file_system: request.file_system,
        label: request.label.as_deref(),
        directories: &request.directories,
        mkfs_arguments: &request.mkfs_arguments,
        mode: mode(),
        owner: None,
    };
    let place = Place::nofollow(&request.path).map_err(file_error)?;
    volume_maker::create(&place, &wanted, &mut |command| run(command, cancel)).map_err(|error| match error {
        CreateError::File(source) => file_error(source),
        CreateError::Exists => VolumeError::CreatedMeanwhile { path: request.path.clone() },
        CreateError::Interrupted => VolumeError::Interrupted,
        CreateError::NoProgram { program } => VolumeError::NoProgram {
            program,
            debian_package: request.file_system.debian_package(),
            nix_package: request.file_system.nix_package(),
        },
        error => VolumeError::Create(error),
    })
}

/// Returns the mode of a new file: 0644 without the bits of the umask.
fn mode() -> u32 {
    // The umask can be read only by setting it. The stricter one holds for this moment.
    let mask = umask(Mode::from_bits_truncate(0o077));
    umask(mask);
    0o644 & !mask.bits()
}

fn problems(request: &VolumeRequest) -> Vec<RequestProblem> {
    let mut problems = Vec::new();
    let directory = parent(&request.path);
    if request.path.symlink_metadata().is_ok() {
        problems.push(RequestProblem::Exists { path: request.path.clone() });
    } else if matches!(is_directory(directory), Ok(false)) {
        // Another error is reported when the file is created.
        problems.push(RequestProblem::NoDirectory { directory: directory.to_path_buf() });
    }
    if request.size_bytes == 0 || !request.size_bytes.is_multiple_of(SECTOR_BYTES) {
        problems.push(RequestProblem::Size { bytes: request.size_bytes });
    } else if i64::try_from(request.size_bytes).is_err() {
        problems.push(RequestProblem::TooLong { bytes: request.size_bytes });
    } else if let Err(too_small) = request.file_system.check_size(request.size_bytes, &request.mkfs_arguments) {
        problems.push(RequestProblem::TooSmall(too_small));
    }
    let file_system = request.file_system;
    if let Some(label) = &request.label
        && let Err(problem) = file_system.check_label(label)
    {
        problems.push(RequestProblem::Label { file_system, label: label.clone(), problem });
    }
    if !request.directories.is_empty() && file_system != FileSystem::Ext4 {
        problems.push(RequestProblem::Directories { file_system });
    }
    let unfit = request.directories.iter().filter(|directory| plain_path(directory).is_none());
    problems.extend(unfit.map(|directory| RequestProblem::DirectoryName { directory: directory.clone() }));
    problems
}

/// Returns the directory of a file, which is `.` for a name without a directory.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Runs a program with stdin and stdout connected to `/dev/null`. It is killed if `cancel` becomes true.
fn run(command: &mut Command, cancel: &AtomicBool) -> Result<CommandOutput, RunError> {
    // A file instead of a pipe, which could fill up and block the program.
    let mut messages = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(messages.try_clone()?);
    let mut child = command.spawn()?;
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if cancel.load(Ordering::SeqCst) {
            child.kill()?;
            child.wait()?;
            return Err(RunError::Interrupted);
        }
        thread::sleep(POLL_INTERVAL);
    };
    // A Ctrl-C on the terminal also reaches the program, perhaps before this process handles it.
    if !status.success() && cancel.load(Ordering::SeqCst) {
        return Err(RunError::Interrupted);
    }
    let mut text = Vec::new();
    messages.rewind()?;
    messages.read_to_end(&mut text)?;
    Ok(CommandOutput { status, output: String::from_utf8_lossy(&text).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, cancel: &AtomicBool) -> Result<CommandOutput, RunError> {
        run(Command::new("sh").args(["-c", script]), cancel)
    }

    #[test]
    fn a_program_returns_its_status_and_its_messages() {
        let finished = shell("echo said; echo why >&2; exit 3", &AtomicBool::new(false)).unwrap();
        assert_eq!((finished.status.code(), finished.output.as_str()), (Some(3), "why\n"));
    }

    #[test]
    fn a_cancelled_program_is_killed() {
        assert!(matches!(shell("sleep 600", &AtomicBool::new(true)), Err(RunError::Interrupted)));
    }
}
