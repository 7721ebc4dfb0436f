//! Programs that are started repeatedly, taking turns, to measure only their time.

use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::measure::{self, Cost};
use crate::statistics::{markdown, ratio, spread};

/// Programs timed in turn.
#[derive(Debug, Serialize, Deserialize)]
pub struct Timings {
    /// The heading above the table.
    pub title: String,
    /// The programs; ratios are relative to the first.
    pub programs: Vec<Timed>,
}

/// A program that was started many times.
#[derive(Debug, Serialize, Deserialize)]
pub struct Timed {
    /// The command, as it is shown in the table.
    pub name: String,
    /// The cost of each round.
    pub costs: Vec<Cost>,
}

impl Timings {
    /// Runs every command once in each round.
    ///
    /// # Errors
    /// When one can't be started or fails.
    pub fn measure(title: &str, commands: &mut [(String, Command)], rounds: usize) -> Result<Self, Error> {
        let mut programs: Vec<Timed> =
            commands.iter().map(|(name, _)| Timed { name: name.clone(), costs: Vec::new() }).collect();
        for _ in 0..rounds {
            for (program, (_, command)) in programs.iter_mut().zip(commands.iter_mut()) {
                program.costs.push(measure::run(command)?);
            }
        }
        Ok(Self { title: title.to_owned(), programs })
    }

    /// Milliseconds from start to end, and the ratio to the first within each round.
    #[must_use]
    pub fn table(&self) -> String {
        let Some(first) = self.programs.first() else { return String::new() };
        let header = ["milliseconds", "median", "minimum", "maximum", "time ratio", "peak MiB"].map(String::from);
        let rows: Vec<Vec<String>> = self.programs.iter().filter_map(|program| program.row(first)).collect();
        markdown(&header, &rows)
    }
}

impl Timed {
    fn seconds(&self) -> Vec<f64> {
        self.costs.iter().map(|cost| cost.seconds).collect()
    }

    fn row(&self, first: &Self) -> Option<Vec<String>> {
        let (spread, ratio) = (spread(&self.seconds())?, ratio(&self.seconds(), &first.seconds())?);
        let peak_mib = self.costs.iter().map(|cost| cost.peak_memory_bytes).max().unwrap_or(0) / (1 << 20);
        let milliseconds = |seconds: f64| format!("{:.2}", seconds * 1000.0);
        Some(vec![
            self.name.clone(),
            milliseconds(spread.median),
            milliseconds(spread.minimum),
            milliseconds(spread.maximum),
            format!("{:.2}", ratio.median),
            peak_mib.to_string(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_timed_in_turn_and_compared_with_the_first() {
        let command = |name: &str, seconds: &str| {
            let mut command = Command::new("sleep");
            command.arg(seconds);
            (name.to_owned(), command)
        };
        let timings = Timings::measure("naps", &mut [command("short", "0.01"), command("long", "0.2")], 2).unwrap();
        assert!(timings.programs.iter().all(|program| program.costs.len() == 2));
        let table = timings.table();
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows.len(), 4, "{table}");
        let cell = |row: usize, column: usize| rows[row].split('|').nth(column).unwrap().trim().to_owned();
        assert_eq!([cell(2, 1), cell(2, 5), cell(3, 1)], ["short", "1.00", "long"]);
        assert!(cell(3, 5).parse::<f64>().unwrap() > 1.0, "{table}");
    }
}
