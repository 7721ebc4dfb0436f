//! `microvm status`: which machines are running, being started or suspended.

mod watch;

use super::machine::failed;
use launcher::imperative::{Layout, MachineActivity, MachineName, Phase, last_failure, state_of};
use launcher::launch::Launch;
use launcher::path::HostPath;
use launcher::state::{Activity, MachineState, RunningMachine, RuntimeDirectory, StateError, is_same_directory};
use launcher::suspend::{SuspendError, SuspendedState};
use program::escape::one_line;
use program::failure::Failure;
use program::output::{message, print};
use program::spelling::nearest;
use serde_json::{Value, json};
use std::path::Path;

/// Show which machines are running, being started or suspended
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Machines to show [default: all known machines]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show a table with processor time, memory, disk space and uptime, updated every 2 seconds, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = RuntimeDirectory::locate().map_err(failed)?;
    let known = known_names(&runtime)?;
    if let Some(unknown) = arguments.names.iter().find(|name| !known.contains(name)) {
        let problem =
            format!("there is no machine {unknown}: it has never been started, and this host does not define it");
        let near = nearest(unknown, known.iter().map(String::as_str));
        return Err(Failure::usage(problem).with_optional_hint(near.map(|near| format!("did you mean `{near}`?"))));
    }
    if arguments.watch {
        return watch::watch(&arguments.names, &runtime);
    }
    let rows = rows(&arguments.names, &runtime)?;
    if arguments.json {
        print(format!("{:#}\n", Value::Array(rows.iter().map(Row::json).collect())))?;
    } else {
        print(rows.iter().map(Row::text).collect::<String>())?;
    }
    for (name, warning) in rows.iter().filter_map(|row| Some((&row.name, row.warning.as_ref()?))) {
        message(&format!("warning: {name}: {warning}"));
    }
    let problems: Vec<_> = rows.into_iter().filter_map(|row| Some(format!("{}: {}", row.name, row.problem?))).collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems(problems)) }
}

/// Returns the rows of these machines, or of all known ones if no name is given.
fn rows(names: &[String], runtime: &RuntimeDirectory) -> Result<Vec<Row>, Failure> {
    let names = if names.is_empty() { known_names(runtime)? } else { names.to_vec() };
    Ok(names.into_iter().map(|name| row(name, runtime)).collect())
}

/// Returns the row of one machine. One whose state cannot be read does not keep the others from being shown.
fn row(name: String, runtime: &RuntimeDirectory) -> Row {
    let unknown = |problem: String| Row {
        name: name.clone(),
        hypervisor: None,
        phase: None,
        activity: Activity::Stopped,
        is_suspended: false,
        failure: Vec::new(),
        warning: None,
        problem: Some(problem),
    };
    let (state, phase) = match inspect(&name, runtime) {
        Ok(found) => found,
        Err(error) => return unknown(error.to_string()),
    };
    let (activity, launch) = match state.activity().and_then(|activity| Ok((activity, state.last_launch()?))) {
        Ok(found) => found,
        Err(error) => return unknown(error.to_string()),
    };
    let is_down = activity == Activity::Stopped && phase != Phase::Running;
    let failure = if is_down { failure(&name, &state) } else { Ok(Vec::new()) };
    let (failure, warning) = match failure {
        Ok(failure) => (failure, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let is_suspended = if phase == Phase::Stopped { is_suspended(&name, launch.as_ref()) } else { Ok(false) };
    let (is_suspended, problem) = match is_suspended {
        Ok(is_suspended) => (is_suspended, None),
        Err(error) => (false, Some(error.to_string())),
    };
    let hypervisor = launch.map(|launch| launch.hypervisor.to_string());
    Row { name, hypervisor, phase: Some(phase), activity, is_suspended, failure, warning, problem }
}

struct Row {
    name: String,
    hypervisor: Option<String>,
    /// `None` if the state of the machine cannot be read.
    phase: Option<Phase>,
    activity: Activity,
    is_suspended: bool,
    /// Why its start or its last run failed; empty if it has not failed.
    failure: Vec<String>,
    /// Why it is not known whether its start or its last run failed.
    warning: Option<String>,
    /// Why its state cannot be read.
    problem: Option<String>,
}

impl Row {
    fn state(&self) -> &'static str {
        match self.phase {
            None => "unknown",
            Some(Phase::Running) => "running",
            Some(Phase::Starting) => "starting",
            Some(Phase::Stopped) if self.is_suspended => "suspended",
            Some(Phase::Stopped) if !self.failure.is_empty() => "failed",
            Some(Phase::Stopped) => "stopped",
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "hypervisor": self.hypervisor,
            "activity": self.state(),
            "running": self.phase.map(|phase| phase == Phase::Running),
            "processes": self.activity.running(),
            "failure": Some(&self.failure).filter(|failure| !failure.is_empty()),
            "problem": self.problem.as_ref().or(self.warning.as_ref()),
        })
    }

    /// The reasons of its failure, which its user has written, on one line.
    fn reasons(&self) -> String {
        one_line(&self.failure.join("; ")).into_owned()
    }

    fn text(&self) -> String {
        let hypervisor = self.hypervisor.as_deref().unwrap_or("-");
        let described = match (&self.activity, self.phase) {
            (Activity::Running(machine), _) => running(machine),
            (Activity::Starting(machine), _) => format!("starting, by process {}", machine.launcher.pid),
            (Activity::Stopped, _) if self.failure.is_empty() => self.state().to_owned(),
            (Activity::Stopped, Some(Phase::Stopped)) if !self.is_suspended => format!("failed: {}", self.reasons()),
            (Activity::Stopped, _) => format!("{}; the last start or run failed: {}", self.state(), self.reasons()),
        };
        format!("{}  {hypervisor}  {described}\n", self.name)
    }
}

/// Whether a stopped machine is suspended, as far as this user can see.
fn is_suspended(name: &str, launch: Option<&Launch>) -> Result<bool, SuspendError> {
    let of_host = MachineName::new(name).ok().and_then(|name| Layout::of_environment().existing(&name).ok());
    let directory = match (&of_host, launch) {
        (Some(machine), _) => HostPath::new(machine.directory.to_string_lossy()),
        (None, Some(launch)) => launch.working_directory.clone(),
        (None, None) => return Ok(false),
    };
    SuspendedState::new(&directory, name).is_visible()
}

/// Returns why the machine failed to start, or why its last run failed. Empty if it has not failed.
fn failure(name: &str, state: &MachineState) -> Result<Vec<String>, StateError> {
    let of_host = MachineName::new(name).ok().and_then(|name| Layout::of_environment().existing(&name).ok());
    match of_host {
        Some(machine) => last_failure(&machine),
        None => {
            let Some(failure) = state.failure()? else { return Ok(Vec::new()) };
            let is_elsewhere = |last: &Path| !is_same_directory(last, &failure.working_directory);
            if !state.working_directory()?.is_some_and(|last| is_elsewhere(&last)) {
                return Ok(failure.problems);
            }
            // A machine of the same name in another directory has been started, too.
            let directory = failure.working_directory.display();
            Ok(failure.problems.iter().map(|problem| format!("{directory}: {problem}")).collect())
        }
    }
}

/// Returns the state of a machine. A machine of this host may run in its service, or be recorded in another runtime
/// directory.
fn inspect(name: &str, runtime: &RuntimeDirectory) -> Result<(MachineState, Phase), StateError> {
    let of_host = MachineName::new(name).ok().and_then(|name| Layout::of_environment().existing(&name).ok());
    if let Some(machine) = of_host {
        let phase = MachineActivity::of(&machine)?.phase();
        return Ok((state_of(&machine, runtime)?, phase));
    }
    let state = runtime.machine(name)?;
    let phase = match state.activity()? {
        Activity::Stopped => Phase::Stopped,
        Activity::Starting(_) => Phase::Starting,
        Activity::Running(_) => Phase::Running,
    };
    Ok((state, phase))
}

/// Returns the machines that have been started here, and all machines of the host.
fn known_names(runtime: &RuntimeDirectory) -> Result<Vec<String>, Failure> {
    let mut names = runtime.machine_names().map_err(failed)?;
    let of_host = Layout::of_environment().all().map_err(failed)?;
    names.extend(of_host.into_iter().map(|machine| machine.name.to_string()));
    names.sort();
    names.dedup();
    Ok(names)
}

fn running(machine: &RunningMachine) -> String {
    let guest = match machine.guest_ready {
        Some(true) => ", guest ready",
        Some(false) => ", guest booting",
        None => "",
    };
    format!("running as process {}{guest}", machine.hypervisor.pid)
}
