//! `microvm create`: a machine from a flake.

use super::layout::{Layout, Machine, remove_link, rename};
use super::lock::MachineLock;
use super::{FlakeReference, ImperativeError, MachineName, nix};
use crate::place::{Directory, Place};
use std::fs;
use std::io;
use std::path::Path;

/// The rights to a state directory, and to the directory of all of them.
pub(super) const DIRECTORY_MODE: u32 = 0o755;
/// The rights to the file that names the flake.
const FLAKE_MODE: u32 = 0o644;

/// Builds the machine, and makes its state directory and its roots. The directory appears complete, or not at all.
///
/// # Errors
/// [`ImperativeError::Exists`] before anything is built; those of Nix and of files.
pub fn create(layout: &Layout, name: &MachineName, flake: &FlakeReference) -> Result<Machine, ImperativeError> {
    let machine = layout.machine(name);
    let _lock = MachineLock::take(layout, name)?;
    if fs::symlink_metadata(&machine.directory).is_ok() {
        return Err(ImperativeError::Exists(machine.directory, name.to_string()));
    }
    // A dot makes it no machine's name. What an interrupted creation has left is replaced.
    let making = Machine { name: name.clone(), directory: layout.machines().join(format!(".{name}.new")) };
    remove_directory(&making.directory)?;
    Directory::make(&making.directory, DIRECTORY_MODE, None).map_err(ImperativeError::file(&making.directory))?;
    if let Err(error) = fill(&making, flake).and_then(|()| appear(layout, &making, &machine)) {
        // The first error is worth more than those of cleaning up.
        let _ = layout.remove_gc_roots(&machine);
        let _ = remove_directory(&making.directory);
        return Err(error);
    }
    Ok(machine)
}

/// Lets the complete directory appear under its name. Its runner has a root all the time: that of Nix leads to the old name,
/// and those of the machine to the new one, so in between there is one that leads to the runner itself.
fn appear(layout: &Layout, making: &Machine, machine: &Machine) -> Result<(), ImperativeError> {
    let runner = making.runner()?;
    let meanwhile = layout.add_gc_root(machine, &runner)?;
    layout.add_gc_roots(machine)?;
    rename(&making.directory, &machine.directory)?;
    fs::File::open(layout.machines())
        .and_then(|directory| directory.sync_all())
        .map_err(ImperativeError::file(layout.machines()))?;
    remove_link(&meanwhile)
}

fn fill(making: &Machine, flake: &FlakeReference) -> Result<(), ImperativeError> {
    let flake_file = making.flake_file();
    Place::itself(&flake_file)
        .and_then(|place| place.replace(flake.as_str().as_bytes(), FLAKE_MODE, None))
        .map_err(ImperativeError::file(&flake_file))?;
    // The directory stays that of who made it: a machine of the host module gets its user when it starts.
    nix::build(flake, &making.name, &making.current()).map(drop)
}

/// Removes a directory that may not be there.
pub(super) fn remove_directory(directory: &Path) -> Result<(), ImperativeError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImperativeError::file(directory)(error)),
        _ => Ok(()),
    }
}
