//! Creates a volume: a sparse file with an empty filesystem, for a machine to write to.
//!
//! The filesystem's mkfs program creates it in a hidden file beside the output. The result is checked, and then renamed
//! by a call that fails if the output exists. So a volume is never overwritten, and never incomplete.

mod external_program;
mod file_system;
mod read_back;
mod sparse;

pub use file_system::{FileSystem, LabelProblem};
pub use read_back::ReadBackError;

use external_program::Ended;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tempfile::{NamedTempFile, TempDir};
use thiserror::Error;

/// Length of a sector in bytes. The size of a disk is a multiple of it.
const SECTOR_BYTES: u64 = 512;

/// The requested volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRequest {
    /// The file to create, which must not exist.
    pub path: PathBuf,
    /// Its size in bytes. The file is sparse: it takes only the space of what mkfs writes.
    pub size_bytes: u64,
    /// The filesystem in it.
    pub file_system: FileSystem,
    /// The filesystem's label.
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
    #[error("the size {bytes} is not a multiple of {SECTOR_BYTES} bytes above 0")]
    Size {
        /// The size.
        bytes: u64,
    },
    /// The filesystem does not support the label.
    #[error("{} does not support the label {label:?}: {problem}", .file_system.name())]
    Label {
        /// The filesystem.
        file_system: FileSystem,
        /// The label.
        label: String,
        /// The problem with the label.
        problem: LabelProblem,
    },
    /// Directories were requested, but only mkfs.ext4 can create them.
    #[error("directories can be created in ext4 only, not in {}", .file_system.name())]
    Directories {
        /// The filesystem.
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
    /// A directory cannot be prepared.
    #[error("cannot prepare the directories of the volume")]
    Tree(#[source] io::Error),
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
    /// The program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// The program failed.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its output on stderr.
        message: String,
    },
    /// The program succeeded, but the volume is not the requested one.
    #[error("{program} did not create the requested volume")]
    ReadBack {
        /// The program.
        program: &'static str,
        /// The difference.
        source: ReadBackError,
    },
    /// Another process created the output in the meantime.
    #[error("{} was created by another process in the meantime, and a volume never replaces an existing file", .path.display())]
    CameIntoBeing {
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
    let file = hidden_file(&request.path).map_err(file_error)?;
    file.as_file().set_len(request.size_bytes).map_err(file_error)?;
    let tree = tree(&request.directories).map_err(VolumeError::Tree)?;
    let mut arguments = request.file_system.mkfs_arguments(request.label.as_deref());
    if let Some(tree) = &tree {
        arguments.extend(["-d".into(), tree.path().into()]);
    }
    arguments.extend(request.mkfs_arguments.iter().cloned());
    arguments.push(file.path().into());
    run(request.file_system.mkfs_program(), request.file_system, &arguments, cancel)?;
    if !request.directories.is_empty() && !nix::unistd::geteuid().is_root() {
        give_to_root(request, file.path(), cancel)?;
    }
    sparse::dig_holes(file.as_file()).map_err(file_error)?;
    read_back::check(file.path(), request)
        .map_err(|source| VolumeError::ReadBack { program: request.file_system.mkfs_program(), source })?;
    file.as_file().sync_all().map_err(file_error)?;
    file.persist_noclobber(&request.path).map(drop).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => VolumeError::CameIntoBeing { path: request.path.clone() },
        _ => VolumeError::File { path: request.path.clone(), source: error.error },
    })
}

fn problems(request: &VolumeRequest) -> Vec<RequestProblem> {
    let mut problems = Vec::new();
    let directory = parent(&request.path);
    if request.path.symlink_metadata().is_ok() {
        problems.push(RequestProblem::Exists { path: request.path.clone() });
    } else if !directory.is_dir() {
        problems.push(RequestProblem::NoDirectory { directory: directory.to_path_buf() });
    }
    if request.size_bytes == 0 || !request.size_bytes.is_multiple_of(SECTOR_BYTES) {
        problems.push(RequestProblem::Size { bytes: request.size_bytes });
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
    let unfit = request.directories.iter().filter(|directory| inner_path(directory).is_none());
    problems.extend(unfit.map(|directory| RequestProblem::DirectoryName { directory: directory.clone() }));
    problems
}

/// Returns the directory of a file, which is `.` for a name without a directory.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns `store` for `/store` and `store/`; `None` if the path does not consist of plain names. Quotes are refused
/// because debugfs reads names in quotes.
fn inner_path(directory: &Path) -> Option<PathBuf> {
    let text = directory.to_str()?;
    if text.contains(|character: char| character.is_control() || character == '"') {
        return None;
    }
    let mut inner = PathBuf::new();
    for component in directory.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => inner.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!inner.as_os_str().is_empty()).then_some(inner)
}

/// Creates a temporary file beside `path`, which is removed when it is dropped.
fn hidden_file(path: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(".")
        .suffix(".volume.tmp")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(parent(path))
}

/// Creates a tree of empty directories for mkfs to copy, with the right modes.
fn tree(directories: &[PathBuf]) -> io::Result<Option<TempDir>> {
    if directories.is_empty() {
        return Ok(None);
    }
    let tree = TempDir::new()?;
    // mkfs copies the mode of the tree itself to the root directory.
    set_mode(tree.path())?;
    for inner in directories.iter().filter_map(|directory| inner_path(directory)) {
        DirBuilder::new().recursive(true).mode(0o755).create(tree.path().join(&inner))?;
        // The umask may have removed bits of the modes.
        for part in inner.ancestors() {
            set_mode(&tree.path().join(part))?;
        }
    }
    Ok(Some(tree))
}

fn set_mode(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Gives the directories in the filesystem to root. mkfs.ext4 copies the owners of the tree, and users other than root
/// cannot create a tree that root owns.
fn give_to_root(request: &VolumeRequest, file: &Path, cancel: &AtomicBool) -> Result<(), VolumeError> {
    let mut arguments: Vec<OsString> = vec!["-w".into(), "-f".into(), "-".into(), file.into()];
    let mut commands = String::new();
    for inner in request.directories.iter().filter_map(|directory| inner_path(directory)) {
        for part in inner.ancestors() {
            for owner in ["uid", "gid"] {
                commands.push_str(&format!("set_inode_field \"/{}\" {owner} 0\n", part.display()));
            }
        }
    }
    let script = tempfile_with(&commands).map_err(VolumeError::Tree)?;
    arguments[2] = script.path().into();
    run("debugfs", request.file_system, &arguments, cancel)
}

fn tempfile_with(text: &str) -> io::Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    Ok(file)
}

/// Runs a program of the filesystem's package.
fn run(
    program: &'static str,
    file_system: FileSystem,
    arguments: &[OsString],
    cancel: &AtomicBool,
) -> Result<(), VolumeError> {
    let ended =
        external_program::run(program, arguments, cancel).map_err(|source| VolumeError::Run { program, source })?;
    match ended {
        Ended::Succeeded => Ok(()),
        Ended::Cancelled => Err(VolumeError::Interrupted),
        Ended::NotInstalled => Err(VolumeError::NoProgram {
            program,
            debian_package: file_system.debian_package(),
            nix_package: file_system.nix_package(),
        }),
        Ended::Failed { status, message } => Err(VolumeError::Failed { program, status, message }),
    }
}
