//! Collecting the problems and warnings of the checks.

use program::escape::one_line;
use std::fmt;

/// A problem of a machine spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", one_line(&format!("{machine}: {option}: {reason}")))]
pub struct Problem {
    /// The machine, or the machines if the problem is a conflict.
    pub machine: String,
    /// The option, as in `volumes[1].image`.
    pub option: String,
    /// What is wrong, and what would be valid.
    pub reason: String,
}

/// Problems and warnings of one machine, in the order of the checks.
#[derive(Debug)]
pub(super) struct Findings {
    machine: String,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl Findings {
    pub(super) fn new(machine: &str) -> Self {
        Self { machine: machine.to_owned(), problems: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn problem(&mut self, option: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(Problem { machine: self.machine.clone(), option: option.into(), reason: reason.into() });
    }

    /// Reports the error of a check of a single value.
    pub(super) fn require(&mut self, option: impl Into<String>, result: Result<(), impl fmt::Display>) {
        if let Err(reason) = result {
            self.problem(option, reason.to_string());
        }
    }

    pub(super) fn warning(&mut self, option: &str, text: &str) {
        self.warnings.push(format!("{}: {option}: {text}", self.machine));
    }

    /// Reports every value in `items` that an earlier item also has.
    pub(super) fn require_distinct<'item>(&mut self, what: &str, items: impl Iterator<Item = (String, &'item str)>) {
        let mut seen = std::collections::BTreeMap::new();
        for (option, value) in items {
            if let Some(first) = seen.get(value) {
                self.problem(option, format!("the {what} `{value}` is already used by {first}"));
            } else {
                seen.insert(value, option);
            }
        }
    }
}
