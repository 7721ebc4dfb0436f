//! `microvm update`: rebuilds a machine from the current state of its flake.

use super::activity::{MachineActivity, Phase};
use super::layout::{Layout, Machine, remove_link, replace_link};
use super::lock::MachineLock;
use super::{BuildOutput, ImperativeError, MachineName, nix};
use crate::spec::MachineSpec;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The result of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// Whether the runner has changed.
    pub is_changed: bool,
    /// The packages that the closure gained and lost, as lines of text.
    pub difference: String,
    /// The runner that the machine was started with.
    pub booted: Booted,
}

/// The runner that a machine was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Booted {
    /// The machine is not running, and was stopped normally if it ever ran.
    Nothing,
    /// Another runner than the current one.
    Another,
    /// The current runner.
    Current,
}

/// Rebuilds the machine. It keeps its old runner until the new one is complete.
///
/// # Errors
/// Returns [`ImperativeError::Missing`], [`ImperativeError::Declared`], or an error of Nix or of a file operation.
pub fn update(layout: &Layout, name: &MachineName, output: BuildOutput) -> Result<Updated, ImperativeError> {
    layout.existing(name)?;
    let _lock = MachineLock::take(layout, name)?;
    // Looked up again, because the machine may have been deleted while this process waited for the lock.
    let machine = layout.existing(name)?;
    layout.remove_unfinished_links(&machine)?;
    layout.remove_unfinished_updates(&machine)?;
    let flake = machine.flake()?;
    // Checked before anything is built, because root must not trust links of another user.
    let (old, _) = (existing(machine.runner())?, machine.booted_runner()?);
    // Nix registers the link as a root, so the new runner is not collected before `current` points to it.
    let building = layout.building(&machine);
    let new = nix::build((&flake, name), &building, output)?;
    let is_changed = old.as_ref() != Some(&new);
    let difference = match &old {
        Some(old) if is_changed => difference(old, &new),
        _ => String::new(),
    };
    layout.add_gc_roots(&machine)?;
    if is_changed {
        replace_link(&new, &machine.current())?;
    }
    remove_link(&building)?;
    // Left by an interrupted creation.
    remove_link(&layout.temporary_gc_root(&machine))?;
    Ok(Updated { is_changed, difference, booted: booted(&machine)? })
}

/// Returns whether the machine was started with its current runner.
///
/// # Errors
/// Fails if root must not follow a link of the machine.
pub(super) fn booted(machine: &Machine) -> Result<Booted, ImperativeError> {
    Ok(match (machine.booted_runner()?, existing(machine.runner())?) {
        (Some(booted), Some(current)) if booted != current => Booted::Another,
        (Some(_), _) => Booted::Current,
        (None, _) => Booted::Nothing,
    })
}

/// Whether the machine is running, or being started, with another runner than its current one.
///
/// # Errors
/// Fails if the state of the machine cannot be read, or root must not follow one of its links.
pub fn runs_older_system(machine: &Machine) -> Result<bool, ImperativeError> {
    Ok(booted(machine)? == Booted::Another && MachineActivity::of(machine)?.phase() != Phase::Stopped)
}

/// Returns `None` for a missing link.
fn existing(runner: Result<PathBuf, ImperativeError>) -> Result<Option<PathBuf>, ImperativeError> {
    match runner {
        Err(ImperativeError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        runner => runner.map(Some),
    }
}

/// Compares the systems, because a runner with a store disk does not refer to its system.
fn difference(old: &Path, new: &Path) -> String {
    let (old, new): (PathBuf, PathBuf) = match (system(old), system(new)) {
        (Some(old), Some(new)) => (old, new),
        _ => (old.to_owned(), new.to_owned()),
    };
    // A runner that was garbage-collected cannot be compared, but the update has succeeded.
    nix::difference(&old, &new).unwrap_or_else(|error| format!("{error}\n"))
}

/// Returns the system that a runner starts, if it is still on this host.
pub(super) fn system(runner: &Path) -> Option<PathBuf> {
    runner.join("share/microvm/system").canonicalize().ok().or_else(|| {
        let document = fs::read(runner.join("share/microvm/machine.json")).ok()?;
        let spec: MachineSpec = serde_json::from_slice(&document).ok()?;
        let parameter = spec.kernel_params.iter().find_map(|parameter| parameter.strip_prefix("init="))?;
        Some(PathBuf::from(parameter.strip_suffix("/init")?)).filter(|system| system.exists())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;

    #[test]
    fn a_runner_with_a_store_disk_names_its_system_on_the_kernel_command_line() {
        let directory = tempfile::tempdir().unwrap();
        let (runner, toplevel) = (directory.path().join("runner"), directory.path().join("nixos-system"));
        fs::create_dir_all(runner.join("share/microvm")).unwrap();
        let spec = serde_json::json!({
            "version": 1, "name": "web", "hypervisor": "qemu", "kernel": "/k/bzImage", "initrd": "/i/initrd",
            "kernelParams": ["quiet", format!("init={}/init", toplevel.display())],
        });
        fs::write(runner.join("share/microvm/machine.json"), spec.to_string()).unwrap();
        assert_eq!(system(&runner), None, "it was collected");
        fs::create_dir(&toplevel).unwrap();
        assert_eq!(system(&runner), Some(toplevel));
        assert_eq!(system(directory.path()), None, "not a runner of this project");
    }
}
