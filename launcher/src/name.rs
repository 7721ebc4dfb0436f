//! The names of machines, and of other things from whose names the names of files are derived.

use program::escape::one_line;
use std::fmt;

/// The longest name in bytes. It keeps the paths of sockets in the state directory below 108 bytes, the size of
/// `sun_path`: unix(7).
const MAX_NAME_BYTES: usize = 64;

/// Why a text cannot be a name. The message quotes the text unescaped, except if it is empty or too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("must not be empty")]
    Empty,
    /// It has more than 64 bytes; the number is how many.
    #[error("has {0} bytes, but can have at most {MAX_NAME_BYTES}, because other names are derived from it")]
    TooLong(usize),
    /// It begins like an option or a hidden file.
    #[error("`{0}` must start with a letter, a digit or `_`")]
    FirstCharacter(String),
    /// It contains a character that has a meaning in a path, a command line or the name of a unit.
    #[error("`{0}` contains {1:?}, but only letters, digits, `.`, `_` and `-` are allowed")]
    Character(String, char),
}

/// Checks a name from which file names and command lines are derived: 1 to 64 ASCII letters, digits, `.`, `_` and `-`,
/// starting with a letter, a digit or `_`. Such a name contains no path, is neither an option nor a hidden file, and is
/// the instance name of a systemd unit without escapes: systemd.unit(5).
///
/// # Errors
/// Returns the first rule that the name breaks.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong(name.len()));
    }
    if name.starts_with(['.', '-']) {
        return Err(NameError::FirstCharacter(name.to_owned()));
    }
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    match name.chars().find(|character| !is_allowed(*character)) {
        Some(character) => Err(NameError::Character(name.to_owned(), character)),
        None => Ok(()),
    }
}

/// A text that is not the name of a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not a machine name: use 1 to {MAX_NAME_BYTES} letters, digits, `.`, `_` and `-`, starting with a letter, a \
     digit or `_`",
    one_line(.0)
)]
pub struct BadMachineName(String);

/// The name of a machine, which is also the name of a directory, of a unit's instance and of a flake's attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineName(String);

impl MachineName {
    /// Checks a name with [`check_name`].
    ///
    /// # Errors
    /// The name breaks one of the rules.
    pub fn new(name: &str) -> Result<Self, BadMachineName> {
        match check_name(name) {
            Ok(()) => Ok(Self(name.to_owned())),
            Err(_) => Err(BadMachineName(name.to_owned())),
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
    use crate::spec::parse::parse;
    use crate::state::RuntimeDirectory;
    use crate::validate::check;

    fn is_accepted_in_a_spec(name: &str) -> bool {
        let mut spec = parse(r#"{"version": 1, "name": "web", "kernel": "/srv/vmlinux"}"#).unwrap();
        spec.name = name.to_owned();
        check(&spec).is_ok()
    }

    #[test]
    fn specs_runtime_directories_and_commands_accept_the_same_names() {
        let runtime = RuntimeDirectory::at("/run/microvm");
        let longest = "a".repeat(64);
        for name in ["web", "web-1", "web_1.example", "a.b_c", "_web", "__", "7", "0-", &longest] {
            assert_eq!(MachineName::new(name).unwrap().as_str(), name);
            assert_eq!(runtime.machine(name).unwrap().name(), name);
            assert!(is_accepted_in_a_spec(name), "{name}");
        }
        let too_long = "a".repeat(65);
        let paths = ["", ".", "..", "../web", "a/b", ".web"];
        let others = ["-web", "-rf", "a b", "a@b", "a\\x2d", "a\n", "a\0", "ä", &too_long];
        for name in paths.into_iter().chain(others) {
            assert!(MachineName::new(name).is_err(), "{name:?}");
            assert!(runtime.machine(name).is_err(), "{name:?}");
            assert!(!is_accepted_in_a_spec(name), "{name:?}");
        }
    }

    #[test]
    fn the_error_names_the_rule_that_is_broken() {
        let message = |name: &str| check_name(name).unwrap_err().to_string();
        assert_eq!(message(""), "must not be empty");
        assert!(message(&"a".repeat(65)).starts_with("has 65 bytes, but can have at most 64"));
        assert_eq!(message(".web"), "`.web` must start with a letter, a digit or `_`");
        assert!(message("a b").starts_with("`a b` contains ' ', but only letters"));
        let escaped = MachineName::new("a\u{1b}b").unwrap_err().to_string();
        assert!(escaped.starts_with("`a\\u{1b}b` is not a machine name"), "{escaped}");
    }
}
