//! `microvm create`: creates a machine from a flake.

use super::layout::{DIRECTORY_MODE, Layout, Machine, remove_link, rename};
use super::lock::{MachineLock, NamesLock};
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
/// Returns [`ImperativeError::Exists`] or [`ImperativeError::SharedRoot`] before anything is built, an error of Nix or of
/// a file operation, or [`ImperativeError::Created`].
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
///
/// # Errors
/// Returns [`ImperativeError::SharedRoot`] if a machine with one of its roots was created in the meantime, an error of a
/// file operation, or [`ImperativeError::Created`].
pub(super) fn publish(layout: &Layout, making: &Machine, machine: &Machine) -> Result<(), ImperativeError> {
    let runner = making.runner()?;
    let _names = layout.reserve_name(machine)?;
    layout.add_temporary_gc_root(machine, &runner)?;
    layout.add_gc_roots(machine)?;
    // The link to the runner must survive a power cut if the new name does: Nix, which has made it, does not sync it.
    Directory::open(&making.directory)
        .and_then(|directory| directory.sync())
        .map_err(ImperativeError::file(&making.directory))?;
    rename(&making.directory, &machine.directory).map_err(|error| {
        // The name could not be synced, but other processes see the machine already.
        match fs::symlink_metadata(&making.directory) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => created(machine, error),
            _ => error,
        }
    })
}

fn created(machine: &Machine, source: ImperativeError) -> ImperativeError {
    ImperativeError::Created { directory: machine.directory.clone(), source: Box::new(source) }
}

/// Removes what a failed creation has made. After [`ImperativeError::Created`], there is nothing to remove: the machine
/// is complete and keeps its roots.
pub(super) fn discard(layout: &Layout, making: &Machine, machine: &Machine) {
    let is_missing = |directory: &Path| fs::symlink_metadata(directory).is_err();
    // The first error matters more than those of the cleanup.
    // As in a deletion: another machine that is being created may get a root of the same name. Without the lock, the roots
    // stay, and the next command that creates or deletes the machine replaces or removes them.
    let names = NamesLock::take(layout);
    if is_missing(&machine.directory) {
        let _ = names.and_then(|_names| layout.remove_gc_roots(machine));
    } else if !is_missing(&making.directory) {
        // Another process has created the machine, which needs the roots.
        let _ = remove_link(&layout.temporary_gc_root(machine));
    }
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
///
/// # Errors
/// Returns [`ImperativeError::Created`].
pub(super) fn finish(layout: &Layout, machine: &Machine) -> Result<(), ImperativeError> {
    fs::File::open(layout.machines())
        .and_then(|directory| directory.sync_all())
        .map_err(ImperativeError::file(layout.machines()))
        .and_then(|()| remove_link(&layout.temporary_gc_root(machine)))
        .map_err(|error| created(machine, error))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

    use super::*;
    use std::os::unix::fs::symlink;

    /// A host, and a machine that is complete except for its final name.
    fn unpublished(name: &str) -> (tempfile::TempDir, Layout, [Machine; 2]) {
        let host = tempfile::tempdir().unwrap();
        let layout = Layout::at(host.path().join("machines"), host.path().join("gcroots"));
        let machine = layout.machine(&MachineName::new(name).unwrap());
        let making = Machine { name: machine.name.clone(), directory: layout.unfinished(&machine) };
        fs::create_dir_all(&making.directory).unwrap();
        symlink("/nix/store/runner", making.current()).unwrap();
        (host, layout, [making, machine])
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_machine_with_the_same_root_that_was_created_during_the_build_is_not_damaged() {
        let (host, layout, [making, machine]) = unpublished("booted-web");
        let web = layout.machine(&MachineName::new("web").unwrap());
        fs::create_dir(&web.directory).unwrap();
        layout.add_gc_roots(&web).unwrap();
        let error = publish(&layout, &making, &machine).unwrap_err();
        assert!(matches!(error, ImperativeError::SharedRoot(_)), "{error}");
        discard(&layout, &making, &machine);
        assert_eq!(names(&host.path().join("machines")), ["web"]);
        assert_eq!(names(&host.path().join("gcroots")), ["booted-web", "web"]);
        assert_eq!(fs::read_link(host.path().join("gcroots/booted-web")).unwrap(), web.booted());
    }

    #[test]
    fn a_failed_creation_leaves_nothing_although_another_process_has_made_the_directory() {
        let (host, layout, [making, machine]) = unpublished("web");
        fs::create_dir_all(machine.directory.join("of-another-process")).unwrap();
        let error = publish(&layout, &making, &machine).unwrap_err();
        assert!(matches!(error, ImperativeError::File { .. }), "{error}");
        discard(&layout, &making, &machine);
        assert_eq!(names(&host.path().join("machines")), ["web"]);
        assert_eq!(names(&host.path().join("gcroots")), ["booted-web", "web"], "the other process needs them");
    }

    #[test]
    fn a_machine_that_has_its_name_keeps_its_roots_when_a_later_step_fails() {
        let (host, layout, [making, machine]) = unpublished("web");
        publish(&layout, &making, &machine).unwrap();
        let temporary = layout.temporary_gc_root(&machine);
        fs::remove_file(&temporary).unwrap();
        fs::create_dir_all(temporary.join("cannot-be-removed")).unwrap();
        let error = finish(&layout, &machine).unwrap_err();
        assert!(error.to_string().contains("/machines/web was created, but then an error occurred: "), "{error}");
        discard(&layout, &making, &machine);
        assert_eq!(names(&host.path().join("gcroots")), [".web.new", "booted-web", "web"]);
    }
}
