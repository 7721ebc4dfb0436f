//! `microvm list`.

use crate::cli::host_machine::failure;
use launcher::imperative::{Evaluation, Layout, ListOptions, ListedActivity, Measurement, Row, UpdateState, list};
use program::escape::one_line;
use program::failure::Failure;
use program::output::{colours_are_permitted, message, print};
use std::io::IsTerminal;

/// List the machines of this host, whether they are running, and whether their flakes have changed
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print JSON, with the disk space, the memory and the uptime of each machine
    #[arg(long)]
    json: bool,
    /// Do not evaluate the flakes: this is faster, but does not show which machines are outdated
    #[arg(long)]
    offline: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let evaluation = if arguments.offline { Evaluation::Skip } else { Evaluation::Evaluate };
    let measurement = if arguments.json { Measurement::Measure } else { Measurement::Skip };
    let layout = Layout::of_environment();
    let rows = list(&layout, ListOptions { evaluation, measurement }).map_err(|error| failure(&error))?;
    if arguments.json {
        let document = serde_json::to_value(&rows).map_err(|error| Failure::failed(&error))?;
        print(format!("{document:#}\n"))?;
        return outcome(&rows);
    }
    if rows.is_empty() {
        let machines = layout.machines().display();
        message(&format!("there are no machines in {machines}; create one with `microvm create NAME --flake FLAKE`"));
    }
    let palette =
        if std::io::stdout().is_terminal() && colours_are_permitted() { Palette::Colours } else { Palette::Plain };
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    print(rows.iter().map(|row| line(row, width, palette)).collect::<String>())?;
    outcome(&rows)
}

/// Fails if the state of a machine cannot be read.
fn outcome(rows: &[Row]) -> Result<(), Failure> {
    let unknown = rows.iter().filter(|row| row.activity == ListedActivity::Unknown);
    let problems: Vec<_> =
        unknown.map(|row| format!("{}: {}", row.name, row.problem.as_deref().unwrap_or_default())).collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems(problems)) }
}

#[derive(Clone, Copy)]
enum Palette {
    Colours,
    Plain,
}

fn line(row: &Row, width: usize, palette: Palette) -> String {
    let (activity, colour) = match (row.activity, row.stale) {
        (ListedActivity::Running, false) => ("running", 32),
        (ListedActivity::Running, true) => ("stale: runs an older system", 33),
        (ListedActivity::Starting, _) => ("starting", 33),
        (ListedActivity::Suspended, _) => ("suspended", 33),
        (ListedActivity::Failed, _) => ("failed", 31),
        (ListedActivity::StoppedUnexpectedly, _) => ("stopped unexpectedly", 31),
        (ListedActivity::NotBooted, _) => ("not booted", 31),
        (ListedActivity::Unknown, _) => ("unknown", 31),
    };
    let freshness = match row.freshness {
        UpdateState::Current => "current".to_owned(),
        UpdateState::Outdated => format!("outdated: microvm update {}", row.name),
        UpdateState::Broken => "broken".to_owned(),
        UpdateState::Unknown if row.clone_of.is_some() => {
            format!("clone of {}", row.clone_of.as_deref().unwrap_or_default())
        }
        UpdateState::Unknown if row.declared => "part of the host".to_owned(),
        UpdateState::Unknown if row.flake.is_none() && row.problem.is_none() => {
            "installed from another computer".to_owned()
        }
        UpdateState::Unknown => "not evaluated".to_owned(),
    };
    // The error reports the problem of an unknown machine.
    let problem = row.problem.clone().filter(|_| row.activity != ListedActivity::Unknown);
    let reasons = problem.into_iter().chain(row.failure.iter().map(|failure| failure.join("; ")));
    let reasons = reasons.collect::<Vec<_>>().join("; ");
    let reasons = Some(reasons)
        .filter(|reasons| !reasons.is_empty())
        .map(|reasons| format!(": {}", one_line(&reasons)))
        .unwrap_or_default();
    let name = format!("{:width$}", row.name);
    let name = match palette {
        Palette::Colours => format!("\x1b[{colour}m{name}\x1b[0m"),
        Palette::Plain => name,
    };
    format!("{name}  {activity}, {freshness}{reasons}\n")
}
