//! `microvm delete`: deletes a machine and its files.

use super::activity::{LockAttempt, MachineActivity, Phase, try_lock};
use super::create::remove_directory;
use super::layout::{Layout, Machine, remove_link, rename};
use super::lock::{MachineLock, NamesLock};
use super::service::{Service, is_declared};
use super::{ImperativeError, MachineName};
use crate::state::RuntimeDirectory;
use std::path::PathBuf;
use std::{fs, io};

/// What is removed when a machine is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its state directory, including all volumes in it.
    pub directory: PathBuf,
    /// The files and directories in it, which the user might want to keep: volumes, and what was saved of a suspended machine.
    pub files: Vec<PathBuf>,
}

/// Returns what would be removed, so that the user can confirm it: the machine, or the remains of an interrupted
/// deletion.
///
/// # Errors
/// Returns [`ImperativeError::Missing`], [`ImperativeError::Running`], or [`ImperativeError::Declared`] if the host's
/// configuration would install the machine again.
pub fn removal(layout: &Layout, name: &MachineName) -> Result<Removal, ImperativeError> {
    let machine = match layout.existing(name) {
        Err(error) => return remains(layout, &layout.machine(name)).ok_or(error),
        Ok(machine) => machine,
    };
    if MachineActivity::of(&machine)?.phase() != Phase::Stopped {
        return Err(ImperativeError::Running(name.to_string()));
    }
    if machine.is_declared() && is_declared(name) {
        return Err(ImperativeError::Declared(name.to_string()));
    }
    let files = files_of(&machine).map_err(ImperativeError::file(&machine.directory))?;
    Ok(Removal { directory: machine.directory, files })
}

/// Deletes the machine. Its directory is renamed first, so that it no longer counts as a machine; then its roots and
/// files are removed. The next command that creates or deletes a machine of that name removes the remains of an
/// interrupted deletion.
///
/// # Errors
/// The same as [`removal`], or an error of a file operation.
pub fn delete(layout: &Layout, name: &MachineName) -> Result<(), ImperativeError> {
    removal(layout, name)?;
    let missing = layout.existing(name).err();
    let _lock = MachineLock::take(layout, name)?;
    removal(layout, name)?;
    let machine = layout.machine(name);
    // A start that begins now waits, and then finds that the directory is gone.
    let _held = match try_lock(&machine)? {
        LockAttempt::HeldElsewhere => return Err(ImperativeError::Running(name.to_string())),
        held => held,
    };
    let unfinished = layout.unfinished(&machine);
    match (layout.existing(name), missing) {
        // Another process has created it while this one waited for the lock.
        (Ok(_), Some(missing)) => return Err(missing),
        (Ok(machine), None) => {
            remove_directory(&unfinished)?;
            // Otherwise a new machine of this name has failed before its first start. The directory must still be there to
            // be compared.
            if let Ok(state) = RuntimeDirectory::locate().and_then(|runtime| runtime.machine(name.as_str())) {
                state.clear_failure_in(&machine.directory);
            }
            rename(&machine.directory, &unfinished)?;
        }
        (Err(_), _) => {}
    }
    layout.remove_unfinished_links(&machine)?;
    // A new machine `booted-web` beside this `web` waits, and does not lose the root that it has just made.
    let names = NamesLock::take(layout)?;
    layout.remove_gc_roots(&machine)?;
    drop(names);
    remove_link(&layout.building(&machine))?;
    Service::of(name).forget_failures();
    remove_directory(&unfinished)
}

/// Returns what an interrupted command has left of a machine that does not exist.
fn remains(layout: &Layout, machine: &Machine) -> Option<Removal> {
    let directory = layout.unfinished(machine);
    let found = [directory.clone(), layout.building(machine)]
        .into_iter()
        .chain(layout.existing_gc_roots(machine))
        .find(|path| fs::symlink_metadata(path).is_ok())?;
    let unfinished = Machine { name: machine.name.clone(), directory };
    Some(Removal { directory: found, files: files_of(&unfinished).unwrap_or_default() })
}

fn files_of(machine: &Machine) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(&machine.directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_symlink() && entry.path() != machine.flake_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
