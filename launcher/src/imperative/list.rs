//! `microvm list`: what there is, what runs, and what of it is old.

use super::activity::{MachineActivity, Phase};
use super::layout::{Layout, Machine};
use super::update::{Booted, booted};
use super::{ImperativeError, nix};
use serde::Serialize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

/// Evaluations at once: each takes a core and a gigabyte of memory.
const MOST_AT_ONCE: usize = 8;

/// Whether the flakes are evaluated, which takes seconds each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluation {
    /// All of them, side by side.
    Evaluate,
    /// None: only what is on this host.
    Skip,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What it is built from; null when it is part of the host's configuration.
    pub flake: Option<String>,
    /// What it is doing.
    pub activity: ListedActivity,
    /// Whether its runner is what the flake makes today.
    pub freshness: Freshness,
    /// Whether it was started with another runner than it has.
    pub stale: bool,
    /// What is wrong with it, if anything is.
    pub problem: Option<String>,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListedActivity {
    /// It runs, however it was started.
    Running,
    /// It is being started.
    Starting,
    /// It does not run, but its service was not stopped either: it has failed, or ended with the host.
    Stopped,
    /// It does not run: it was stopped, or never started.
    NotBooted,
}

/// Whether a runner is what the flake makes today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Freshness {
    /// It is.
    Current,
    /// The flake makes another one.
    Outdated,
    /// It was not asked for, or the host's configuration says.
    Unknown,
    /// The flake makes none.
    Broken,
}

/// All machines, by name. One that cannot be evaluated or read is a row that says so.
///
/// # Errors
/// Only when the state directories cannot be listed.
pub fn list(layout: &Layout, evaluation: Evaluation) -> Result<Vec<Row>, ImperativeError> {
    let machines = layout.all()?;
    let rows = Mutex::new(vec![None; machines.len()]);
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(MOST_AT_ONCE).min(machines.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((index, machine)) = take(&next, &machines) {
                    let row = row(machine, evaluation);
                    if let Ok(mut rows) = rows.lock() {
                        rows[index] = Some(row);
                    }
                }
            });
        }
    });
    Ok(rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter().flatten().collect())
}

fn take<'machines>(next: &AtomicUsize, machines: &'machines [Machine]) -> Option<(usize, &'machines Machine)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    machines.get(index).map(|machine| (index, machine))
}

fn row(machine: &Machine, evaluation: Evaluation) -> Row {
    let activity = MachineActivity::of(machine);
    let problem = activity.as_ref().err().map(ToString::to_string);
    let activity = match activity.map(|activity| activity.phase()) {
        Ok(Phase::Running) => ListedActivity::Running,
        Ok(Phase::Starting) => ListedActivity::Starting,
        _ if fs::symlink_metadata(machine.booted()).is_ok() => ListedActivity::Stopped,
        _ => ListedActivity::NotBooted,
    };
    let mut row = Row {
        name: machine.name.to_string(),
        flake: None,
        activity,
        freshness: Freshness::Unknown,
        stale: false,
        problem,
    };
    match booted(machine) {
        Ok(booted) => row.stale = booted == Booted::Another,
        Err(error) => row.problem = Some(error.to_string()),
    }
    let current = match machine.runner() {
        Ok(current) => current,
        Err(error) => {
            row.problem = Some(error.to_string());
            return row;
        }
    };
    let flake = match machine.flake() {
        Ok(flake) => flake,
        Err(ImperativeError::Declared(_)) => return row,
        Err(error) => {
            row.problem = Some(error.to_string());
            return row;
        }
    };
    row.flake = Some(flake.to_string());
    if evaluation == Evaluation::Skip {
        return row;
    }
    match nix::evaluate(&flake, &machine.name) {
        Ok(new) if new == current => row.freshness = Freshness::Current,
        Ok(_) => row.freshness = Freshness::Outdated,
        Err(error) => {
            row.freshness = Freshness::Broken;
            row.problem = Some(error.to_string());
        }
    }
    row
}
