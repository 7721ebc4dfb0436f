//! The registration text of `closureInfo` and `nix-store --dump-db`: five parts a store path, one line each, the last
//! one repeated.
//!
//! ```text
//! /nix/store/HASH-NAME
//! sha256:NIX32            closureInfo; bare hex from --dump-db
//! 120                     length of the NAR in bytes
//!                         the deriver, or an empty line
//! 1                       number of references
//! /nix/store/HASH-NAME    the references, itself perhaps among them
//! ```

use super::check::{ClosureProblem, ClosureRecord, Position};
use crate::nar_hash;
use crate::store_path::{LocatedStorePath, StorePath};

/// What a registration text holds, and what is wrong with it.
pub(super) struct Registration {
    pub(super) records: Vec<ClosureRecord>,
    pub(super) problems: Vec<ClosureProblem>,
}

/// Reads a registration text. A wrong path, hash or size is noted and reading goes on; a wrong number of references or
/// an early end stops it, since after those nobody can say which line is which.
pub(super) fn parse(text: &str) -> Registration {
    let mut lines = Lines { rest: text.lines(), number: 0 };
    let mut registration = Registration { records: Vec::new(), problems: Vec::new() };
    while let Some(path) = lines.next_record() {
        match record(path, &mut lines, &mut registration.problems) {
            Ok(Some(record)) => registration.records.push(record),
            Ok(None) => {}
            Err(problem) => {
                registration.problems.push(problem);
                break;
            }
        }
    }
    registration
}

/// The rest of the record that begins with the line `path`; `None` when a line of it has been noted as a problem.
fn record(
    path: &str,
    lines: &mut Lines<'_>,
    problems: &mut Vec<ClosureProblem>,
) -> Result<Option<ClosureRecord>, ClosureProblem> {
    let known_problems = problems.len();
    let position = Position::Line(lines.number);
    let located = LocatedStorePath::parse(path)
        .map_err(|error| problems.push(ClosureProblem::NotAStorePath { position, error }))
        .ok();
    let hash = lines.next("a NAR hash")?;
    let nar_hash = nar_hash::parse(hash).map_err(|_| problems.push(lines.malformed(hash, EXPECTED_HASH))).ok();
    let size = lines.next("the size of the NAR")?;
    let nar_size_bytes =
        size.parse().map_err(|_| problems.push(lines.malformed(size, "a NAR size (a number of bytes)"))).ok();
    lines.next("the deriver (an empty line will do)")?;
    let count = lines.next("the number of references")?;
    let count: usize = count.parse().map_err(|_| lines.malformed(count, "a number of references"))?;
    let mut references = Vec::new();
    for _ in 0..count {
        let reference = lines.next("a reference")?;
        match LocatedStorePath::parse(reference) {
            Ok(reference) => references.push(reference.path),
            Err(error) => {
                problems.push(ClosureProblem::NotAStorePath { position: Position::Line(lines.number), error });
            }
        }
    }
    let sound = problems.len() == known_problems;
    Ok(located.filter(|_| sound).map(|located| ClosureRecord {
        position,
        located,
        nar_hash,
        nar_size_bytes,
        references: unique(references),
    }))
}

const EXPECTED_HASH: &str = "a NAR hash (`sha256:` and Nix base 32 or hex, or bare hex)";

fn unique(mut references: Vec<StorePath>) -> Vec<StorePath> {
    references.sort();
    references.dedup();
    references
}

struct Lines<'a> {
    rest: std::str::Lines<'a>,
    /// Number of the line given last, counted from 1.
    number: usize,
}

impl<'a> Lines<'a> {
    /// The next line that is not empty: empty ones between records mean nothing.
    fn next_record(&mut self) -> Option<&'a str> {
        loop {
            let line = self.rest.next()?;
            self.number += 1;
            if !line.trim_end().is_empty() {
                return Some(line.trim_end());
            }
        }
    }

    fn next(&mut self, expected: &'static str) -> Result<&'a str, ClosureProblem> {
        self.number += 1;
        let line = self.rest.next();
        line.map(str::trim_end).ok_or(ClosureProblem::Truncated { position: Position::Line(self.number), expected })
    }

    fn malformed(&self, text: &str, expected: &'static str) -> ClosureProblem {
        ClosureProblem::Malformed { position: Position::Line(self.number), text: text.to_owned(), expected }
    }
}
