//! A comparison: several tools pack the same store and take turns, round after round.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, file};
use crate::measure::{self, Cost};
use crate::mount::drop_caches;
use crate::store_tree::{Revision, StoreTree};
use crate::tool::{Programs, Tool};
use crate::{message, reading};

/// What happens before a tool is measured, outside the measured time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparation {
    /// Its output and its cache are empty.
    Nothing,
    /// The same, and the kernel has nothing of the store in memory. Needs root.
    NothingInMemory,
    /// The first closure was built into the cache; then one store path changed. There is no output.
    OnePathChanged,
    /// The same build ran before.
    NothingChanged,
    /// The same build ran before, and then the output was removed.
    OutputRemoved,
}

/// A participant of a comparison.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The name in tables.
    pub name: String,
    /// The tool to run.
    pub tool: Tool,
    /// The preparation before each run.
    pub preparation: Preparation,
}

/// A comparison to run; ratios are relative to the first candidate.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The heading above its table.
    pub title: String,
    /// The commands that are compared, in the order of the table.
    pub candidates: Vec<Candidate>,
}

/// The results of one candidate.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The candidate's name.
    pub name: String,
    /// The command of the last run.
    pub command: String,
    /// The size of the image in bytes.
    pub image_bytes: u64,
    /// The cost of each round.
    pub costs: Vec<Cost>,
}

impl Outcome {
    /// Seconds of each round.
    #[must_use]
    pub fn seconds(&self) -> Vec<f64> {
        self.costs.iter().map(|cost| cost.seconds).collect()
    }

    /// Returns the peak memory of all rounds, in bytes.
    #[must_use]
    pub fn peak_memory_bytes(&self) -> u64 {
        self.costs.iter().map(|cost| cost.peak_memory_bytes).max().unwrap_or(0)
    }
}

/// A finished comparison.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComparisonOutcome {
    /// The heading above its table.
    pub title: String,
    /// The results, in the order of the candidates.
    pub outcomes: Vec<Outcome>,
}

/// The environment of a comparison: store, programs, and a directory for images and caches.
#[derive(Debug)]
pub struct Environment<'a> {
    /// The store that is packed.
    pub tree: &'a mut StoreTree,
    /// Where the tools of the candidates are.
    pub programs: &'a Programs,
    /// A directory on the disk that images are written to.
    pub scratch: &'a Path,
}

impl Environment<'_> {
    /// Runs a comparison: every candidate once in each round.
    ///
    /// # Errors
    /// When a program fails.
    pub fn run(&mut self, comparison: &Comparison, rounds: usize) -> Result<ComparisonOutcome, Error> {
        warm(self.tree)?;
        let mut outcomes: Vec<Outcome> = comparison
            .candidates
            .iter()
            .map(|candidate| Outcome {
                name: candidate.name.clone(),
                command: String::new(),
                image_bytes: 0,
                costs: Vec::new(),
            })
            .collect();
        let count = comparison.candidates.len();
        // Every round begins with another candidate. Round 0 warms up and does not count.
        for round in 0..=rounds {
            for turn in 0..count {
                let number = (round + turn) % count;
                let (Some(candidate), Some(outcome)) = (comparison.candidates.get(number), outcomes.get_mut(number))
                else {
                    continue;
                };
                let cost = self.measure(candidate, outcome)?;
                message(&format!(
                    "{}, round {round} of {rounds}: {}: {:.3} s",
                    comparison.title, candidate.name, cost.seconds
                ));
                if round > 0 {
                    outcome.costs.push(cost);
                }
            }
        }
        Ok(ComparisonOutcome { title: comparison.title.clone(), outcomes })
    }

    fn measure(&mut self, candidate: &Candidate, outcome: &mut Outcome) -> Result<Cost, Error> {
        let output = self.scratch.join("output.image");
        remove_if_there(&output)?;
        self.prepare(candidate, &output)?;
        let mut command = candidate.tool.command(self.programs, self.tree, &output);
        self.settle(candidate)?;
        if !matches!(candidate.preparation, Preparation::Nothing | Preparation::NothingInMemory) {
            // Rebuilds take less than a second, and part of that can be the host of a virtual machine providing memory:
            // run twice in a row and count only the second time.
            measure::run(&mut command)?;
            self.reset_cache(candidate)?;
        }
        if matches!(candidate.preparation, Preparation::OutputRemoved | Preparation::OnePathChanged) {
            remove_if_there(&output)?;
            nix::unistd::sync();
        }
        let cost = measure::run(&mut command)?;
        outcome.command = self.without_directories(&command);
        if candidate.tool.makes_an_image() {
            outcome.image_bytes = fs::metadata(&output).map_err(file("read", &output))?.len();
        }
        self.tree.set_revision(Revision::First)?;
        Ok(cost)
    }

    /// Formats a command for the results, without its directories.
    fn without_directories(&self, command: &std::process::Command) -> String {
        let mut text = format!("{command:?}");
        let fixtures = crate::workspace::fixtures();
        let programs = [Some(self.programs.peers.as_path()), self.programs.microvm_image.parent()];
        let places = [(Some(self.scratch), "SCRATCH"), (Some(fixtures.as_path()), "FIXTURES")];
        for (directory, name) in places.into_iter().chain(programs.map(|directory| (directory, "PROGRAMS"))) {
            if let Some(directory) = directory.and_then(Path::to_str) {
                text = text.replace(directory, name);
            }
        }
        text
    }

    fn prepare(&mut self, candidate: &Candidate, output: &Path) -> Result<(), Error> {
        let once = |tree: &StoreTree| measure::run(&mut candidate.tool.command(self.programs, tree, output)).map(drop);
        match (candidate.preparation, candidate.tool.cache_directory()) {
            (Preparation::Nothing | Preparation::NothingInMemory, cache) => cache.map_or(Ok(()), remove_tree),
            (Preparation::OnePathChanged, Some(cache)) => {
                // A copy of the cache after the first closure is kept. Entries never change, so each
                // round starts with links to them.
                let first = with_suffix(cache, "first");
                self.reset_cache(candidate)?;
                once(self.tree)?;
                if !first.exists() {
                    link_tree(cache, &first)?;
                }
                self.tree.set_revision(Revision::Changed)
            }
            (Preparation::OnePathChanged | Preparation::NothingChanged | Preparation::OutputRemoved, _) => {
                once(self.tree)
            }
        }
    }

    /// Puts a cache into the state it has before one path changed, if it has been there.
    fn reset_cache(&self, candidate: &Candidate) -> Result<(), Error> {
        let Some(cache) = candidate.tool.cache_directory() else { return Ok(()) };
        if candidate.preparation == Preparation::OnePathChanged {
            let first = with_suffix(cache, "first");
            remove_tree(cache)?;
            if first.exists() {
                link_tree(&first, cache)?;
            }
        }
        Ok(())
    }

    /// Gives every run the same start: written data is on the disk, and data to read is in memory, or none is.
    fn settle(&self, candidate: &Candidate) -> Result<(), Error> {
        nix::unistd::sync();
        if candidate.preparation == Preparation::NothingInMemory {
            return drop_caches();
        }
        warm(self.tree)?;
        for directory in candidate.tool.cache_directory().into_iter().filter(|directory| directory.exists()) {
            let files = reading::list(directory).map_err(file("list", directory))?;
            reading::seconds(reading::Reading::AllFilesTwoReaders, directory, &files)
                .map_err(file("read", directory))?;
        }
        Ok(())
    }
}

fn link_tree(from: &Path, to: &Path) -> Result<(), Error> {
    crate::workspace::run(std::process::Command::new("cp").arg("-al").arg(from).arg(to)).map(drop)
}

/// Reads the whole store once, so that no run waits for the disk.
fn warm(tree: &StoreTree) -> Result<(), Error> {
    read_closure(tree).map(drop)
}

/// Seconds that reading the whole store takes with two readers.
///
/// # Errors
/// When it can't be read.
pub fn read_closure(tree: &StoreTree) -> Result<f64, Error> {
    let store = tree.store();
    let files = reading::list(&store).map_err(file("list", &store))?;
    reading::seconds(reading::Reading::AllFilesTwoReaders, &store, &files).map_err(file("read", &store))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}
