//! Makes a volume: a sparse file with an empty filesystem, for a machine to write to.
//!
//! The filesystem is made by its own mkfs program in a hidden file beside the output, read back, and only then given
//! its name, by a call that fails when something has that name already: no volume is ever overwritten, and none appears
//! that is not whole.

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

/// Bytes of a sector: a disk has whole ones only.
const SECTOR_BYTES: u64 = 512;

/// What volume is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRequest {
    /// Where the file goes. Nothing may be there.
    pub path: PathBuf,
    /// Its size in bytes, of which the disk holds only what mkfs writes.
    pub size_bytes: u64,
    /// The filesystem in it.
    pub file_system: FileSystem,
    /// The filesystem's label.
    pub label: Option<String>,
    /// Directories to be made in it, with those above them; for ext4 only.
    pub directories: Vec<PathBuf>,
    /// More arguments for the mkfs program, before the name of the file.
    pub mkfs_arguments: Vec<OsString>,
}

/// One thing that is wrong with a request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RequestProblem {
    /// Something is there.
    #[error("{} exists, and a volume never replaces an existing file", .path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// Where to?
    #[error("there is no directory {}", .directory.display())]
    NoDirectory {
        /// The directory the output should go to.
        directory: PathBuf,
    },
    /// Disks have whole sectors.
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
        /// Why not.
        problem: LabelProblem,
    },
    /// Only mkfs.ext4 makes directories.
    #[error("directories can be created in ext4 only, not in {}", .file_system.name())]
    Directories {
        /// The filesystem.
        file_system: FileSystem,
    },
    /// The name of a directory.
    #[error("{:?} cannot be created in the volume: it must be a path of plain names, without `..`, quotes and control characters", .directory.display())]
    DirectoryName {
        /// The directory.
        directory: PathBuf,
    },
}

/// Why there is no volume. In each case nothing is left of it.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// The request cannot be met: all that is wrong with it.
    #[error("cannot create the volume {}:{}", .path.display(), list(.problems))]
    Request {
        /// The output.
        path: PathBuf,
        /// At least one.
        problems: Vec<RequestProblem>,
    },
    /// The file cannot be made.
    #[error("cannot create the volume {}", .path.display())]
    File {
        /// The output.
        path: PathBuf,
        /// Why.
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
        /// The package of Debian that has it.
        debian_package: &'static str,
        /// The package of Nixpkgs that has it.
        nix_package: &'static str,
    },
    /// The program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The program says no.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it wrote on its stderr.
        message: String,
    },
    /// The program is content, but the volume is not what was asked for.
    #[error("{program} created something else than the requested volume")]
    ReadBack {
        /// The program.
        program: &'static str,
        /// What is different.
        source: ReadBackError,
    },
    /// Somebody made the file in the meantime.
    #[error("{} was created by another process in the meantime, and a volume never replaces an existing file", .path.display())]
    CameIntoBeing {
        /// The output.
        path: PathBuf,
    },
    /// The caller said stop.
    #[error("interrupted")]
    Interrupted,
}

fn list(problems: &[RequestProblem]) -> String {
    match problems {
        [problem] => format!(" {problem}"),
        problems => problems.iter().map(|problem| format!("\n  {problem}")).collect(),
    }
}

/// Makes a volume. `cancel` is looked at often; once it is true nothing is made.
///
/// # Errors
/// The request cannot be met, the mkfs program is missing or fails, or the disk is full. Nothing is left then.
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

/// The directory of a file, `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `/store` and `store/` as `store`; `None` when the path is not one of plain names. Quotes are refused because debugfs
/// reads names in quotes.
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

/// A file beside `path` that is gone when it is dropped.
fn hidden_file(path: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(".")
        .suffix(".volume.tmp")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(parent(path))
}

/// A tree of empty directories for mkfs to copy, with the modes they are to have.
fn tree(directories: &[PathBuf]) -> io::Result<Option<TempDir>> {
    if directories.is_empty() {
        return Ok(None);
    }
    let tree = TempDir::new()?;
    // mkfs copies the mode of the tree itself to the root directory.
    set_mode(tree.path())?;
    for inner in directories.iter().filter_map(|directory| inner_path(directory)) {
        DirBuilder::new().recursive(true).mode(0o755).create(tree.path().join(&inner))?;
        // The umask has been at work.
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

/// mkfs.ext4 copies the owners of the tree as well. Who is not root cannot make a tree that root owns, but can say so in
/// the filesystem.
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
