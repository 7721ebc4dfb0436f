//! The name of a machine: a directory's, a unit instance's and a flake attribute's at once.

use super::ImperativeError;
use std::fmt;

/// As long as the state directory's sockets bear: sun_path has 108 bytes.
const LONGEST_BYTES: usize = 64;

/// A machine's name, checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineName(String);

impl MachineName {
    /// Checks a name: letters, digits, `.`, `_` and `-`, and the first is a letter or digit. So it is no path, no option,
    /// no hidden file, and what systemd takes as an instance without escapes.
    ///
    /// # Errors
    /// [`ImperativeError::BadName`].
    pub fn new(name: &str) -> Result<Self, ImperativeError> {
        let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
        let is_plain = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
        if starts_well && name.len() <= LONGEST_BYTES && name.chars().all(is_plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(ImperativeError::BadName(name.to_owned()))
        }
    }

    /// The name.
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
    fn names_are_no_paths_no_options_and_no_hidden_files() {
        for good in ["web", "web-1", "a.b_c", "7"] {
            assert!(MachineName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-web", ".web", "a b", "a@b", "a\\x2d", "ä", &"a".repeat(65)] {
            assert!(MachineName::new(bad).is_err(), "{bad}");
        }
    }
}
