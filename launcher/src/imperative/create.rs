//! `microvm create`: a machine from a flake.

use super::layout::{Layout, Machine};
use super::{FlakeReference, ImperativeError, MachineName, nix};
use crate::child::Identity;
use crate::place::{Directory, Place};
use std::fs;
use std::io;
use std::path::Path;

/// Who runs the machines: the user of the host module.
const USER: &str = "microvm";

/// The rights to a state directory, and to the directory of all of them.
const DIRECTORY_MODE: u32 = 0o755;
/// The rights to the file that names the flake.
const FLAKE_MODE: u32 = 0o644;

/// Builds the machine, and makes its state directory and its roots. The directory appears complete, or not at all.
///
/// # Errors
/// [`ImperativeError::Exists`] before anything is built; those of Nix and of files.
pub fn create(layout: &Layout, name: &MachineName, flake: &FlakeReference) -> Result<Machine, ImperativeError> {
    let machine = layout.machine(name);
    if fs::symlink_metadata(&machine.directory).is_ok() {
        return Err(ImperativeError::Exists(machine.directory, name.to_string()));
    }
    Directory::make(layout.machines(), DIRECTORY_MODE, None).map_err(ImperativeError::file(layout.machines()))?;
    // A dot makes it no machine's name. What an interrupted creation left is in the way of nobody.
    let making = Machine { name: name.clone(), directory: layout.machines().join(format!(".{name}.new")) };
    remove_directory(&making.directory)?;
    let directory =
        Directory::make(&making.directory, DIRECTORY_MODE, None).map_err(ImperativeError::file(&making.directory))?;
    let made = fill(&making, &directory, flake).and_then(|()| {
        let renamed =
            Place::itself(&making.directory).and_then(|place| place.rename_to(&Place::itself(&machine.directory)?));
        renamed.map_err(ImperativeError::file(&machine.directory))
    });
    if let Err(error) = made {
        // The build's error is worth more than that of clearing up.
        let _ = remove_directory(&making.directory);
        return Err(error);
    }
    layout.add_gc_roots(&machine)?;
    Ok(machine)
}

fn fill(making: &Machine, directory: &Directory, flake: &FlakeReference) -> Result<(), ImperativeError> {
    let flake_file = making.flake_file();
    Place::itself(&flake_file)
        .and_then(|place| place.replace(flake.as_str().as_bytes(), FLAKE_MODE, None))
        .map_err(ImperativeError::file(&flake_file))?;
    nix::build(flake, &making.name, &making.current())?;
    // On a host without the module, and for other users than root, the machine is whose who made it.
    if ::nix::unistd::geteuid().is_root()
        && let Ok(owner) = Identity::of(USER)
    {
        directory.give_to(&owner).map_err(ImperativeError::file(&making.directory))?;
    }
    Ok(())
}

/// Removes a directory that may not be there.
pub(super) fn remove_directory(directory: &Path) -> Result<(), ImperativeError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImperativeError::file(directory)(error)),
        _ => Ok(()),
    }
}
