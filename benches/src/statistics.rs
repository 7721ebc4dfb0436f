//! Medians and tables of repeated measurements.

use serde::Serialize;

/// Minimum, median and maximum of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest value, in the unit of the samples.
    pub minimum: f64,
    /// The median: the middle number, or the mean of the two middle ones.
    pub median: f64,
    /// The largest value, in the same unit.
    pub maximum: f64,
}

/// Returns the spread of `values`; `None` if there are none.
#[must_use]
pub fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        *sorted.get(middle)?
    } else {
        f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, *sorted.get(middle)?)
    };
    Some(Spread { minimum: *sorted.first()?, median, maximum: *sorted.last()? })
}

/// Returns the spread of `values[i] / base[i]`. The ratios are taken within each round, because a slow phase of the
/// machine affects both values.
#[must_use]
pub fn ratio(values: &[f64], base: &[f64]) -> Option<Spread> {
    let ratios: Vec<f64> = values.iter().zip(base).map(|(value, base)| value / base).collect();
    spread(&ratios)
}

/// Formats a Markdown table with aligned columns. All columns except the first are numbers and aligned to the right.
#[must_use]
pub fn markdown(header: &[String], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .chain([&header.to_vec()])
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(
            |(column, width)| {
                if column == 0 { "-".repeat(*width) } else { format!("{}:", "-".repeat(width.saturating_sub(1))) }
            },
        )
        .collect();
    let mut table = line(header);
    table.push_str(&line(&rule));
    for row in rows {
        table.push_str(&line(row));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_middle_two() {
        let spread = spread(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { minimum: 1.0, median: 2.5, maximum: 4.0 });
    }

    #[test]
    fn an_empty_list_has_no_spread() {
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let ratio = ratio(&[2.0, 30.0, 4.0], &[1.0, 10.0, 4.0]).unwrap();
        assert_eq!(ratio, Spread { minimum: 1.0, median: 2.0, maximum: 3.0 });
    }

    #[test]
    fn a_table_is_aligned() {
        let table = markdown(&["tool".into(), "s".into()], &[vec!["mksquashfs".into(), "1.25".into()]]);
        assert_eq!(table, "| tool       |    s |\n| ---------- | ---: |\n| mksquashfs | 1.25 |\n");
    }
}
