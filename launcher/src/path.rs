//! Paths on the host, as they are written in the machine spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::path::Path;

/// A path on the host: absolute, or relative to the machine's state directory, which is the hypervisor's working
/// directory.
///
/// It is text and not a `PathBuf`, because it comes from JSON and goes into option strings, both of which are Unicode,
/// and because the pure part of the launcher must not access the file system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct HostPath(String);

impl HostPath {
    /// Wraps the path unchanged.
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// Returns the path by which a process opens the file again that it has inherited as descriptor `number`: proc(5).
    pub fn of_descriptor(number: i32) -> Self {
        Self(format!("/proc/self/fd/{number}"))
    }

    /// Returns the path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the path for the standard library.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// Whether it is absolute.
    pub fn is_absolute(&self) -> bool {
        self.0.starts_with('/')
    }

    /// Whether devices have such paths. /dev/shm is for files in memory.
    pub fn is_device(&self) -> bool {
        self.0.starts_with("/dev/") && !self.0.starts_with("/dev/shm/")
    }

    /// Returns the path unchanged if it is absolute, otherwise joined to `directory`.
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
