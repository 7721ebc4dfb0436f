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

/// All that was measured in one run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Results {
    /// How, with what, on what.
    pub method: Method,
    /// By store.
    pub stores: Vec<StoreResults>,
}

/// What was measured on one store.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreResults {
    /// The package list it was made of.
    pub name: String,
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
    /// Writes `raw.json`, `table.md` and the plots into `directory`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        fs::create_dir_all(directory).map_err(file("make", directory))?;
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).map_err(file("write", path))
        };
        let raw = serde_json::to_string_pretty(self).map_err(|error| Error::Unexpected(error.to_string()))?;
        write("raw.json", &(raw + "\n"))?;
        write("table.md", &self.markdown())?;
        for store in self.stores.iter().filter(|store| store.contests.len() > 1) {
            write(&format!("size-{}.svg", store.name), &plot::size_against_time(store))?;
            write(&format!("time-{}.svg", store.name), &plot::times(store))?;
        }
        if self.stores.len() > 1 && self.stores.iter().all(|store| store.contests.len() == 1) {
            write("scaling.svg", &plot::scaling(&self.stores))?;
        }
        Ok(())
    }

    /// The tables, as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("# Benchmarks of {}\n\n{}\n", self.method.date, self.method.markdown());
        for store in &self.stores {
            text.push_str(&store.markdown());
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
