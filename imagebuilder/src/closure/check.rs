//! From records to a closure: every problem is found before anything is reported.

use crate::plan::PlannedPath;
use crate::store_path::{LocatedStorePath, StorePath, StorePathError};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Where Nix keeps its store when nothing says otherwise.
pub(crate) const DEFAULT_STORE_DIR: &str = "/nix/store";

/// Where in its source a record stands, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// A line of a text.
    Line(usize),
    /// An entry of a JSON array.
    Entry(usize),
    /// A store path on the command line.
    Argument(usize),
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(formatter, "line {line}"),
            Self::Entry(entry) => write!(formatter, "entry {entry}"),
            Self::Argument(argument) => write!(formatter, "argument {argument}"),
        }
    }
}

/// One store path as a source gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosureRecord {
    /// Where the source gives it.
    pub position: Position,
    /// The store path, with the directory the source names.
    pub located: LocatedStorePath,
    /// sha256 of its NAR serialisation.
    pub nar_hash: Option<[u8; 32]>,
    /// Length of its NAR serialisation in bytes.
    pub nar_size_bytes: Option<u64>,
    /// The store paths it refers to, itself perhaps among them. Empty when the source does not say.
    pub references: Vec<StorePath>,
}

/// One thing that is wrong with the records of a closure.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ClosureProblem {
    /// There are no store paths.
    #[error("it holds no store path")]
    Empty,
    /// A line or entry does not name a store path.
    #[error("{position}: {error}")]
    NotAStorePath {
        /// Where it stands.
        position: Position,
        /// What is wrong with it.
        error: StorePathError,
    },
    /// A line is not what it has to be.
    #[error("{position}: {text:?} is not {expected}")]
    Malformed {
        /// Where it stands.
        position: Position,
        /// The text found there.
        text: String,
        /// What has to stand there.
        expected: &'static str,
    },
    /// The text ends within a record.
    #[error("{position}: the text ends where {expected} should stand")]
    Truncated {
        /// The first line that is missing.
        position: Position,
        /// What has to stand there.
        expected: &'static str,
    },
    /// The same store path twice.
    #[error("{position}: {path} stands there twice, first at {first}")]
    Twice {
        /// The second place.
        position: Position,
        /// The store path.
        path: StorePath,
        /// The first place.
        first: Position,
    },
    /// Members of two stores.
    #[error("{position}: {path} lies in {}, but the paths before it in {}", .store_dir.display(), .first.display())]
    OtherStore {
        /// Where it stands.
        position: Position,
        /// The store path.
        path: StorePath,
        /// The directory it is given with.
        store_dir: PathBuf,
        /// The directory of the others.
        first: PathBuf,
    },
    /// A reference leads out of the closure.
    #[error("{position}: {path} refers to {reference}, which is not there: the closure is not closed")]
    NotClosed {
        /// Where the store path that refers stands.
        position: Position,
        /// The store path that refers.
        path: StorePath,
        /// What it refers to.
        reference: StorePath,
    },
}

/// Everything that is wrong with one source of a closure.
#[derive(Debug, PartialEq, Eq)]
pub struct ClosureProblems {
    /// The source, as a user knows it: a file's path, or the words of a command line.
    pub origin: String,
    /// At least one.
    pub problems: Vec<ClosureProblem>,
}

impl std::error::Error for ClosureProblems {}

impl fmt::Display for ClosureProblems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = self.problems.as_slice() {
            return write!(formatter, "{}: {problem}", self.origin);
        }
        write!(formatter, "{}: {} problems", self.origin, self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(formatter, "\n  {problem}"))
    }
}

/// Store paths that are complete: at least one, none twice, every reference among them; sorted by base name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closure {
    /// The directory that physically holds the paths.
    pub store_dir: PathBuf,
    /// The paths, sorted by base name.
    pub paths: Vec<PlannedPath>,
}

impl Closure {
    /// Checks records. `store_dir` says where the paths physically lie; without it that is the directory they are given
    /// with, or `/nix/store` when they are bare base names. `problems` are those found while the records were read.
    ///
    /// # Errors
    /// All problems: those handed in and those of the records.
    pub fn from_records(
        origin: &str,
        records: Vec<ClosureRecord>,
        store_dir: Option<&Path>,
        mut problems: Vec<ClosureProblem>,
    ) -> Result<Self, ClosureProblems> {
        let nothing_was_read = records.is_empty() && problems.is_empty();
        let unreadable = !problems.is_empty();
        let mut named_dir: Option<PathBuf> = None;
        let mut members: BTreeMap<StorePath, ClosureRecord> = BTreeMap::new();
        for record in records {
            problems.extend(other_store(&record, &mut named_dir));
            match members.entry(record.located.path.clone()) {
                Entry::Vacant(vacant) => _ = vacant.insert(record),
                Entry::Occupied(first) => problems.push(ClosureProblem::Twice {
                    position: record.position,
                    path: record.located.path,
                    first: first.get().position,
                }),
            }
        }
        // A record that could not be read is one that may be missed here: it would be reported twice.
        if !unreadable {
            problems.extend(missing_references(&members));
        }
        if nothing_was_read {
            problems.push(ClosureProblem::Empty);
        }
        if !problems.is_empty() {
            return Err(ClosureProblems { origin: origin.to_owned(), problems });
        }
        let store_dir =
            store_dir.map(Path::to_path_buf).or(named_dir).unwrap_or_else(|| PathBuf::from(DEFAULT_STORE_DIR));
        let paths = members
            .into_values()
            .map(|record| PlannedPath {
                path: record.located.path,
                nar_hash: record.nar_hash,
                nar_size_bytes: record.nar_size_bytes,
            })
            .collect();
        Ok(Self { store_dir, paths })
    }
}

/// Notes the directory of the first record that has one, and finds the records of another.
fn other_store(record: &ClosureRecord, named_dir: &mut Option<PathBuf>) -> Option<ClosureProblem> {
    let store_dir = record.located.store_dir.as_ref()?;
    let first = named_dir.get_or_insert_with(|| store_dir.clone());
    (first != store_dir).then(|| ClosureProblem::OtherStore {
        position: record.position,
        path: record.located.path.clone(),
        store_dir: store_dir.clone(),
        first: first.clone(),
    })
}

fn missing_references(members: &BTreeMap<StorePath, ClosureRecord>) -> Vec<ClosureProblem> {
    let mut missing: Vec<(Position, ClosureProblem)> = Vec::new();
    for record in members.values() {
        for reference in record.references.iter().filter(|reference| !members.contains_key(reference)) {
            let problem = ClosureProblem::NotClosed {
                position: record.position,
                path: record.located.path.clone(),
                reference: reference.clone(),
            };
            missing.push((record.position, problem));
        }
    }
    missing.sort_by_key(|(position, _)| position.number());
    missing.into_iter().map(|(_, problem)| problem).collect()
}

impl Position {
    fn number(self) -> usize {
        match self {
            Self::Line(number) | Self::Entry(number) | Self::Argument(number) => number,
        }
    }
}
