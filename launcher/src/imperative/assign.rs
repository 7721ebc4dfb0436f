//! Giving a machine a runner that comes from elsewhere, as the resource agent of a cluster does.

use super::layout::DIRECTORY_MODE;
use super::layout::{Layout, Machine, remove_link, replace_link};
use super::lock::MachineLock;
use super::{ImperativeError, MachineName, nix};
use program::place::Directory;
use std::path::Path;

/// Copies the closure of a runner from another store, which must have signed it. Until the machine refers to the
/// runner, a temporary root keeps it.
///
/// # Errors
/// Returns [`ImperativeError::NoProgram`] or [`ImperativeError::Program`] if Nix fails.
pub fn fetch(layout: &Layout, name: &MachineName, (store, runner): (&str, &Path)) -> Result<(), ImperativeError> {
    layout.add_temporary_gc_root(&layout.machine(name), runner)?;
    nix::copy_from(store, runner)
}

/// Creates the state directory of a machine if it is missing, and points the machine to a runner.
///
/// # Errors
/// Returns [`ImperativeError::SharedRoot`] or [`ImperativeError::File`].
pub fn assign(layout: &Layout, name: &MachineName, runner: &Path) -> Result<Machine, ImperativeError> {
    let machine = layout.machine(name);
    let _lock = MachineLock::take(layout, name)?;
    let names = layout.reserve_name(&machine)?;
    let failed = ImperativeError::file(&machine.directory);
    Directory::make(&machine.directory, DIRECTORY_MODE, None).map_err(failed)?;
    drop(names);
    layout.add_gc_roots(&machine)?;
    replace_link(runner, &machine.current())?;
    remove_link(&layout.temporary_gc_root(&machine))?;
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_a_cluster_does_not_get_the_root_of_another_machine_of_the_host() {
        let host = tempfile::tempdir().expect("a directory");
        let layout = Layout::at(host.path().join("machines"), host.path().join("gcroots"));
        let name = |name: &str| MachineName::new(name).expect("a name");
        let runner = Path::new("/nix/store/runner");
        let web = assign(&layout, &name("web"), runner).expect("a machine");
        let error = assign(&layout, &name("booted-web"), runner).expect_err("one root for both");
        assert!(matches!(error, ImperativeError::SharedRoot(_)), "{error}");
        let root = host.path().join("gcroots/booted-web");
        assert_eq!(std::fs::read_link(root).expect("the root"), web.booted());
        assert!(!layout.machine(&name("booted-web")).directory.exists());
        assign(&layout, &name("web"), runner).expect("it exists already");
    }
}
