//! Files of a machine that are another file of it, however their paths are spelt: a start would overwrite or remove what the
//! user keeps there. The check of the spec finds volumes that are spelt alike; only the host knows the others.

use crate::launch::{
    FileUsage, LOCK_ENDING, Launch, MachineFile, RECORD_ENDING, configuration_of, suspended_directory,
};
use crate::path::HostPath;
use crate::state::{CONSOLE_SOCKET, RuntimeDirectory};
use crate::suspend::LOCK as SUSPEND_LOCK;
use crate::validate::OWN_FILES;
use crate::volumes::{CopyError, file_at};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The endings of a socket's name and of the names beside it: the record of the command that serves it, and the socket
/// before it accepts clients.
const SOCKET_ENDINGS: [&str; 3] = ["", RECORD_ENDING, ".new"];

/// Why a file of the state directory is reserved.
const KEPT: &str = "has the name of a file that microvm keeps in a state directory";

/// A file of a machine that would be in the way of another one.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {reason}")]
pub struct OwnFileError {
    /// The option of the spec that names the file.
    pub option: String,
    /// The file, the other file, and what to do.
    pub reason: String,
}

/// Refuses a machine with such a file.
///
/// # Errors
/// Returns [`OwnFileError`] for the first one.
pub fn require_no_own_file(launch: &Launch, runtime: &RuntimeDirectory) -> Result<(), OwnFileError> {
    own_files_in_use(launch, Some(runtime)).into_iter().next().map_or(Ok(()), Err)
}

/// Returns an error for each such file. Changes nothing.
pub fn own_files_in_use(launch: &Launch, runtime: Option<&RuntimeDirectory>) -> Vec<OwnFileError> {
    let absolute = |path: &HostPath| path.below(&launch.working_directory);
    let mut files = launch.machine_files();
    files.extend(records(launch, runtime));
    let files: Vec<_> = files.into_iter().map(|file| (file_at(absolute(&file.path).as_path()), file)).collect();
    let mut found = Vec::new();
    for (place, (identity, file)) in files.iter().enumerate() {
        let path = absolute(&file.path);
        let others = files[place + 1..].iter().filter(|(other, _)| other == identity).map(|(_, other)| other);
        for other in others.filter(|other| !file.usage.allows(other.usage)) {
            let (user, own) = if file.usage <= other.usage { (file, other) } else { (other, file) };
            let path = absolute(&user.path);
            let reason = format!("{path} is the file {}, {}; choose another name", own.path, own.role);
            found.push(OwnFileError { option: user.option.clone(), reason });
        }
        let suspended = suspended_directory(&launch.name);
        if file.usage != FileUsage::Kept && is_in(path.as_path(), absolute(&suspended).as_path()) {
            let reason = format!(
                "{path} is in {suspended}, which is deleted when the machine resumes; choose another directory"
            );
            found.push(OwnFileError { option: file.option.clone(), reason });
        }
    }
    found
}

/// Returns the files that are written for the machine in its runtime directory, and the lock beside its state directory.
fn records(launch: &Launch, runtime: Option<&RuntimeDirectory>) -> Vec<MachineFile> {
    let kept = |path: &Path, role: &str| MachineFile {
        option: "name".to_owned(),
        path: HostPath::new(path.to_string_lossy()),
        role: role.to_owned(),
        usage: FileUsage::Kept,
    };
    let state = runtime.and_then(|runtime| runtime.machine(&launch.name).ok());
    let records = state.iter().flat_map(|state| {
        let console = Some(state.file(CONSOLE_SOCKET)).filter(|_| launch.console.socket.is_none());
        state.records().chain([state.file(SUSPEND_LOCK)]).chain(console)
    });
    let records = records.map(|path| kept(&path, "a record of this machine in its runtime directory"));
    // The lock file of a volume is next to the file that a link leads to.
    let targets = launch.needs.volumes.iter().enumerate().filter_map(|(index, volume)| {
        let image = volume.image.below(&launch.working_directory).as_path().canonicalize().ok()?;
        let mut lock = image.into_os_string();
        lock.push(LOCK_ENDING);
        Some(kept(Path::new(&lock), &format!("the lock file of volumes[{index}].image")))
    });
    let directory = launch.working_directory.as_path();
    let lock = directory.file_name().map(|name| {
        let lock = directory.with_file_name(format!(".{}{LOCK_ENDING}", name.to_string_lossy()));
        kept(&lock, "which is locked while the machine is created, updated or deleted")
    });
    records.chain(targets).chain(lock).collect()
}

/// Refuses a new file that has the name of one that microvm keeps, in the directory of all machines, for this machine or
/// for another one of this host. It may be missing now, and would be in the way later.
///
/// # Errors
/// Returns [`CopyError::Reserved`].
pub fn require_free_name(launch: &Launch, machines: &Path, new: &Path) -> Result<(), CopyError> {
    let reserved = |reason: String| Err(CopyError::Reserved { path: new.to_owned(), reason });
    if new.as_os_str().as_bytes().ends_with(LOCK_ENDING.as_bytes()) {
        return reserved(format!("ends with {LOCK_ENDING}, as the lock files of volumes and machines do"));
    }
    let all = file_at(machines);
    let is_in_all = |path: &Path| path.parent().is_some_and(|directory| file_at(directory) == all);
    if is_in_all(new) {
        return reserved(format!("is in {}, which has only machines and their locks", machines.display()));
    }
    let file = file_at(new);
    let at = |path: &HostPath| file_at(path.below(&launch.working_directory).as_path());
    let sockets = launch.machine_sockets();
    let has_name_of_socket =
        |ending: &&str| sockets.iter().any(|socket| at(&HostPath::new(format!("{}{ending}", socket.path))) == file);
    if SOCKET_ENDINGS.iter().any(has_name_of_socket) {
        return reserved("has the name of a socket of the machine, or of a file beside one".to_owned());
    }
    if launch.machine_files().iter().any(|own| own.usage == FileUsage::Kept && at(&own.path) == file) {
        return reserved(KEPT.to_owned());
    }
    // As it is spelt, because a state directory can be a link, and as the kernel resolves it.
    let resolved = new.parent().and_then(|directory| directory.canonicalize().ok());
    let resolved = resolved.iter().flat_map(|directory| directory.ancestors());
    let state_directories = new.ancestors().chain(resolved).filter(|ancestor| is_in_all(ancestor));
    let others = state_directories.filter_map(|directory| Some((directory, directory.file_name()?.to_str()?)));
    for (directory, name) in others.chain([(launch.working_directory.as_path(), launch.name.as_str())]) {
        if OWN_FILES.iter().any(|own| file_at(&directory.join(own)) == file)
            || file_at(configuration_of(name).below(&HostPath::new(directory.to_string_lossy())).as_path()) == file
        {
            return reserved(KEPT.to_owned());
        }
        // Which sockets another machine has is not known here, but they are all in its state directory. A file in the place of a
        // socket keeps its machine from starting.
        if is_in(new, directory) && is_named_as_socket(new) {
            return reserved("has the name of a socket of a machine".to_owned());
        }
        let suspended = suspended_directory(name);
        // The directory itself would be in the way when the machine is suspended.
        if is_in(new, &directory.join(suspended.as_path())) {
            return reserved(format!("is in {suspended}, which is deleted when the machine resumes"));
        }
    }
    Ok(())
}

/// Whether the name is one that sockets of machines, or files beside them, have.
fn is_named_as_socket(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_socket = |name: &str| [".sock", ".vsock", ".paths"].iter().any(|ending| name.ends_with(ending));
    // The vsock socket for a port is `NAME.vsock_PORT`.
    SOCKET_ENDINGS.iter().filter_map(|ending| name.strip_suffix(ending)).any(is_socket) || name.contains(".vsock_")
}

/// Whether the path is that directory, or below it.
fn is_in(path: &Path, directory: &Path) -> bool {
    let directory = file_at(directory);
    path.ancestors().any(|ancestor| file_at(ancestor) == directory)
}
