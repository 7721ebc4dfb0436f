//! `microvm create`: creates a machine from a flake.

use super::layout::{DIRECTORY_MODE, Layout, Machine, remove_link, rename};
use super::lock::MachineLock;
use super::{BuildOutput, FlakeReference, ImperativeError, MachineName, nix};
use program::place::{Directory, Place};
use std::fs;
use std::io;
use std::path::Path;

/// The mode of the file that contains the flake reference.
const FLAKE_MODE: u32 = 0o644;

/// Builds the machine, and creates its state directory and its garbage collection roots. The directory appears
/// atomically. Completes a creation from the same flake that was interrupted after that.
///
/// # Errors
/// Returns [`ImperativeError::Exists`] or [`ImperativeError::SharedRoot`] before anything is built, or an error of Nix or of a file operation.
pub fn create(layout: &Layout, name: &MachineName, flake: &FlakeReference) -> Result<Machine, ImperativeError> {
    let machine = layout.machine(name);
    let _lock = MachineLock::take(layout, name)?;
    layout.remove_unfinished_links(&machine)?;
    if fs::symlink_metadata(&machine.directory).is_ok() {
        return complete(layout, machine, flake);
    }
    layout.refuse_shared_root(&machine)?;
    // Remains of an interrupted creation are replaced.
    let making = Machine { name: name.clone(), directory: layout.unfinished(&machine) };
    remove_directory(&making.directory)?;
    let made = Directory::make(&making.directory, DIRECTORY_MODE, None);
    let made = made.map(drop).map_err(ImperativeError::file(&making.directory));
    if let Err(error) = made.and_then(|()| fill(&making, flake)).and_then(|()| publish(layout, &making, &machine)) {
        discard(layout, &making, &machine);
        return Err(error);
    }
    finish(layout, &machine)?;
    Ok(machine)
}

/// Renames the complete directory to its final name. The runner has a root at any time: Nix's root refers to the old
/// name and the machine's roots refer to the new one, so during the rename a temporary root refers to the runner
/// directly.
pub(super) fn publish(layout: &Layout, making: &Machine, machine: &Machine) -> Result<(), ImperativeError> {
    let runner = making.runner()?;
    layout.add_temporary_gc_root(machine, &runner)?;
    layout.add_gc_roots(machine)?;
    // The link to the runner must survive a power cut if the new name does: Nix, which has made it, does not sync it.
    Directory::open(&making.directory)
        .and_then(|directory| directory.sync())
        .map_err(ImperativeError::file(&making.directory))?;
    rename(&making.directory, &machine.directory)
}

/// Removes what a failed creation has made. A machine that has its name already, but whose name could not be synced, is
/// complete and keeps its roots.
pub(super) fn discard(layout: &Layout, making: &Machine, machine: &Machine) {
    if fs::symlink_metadata(&machine.directory).is_ok() {
        return;
    }
    // The first error matters more than those of the cleanup.
    let _ = layout.remove_gc_roots(machine);
    let _ = remove_directory(&making.directory);
}

/// Returns an existing machine if its creation from the same flake was interrupted: the temporary root is still there.
fn complete(layout: &Layout, machine: Machine, flake: &FlakeReference) -> Result<Machine, ImperativeError> {
    let is_same = || machine.flake().is_ok_and(|existing| existing.as_str() == flake.as_str());
    if fs::symlink_metadata(layout.temporary_gc_root(&machine)).is_err() || !is_same() {
        return Err(ImperativeError::Exists(machine.directory, machine.name.to_string()));
    }
    finish(layout, &machine)?;
    Ok(machine)
}

/// Removes the temporary root, which must not happen before the new name is on the disk.
pub(super) fn finish(layout: &Layout, machine: &Machine) -> Result<(), ImperativeError> {
    fs::File::open(layout.machines())
        .and_then(|directory| directory.sync_all())
        .map_err(ImperativeError::file(layout.machines()))?;
    remove_link(&layout.temporary_gc_root(machine))
}

fn fill(making: &Machine, flake: &FlakeReference) -> Result<(), ImperativeError> {
    let flake_file = making.flake_file();
    Place::nofollow(&flake_file)
        .and_then(|place| place.replace(flake.as_str().as_bytes(), FLAKE_MODE, None))
        .map_err(ImperativeError::file(&flake_file))?;
    // The directory keeps the owner who created it: a machine of the host module gets its user when it starts.
    nix::build((flake, &making.name), &making.current(), BuildOutput::Terminal).map(drop)
}

/// Removes a directory recursively. A missing one is not an error.
pub(super) fn remove_directory(directory: &Path) -> Result<(), ImperativeError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImperativeError::file(directory)(error)),
        _ => Ok(()),
    }
}
