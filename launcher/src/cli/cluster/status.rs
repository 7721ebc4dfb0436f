//! `microvm cluster status`: hosts, machines, fencing and failures.

use super::failure;
use launcher::cluster::engine;
use launcher::cluster::status::{MachineStatus, NodeStatus, Status};
use program::failure::Failure;
use program::output::{print, print_json};
use std::fmt::Write;

/// Show the cluster's hosts and machines, what was fenced, and what has failed
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let status = engine::status().map_err(|error| failure(&error.into()))?;
    if arguments.json { print_json(&status) } else { print(text(&status)) }
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    let quorum = if status.has_quorum { "quorum" } else { "no quorum: machines are stopped" };
    let coordinator = status.coordinator.as_deref().map_or_else(|| "none".to_owned(), str::to_owned);
    // Writing to a string does not fail.
    let _ = writeln!(text, "{quorum}; coordinator: {coordinator}");
    section(&mut text, "hosts", status.nodes.iter().map(|node| format!("{}  {}", node.name, of_node(node))));
    section(
        &mut text,
        "machines",
        status.machines.iter().map(|machine| format!("{}  {}", machine.name, of_machine(machine))),
    );
    let working = |is_working: bool| if is_working { "working" } else { "not working" };
    let devices = status.fence_devices.iter().map(|device| format!("{}  {}", device.name, working(device.is_working)));
    section(&mut text, "fence devices", devices);
    let fencing = status
        .fencing
        .iter()
        .map(|event| format!("{}  {}  {}  {}", event.node, event.action, event.status, event.completed));
    section(&mut text, "fencing", fencing);
    let failures =
        status.failures.iter().map(|failure| format!("{}  on {}: {}", failure.operation, failure.node, failure.reason));
    section(&mut text, "failures", failures);
    text
}

fn section(text: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        let _ = writeln!(text, "{title}:");
        for line in lines {
            let _ = writeln!(text, "  {}", program::escape::one_line(line.trim_end()));
        }
    }
}

fn of_node(node: &NodeStatus) -> String {
    let mut words = vec![if node.is_online { "online" } else { "offline" }];
    words.extend(node.is_unclean.then_some("waiting to be fenced"));
    words.extend(node.is_drained.then_some("drained"));
    words.extend(node.is_in_maintenance.then_some("in maintenance"));
    words.join(", ")
}

fn of_machine(machine: &MachineStatus) -> String {
    let mut words = vec![match (machine.nodes.as_slice(), machine.role.as_str()) {
        ([], _) => "stopped".to_owned(),
        (nodes, "Started") => format!("running on {}", nodes.join(" and ")),
        (nodes, role) => format!("{} on {}", role.to_lowercase(), nodes.join(" and ")),
    }];
    words.extend(machine.has_failed.then(|| "failed".to_owned()));
    words.extend((!machine.is_managed).then(|| "unmanaged".to_owned()));
    words.join(", ")
}
