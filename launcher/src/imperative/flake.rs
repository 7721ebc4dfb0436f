//! The flake references that machines are built from.

use super::{ImperativeError, MachineName};
use std::fmt;
use std::io;
use std::path::Path;

/// The directory of the default flake, which NixOS uses too.
const DEFAULT_DIRECTORY: &str = "/etc/nixos";

/// A flake reference that has the same meaning in every directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlakeReference(String);

impl FlakeReference {
    /// Returns the default flake, `git+file:///etc/nixos`.
    ///
    /// # Errors
    /// Returns [`ImperativeError::NoDefaultFlake`] if it does not exist.
    pub fn of_host() -> Result<Self, ImperativeError> {
        Self::default_in(DEFAULT_DIRECTORY)
    }

    fn default_in(directory: &str) -> Result<Self, ImperativeError> {
        if Path::new(directory).join("flake.nix").is_file() {
            Ok(Self(format!("git+file://{directory}")))
        } else {
            Err(ImperativeError::NoDefaultFlake(directory.to_owned()))
        }
    }

    /// Resolves a reference that the user has typed. References with a scheme and names of the flake registry stay
    /// unchanged. Paths of directories become absolute, because the state directory is used from other working
    /// directories later.
    ///
    /// # Errors
    /// Returns [`ImperativeError::BadFlake`].
    pub fn resolve(text: &str, current_directory: &Path) -> Result<Self, ImperativeError> {
        let refuse = |reason| Err(ImperativeError::BadFlake(text.to_owned(), reason));
        if text.is_empty() || text.starts_with('-') || text.contains(char::is_control) {
            return refuse("is not a flake reference");
        }
        if text.contains('#') {
            return refuse("contains an attribute, but the machine's name is used as the attribute");
        }
        let is_path = text.starts_with('/') || text.starts_with('.');
        if !text.contains([':', '?'])
            && current_directory.join(text).is_dir()
            && !has_flake(&current_directory.join(text))
        {
            return refuse("there is no flake.nix in this directory");
        }
        let is_directory = !text.contains(':') && current_directory.join(text).join("flake.nix").is_file();
        if !is_path && !is_directory {
            return Ok(Self(text.to_owned()));
        }
        let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
        let absolute = match current_directory.join(path).canonicalize() {
            Ok(absolute) => absolute,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return refuse("there is no such directory"),
            Err(error) => return Err(ImperativeError::file(&current_directory.join(path))(error)),
        };
        let Some(absolute) = absolute.to_str() else { return refuse("the path must be UTF-8") };
        Ok(Self(query.map_or_else(|| absolute.to_owned(), |query| format!("{absolute}?{query}"))))
    }

    /// Wraps the reference that is stored in a state directory.
    pub fn stored(text: &str) -> Self {
        Self(text.trim_end_matches('\n').to_owned())
    }

    /// Returns the reference as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the installable of the machine's runner.
    pub(super) fn runner_of(&self, name: &MachineName) -> String {
        format!("{}#nixosConfigurations.\"{name}\".config.microvm.declaredRunner", self.0)
    }
}

/// Whether Nix finds a flake for the directory: it also searches the parent directories, up to the root of the
/// repository.
fn has_flake(directory: &Path) -> bool {
    let is_there = |directory: &Path| directory.join("flake.nix").is_file();
    let Ok(directory) = directory.canonicalize() else { return false };
    directory.ancestors().any(is_there)
}

impl fmt::Display for FlakeReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_default_flake_the_error_names_its_file_and_the_option() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let error = FlakeReference::default_in(path).unwrap_err();
        assert!(error.is_bad_input());
        assert_eq!(
            error.to_string(),
            format!(
                "no flake was named, and the default, {path}/flake.nix, does not exist; name one with --flake FLAKE"
            )
        );
        std::fs::write(directory.path().join("flake.nix"), "{}").unwrap();
        assert_eq!(FlakeReference::default_in(path).unwrap().to_string(), format!("git+file://{path}"));
    }

    #[test]
    fn paths_become_absolute_and_other_references_stay() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("machines")).unwrap();
        std::fs::write(root.join("machines/flake.nix"), "{}").unwrap();
        let machines = root.join("machines").to_str().unwrap().to_owned();
        let resolve = |text: &str| FlakeReference::resolve(text, &root).map(|flake| flake.to_string());
        assert_eq!(resolve("machines").unwrap(), machines);
        assert_eq!(resolve("./machines").unwrap(), machines);
        assert_eq!(resolve("./machines?dir=a").unwrap(), format!("{machines}?dir=a"));
        for kept in ["nixpkgs", "github:NixOS/nixpkgs/nixos-24.05", "git+file:///etc/nixos", "path:/srv"] {
            assert_eq!(resolve(kept).unwrap(), kept);
        }
        std::fs::create_dir(root.join("empty")).unwrap();
        for refused in ["", "-x", "./nowhere", ".#web", "a\nb", "empty", "./empty"] {
            assert!(resolve(refused).is_err(), "{refused}");
        }
    }
}
