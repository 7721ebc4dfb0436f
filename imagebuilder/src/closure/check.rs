//! Checks the records of a source and makes a closure from them. All problems are reported at once.

use crate::plan::PlannedPath;
use crate::store_path::{LocatedStorePath, StorePath, StorePathError};
use std::fmt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The default directory of the Nix store.
pub(crate) const DEFAULT_STORE_DIR: &str = "/nix/store";

/// The position of a record in its source, counted from 1.
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

/// One store path as listed by a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosureRecord {
    /// Its position in the source.
    pub position: Position,
    /// The store path, with the directory that the source names.
    pub located: LocatedStorePath,
    /// SHA-256 of its NAR serialisation.
    pub nar_hash: Option<[u8; 32]>,
    /// Length of its NAR serialisation in bytes.
    pub nar_size_bytes: Option<u64>,
    /// The store paths it refers to, possibly including itself. Empty if the source has no references.
    pub references: Vec<StorePath>,
}

/// A problem with the records of a closure.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ClosureProblem {
    /// There are no store paths.
    #[error("it contains no store path")]
    Empty,
    /// A line or entry does not name a store path.
    #[error("{position}: {error}")]
    NotAStorePath {
        /// Its position.
        position: Position,
        /// What is wrong with it.
        error: StorePathError,
    },
    /// A line does not have the expected form.
    #[error("{position}: {text:?} is not {expected}")]
    Malformed {
        /// Its position.
        position: Position,
        /// The text of the line.
        text: String,
        /// A description of what is expected there.
        expected: &'static str,
    },
    /// The text ends within a record.
    #[error("{position}: the text ends where {expected} is expected")]
    Truncated {
        /// The first line that is missing.
        position: Position,
        /// A description of what is expected there.
        expected: &'static str,
    },
    /// A store path is listed twice.
    #[error("{position}: {path} is listed twice, first at {first}")]
    Twice {
        /// The second position.
        position: Position,
        /// The store path.
        path: StorePath,
        /// The first position.
        first: Position,
    },
    /// The paths belong to two different stores.
    #[error("{position}: {path} is in {}, but the paths before it are in {}", .store_dir.display(), .first.display())]
    OtherStore {
        /// Its position.
        position: Position,
        /// The store path.
        path: StorePath,
        /// The directory of this store path.
        store_dir: PathBuf,
        /// The directory of the store paths before it.
        first: PathBuf,
    },
    /// A store path refers to one that is not in the closure.
    #[error("{position}: {path} refers to {reference}, which is missing: the closure is incomplete")]
    NotClosed {
        /// The position of the store path that refers.
        position: Position,
        /// The store path that refers.
        path: StorePath,
        /// The store path that is missing.
        reference: StorePath,
    },
}

/// All problems with one source of a closure.
#[derive(Debug, PartialEq, Eq)]
pub struct ClosureProblems {
    /// The source as the user gave it: the path of a file, or a command line.
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

/// A complete set of store paths: it has at least one path, no path twice, and contains everything that its paths refer
/// to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closure {
    /// The directory that contains the files of the paths.
    pub store_dir: PathBuf,
    /// The paths, sorted by base name.
    pub paths: Vec<PlannedPath>,
}

impl Closure {
    /// Checks records and makes a closure from them. `store_dir` is the directory that contains the files. The default
    /// is the directory that the records name, or `/nix/store` if they have only base names. `problems` are those found
    /// while the records were read.
    ///
    /// # Errors
    /// All problems: those passed in and those of the records.
    pub fn from_records(
        origin: &str,
        records: Vec<ClosureRecord>,
        store_dir: Option<&Path>,
        mut problems: Vec<ClosureProblem>,
    ) -> Result<Self, ClosureProblems> {
        let nothing_was_read = records.is_empty() && problems.is_empty();
        let unreadable = !problems.is_empty();
        let mut named_dir: Option<PathBuf> = None;
        problems.extend(records.iter().filter_map(|record| other_store(record, &mut named_dir)));
        // Equal paths keep their order, so the first one remains.
        let mut unsorted: Vec<Option<ClosureRecord>> = records.into_iter().map(Some).collect();
        let order =
            StorePath::order(unsorted.iter().flatten().map(|record| &record.located.path), StorePath::base_name);
        let mut records = Vec::with_capacity(order.len());
        records.extend(order.into_iter().filter_map(|number| unsorted[number].take()));
        records.dedup_by(|record, first| {
            let is_same = record.located.path == first.located.path;
            problems.extend(is_same.then(|| ClosureProblem::Twice {
                position: record.position,
                path: record.located.path.clone(),
                first: first.position,
            }));
            is_same
        });
        // A path that seems to be missing may be in a record that could not be read, which is already reported.
        if !unreadable {
            problems.extend(missing_references(&records));
        }
        if nothing_was_read {
            problems.push(ClosureProblem::Empty);
        }
        if !problems.is_empty() {
            problems.sort_by_key(ClosureProblem::number);
            return Err(ClosureProblems { origin: origin.to_owned(), problems });
        }
        let store_dir =
            store_dir.map(Path::to_path_buf).or(named_dir).unwrap_or_else(|| PathBuf::from(DEFAULT_STORE_DIR));
        let paths = records
            .into_iter()
            .map(|record| PlannedPath {
                path: record.located.path,
                nar_hash: record.nar_hash,
                nar_size_bytes: record.nar_size_bytes,
            })
            .collect();
        Ok(Self { store_dir, paths })
    }
}

/// Remembers the directory of the first record that has one, and returns a problem if this record has another one.
fn other_store(record: &ClosureRecord, named_dir: &mut Option<PathBuf>) -> Option<ClosureProblem> {
    let store_dir = record.located.store_dir.as_ref()?;
    let first = named_dir.get_or_insert_with(|| store_dir.clone());
    // Both are in their shortest form.
    (first.as_os_str() != store_dir.as_os_str()).then(|| ClosureProblem::OtherStore {
        position: record.position,
        path: record.located.path.clone(),
        store_dir: store_dir.clone(),
        first: first.clone(),
    })
}

/// Returns the references that are in none of the records, which are sorted by path.
fn missing_references(records: &[ClosureRecord]) -> impl Iterator<Item = ClosureProblem> {
    let is_missing = |path: &StorePath| records.binary_search_by(|record| record.located.path.cmp(path)).is_err();
    records.iter().flat_map(move |record| {
        let missing = record.references.iter().filter(move |reference| is_missing(reference));
        missing.map(|reference| ClosureProblem::NotClosed {
            position: record.position,
            path: record.located.path.clone(),
            reference: reference.clone(),
        })
    })
}

impl ClosureProblem {
    /// Returns the number of the line, entry or argument; problems are reported in this order.
    fn number(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::NotAStorePath { position, .. }
            | Self::Malformed { position, .. }
            | Self::Truncated { position, .. }
            | Self::Twice { position, .. }
            | Self::OtherStore { position, .. }
            | Self::NotClosed { position, .. } => match position {
                Position::Line(number) | Position::Entry(number) | Position::Argument(number) => *number,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a";
    const B: &str = "0bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-b";
    const C: &str = "0ccccccccccccccccccccccccccccccc-c";

    fn record(line: usize, text: &str, references: &[&str]) -> ClosureRecord {
        ClosureRecord {
            position: Position::Line(line),
            located: LocatedStorePath::parse(text).unwrap(),
            nar_hash: None,
            nar_size_bytes: None,
            references: references.iter().map(|name| StorePath::from_base_name(name).unwrap()).collect(),
        }
    }

    fn message(records: Vec<ClosureRecord>) -> String {
        Closure::from_records("list", records, None, vec![]).unwrap_err().to_string()
    }

    #[test]
    fn paths_are_sorted_whatever_order_they_are_listed_in() {
        let forward = vec![record(1, A, &[]), record(2, B, &[A, B])];
        let backward = vec![record(1, B, &[B, A]), record(2, A, &[])];
        let closure = Closure::from_records("list", forward, None, vec![]).unwrap();
        assert_eq!(closure.paths.iter().map(|planned| planned.path.base_name()).collect::<Vec<_>>(), [A, B]);
        assert_eq!(Closure::from_records("list", backward, None, vec![]).unwrap(), closure);
    }

    #[test]
    fn the_store_directory_is_the_given_one_or_the_one_in_the_names() {
        let store_dir = |text: &str, given: Option<&Path>| {
            Closure::from_records("list", vec![record(1, text, &[])], given, vec![]).unwrap().store_dir
        };
        assert_eq!(store_dir(A, None), Path::new("/nix/store"));
        assert_eq!(store_dir(&format!("/mnt/nix/store/{A}"), None), Path::new("/mnt/nix/store"));
        assert_eq!(store_dir(&format!("/nix/store/{A}"), Some(Path::new("/srv"))), Path::new("/srv"));
    }

    #[test]
    fn an_empty_list_is_refused() {
        assert_eq!(message(vec![]), "list: it contains no store path");
    }

    #[test]
    fn a_path_listed_twice_is_reported_with_both_positions() {
        assert_eq!(
            message(vec![record(1, A, &[]), record(3, &format!("/nix/store/{A}"), &[])]),
            format!("list: line 3: {A} is listed twice, first at line 1")
        );
    }

    #[test]
    fn all_missing_references_are_reported() {
        assert_eq!(
            message(vec![record(1, B, &[A]), record(9, A, &[C])]),
            format!("list: line 9: {A} refers to {C}, which is missing: the closure is incomplete")
        );
        assert_eq!(
            message(vec![record(1, B, &[A]), record(9, C, &[A, B])]),
            format!(
                "list: 2 problems\n  line 1: {B} refers to {A}, which is missing: the closure is incomplete\n  \
                 line 9: {C} refers to {A}, which is missing: the closure is incomplete"
            )
        );
    }

    #[test]
    fn paths_of_two_stores_are_refused() {
        assert_eq!(
            message(vec![record(1, &format!("/nix/store/{A}"), &[]), record(2, &format!("/srv/{B}"), &[])]),
            format!("list: line 2: {B} is in /srv, but the paths before it are in /nix/store")
        );
    }

    #[test]
    fn a_record_that_could_not_be_read_is_not_reported_as_missing_too() {
        let unreadable =
            ClosureProblem::Malformed { position: Position::Line(2), text: "x".to_owned(), expected: "a NAR hash" };
        let problems =
            Closure::from_records("list", vec![record(6, B, &[A])], None, vec![unreadable]).unwrap_err().problems;
        assert_eq!(problems.len(), 1);
    }
}
