//! Reads a [`Closure`] from any of the supported sources.

use super::check::{Closure, ClosureProblem, ClosureProblems, ClosureRecord};
use super::graph::{self, GraphError};
use super::nix_store::{self, NixStoreError, StoreLocation};
use super::path_list;
use super::registration::{self, Registration};
use crate::threads::join;
use program::input::read_to_end;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The files of Nixpkgs' closureInfo that are read.
pub const CLOSURE_INFO_FILES: [&str; 2] = [REGISTRATION, STORE_PATHS];
const REGISTRATION: &str = "registration";
const STORE_PATHS: &str = "store-paths";

/// A list that is read from a file or from stdin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListInput {
    /// The stdin of this process.
    Stdin,
    /// A file.
    File(PathBuf),
}

/// The source of a closure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClosureSource {
    /// The Nix store provides the closure of some store paths.
    StorePaths {
        /// Store paths, or symbolic links to them.
        arguments: Vec<PathBuf>,
        /// The store to query; `None` for Nix's default.
        store: Option<StoreLocation>,
    },
    /// The output of Nixpkgs' `closureInfo`: a directory with `registration` and `store-paths`.
    ClosureInfo(PathBuf),
    /// The JSON of `exportReferencesGraph` with structured attributes.
    Graph {
        /// `.attrs.json`.
        file: PathBuf,
        /// The graph's name; `None` if the file has only one.
        key: Option<String>,
    },
    /// A list of store paths, which is assumed to be complete.
    PathList(ListInput),
}

/// The closure cannot be read from its source.
#[derive(Debug, Error)]
pub enum ClosureError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A text is not UTF-8, and so cannot be a list of store paths.
    #[error("{}: line {line} is not UTF-8", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// The JSON contains no usable graph.
    #[error("cannot read a graph from {}", .path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// The problem with the document.
        source: GraphError,
    },
    /// The Nix store does not provide the closure.
    #[error(transparent)]
    NixStore(#[from] NixStoreError),
    /// The records do not make a closure.
    #[error(transparent)]
    Problems(#[from] ClosureProblems),
    /// `store-paths` and `registration` of one directory differ.
    #[error("{}: `registration` and `store-paths` belong to different closures: {path} is in only one of them", .directory.display())]
    StorePathsDiffer {
        /// The directory of `closureInfo`.
        directory: PathBuf,
        /// The first store path that is in only one of them.
        path: String,
    },
}

/// Reads a source. `store_dir` overrides the directory that contains the files of the store paths. This function does
/// not check that they exist; [`crate::missing_paths::check`] does.
///
/// # Errors
/// The source cannot be read, or is not a closure; the error then contains all problems.
pub fn read(source: &ClosureSource, store_dir: Option<&Path>) -> Result<Closure, ClosureError> {
    match source {
        ClosureSource::StorePaths { arguments, store } => Ok(nix_store::closure(arguments, store.as_ref(), store_dir)?),
        ClosureSource::ClosureInfo(directory) => closure_info(directory, store_dir),
        ClosureSource::Graph { file, key } => {
            let text = read_text(&ListInput::File(file.clone()))?;
            let (records, problems) = graph::parse(&text, key.as_deref())
                .map_err(|source| ClosureError::Graph { path: file.clone(), source })?;
            Ok(Closure::from_records(&file.display().to_string(), records, store_dir, problems)?)
        }
        ClosureSource::PathList(input) => {
            let text = read_text(input)?;
            let (records, problems) = path_list::parse(&text);
            Ok(Closure::from_records(&input.name().display().to_string(), records, store_dir, problems)?)
        }
    }
}

impl ListInput {
    /// Returns the name of the input for messages.
    fn name(&self) -> &Path {
        match self {
            Self::Stdin => Path::new("stdin"),
            Self::File(path) => path,
        }
    }
}

fn closure_info(directory: &Path, store_dir: Option<&Path>) -> Result<Closure, ClosureError> {
    let read = |name: &str, parse: fn(&str) -> (Vec<ClosureRecord>, Vec<ClosureProblem>)| {
        let file = directory.join(name);
        let (records, problems) = parse(&read_text(&ListInput::File(file.clone()))?);
        Ok::<_, ClosureError>(Closure::from_records(&file.display().to_string(), records, store_dir, problems)?)
    };
    let registered = || {
        read(REGISTRATION, |text| {
            let Registration { records, problems } = registration::parse(text);
            (records, problems)
        })
    };
    let (closure, listed) = join(registered, || read(STORE_PATHS, path_list::parse))?;
    let registered = closure.paths.iter().map(|planned| &planned.path);
    let listed = listed.paths.iter().map(|planned| &planned.path);
    match first_difference(registered, listed) {
        Some(path) => {
            Err(ClosureError::StorePathsDiffer { directory: directory.to_path_buf(), path: path.to_string() })
        }
        None => Ok(closure),
    }
}

/// Returns the smallest element that is in only one of two sorted sequences.
fn first_difference<T: Ord>(left: impl Iterator<Item = T>, right: impl Iterator<Item = T>) -> Option<T> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    loop {
        match (left.next(), right.next()) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => return Some(a.min(b)),
            (one, other) => return one.or(other),
        }
    }
}

fn read_text(input: &ListInput) -> Result<String, ClosureError> {
    let read = match input {
        ListInput::Stdin => read_to_end(io::stdin().lock()),
        ListInput::File(path) => File::open(path).and_then(read_to_end),
    };
    let path = || input.name().to_path_buf();
    let bytes = read.map_err(|source| ClosureError::Read { path: path(), source })?;
    String::from_utf8(bytes).map_err(|error| {
        let is_valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        ClosureError::NotText { path: path(), line: 1 + is_valid.iter().filter(|byte| **byte == b'\n').count() }
    })
}
