//! `microvm status`: which machines are running, being started or suspended.

mod watch;

use super::machine::failed;
use launcher::imperative::{Layout, MachineActivity, MachineName, Phase, state_of};
use launcher::launch::Launch;
use launcher::path::HostPath;
use launcher::state::{Activity, MachineState, RunningMachine, RuntimeDirectory};
use launcher::suspend::SuspendedState;
use program::failure::Failure;
use program::output::print;
use serde_json::{Value, json};

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
        return Err(Failure::usage(problem));
    }
    if arguments.watch {
        return watch::watch(&arguments.names, &runtime);
    }
    let rows = rows(&arguments.names, &runtime)?;
    if arguments.json {
        return print(format!("{:#}\n", Value::Array(rows.iter().map(Row::json).collect())));
    }
    print(rows.iter().map(Row::text).collect::<String>())
}

/// Returns the rows of these machines, or of all known ones if no name is given.
fn rows(names: &[String], runtime: &RuntimeDirectory) -> Result<Vec<Row>, Failure> {
    let names = if names.is_empty() { known_names(runtime)? } else { names.to_vec() };
    let row = |name: String| {
        let (state, phase) = inspect(&name, runtime)?;
        let activity = state.activity().map_err(failed)?;
        let launch = state.last_launch().map_err(failed)?;
        let is_suspended = phase == Phase::Stopped && is_suspended(&name, launch.as_ref());
        let hypervisor = launch.map(|launch| launch.hypervisor.to_string());
        Ok(Row { name, hypervisor, phase, activity, is_suspended })
    };
    names.into_iter().map(row).collect()
}

struct Row {
    name: String,
    hypervisor: Option<String>,
    phase: Phase,
    activity: Activity,
    is_suspended: bool,
}

impl Row {
    fn state(&self) -> &'static str {
        match self.phase {
            Phase::Running => "running",
            Phase::Starting => "starting",
            Phase::Stopped if self.is_suspended => "suspended",
            Phase::Stopped => "stopped",
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "hypervisor": self.hypervisor,
            "activity": self.state(),
            "running": self.phase == Phase::Running,
            "processes": self.activity.running(),
        })
    }

    fn text(&self) -> String {
        let hypervisor = self.hypervisor.as_deref().unwrap_or("-");
        let described = match (&self.activity, self.phase) {
            (Activity::Running(machine), _) => running(machine),
            (Activity::Starting(machine), _) => format!("starting, by process {}", machine.launcher.pid),
            (Activity::Stopped, Phase::Running) => "running".to_owned(),
            (Activity::Stopped, Phase::Starting) => "starting".to_owned(),
            (Activity::Stopped, Phase::Stopped) if self.is_suspended => "suspended".to_owned(),
            (Activity::Stopped, Phase::Stopped) => "stopped".to_owned(),
        };
        format!("{}  {hypervisor}  {described}\n", self.name)
    }
}

/// Whether a stopped machine is suspended, as far as this user can see.
fn is_suspended(name: &str, launch: Option<&Launch>) -> bool {
    let of_host = MachineName::new(name).ok().and_then(|name| Layout::of_environment().existing(&name).ok());
    let directory = match (&of_host, launch) {
        (Some(machine), _) => HostPath::new(machine.directory.to_string_lossy()),
        (None, Some(launch)) => launch.working_directory.clone(),
        (None, None) => return false,
    };
    matches!(SuspendedState::new(&directory, name).stamp(), Ok(Some(_)))
}

/// Returns the state of a machine. A machine of this host may run in its service, or be recorded in another runtime
/// directory.
fn inspect(name: &str, runtime: &RuntimeDirectory) -> Result<(MachineState, Phase), Failure> {
    let of_host = MachineName::new(name).ok().and_then(|name| Layout::of_environment().existing(&name).ok());
    if let Some(machine) = of_host {
        let phase = MachineActivity::of(&machine).map_err(failed)?.phase();
        return Ok((state_of(&machine, runtime).map_err(failed)?, phase));
    }
    let state = runtime.machine(name).map_err(|error| Failure::usage(error.to_string()))?;
    let phase = match state.activity().map_err(failed)? {
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
