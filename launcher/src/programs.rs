//! Finding programs, and naming the package to install if one is missing.

use crate::hypervisor::description;
use crate::path::HostPath;
use crate::spec::Hypervisor;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};
use std::path::{Path, PathBuf};
use volume_maker::FileSystem;

/// A program that is not installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{program} is not installed: {place}; {install_hint}")]
pub struct NotInstalled {
    /// The program as it was requested.
    pub program: String,
    /// Where it was searched for.
    pub place: String,
    /// What to install.
    pub install_hint: String,
}

/// Packages by the file name of a program: the Debian package, if there is one, and the nixpkgs package. Those of the
/// hypervisors are in [`crate::hypervisor::Description`], those of the mkfs programs in [`FileSystem`].
const PACKAGES: &[(&str, Option<&str>, &str)] = &[
    ("virtiofsd", Some("virtiofsd"), "virtiofsd"),
    ("passt", Some("passt"), "passt"),
    ("e2fsck", Some("e2fsprogs"), "e2fsprogs"),
    ("resize2fs", Some("e2fsprogs"), "e2fsprogs"),
    ("e2image", Some("e2fsprogs"), "e2fsprogs"),
];

/// Returns the error for a program that is not at `place`.
pub fn not_installed(program: &str, place: &str) -> NotInstalled {
    NotInstalled {
        program: program.to_owned(),
        place: place.to_owned(),
        install_hint: install_hint(Path::new(program)),
    }
}

/// Finds a program of a machine: a relative path refers to the machine's state directory.
///
/// # Errors
/// The same as [`find_program`].
pub fn find_program_of_machine(program: &HostPath, state_directory: &HostPath) -> Result<PathBuf, NotInstalled> {
    if program.as_str().contains('/') { find_program(&program.below(state_directory)) } else { find_program(program) }
}

/// Finds a program: a name with a slash is a path, any other name is searched for in `$PATH`.
///
/// # Errors
/// Returns [`NotInstalled`], with the package that contains the program if it is known.
pub fn find_program(program: &HostPath) -> Result<PathBuf, NotInstalled> {
    let missing = |place: String| not_installed(program.as_str(), &place);
    if program.as_str().contains('/') {
        let path = program.as_path();
        return if is_program(path) {
            Ok(path.to_owned())
        } else if path.exists() {
            Err(missing(format!("{program} cannot be executed")))
        } else {
            Err(missing("there is no such file".to_owned()))
        };
    }
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&search_path)
        .map(|directory| directory.join(program.as_path()))
        .find(|path| is_program(path))
        .ok_or_else(|| missing("it is not in any directory of $PATH".to_owned()))
}

/// Finds a program of a file system, such as `mkfs.ext4`, also where it is not in the `$PATH` of ordinary users.
///
/// # Errors
/// Returns [`NotInstalled`].
pub fn find_file_system_program(program: &str) -> Result<PathBuf, NotInstalled> {
    volume_maker::find_program(program).ok_or_else(|| not_installed(program, "it is not in any directory of $PATH"))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok()
}

fn install_hint(program: &Path) -> String {
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let of_hypervisors = Hypervisor::ALL.into_iter().flat_map(|hypervisor| description(hypervisor).programs);
    let of_hypervisors = of_hypervisors.map(|program| (program.name, program.debian_package, program.nix_package));
    let of_file_systems = FileSystem::of_mkfs_program(name);
    let of_file_systems = of_file_systems.map(|found| (name, Some(found.debian_package()), found.nix_package()));
    match PACKAGES.iter().copied().chain(of_hypervisors).chain(of_file_systems).find(|(known, _, _)| *known == name) {
        Some((_, Some(debian), nixpkgs)) => format!("install it (Debian: {debian}, nixpkgs: {nixpkgs})"),
        Some((_, None, nixpkgs)) => format!("install it (nixpkgs: {nixpkgs}), or set its program in the machine spec"),
        None => "install it, or set another program in the machine spec".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_a_missing_program_names_the_package() {
        let error = find_program(&HostPath::from("/nonexistent/bin/cloud-hypervisor")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/nonexistent/bin/cloud-hypervisor is not installed: there is no such file; \
             install it (nixpkgs: cloud-hypervisor), or set its program in the machine spec"
        );
        let error = find_program(&HostPath::from("mkfs.no-such-file-system")).unwrap_err();
        assert!(error.to_string().contains("$PATH"), "{error}");
        assert!(install_hint(Path::new("qemu-system-x86_64")).contains("Debian: qemu-system-x86"));
    }

    #[test]
    fn a_file_that_is_not_executable_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("crosvm");
        std::fs::write(&path, "").unwrap();
        let error = find_program(&HostPath::from(path.to_str().unwrap())).unwrap_err();
        assert!(error.to_string().contains("cannot be executed"), "{error}");
        assert!(find_program(&HostPath::from("sh")).unwrap().is_absolute());
    }
}
