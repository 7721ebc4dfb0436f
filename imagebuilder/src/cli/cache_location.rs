//! The directory of the cache.

use super::failure::Failure;
use clap::Args;
use program::presence::is_directory;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Our directory in the user's cache directory.
const CACHE_NAME: &str = "microvm-image";
/// The cache of root without a home directory, as in a systemd unit.
const SYSTEM_CACHE: &str = "/var/cache/microvm-image";

/// `--cache`, for commands that need a cache.
#[derive(Debug, Args)]
pub(crate) struct CacheDirectoryArgs {
    /// Directory of the cache [default: $MICROVM_IMAGE_CACHE, else $XDG_CACHE_HOME/microvm-image, else
    /// ~/.cache/microvm-image, else for root /var/cache/microvm-image]
    ///
    /// Any number of builds can share it, even at the same time. A build creates it if it does not exist.
    #[arg(long = "cache", value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl CacheDirectoryArgs {
    /// Returns the directory given with `--cache`, or the default one.
    pub(crate) fn directory(&self) -> Result<PathBuf, Failure> {
        match &self.directory {
            Some(directory) => Ok(directory.clone()),
            None => default_directory(|name| env::var_os(name), nix::unistd::geteuid().is_root()).ok_or_else(|| {
                Failure::usage("there is no directory for the cache: neither MICROVM_IMAGE_CACHE nor XDG_CACHE_HOME nor HOME is set")
                    .with_hint("specify a directory with --cache DIR, or build without a cache: --no-cache")
            }),
        }
    }

    /// Returns the directory like [`Self::directory`], for commands that do not create it. The default one may be missing,
    /// because it is created by the first build. A missing directory given with `--cache` is probably misspelt.
    pub(crate) fn existing_directory(&self) -> Result<PathBuf, Failure> {
        if let Some(directory) = &self.directory {
            let path = directory.display();
            match is_directory(directory) {
                Ok(true) => {}
                Ok(false) if directory.exists() => {
                    return Err(Failure::usage(format!("--cache {path} is not a directory")));
                }
                Ok(false) => {
                    return Err(Failure::usage(format!("--cache {path}: there is no such directory"))
                        .with_hint("a build with this --cache creates it"));
                }
                Err(error) => return Err(Failure::failed(&error).with_context(&format!("--cache {path}"))),
            }
        }
        self.directory()
    }
}

/// Returns the default directory of the user who runs the program.
fn default_directory(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = path("MICROVM_IMAGE_CACHE") {
        return Some(named);
    }
    // The XDG base directory specification requires that relative paths are ignored.
    let absolute = |path: &PathBuf| path.is_absolute();
    path("XDG_CACHE_HOME")
        .filter(absolute)
        .or_else(|| path("HOME").filter(absolute).map(|home| home.join(".cache")))
        .map(|caches| caches.join(CACHE_NAME))
        .or_else(|| is_root.then(|| Path::new(SYSTEM_CACHE).to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(&str, &str); 3] =
        [("MICROVM_IMAGE_CACHE", "/named"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/me")];

    fn directory(variables: &[(&str, &str)], is_root: bool) -> Option<PathBuf> {
        let variable =
            |name: &str| variables.iter().find_map(|(known, value)| (*known == name).then(|| OsString::from(value)));
        default_directory(variable, is_root)
    }

    #[test]
    fn the_first_variable_that_is_set_determines_the_directory() {
        for (is_root, last) in [(true, Some("/var/cache/microvm-image")), (false, None)] {
            for (variables, expected) in [
                (&ALL[..], Some("/named")),
                (&ALL[1..], Some("/xdg/microvm-image")),
                (&ALL[2..], Some("/home/me/.cache/microvm-image")),
                (&[], last),
                (&[("MICROVM_IMAGE_CACHE", ""), ("XDG_CACHE_HOME", "relative"), ("HOME", "")], last),
            ] {
                assert_eq!(directory(variables, is_root), expected.map(PathBuf::from), "{variables:?}");
            }
        }
    }
}
