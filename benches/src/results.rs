//! What a run of the benchmarks leaves behind: every single value, tables, plots.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::contest::{ContestOutcome, Outcome};
use crate::error::{Error, file};
use crate::method::Method;
use crate::plot;
use crate::read::{self, ImageReadings};
use crate::statistics::{Spread, markdown, ratio, spread};
use crate::timings::Timings;

/// The file that the others of a directory are made from.
const RAW: &str = "raw.json";

/// All that was measured in one run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// How, with what, on what.
    pub method: Method,
    /// By store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<StoreResults>,
    /// Programs that were timed without a store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<Timings>,
}

impl Results {
    /// What was measured on stores.
    #[must_use]
    pub fn of_stores(method: Method, stores: Vec<StoreResults>) -> Self {
        Self { method, stores, timings: Vec::new() }
    }
}

/// What grows from one made-up store to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Growth {
    /// The number of small files.
    Files,
    /// The bytes of large files.
    Bytes,
}

/// What was measured on one store.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreResults {
    /// The package list it was made of.
    pub name: String,
    /// What grows, when it is one of a row of made-up stores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<Growth>,
    /// Its bytes as NARs.
    pub nar_bytes: u64,
    /// Its files.
    pub files: usize,
    /// Seconds to read it once with two readers, a value a round: the least that hashing its content costs.
    pub read_seconds: Vec<f64>,
    /// The contests.
    pub contests: Vec<ContestOutcome>,
    /// Reading the images of the default contest by loop mount, if that was asked for.
    pub readings: Vec<ImageReadings>,
    /// The same in a guest.
    pub guest_readings: Vec<ImageReadings>,
}

impl Results {
    /// Reads the `raw.json` of a directory again.
    ///
    /// # Errors
    /// When it can't be read, or is none.
    pub fn read(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(RAW);
        let text = fs::read_to_string(&path).map_err(file("read", &path))?;
        serde_json::from_str(&text).map_err(|error| Error::Unexpected(format!("{}: {error}", path.display())))
    }

    /// Writes `raw.json`, `table.md` and the plots into `directory`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        fs::create_dir_all(directory).map_err(file("make", directory))?;
        let raw = serde_json::to_string_pretty(self).map_err(|error| Error::Unexpected(error.to_string()))?;
        let path = directory.join(RAW);
        fs::write(&path, raw + "\n").map_err(file("write", path))?;
        self.draw(directory)
    }

    /// Writes `table.md` and the plots.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn draw(&self, directory: &Path) -> Result<(), Error> {
        self.shown().into_iter().try_for_each(|(name, text)| {
            let path = directory.join(name);
            fs::write(&path, text).map_err(file("write", path))
        })
    }

    /// The raw values as people read them: names and contents of the table and the plots.
    fn shown(&self) -> Vec<(String, String)> {
        let mut files = vec![("table.md".to_owned(), self.markdown())];
        for store in self.stores.iter().filter(|store| store.contests.len() > 1) {
            files.push((format!("size-{}.svg", store.name), plot::size_against_time(store)));
            files.push((format!("time-{}.svg", store.name), plot::times(store)));
        }
        for (growth, name) in [(Growth::Files, "scaling-files.svg"), (Growth::Bytes, "scaling-bytes.svg")] {
            let row: Vec<&StoreResults> = self.stores.iter().filter(|store| store.growth == Some(growth)).collect();
            if row.len() > 1 {
                files.push((name.to_owned(), plot::scaling(&row, growth)));
            }
        }
        files
    }

    /// The tables, as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("# Benchmarks of {}\n\n{}\n", self.method.date, self.method.markdown());
        for store in &self.stores {
            text.push_str(&store.markdown());
        }
        for timings in &self.timings {
            text.push_str(&format!("\n## {}\n\n{}", timings.title, timings.table()));
        }
        text
    }
}

impl StoreResults {
    fn markdown(&self) -> String {
        let megabytes = megabytes(self.nar_bytes);
        let mut text = format!("\n## Store `{}`: {} files, {megabytes} MB\n", self.name, self.files);
        if let Some(read) = spread(&self.read_seconds) {
            text.push_str(&format!("\nReading all of it once, two readers: {:.3} s.\n", read.median));
        }
        for contest in &self.contests {
            text.push_str(&format!("\n### {}\n\n{}", contest.title, contest_table(contest)));
        }
        for (title, readings) in [
            ("reading, loop mount on this kernel", &self.readings),
            ("reading in an emulated guest (only ratios mean something)", &self.guest_readings),
        ] {
            if !readings.is_empty() {
                text.push_str(&format!("\n### {title}\n\n{}", read::tables(readings)));
            }
        }
        text
    }
}

/// Seconds, ratio to the first contender, size, peak memory.
fn contest_table(contest: &ContestOutcome) -> String {
    let Some(first) = contest.outcomes.first() else { return String::new() };
    let header = ["", "seconds", "minimum..maximum", "processor s", "time ratio", "image MB", "size ratio", "peak MiB"];
    let rows: Vec<Vec<String>> = contest.outcomes.iter().map(|outcome| contest_row(outcome, first)).collect();
    markdown(&header.map(String::from), &rows)
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn contest_row(outcome: &Outcome, first: &Outcome) -> Vec<String> {
    let seconds = outcome.seconds();
    let processor: Vec<f64> = outcome.costs.iter().map(|cost| cost.user_seconds + cost.system_seconds).collect();
    let or_dash = |spread: Option<Spread>, cell: &dyn Fn(Spread) -> String| spread.map_or_else(|| "-".into(), cell);
    vec![
        outcome.name.clone(),
        or_dash(spread(&seconds), &|spread| format!("{:.3}", spread.median)),
        or_dash(spread(&seconds), &|spread| format!("{:.3}..{:.3}", spread.minimum, spread.maximum)),
        or_dash(spread(&processor), &|spread| format!("{:.2}", spread.median)),
        or_dash(ratio(&seconds, &first.seconds()), &|ratio| format!("{:.2}", ratio.median)),
        megabytes(outcome.image_bytes),
        format!("{:.3}", outcome.image_bytes as f64 / first.image_bytes.max(1) as f64),
        format!("{:.0}", outcome.peak_memory_bytes() as f64 / 1_048_576.0),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    /// What is quoted is read from tables and plots, so these have to say what was measured.
    #[test]
    fn tables_and_plots_that_are_kept_show_the_raw_values() {
        let kept: Vec<_> = fs::read_dir(workspace::root().join("benches/results")).unwrap().collect();
        assert!(!kept.is_empty());
        for directory in kept.into_iter().map(|entry| entry.unwrap().path()) {
            for (name, text) in Results::read(&directory).unwrap().shown() {
                let path = directory.join(name);
                let is_current = fs::read_to_string(&path).unwrap() == text;
                assert!(
                    is_current,
                    "{} is not what raw.json gives: run `benches draw` on its directory",
                    path.display()
                );
            }
        }
    }
}
