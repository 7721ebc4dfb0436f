//! The name of a member of a Nix store, valid by construction.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

/// The characters of Nix' base 32: no e, o, u, t.
const NIX_BASE32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
/// Characters of the hash part.
const HASH_LENGTH: usize = 32;
/// Nix refuses longer names (`StorePath::MaxPathLen`).
const NAME_LENGTH_MAX: usize = 211;

/// A text that does not name a member of a Nix store.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a store path: {reason}")]
pub struct StorePathError {
    /// The text as it was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The base name of a store path, `HASH-NAME`: 32 characters of Nix' base 32, a dash, and a name.
///
/// It cannot hold `/`, `..`, a leading dot or a byte outside of ASCII, so it is safe as one component of a path.
/// Ordered by its bytes.
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
        if !hash.bytes().all(|byte| NIX_BASE32.contains(&byte)) {
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
        if name.len() > NAME_LENGTH_MAX {
            return fail("its name is longer than 211 characters");
        }
        if name.starts_with('.') {
            return fail("its name starts with a dot");
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte)) {
            return fail("its name holds a character other than letters, digits and +-._?=");
        }
        Ok(Self(text.to_owned()))
    }

    /// `HASH-NAME`.
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// The 32 characters before the dash.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_LENGTH]
    }

    /// What follows the dash.
    pub fn name(&self) -> &str {
        &self.0[HASH_LENGTH + 1..]
    }
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
