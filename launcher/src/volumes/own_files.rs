//! Volumes that are other files of their machine, however their paths are spelt. The check of the spec finds those that are
//! spelt alike; only the host knows the others.

use super::lock::LOCK_ENDING;
use super::same_file::{File, file_at};
use super::{CopyError, VolumeError};
use crate::launch::{Access, Launch, VolumeNeed, configuration_of, seal_of, suspended_directory};
use crate::path::HostPath;
use crate::validate::OWN_FILES;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Options of the spec whose files a guest must not change, because the next start reads them.
const BOOT_FILES: [&str; 3] = ["kernel", "initrd", "storeDisk.plan"];

/// The endings of a socket's name and of the names beside it: the record of the command that serves it, and the socket
/// before it accepts clients.
const SOCKET_ENDINGS: [&str; 3] = ["", ".command", ".new"];

/// Why a file of the state directory is reserved.
const KEPT: &str = "has the name of a file that microvm keeps in a state directory";

/// Refuses a machine with such a volume.
///
/// # Errors
/// Returns [`VolumeError::OwnFile`] or [`VolumeError::Deleted`] for the first one.
pub fn require_no_own_file(launch: &Launch) -> Result<(), VolumeError> {
    own_files_in_use(launch).into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// Returns an error for each such volume, with its position. Changes nothing.
pub fn own_files_in_use(launch: &Launch) -> Vec<(usize, VolumeError)> {
    let volumes = launch.needs.volumes.iter().enumerate();
    let own: Vec<_> =
        own_files(launch).map(|own| (file_at(own.path.below(&launch.working_directory).as_path()), own)).collect();
    volumes.filter_map(|(index, volume)| Some((index, find(launch, volume, &own)?))).collect()
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
    if kept_files(launch).any(|own| file_at(own.below(&launch.working_directory).as_path()) == file) {
        return reserved(KEPT.to_owned());
    }
    let has_name_of_socket = |ending: &&str| {
        let named = |own: &HostPath| HostPath::new(format!("{own}{ending}")).below(&launch.working_directory);
        sockets(launch).any(|own| file_at(named(own).as_path()) == file)
    };
    if SOCKET_ENDINGS.iter().any(has_name_of_socket) {
        return reserved("has the name of a socket of the machine, or of a file beside one".to_owned());
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

/// Returns the files that microvm writes to the state directory.
fn kept_files(launch: &Launch) -> impl Iterator<Item = HostPath> {
    let written = launch.files.iter().map(|file| file.path.clone());
    let seal = launch.needs.sealed_image.as_ref().map(seal_of);
    OWN_FILES.into_iter().map(HostPath::from).chain(written).chain(seal)
}

/// Returns the sockets of a machine.
fn sockets(launch: &Launch) -> impl Iterator<Item = &HostPath> {
    launch
        .needs
        .sockets_to_remove
        .iter()
        .chain(launch.needs.processes.iter().map(|process| &process.socket))
        .chain(launch.needs.processes.iter().filter_map(|process| Some(&process.view.as_ref()?.control)))
        .chain(launch.control.iter().map(|control| &control.path))
        .chain(&launch.console.socket)
}

/// A file that is no volume.
struct OwnFile {
    path: HostPath,
    role: String,
    /// Whether a volume that is only read may be this file.
    may_be_read: bool,
}

fn own_files(launch: &Launch) -> impl Iterator<Item = OwnFile> {
    let kept = |path: HostPath| OwnFile {
        path,
        role: "which microvm keeps in the state directory".to_owned(),
        may_be_read: false,
    };
    let boot = launch.needs.present.iter().filter(|need| BOOT_FILES.contains(&need.option.as_str()));
    let boot = boot.map(|need| OwnFile {
        path: need.path.clone(),
        role: format!("the {} of this machine, which its guest must not change", need.option),
        may_be_read: true,
    });
    kept_files(launch).map(kept).chain(boot)
}

fn find(launch: &Launch, volume: &VolumeNeed, own: &[(File, OwnFile)]) -> Option<VolumeError> {
    let path = volume.image.below(&launch.working_directory);
    let file = file_at(path.as_path());
    let is_refused = |own: &OwnFile| volume.access == Access::ReadWrite || !own.may_be_read;
    if let Some((_, own)) = own.iter().find(|(known, own)| *known == file && is_refused(own)) {
        return Some(VolumeError::OwnFile { path, own: own.path.clone(), role: own.role.clone() });
    }
    let suspended = suspended_directory(&launch.name);
    let is_deleted = is_in(path.as_path(), suspended.below(&launch.working_directory).as_path());
    is_deleted.then(|| VolumeError::Deleted { path: path.clone(), directory: suspended })
}
