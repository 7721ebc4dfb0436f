//! `microvm delete`: a machine and all that it kept.

use super::activity::{MachineActivity, Phase};
use super::create::remove_directory;
use super::layout::{Layout, Machine, remove_link, rename};
use super::lock::MachineLock;
use super::service::is_declared;
use super::{ImperativeError, MachineName};
use std::path::PathBuf;
use std::{fs, io};

/// What goes when a machine is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its state directory, with all volumes in it.
    pub directory: PathBuf,
    /// The files in it, which are what somebody may want to keep.
    pub files: Vec<PathBuf>,
}

/// What would go, for asking before.
///
/// # Errors
/// [`ImperativeError::Missing`], [`ImperativeError::Running`], [`ImperativeError::Declared`] while the host's
/// configuration would only install it again.
pub fn removal(layout: &Layout, name: &MachineName) -> Result<Removal, ImperativeError> {
    let machine = layout.existing(name)?;
    if MachineActivity::of(&machine)?.phase() != Phase::Stopped {
        return Err(ImperativeError::Running(name.to_string()));
    }
    if machine.is_declared() && is_declared(name) {
        return Err(ImperativeError::Declared(name.to_string()));
    }
    let files = files_of(&machine).map_err(ImperativeError::file(&machine.directory))?;
    Ok(Removal { directory: machine.directory, files })
}

/// Deletes the machine: first it is no machine any more, then its roots and its files go. What an interruption leaves is
/// removed by the next command that creates or deletes a machine of that name.
///
/// # Errors
/// Those of [`removal`], and of files.
pub fn delete(layout: &Layout, name: &MachineName) -> Result<(), ImperativeError> {
    layout.existing(name)?;
    let _lock = MachineLock::take(layout, name)?;
    removal(layout, name)?;
    let machine = layout.machine(name);
    let going = layout.machines().join(format!(".{name}.new"));
    remove_directory(&going)?;
    rename(&machine.directory, &going)?;
    layout.remove_gc_roots(&machine)?;
    remove_link(&layout.building(&machine))?;
    remove_directory(&going)
}

fn files_of(machine: &Machine) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(&machine.directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.path() != machine.flake_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
