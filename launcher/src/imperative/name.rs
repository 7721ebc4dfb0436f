//! The name of a machine, which is also the name of a directory, a unit instance and a flake attribute.

use super::ImperativeError;
use std::fmt;

/// The longest name in bytes. It keeps the paths of sockets in the state directory below 108 bytes, the size of
/// `sun_path`: unix(7).
const MAX_NAME_BYTES: usize = 64;

/// A valid machine name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineName(String);

impl MachineName {
    /// Checks a name: letters, digits, `.`, `_` and `-`, starting with a letter or digit. Such a name contains no path,
    /// is neither an option nor a hidden file, and is a systemd instance name without escapes.
    ///
    /// # Errors
    /// Returns [`ImperativeError::BadName`].
    pub fn new(name: &str) -> Result<Self, ImperativeError> {
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
        let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        if starts_well && name.len() <= MAX_NAME_BYTES && name.chars().all(is_plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(ImperativeError::BadName(name.to_owned()))
        }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_options_or_hidden_files_are_refused() {
        for good in ["web", "web-1", "a.b_c", "7"] {
            assert!(MachineName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-web", ".web", "a b", "a@b", "a\\x2d", "ä", &"a".repeat(65)] {
            assert!(MachineName::new(bad).is_err(), "{bad}");
        }
    }
}
