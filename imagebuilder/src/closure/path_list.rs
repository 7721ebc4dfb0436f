//! A plain list of store paths, one a line.

use super::check::{ClosureProblem, ClosureRecord, Position};
use crate::store_path::LocatedStorePath;

/// Reads a list, taken as complete: nothing is known of hashes or references. Blank lines, a carriage return before the
/// newline, blanks around a path and slashes after it are harmless and accepted.
pub(super) fn parse(text: &str) -> (Vec<ClosureRecord>, Vec<ClosureProblem>) {
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let (line, position) = (line.trim(), Position::Line(index + 1));
        if line.is_empty() {
            continue;
        }
        match LocatedStorePath::parse(line) {
            Ok(located) => {
                records.push(ClosureRecord {
                    position,
                    located,
                    nar_hash: None,
                    nar_size_bytes: None,
                    references: vec![],
                });
            }
            Err(error) => problems.push(ClosureProblem::NotAStorePath { position, error }),
        }
    }
    (records, problems)
}
