//! A path on the host as the machine spec writes it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::path::Path;

/// A path on the host: absolute, or relative to the machine's state directory, in which the hypervisor runs.
///
/// It is text and not a `PathBuf` because it comes from JSON and goes into option strings, both of which are Unicode,
/// and because the pure half of the launcher must not be able to ask the file system about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct HostPath(String);

impl HostPath {
    /// Takes the path as it is written.
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// The path as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path for the standard library.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Whether it starts at the root.
    pub fn is_absolute(&self) -> bool {
        self.0.starts_with('/')
    }

    /// This path if it is absolute, else this path below `directory`.
    #[must_use]
    pub fn below(&self, directory: &HostPath) -> HostPath {
        if self.is_absolute() {
            self.clone()
        } else {
            HostPath(format!("{}/{}", directory.0.trim_end_matches('/'), self.0.trim_start_matches("./")))
        }
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<&str> for HostPath {
    fn from(path: &str) -> Self {
        Self(path.to_owned())
    }
}

impl From<String> for HostPath {
    fn from(path: String) -> Self {
        Self(path)
    }
}

impl AsRef<Path> for HostPath {
    fn as_ref(&self) -> &Path {
        self.as_path()
    }
}

impl Borrow<str> for HostPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_is_taken_from_the_directory() {
        let state = HostPath::from("/var/lib/microvms/web/");
        assert_eq!(HostPath::from("var.img").below(&state).as_str(), "/var/lib/microvms/web/var.img");
        assert_eq!(HostPath::from("./var.img").below(&state).as_str(), "/var/lib/microvms/web/var.img");
        assert_eq!(HostPath::from("/srv/var.img").below(&state).as_str(), "/srv/var.img");
    }
}
