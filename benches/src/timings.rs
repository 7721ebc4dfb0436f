//! Programs that are started repeatedly, taking turns, to measure their time.

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

/// A program that was started repeatedly.
#[derive(Debug, Serialize, Deserialize)]
pub struct Timed {
    /// The command, as it is shown in the table.
    pub name: String,
    /// The cost of each round.
    pub costs: Vec<Cost>,
}

impl Timings {
    /// Runs every command once in each round, as [`Timings::alternating`] does.
    ///
    /// # Errors
    /// When one can't be started or fails.
    pub fn measure(title: &str, commands: &mut [(String, Command)], rounds: usize) -> Result<Self, Error> {
        let mut candidates: Vec<(String, &mut Command)> =
            commands.iter_mut().map(|(name, command)| (name.clone(), command)).collect();
        Self::alternating(title, &mut candidates, rounds, |command| measure::run(command))
    }

    /// Calls `run` for every candidate once in each round. Every round begins with another candidate; one round more is
    /// run at the beginning, and dropped.
    ///
    /// # Errors
    /// When `run` fails.
    pub fn alternating<T>(
        title: &str,
        candidates: &mut [(String, T)],
        rounds: usize,
        mut run: impl FnMut(&mut T) -> Result<Cost, Error>,
    ) -> Result<Self, Error> {
        let mut programs: Vec<Timed> =
            candidates.iter().map(|(name, _)| Timed { name: name.clone(), costs: Vec::new() }).collect();
        let count = candidates.len();
        for round in 0..=rounds {
            for index in (0..count).map(|offset| (round + offset) % count) {
                let (Some(program), Some((_, candidate))) = (programs.get_mut(index), candidates.get_mut(index)) else {
                    continue;
                };
                let cost = run(candidate)?;
                if round > 0 {
                    program.costs.push(cost);
                }
            }
        }
        Ok(Self { title: title.to_owned(), programs })
    }

    /// Milliseconds from start to end and of the processors, and their ratios to the first within each round.
    #[must_use]
    pub fn table(&self) -> String {
        let Some(first) = self.programs.first() else { return String::new() };
        let header =
            ["milliseconds", "median", "minimum", "maximum", "time ratio", "processor", "processor ratio", "peak MiB"]
                .map(String::from);
        let rows: Vec<Vec<String>> = self.programs.iter().filter_map(|program| program.row(first)).collect();
        markdown(&header, &rows)
    }
}

impl Timed {
    fn seconds(&self) -> Vec<f64> {
        self.costs.iter().map(|cost| cost.seconds).collect()
    }

    fn processor_seconds(&self) -> Vec<f64> {
        self.costs.iter().map(|cost| cost.user_seconds + cost.system_seconds).collect()
    }

    fn row(&self, first: &Self) -> Option<Vec<String>> {
        let (all, of_first) = (spread(&self.seconds())?, ratio(&self.seconds(), &first.seconds())?);
        let processor = spread(&self.processor_seconds())?;
        let processor_of_first = ratio(&self.processor_seconds(), &first.processor_seconds())?;
        let peak_mib = self.costs.iter().map(|cost| cost.peak_memory_bytes).max().unwrap_or(0) / (1 << 20);
        let milliseconds = |seconds: f64| format!("{:.2}", seconds * 1000.0);
        Some(vec![
            self.name.clone(),
            milliseconds(all.median),
            milliseconds(all.minimum),
            milliseconds(all.maximum),
            format!("{:.2}", of_first.median),
            milliseconds(processor.median),
            format!("{:.2}", processor_of_first.median),
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

    #[test]
    fn every_round_begins_with_another_candidate_and_the_first_round_is_dropped() {
        let mut order = Vec::new();
        let mut candidates = ["a", "b"].map(|name| (name.to_owned(), name));
        let timings = Timings::alternating("order", &mut candidates, 2, |name| {
            order.push(*name);
            let number = f64::from(u8::try_from(order.len()).unwrap());
            Ok(Cost { seconds: number, user_seconds: number, system_seconds: number, peak_memory_bytes: 0 })
        })
        .unwrap();
        assert_eq!(order, ["a", "b", "b", "a", "a", "b"]);
        assert_eq!(timings.programs[0].seconds(), [4.0, 5.0]);
        assert_eq!(timings.programs[1].processor_seconds(), [6.0, 12.0]);
        let table = timings.table();
        assert!(table.lines().any(|line| line.ends_with("|   9000.00 |            1.00 |        0 |")), "{table}");
    }
}
