//! Tables and plots of results.

use std::fs;
use std::path::Path;

use crate::comparison::{ComparisonOutcome, Outcome};
use crate::error::{Error, file};
use crate::plot;
use crate::read;
use crate::results::{Growth, Results, StoreResults};
use crate::statistics::{Spread, markdown, ratio, spread};

/// Writes `table.md` and the plots of the results into `directory`.
///
/// # Errors
/// A plot cannot be drawn or a file cannot be written.
pub fn write(results: &Results, directory: &Path) -> Result<(), Error> {
    files(results)?.into_iter().try_for_each(|(name, text)| {
        let path = directory.join(name);
        fs::write(&path, text).map_err(file("write", path))
    })
}

/// Names and contents of the table and the plots.
fn files(results: &Results) -> Result<Vec<(String, String)>, Error> {
    let mut files = vec![("table.md".to_owned(), tables(results))];
    for store in results.stores.iter().filter(|store| store.comparisons.len() > 1) {
        files.push((format!("size-{}.svg", store.name), plot::size_against_time(store)?));
        files.push((format!("time-{}.svg", store.name), plot::times(store)?));
    }
    for (growth, name) in [(Growth::Files, "scaling-files.svg"), (Growth::Bytes, "scaling-bytes.svg")] {
        let series: Vec<&StoreResults> = results.stores.iter().filter(|store| store.growth == Some(growth)).collect();
        if series.len() > 1 {
            files.push((name.to_owned(), plot::scaling(&series, growth)?));
        }
    }
    Ok(files)
}

/// Formats all tables as Markdown.
#[must_use]
pub fn tables(results: &Results) -> String {
    let mut text = format!("# Benchmarks of {}\n\n{}\n", results.method.date, results.method.markdown());
    for store in &results.stores {
        text.push_str(&store_tables(store));
    }
    for timings in &results.timings {
        text.push_str(&format!("\n## {}\n\n{}", timings.title, timings.table()));
    }
    text
}

fn store_tables(store: &StoreResults) -> String {
    let megabytes = megabytes(store.nar_bytes);
    let mut text = format!("\n## Store `{}`: {} files, {megabytes} MB\n", store.name, store.files);
    if let Some(read) = spread(&store.read_seconds) {
        text.push_str(&format!("\nReading all of it once, two readers: {:.3} s.\n", read.median));
    }
    for comparison in &store.comparisons {
        text.push_str(&format!("\n### {}\n\n{}", comparison.title, comparison_table(comparison)));
    }
    if !store.notes.is_empty() {
        text.push_str("\n### other values\n\n");
        store.notes.iter().for_each(|note| text.push_str(&format!("- {note}\n")));
    }
    for (title, readings) in [
        ("reading, loop mount on this kernel", &store.readings),
        ("reading in an emulated guest (only ratios mean something)", &store.guest_readings),
    ] {
        if !readings.is_empty() {
            text.push_str(&format!("\n### {title}\n\n{}", read::tables(readings)));
        }
    }
    text
}

/// Formats a table of seconds, ratio to the first candidate, size and peak memory.
fn comparison_table(comparison: &ComparisonOutcome) -> String {
    let Some(first) = comparison.outcomes.first() else { return String::new() };
    let header = ["", "seconds", "minimum..maximum", "processor s", "time ratio", "image MB", "size ratio", "peak MiB"];
    let rows: Vec<Vec<String>> = comparison.outcomes.iter().map(|outcome| comparison_row(outcome, first)).collect();
    markdown(&header.map(String::from), &rows)
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
fn comparison_row(outcome: &Outcome, first: &Outcome) -> Vec<String> {
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

    #[test]
    fn tables_and_plots_in_the_repository_show_their_raw_values() {
        let kept: Vec<_> = fs::read_dir(workspace::root().join("benches/results")).unwrap().collect();
        assert!(!kept.is_empty());
        for directory in kept.into_iter().map(|entry| entry.unwrap().path()) {
            for (name, text) in files(&Results::read(&directory).unwrap()).unwrap() {
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
