//! `microvm update`: the same machine from a newer flake.

use super::layout::{Layout, Machine, replace_link};
use super::{ImperativeError, MachineName, nix};
use std::fs;
use std::path::{Path, PathBuf};

/// What an update changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// Whether there is another runner now.
    pub is_changed: bool,
    /// What the closure gained and lost, in lines.
    pub difference: String,
    /// Whether the machine was started with another runner than it now has.
    pub needs_restart: bool,
}

/// Builds the machine anew. Its runner is the old one until the new one is complete.
///
/// # Errors
/// [`ImperativeError::Missing`], [`ImperativeError::Declared`]; those of Nix and of files.
pub fn update(layout: &Layout, name: &MachineName) -> Result<Updated, ImperativeError> {
    let machine = layout.existing(name)?;
    let flake = machine.flake()?;
    let old = fs::read_link(machine.current()).ok();
    // Nix registers the link as a root: the new runner stays until the old link has become the new one.
    let building = machine.directory.join(".building");
    let new = nix::build(&flake, name, &building)?;
    let is_changed = old.as_ref() != Some(&new);
    let difference = match &old {
        Some(old) if is_changed => difference(old, &new),
        _ => String::new(),
    };
    if is_changed {
        replace_link(&new, &machine.current())?;
    }
    layout.add_gc_roots(&machine)?;
    fs::remove_file(&building).map_err(ImperativeError::file(&building))?;
    Ok(Updated { is_changed, difference, needs_restart: needs_restart(&machine) })
}

/// Whether the machine was started with another runner than it has.
pub(super) fn needs_restart(machine: &Machine) -> bool {
    match (fs::read_link(machine.booted()), fs::read_link(machine.current())) {
        (Ok(booted), Ok(current)) => booted != current,
        _ => false,
    }
}

/// Of the systems where the runners name them, because a runner with a store disk does not refer to its system.
fn difference(old: &Path, new: &Path) -> String {
    let system = |runner: &Path| runner.join("share/microvm/system").canonicalize().ok();
    let (old, new): (PathBuf, PathBuf) = match (system(old), system(new)) {
        (Some(old), Some(new)) => (old, new),
        _ => (old.to_owned(), new.to_owned()),
    };
    // A runner that was collected cannot be compared, and the update is done all the same.
    nix::difference(&old, &new).unwrap_or_else(|error| format!("{error}\n"))
}
