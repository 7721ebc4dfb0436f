//! `microvm list`: lists the machines, what they are doing, and which of them are outdated.

use super::activity::{MachineActivity, Phase, last_failure};
use super::layout::{Layout, Machine};
use super::parallel::in_parallel;
use super::resources::Resources;
use super::update::{Booted, booted};
use super::{ImperativeError, nix};
use crate::path::HostPath;
use crate::state::Activity;
use crate::suspend::{SuspendError, SuspendedState};
use serde::Serialize;
use std::fs;

/// What to determine about the machines besides what is recorded on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOptions {
    /// Whether to evaluate the flakes.
    pub evaluation: Evaluation,
    /// Whether to determine the resources.
    pub measurement: Measurement,
}

/// Whether to determine the resources that machines use. Nix computes the size of each closure, which takes a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measurement {
    /// Determines them.
    Measure,
    /// Leaves them null.
    Skip,
}

/// Whether to evaluate the flakes, which takes seconds per machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluation {
    /// Evaluates all of them in parallel.
    Evaluate,
    /// Evaluates none: lists only what is on this host.
    Skip,
}

/// The row of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The flake that it is built from; null if it is part of the host's configuration, a clone, or was installed from another
    /// computer.
    pub flake: Option<String>,
    /// Whether it is part of the host's configuration, and is updated with the host.
    pub declared: bool,
    /// The machine of which it is a clone; null if it is none.
    pub clone_of: Option<String>,
    /// What it is doing.
    pub activity: ListedActivity,
    /// Whether its runner is the one that its flake evaluates to now.
    pub freshness: UpdateState,
    /// Whether it was started with another runner than its current one.
    pub stale: bool,
    /// Why its start or its last run failed; null if it has not failed, or runs.
    pub failure: Option<Vec<String>>,
    /// A problem with the machine, if there is one.
    pub problem: Option<String>,
    /// The resources that it uses.
    #[serde(flatten)]
    pub resources: Resources,
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListedActivity {
    /// It is running, however it was started.
    Running,
    /// It is being started.
    Starting,
    /// It is not running, and its next start resumes it.
    Suspended,
    /// It is not running, because its start or its last run failed; `failure` says why.
    Failed,
    /// It is not running, but was not stopped by its service, for example because the host went down.
    StoppedUnexpectedly,
    /// It is not running: it was stopped, or has never been started.
    NotBooted,
    /// Its state cannot be read; `problem` says why.
    Unknown,
}

/// Whether a runner is the one that its flake evaluates to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateState {
    /// It is the same runner.
    Current,
    /// The flake evaluates to another runner.
    Outdated,
    /// The flake was not evaluated, or the machine has none on this host.
    Unknown,
    /// The flake cannot be evaluated.
    Broken,
}

/// Returns the rows of all machines, sorted by name. A machine that cannot be read or evaluated has a row with the
/// problem.
///
/// # Errors
/// Fails only if the state directories cannot be listed.
pub fn list(layout: &Layout, options: ListOptions) -> Result<Vec<Row>, ImperativeError> {
    let machines = layout.all()?;
    Ok(in_parallel(&machines, |machine| row(machine, options)))
}

/// Whether a stopped machine is suspended, as far as this user can see.
fn is_suspended(machine: &Machine) -> Result<bool, SuspendError> {
    let directory = HostPath::new(machine.directory.to_string_lossy());
    SuspendedState::new(&directory, machine.name.as_str()).is_visible()
}

fn row(machine: &Machine, options: ListOptions) -> Row {
    let activity = MachineActivity::of(machine);
    let suspended = is_suspended(machine);
    let damaged = suspended.as_ref().err().map(ToString::to_string);
    let is_active = activity
        .as_ref()
        .is_ok_and(|activity| activity.recorded != Activity::Stopped || activity.phase() == Phase::Running);
    let failure = if is_active { Ok(Vec::new()) } else { last_failure(machine) };
    let (failure, unreadable) = match failure {
        Ok(problems) => (Some(problems).filter(|problems| !problems.is_empty()), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let problem = activity.as_ref().err().map(ToString::to_string).or(damaged).or(unreadable);
    let running = activity.as_ref().ok().and_then(|activity| activity.recorded.running());
    let hypervisor = running.map(|running| running.hypervisor);
    let activity = match activity.map(|activity| activity.phase()) {
        Ok(Phase::Running) => ListedActivity::Running,
        Ok(Phase::Starting) => ListedActivity::Starting,
        Err(_) => ListedActivity::Unknown,
        _ if suspended.is_err() => ListedActivity::Unknown,
        _ if suspended.is_ok_and(|is_suspended| is_suspended) => ListedActivity::Suspended,
        _ if failure.is_some() => ListedActivity::Failed,
        _ if fs::symlink_metadata(machine.booted()).is_ok() => ListedActivity::StoppedUnexpectedly,
        _ => ListedActivity::NotBooted,
    };
    let mut row = Row {
        name: machine.name.to_string(),
        flake: None,
        declared: machine.is_declared(),
        clone_of: None,
        activity,
        freshness: UpdateState::Unknown,
        stale: false,
        failure,
        problem,
        resources: Resources::default(),
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
    if options.measurement == Measurement::Measure {
        row.resources = Resources::of(machine, &current, hypervisor);
    }
    let flake = match machine.flake() {
        Ok(flake) => flake,
        Err(ImperativeError::Declared(_) | ImperativeError::InstalledFromElsewhere(_)) => return row,
        Err(ImperativeError::Clone { original, .. }) => {
            row.clone_of = Some(original);
            return row;
        }
        Err(error) => {
            row.problem = Some(error.to_string());
            return row;
        }
    };
    row.flake = Some(flake.to_string());
    if options.evaluation == Evaluation::Skip {
        return row;
    }
    match nix::evaluate(&flake, &machine.name) {
        Ok(new) if new == current => row.freshness = UpdateState::Current,
        Ok(_) => row.freshness = UpdateState::Outdated,
        Err(error) => {
            row.freshness = UpdateState::Broken;
            row.problem = Some(error.to_string());
        }
    }
    row
}
