//! Queries the Nix store for the closure of some store paths with `nix-store`. Its output is the same in all versions
//! of Nix from 2.8 to 2.34, while that of `nix path-info --json` has had three forms.

mod location;

pub use location::StoreLocation;

use super::check::{Closure, ClosureProblem, ClosureProblems, Position};
use super::registration::{self, Registration};
use crate::store_path::{LocatedStorePath, StorePath, StorePathError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use thiserror::Error;

/// Number of store paths per call: their names take much less than the 2 MiB that Linux allows for a program's
/// arguments.
const PATHS_IN_ONE_CALL: usize = 2000;
/// Maximum number of symbolic links from an argument to the store, the same as in Linux.
const MAX_SYMLINKS: usize = 40;

/// The closure cannot be read from the Nix store.
#[derive(Debug, Error)]
pub enum NixStoreError {
    /// An argument does not name a store path.
    #[error(transparent)]
    Arguments(#[from] ClosureProblems),
    /// The program is not installed.
    #[error("the program nix-store is not installed")]
    NoProgram,
    /// The program cannot be run.
    #[error("cannot run nix-store")]
    Run(#[source] io::Error),
    /// The program failed.
    #[error("{command} failed ({status}): {message}")]
    Failed {
        /// The command, without the paths.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Its output on stderr.
        message: String,
    },
    /// The output of the program is not a list of store paths.
    #[error("{command} printed something unexpected")]
    Output {
        /// The command, without the paths.
        command: String,
        /// The problems with the output.
        source: ClosureProblems,
    },
    /// The store's files are on another machine or in an archive.
    #[error("the files of the store {url} are not on this machine")]
    Remote {
        /// The URL given.
        url: String,
    },
    /// There is no store at the directory.
    #[error("{} is not a directory, so {} is not a store", .store_dir.display(), .root.display())]
    NoStore {
        /// The root given.
        root: PathBuf,
        /// Where its files would be.
        store_dir: PathBuf,
    },
    /// The directory of the store cannot be examined.
    #[error("cannot use the store {}", .store_dir.display())]
    Look {
        /// Where its files would be.
        store_dir: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The current directory cannot be determined.
    #[error("cannot determine the current directory, to which {} is relative", .path.display())]
    CurrentDirectory {
        /// The argument.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Returns the closure of `arguments`, which are store paths or symbolic links to them such as `./result`.
pub(super) fn closure(
    arguments: &[PathBuf],
    store: Option<&StoreLocation>,
    store_dir: Option<&Path>,
) -> Result<Closure, NixStoreError> {
    let logical_dir = location::logical_store_dir();
    let physical_dir = match (store_dir, store) {
        (Some(store_dir), _) => store_dir.to_path_buf(),
        (None, Some(store)) => store.store_dir(&logical_dir)?,
        (None, None) => logical_dir.clone(),
    };
    // A link can use any name of the store's directory, so the resolved names are accepted too.
    let mut store_dirs = vec![logical_dir.clone(), physical_dir.clone()];
    store_dirs.extend([&logical_dir, &physical_dir].into_iter().filter_map(|dir| dir.canonicalize().ok()));
    let roots = roots(arguments, &store_dirs)?;
    let nix = NixStore { store, logical_dir: &logical_dir };
    let paths = nix.requisites(&roots)?;
    let mut registration = Registration { records: Vec::new(), problems: Vec::new() };
    for some in paths.chunks(PATHS_IN_ONE_CALL) {
        let part = registration::parse(&nix.run("--dump-db", &[], some)?);
        registration.records.extend(part.records);
        registration.problems.extend(part.problems);
    }
    Closure::from_records("nix-store --dump-db", registration.records, Some(&physical_dir), registration.problems)
        .map_err(|source| NixStoreError::Output { command: "nix-store --dump-db".to_owned(), source })
}

/// The options that `nix-store` is called with.
struct NixStore<'a> {
    store: Option<&'a StoreLocation>,
    logical_dir: &'a Path,
}

impl NixStore<'_> {
    /// Returns the closure of `roots`, which includes `roots`.
    fn requisites(&self, roots: &[StorePath]) -> Result<Vec<StorePath>, NixStoreError> {
        let mut paths = BTreeSet::new();
        let mut problems = Vec::new();
        for some in roots.chunks(PATHS_IN_ONE_CALL) {
            for (index, line) in self.run("--query", &["--requisites"], some)?.lines().enumerate() {
                match LocatedStorePath::parse(line) {
                    Ok(located) => _ = paths.insert(located.path),
                    Err(error) => {
                        problems.push(ClosureProblem::NotAStorePath { position: Position::Line(index + 1), error });
                    }
                }
            }
        }
        if problems.is_empty() {
            return Ok(paths.into_iter().collect());
        }
        let command = "nix-store --query --requisites".to_owned();
        Err(NixStoreError::Output { source: ClosureProblems { origin: command.clone(), problems }, command })
    }

    fn run(&self, operation: &str, options: &[&str], paths: &[StorePath]) -> Result<String, NixStoreError> {
        let mut command = Command::new("nix-store");
        if let Some(store) = self.store {
            command.arg("--store").arg(store.argument());
        }
        command.arg(operation).args(options);
        command.args(paths.iter().map(|path| self.logical_dir.join(path.base_name())));
        let output = command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NixStoreError::NoProgram,
            _ => NixStoreError::Run(error),
        })?;
        if !output.status.success() {
            return Err(NixStoreError::Failed {
                command: ["nix-store", operation]
                    .into_iter()
                    .chain(options.iter().copied())
                    .collect::<Vec<_>>()
                    .join(" "),
                status: output.status,
                message: without_prefix(&String::from_utf8_lossy(&output.stderr)),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Removes the `error:` from a message of Nix, because this program prints its own.
fn without_prefix(message: &str) -> String {
    message.trim().trim_start_matches("error:").trim_start().to_owned()
}

/// Returns the store paths that the arguments name, without duplicates, or all problems with them.
fn roots(arguments: &[PathBuf], store_dirs: &[PathBuf]) -> Result<Vec<StorePath>, NixStoreError> {
    let mut roots: BTreeMap<StorePath, Position> = BTreeMap::new();
    let mut problems = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        let position = Position::Argument(index + 1);
        match root(argument, store_dirs)? {
            Err(error) => problems.push(ClosureProblem::NotAStorePath { position, error }),
            Ok(path) => match roots.get(&path) {
                Some(first) => problems.push(ClosureProblem::Twice { position, path, first: *first }),
                None => _ = roots.insert(path, position),
            },
        }
    }
    if problems.is_empty() {
        return Ok(roots.into_keys().collect());
    }
    Err(ClosureProblems { origin: "store paths".to_owned(), problems }.into())
}

/// Follows symbolic links from `argument` until it is a member of one of `store_dirs`. A member that is a symbolic link
/// itself is not followed: the store path is the link.
fn root(argument: &Path, store_dirs: &[PathBuf]) -> Result<Result<StorePath, StorePathError>, NixStoreError> {
    let fail = |reason| Ok(Err(StorePathError { text: argument.display().to_string(), reason }));
    let mut place = std::path::absolute(argument)
        .map_err(|source| NixStoreError::CurrentDirectory { path: argument.to_path_buf(), source })?;
    for _ in 0..MAX_SYMLINKS {
        if let Some(inner) = store_dirs.iter().find_map(|store_dir| place.strip_prefix(store_dir).ok()) {
            let mut components = inner.iter();
            let base_name = components.next().and_then(|name| name.to_str()).unwrap_or_default();
            if components.next().is_some() {
                return fail("it is inside a store path; name the store path itself");
            }
            return match StorePath::from_base_name(base_name) {
                Ok(path) => Ok(Ok(path)),
                Err(error) => fail(error.reason),
            };
        }
        let Some((parent, name)) = place.parent().zip(place.file_name()) else {
            return fail("it is not in the store");
        };
        let Ok(parent) = parent.canonicalize() else {
            return fail("its directory is missing");
        };
        let canonical = parent.join(name);
        place = match canonical.read_link() {
            Ok(target) => std::path::absolute(parent.join(target)).unwrap_or(canonical),
            Err(_) if canonical != place => canonical,
            Err(_) if canonical.symlink_metadata().is_ok() => return fail("it is not in the store"),
            Err(_) => return fail("it is missing, and it is not in the store"),
        };
    }
    fail("it is a chain of too many symbolic links")
}
