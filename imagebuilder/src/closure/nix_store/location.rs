//! The selected Nix store, and the directory of its files.

use super::NixStoreError;
use crate::closure::check::DEFAULT_STORE_DIR;
use program::presence::is_directory;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A store other than the default of `nix-store`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// A store URL in Nix's syntax: `daemon`, `local?root=/mnt`, `unix:///run/nix.sock`.
    Url(String),
    /// A chroot store: the directory that contains `nix/store` and the database.
    Root(PathBuf),
}

impl StoreLocation {
    /// Distinguishes a URL from a directory as Nix does: a text that contains `://` or is a store name of Nix is a URL.
    pub fn parse(text: &OsStr) -> Self {
        match text.to_str() {
            Some(url) if url.contains("://") || matches!(scheme(url), "auto" | "daemon" | "local") => {
                Self::Url(url.to_owned())
            }
            _ => Self::Root(PathBuf::from(text)),
        }
    }

    /// Returns the value for `nix-store --store`. A directory is made absolute, because Nix recognises it by its slash.
    pub(super) fn argument(&self) -> OsString {
        match self {
            Self::Url(url) => url.into(),
            Self::Root(root) => std::path::absolute(root).unwrap_or_else(|_| root.clone()).into(),
        }
    }

    /// Returns the directory that contains the files of the store paths.
    ///
    /// # Errors
    /// The store is not on this machine, or the directory contains no store. The latter is checked because Nix would
    /// create an empty store there.
    pub(super) fn store_dir(&self, logical_dir: &Path) -> Result<PathBuf, NixStoreError> {
        let under = |root: &Path| root.join(logical_dir.strip_prefix("/").unwrap_or(logical_dir));
        let (root, store_dir) = match self {
            // A plan must not depend on the current directory.
            Self::Root(root) => (root.clone(), under(&std::path::absolute(root).unwrap_or_else(|_| root.clone()))),
            Self::Url(url) => match (setting(url, "real"), setting(url, "root")) {
                (Some(real), _) => (PathBuf::from(&real), PathBuf::from(real)),
                (None, Some(root)) => (PathBuf::from(&root), under(Path::new(&root))),
                (None, None) if matches!(scheme(url), "auto" | "daemon" | "local" | "unix") => {
                    return Ok(logical_dir.to_path_buf());
                }
                (None, None) => return Err(NixStoreError::Remote { url: url.clone() }),
            },
        };
        match is_directory(&store_dir) {
            Ok(true) => Ok(store_dir),
            Ok(false) => Err(NixStoreError::NoStore { root, store_dir }),
            Err(source) => Err(NixStoreError::Look { store_dir, source }),
        }
    }
}

/// Returns the directory before the base names in the output of Nix: the environment overrides `/nix/store`, as it does
/// for Nix itself.
pub(super) fn logical_store_dir() -> PathBuf {
    std::env::var_os("NIX_STORE_DIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_STORE_DIR), PathBuf::from)
}

/// Returns the scheme of a store URL: `local` for `local?root=/mnt`, `unix` for `unix:///run/nix.sock`.
fn scheme(url: &str) -> &str {
    let end = url.find("://").or_else(|| url.find('?')).unwrap_or(url.len());
    &url[..end]
}

/// Returns the percent-decoded value of a parameter after the `?` of a URL.
fn setting(url: &str, name: &str) -> Option<OsString> {
    let (_, settings) = url.split_once('?')?;
    let value = settings.split('&').find_map(|setting| setting.strip_prefix(name)?.strip_prefix('='))?;
    Some(percent_decoded(value))
}

fn percent_decoded(text: &str) -> OsString {
    use std::os::unix::ffi::OsStringExt;
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            decoded.push(byte);
            rest = &after[2..];
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    OsString::from_vec(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_distinguished_from_directories() {
        for url in ["daemon", "auto", "local", "local?root=/mnt", "unix:///run/nix.sock", "https://cache.example"] {
            assert_eq!(StoreLocation::parse(OsStr::new(url)), StoreLocation::Url(url.to_owned()));
        }
        for root in ["./root", "/mnt", "root", "dae mon", "locally"] {
            assert_eq!(StoreLocation::parse(OsStr::new(root)), StoreLocation::Root(PathBuf::from(root)));
        }
    }

    #[test]
    fn the_store_directory_is_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let store_dir = root.path().join("nix/store");
        std::fs::create_dir_all(&store_dir).unwrap();
        let logical_dir = Path::new("/nix/store");
        let path = root.path().to_str().unwrap();
        for text in [
            path.to_owned(),
            format!("local?root={path}"),
            format!("local://?root={path}"),
            format!("local?state=/x&root={}", path.replace("tmp", "%74mp")),
            format!("local?real={path}/nix/store"),
        ] {
            let found = StoreLocation::parse(OsStr::new(&text)).store_dir(logical_dir).unwrap();
            assert_eq!(found, store_dir, "{text}");
        }
        assert_eq!(StoreLocation::parse(OsStr::new("daemon")).store_dir(logical_dir).unwrap(), logical_dir);
    }

    #[test]
    fn a_relative_root_is_made_absolute() {
        let current = std::env::current_dir().unwrap();
        let root = tempfile::tempdir_in(&current).unwrap();
        std::fs::create_dir_all(root.path().join("nix/store")).unwrap();
        let relative = Path::new(root.path().file_name().unwrap());
        let found = StoreLocation::Root(relative.to_path_buf()).store_dir(Path::new("/nix/store")).unwrap();
        assert_eq!(found, root.path().join("nix/store"));
    }

    #[test]
    fn stores_without_files_on_this_machine_are_refused() {
        let logical_dir = Path::new("/nix/store");
        let refusal =
            |text: &str| StoreLocation::parse(OsStr::new(text)).store_dir(logical_dir).unwrap_err().to_string();
        assert_eq!(refusal("ssh://builder"), "the files of the store ssh://builder are not on this machine");
        assert_eq!(
            refusal("/no/such/root"),
            "/no/such/root/nix/store is not a directory, so /no/such/root is not a store"
        );
    }
}
