//! `microvm status`: which machines are running.

use super::failure::Failure;
use super::output::write_stdout;
use launcher::imperative::Layout;
use launcher::state::{RunningMachine, RuntimeDirectory};
use serde_json::json;

/// Show which machines are running
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Machines to show [default: all known machines]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = RuntimeDirectory::locate().map_err(|error| Failure::failed(&error))?;
    let known = known_names(&runtime)?;
    let names = if arguments.names.is_empty() { known.clone() } else { arguments.names.clone() };
    let mut rows = Vec::new();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        let problem =
            format!("there is no machine {unknown}: nobody has started one of that name, and this host has none");
        return Err(Failure::bad_input(vec![problem]));
    }
    for name in &names {
        let machine = runtime.machine(name).map_err(|error| Failure::bad_input(vec![error.to_string()]))?;
        let running = machine.running().map_err(|error| Failure::failed(&error))?;
        let launch = machine.last_launch().map_err(|error| Failure::failed(&error))?;
        rows.push((name, launch.map(|launch| launch.hypervisor.to_string()), running));
    }
    if arguments.json {
        let document = rows.iter().map(|(name, hypervisor, running)| {
            json!({"name": name, "hypervisor": hypervisor, "running": running.is_some(), "processes": running})
        });
        return write_stdout(&format!("{:#}\n", serde_json::Value::Array(document.collect())));
    }
    let mut text = String::new();
    for (name, hypervisor, running) in &rows {
        let hypervisor = hypervisor.as_deref().unwrap_or("-");
        text.push_str(&format!("{name}  {hypervisor}  {}\n", described(running.as_ref())));
    }
    write_stdout(&text)
}

/// Machines that have been started here, and all machines of the host.
fn known_names(runtime: &RuntimeDirectory) -> Result<Vec<String>, Failure> {
    let mut names = runtime.machine_names().map_err(|error| Failure::failed(&error))?;
    let of_host = Layout::of_environment().all().map_err(|error| Failure::failed(&error))?;
    names.extend(of_host.into_iter().map(|machine| machine.name.to_string()));
    names.sort();
    names.dedup();
    Ok(names)
}

fn described(running: Option<&RunningMachine>) -> String {
    match running {
        None => "stopped".to_owned(),
        Some(machine) => {
            let guest = match machine.guest_ready {
                Some(true) => ", guest ready",
                Some(false) => ", guest booting",
                None => "",
            };
            format!("running as process {}{guest}", machine.hypervisor.pid)
        }
    }
}
