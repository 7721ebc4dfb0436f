//! The base name of a store path, valid by construction.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

/// Length of the hash part in characters.
const HASH_LENGTH: usize = 32;
/// Maximum length of the name in characters (`StorePath::MaxPathLen` of Nix).
const MAX_NAME_LENGTH: usize = 211;

/// Returns whether it is a digit of Nix's base 32, which has no e, o, t and u.
fn is_nix_base32(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'd' | b'f'..=b'n' | b'p'..=b's' | b'v'..=b'z')
}

/// Returns whether names can contain it.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_' | b'?' | b'=')
}

/// A text that is not a store path.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a store path: {reason}")]
pub struct StorePathError {
    /// The text.
    pub text: String,
    /// The problem with it.
    pub reason: &'static str,
}

/// The base name of a store path, `HASH-NAME`: 32 characters of Nix's base 32, a dash, and a name.
///
/// It cannot contain `/`, `..`, a leading dot or characters outside of ASCII, so it is safe as a component of a path.
/// Base names are ordered by their bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorePath(String);

impl StorePath {
    /// Checks a base name such as `0c0w…-bash-5.2`.
    ///
    /// # Errors
    /// The text is not `HASH-NAME`.
    pub fn from_base_name(text: &str) -> Result<Self, StorePathError> {
        let fail = |reason| Err(StorePathError { text: text.to_owned(), reason });
        let Some((hash, rest)) = text.split_at_checked(HASH_LENGTH) else {
            return fail("it is shorter than the 32 characters of the hash");
        };
        if !hash.bytes().all(is_nix_base32) {
            return fail(
                "its first 32 characters are not Nix base 32 (digits and lower case letters without e, o, t, u)",
            );
        }
        let Some(name) = rest.strip_prefix('-') else {
            return fail("no dash follows the hash");
        };
        if name.is_empty() {
            return fail("no name follows the hash");
        }
        if name.len() > MAX_NAME_LENGTH {
            return fail("its name is longer than 211 characters");
        }
        if name.starts_with('.') {
            return fail("its name starts with a dot");
        }
        if !name.bytes().all(is_of_name) {
            return fail("its name contains a character other than letters, digits and +-._?=");
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns `HASH-NAME`.
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// Returns the 32 characters before the dash.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_LENGTH]
    }

    /// Returns the numbers of store paths in the order of `key`, then of their base names, then of the numbers.
    pub(crate) fn order<'a>(paths: impl IntoIterator<Item = &'a Self>, key: fn(&Self) -> &str) -> Vec<usize> {
        // The first characters decide nearly always, and comparing them needs no access to the texts.
        let beginning = |path: &'a Self| {
            let mut bytes = [0; 16];
            bytes.iter_mut().zip(key(path).bytes()).for_each(|(to, from)| *to = from);
            u128::from_be_bytes(bytes)
        };
        let mut order: Vec<(u128, &str, &Self, usize)> =
            paths.into_iter().enumerate().map(|(number, path)| (beginning(path), key(path), path, number)).collect();
        order.sort_unstable();
        order.into_iter().map(|(.., number)| number).collect()
    }

    /// Returns the part after the dash.
    pub fn name(&self) -> &str {
        &self.0[HASH_LENGTH + 1..]
    }
}

/// A store path in a text: only a base name, or a base name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedStorePath {
    /// The directory in the text, such as `/nix/store`; `None` if there is only a base name.
    pub store_dir: Option<PathBuf>,
    /// The store path.
    pub path: StorePath,
}

impl LocatedStorePath {
    /// Parses `/nix/store/HASH-NAME` or `HASH-NAME`. Trailing and doubled slashes are ignored.
    ///
    /// # Errors
    /// The text is relative and has a directory, contains `..`, or its last component is not `HASH-NAME`.
    pub fn parse(text: &str) -> Result<Self, StorePathError> {
        // Nearly all texts have this form, and closures have thousands of them; the rest takes ten times as long.
        if let Some((directory, name)) = text.rsplit_once('/')
            && is_normalised(directory)
            && let Ok(path) = StorePath::from_base_name(name)
        {
            return Ok(Self { store_dir: Some(directory.into()), path });
        }
        let fail = |reason| Err(StorePathError { text: text.to_owned(), reason });
        let whole = Path::new(text);
        if whole.components().any(|component| component == Component::ParentDir) {
            return fail("it holds `..`");
        }
        let Some(base_name) = whole.file_name().and_then(|name| name.to_str()) else {
            return fail("it names no file");
        };
        let path = StorePath::from_base_name(base_name).map_err(|error| {
            let reason = if inside_a_store_path(whole) {
                "it is inside a store path; name the store path itself"
            } else {
                error.reason
            };
            StorePathError { text: text.to_owned(), reason }
        })?;
        // `components` skips doubled slashes and inner dots, so that equal directories compare equal.
        let parent: PathBuf = whole.parent().map(|parent| parent.components().collect()).unwrap_or_default();
        if whole.is_absolute() {
            Ok(Self { store_dir: Some(parent), path })
        } else if parent.as_os_str().is_empty() {
            Ok(Self { store_dir: None, path })
        } else {
            fail("it is relative; use an absolute path, or only its base name")
        }
    }
}

/// Returns whether a directory is certainly absolute and in its shortest form.
fn is_normalised(directory: &str) -> bool {
    directory.len() > 1
        && directory.split('/').skip(1).all(|name| !name.is_empty() && !name.starts_with('.'))
        && directory.starts_with('/')
}

/// Returns whether one of the directories above the last component is named like a store path.
fn inside_a_store_path(whole: &Path) -> bool {
    whole
        .ancestors()
        .skip(1)
        .filter_map(|above| above.file_name()?.to_str())
        .any(|name| StorePath::from_base_name(name).is_ok())
}

impl TryFrom<String> for StorePath {
    type Error = StorePathError;

    fn try_from(text: String) -> Result<Self, StorePathError> {
        Self::from_base_name(&text)
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> Self {
        path.0
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv";

    fn reason(text: &str) -> &'static str {
        LocatedStorePath::parse(text).unwrap_err().reason
    }

    #[test]
    fn a_base_name_has_a_hash_and_a_name() {
        let path = StorePath::from_base_name(&format!("{HASH}-bash-5.2")).unwrap();
        assert_eq!((path.hash_part(), path.name()), (HASH, "bash-5.2"));
    }

    #[test]
    fn paths_are_ordered_by_the_bytes_of_their_keys() {
        let name = "[a-z]{0,1}(small-file|small-files-in|s)[a-z.-]{0,2}";
        proptest!(|(names in prop::collection::vec(("[01]", name), 0..40))| {
            let text = |(digit, name): &(String, String)| format!("{digit}{}-{name}", &HASH[1..]);
            let paths: Vec<StorePath> =
                names.iter().map(|parts| StorePath::from_base_name(&text(parts)).unwrap()).collect();
            for key in [StorePath::name, StorePath::base_name] {
                let mut expected: Vec<usize> = (0..paths.len()).collect();
                expected.sort_by_key(|number| (key(&paths[*number]), paths[*number].base_name()));
                prop_assert_eq!(StorePath::order(&paths, key), expected);
            }
        });
    }

    #[test]
    fn names_that_nix_refuses_are_refused() {
        for (name, expected) in [
            ("", "it is shorter than the 32 characters of the hash"),
            (&HASH[1..], "it is shorter than the 32 characters of the hash"),
            (HASH, "no dash follows the hash"),
            (&format!("{HASH}_x"), "no dash follows the hash"),
            (&format!("{HASH}-"), "no name follows the hash"),
            (&format!("{HASH}-.x"), "its name starts with a dot"),
            (&format!("{HASH}-a b"), "its name contains a character other than letters, digits and +-._?="),
            (&format!("{HASH}-{}", "a".repeat(212)), "its name is longer than 211 characters"),
            (
                &format!("{}-x", HASH.replace('0', "e")),
                "its first 32 characters are not Nix base 32 (digits and lower case letters without e, o, t, u)",
            ),
        ] {
            assert_eq!(StorePath::from_base_name(name).unwrap_err().reason, expected, "{name}");
        }
        assert!(StorePath::from_base_name(&format!("{HASH}-{}", "a".repeat(211))).is_ok());
    }

    #[test]
    fn trailing_and_doubled_slashes_are_ignored() {
        let plain = LocatedStorePath::parse(&format!("/nix/store/{HASH}-x")).unwrap();
        assert_eq!(plain.store_dir.as_deref(), Some(Path::new("/nix/store")));
        assert_eq!(LocatedStorePath::parse(&format!("/nix//store/./{HASH}-x//")).unwrap(), plain);
        assert_eq!(LocatedStorePath::parse(&format!("{HASH}-x/")).unwrap().store_dir, None);
    }

    #[test]
    fn texts_that_are_not_store_paths_are_refused() {
        assert_eq!(reason("/"), "it names no file");
        assert_eq!(reason("/etc/passwd"), "it is shorter than the 32 characters of the hash");
        assert_eq!(
            reason(&format!("/nix/store/{HASH}-x/bin")),
            "it is inside a store path; name the store path itself"
        );
        assert_eq!(reason(&format!("/nix/store/../{HASH}-x")), "it holds `..`");
        assert_eq!(reason(&format!("store/{HASH}-x")), "it is relative; use an absolute path, or only its base name");
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(name in "[0-9abcdf-np-sv-z]{32}-[a-zA-Z0-9+_?=-][a-zA-Z0-9+._?=-]{0,210}") {
            let path = StorePath::from_base_name(&name).unwrap();
            prop_assert_eq!(path.to_string(), name.clone());
            let located = LocatedStorePath::parse(&format!("/nix/store/{path}")).unwrap();
            prop_assert_eq!(&located.path, &path);
            // The long way gives the same as the short one.
            prop_assert_eq!(LocatedStorePath::parse(&format!("/nix//./store/{path}/")).unwrap(), located);
        }

        #[test]
        fn any_text_is_accepted_or_refused_without_a_panic(text in ".*") {
            if let Ok(located) = LocatedStorePath::parse(&text) {
                prop_assert!(!located.path.base_name().contains('/'));
            }
        }
    }
}
