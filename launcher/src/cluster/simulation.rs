//! Whether every machine has a host: at the first start, when a host fails, and when a host is drained. Pacemaker's own
//! scheduler decides this, on files, without a running cluster.

use super::checked::CheckedCluster;
use super::cib::configuration;
use super::engine::{EngineError, run, run_for_xml};
use super::status::Status;
use super::xml::{Element, XmlError};
use crate::imperative::in_parallel;
use program::plural::counted;
use std::collections::BTreeMap;

/// The property set of the simulation.
const WITHOUT_PROBES: &str = "simulated-without-probes";

/// What happens to the hosts of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All hosts run, and all machines start.
    FirstStart,
    /// A host fails.
    Failure(String),
    /// A host is drained.
    Drain(String),
}

/// Where the machines are after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The event.
    pub event: Event,
    /// The host of each machine; `None` for a machine without one.
    pub hosts: BTreeMap<String, Option<String>>,
}

/// Why the simulation failed.
#[derive(Debug, thiserror::Error)]
pub enum SimulationError {
    /// A tool failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The configuration cannot be written or read.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Pacemaker refuses the generated configuration.
    #[error("Pacemaker refuses the generated configuration: {0}")]
    Refused(EngineError),
}

/// Verifies the generated configuration with `crm_verify`, and lets `crm_simulate` place the machines: at the first
/// start, after the failure of each host, and after each host is drained.
///
/// # Errors
/// Fails if a tool of Pacemaker is missing, or refuses the configuration.
pub fn simulate(cluster: &CheckedCluster) -> Result<Vec<Placement>, SimulationError> {
    let started = started_cluster(cluster)?;
    verify(&started)?;
    let text = started.to_text()?;
    let names = || cluster.nodes.iter().map(|node| &node.name);
    let failures = names().map(|name| Event::Failure(name.clone()));
    let events: Vec<Event> = failures.chain(names().map(|name| Event::Drain(name.clone()))).collect();
    let simulated = in_parallel(&events, |event| match event {
        Event::Drain(node) => planned(cluster, event, (&with_standby(&started, node).to_text()?, &[])),
        Event::Failure(node) => planned(cluster, event, (&text, &[&format!("--node-fail={node}")])),
        Event::FirstStart => planned(cluster, event, (&text, &[])),
    });
    let first = std::iter::once(planned(cluster, &Event::FirstStart, (&text, &[])));
    first.chain(simulated).collect()
}

/// Returns why a machine has no host after an event; empty if every machine has one.
pub fn problems(cluster: &CheckedCluster, placements: &[Placement]) -> Vec<String> {
    let mut problems = Vec::new();
    let starts = |machine: &str| {
        let first = placements.iter().find(|placement| placement.event == Event::FirstStart);
        first.and_then(|first| first.hosts.get(machine)).is_some_and(Option::is_some)
    };
    for placement in placements {
        let when = match &placement.event {
            Event::FirstStart => "when all hosts run".to_owned(),
            Event::Failure(node) => format!("when {node} fails"),
            Event::Drain(node) => format!("when {node} is drained"),
        };
        for (machine, _) in placement.hosts.iter().filter(|(_, host)| host.is_none()) {
            // A machine that never starts is reported once. One that survives a failure also survives a drain.
            let is_repeated = match &placement.event {
                Event::FirstStart => false,
                Event::Failure(_) => !starts(machine),
                Event::Drain(node) => {
                    let failure = Event::Failure(node.clone());
                    let failed = placements.iter().find(|other| other.event == failure);
                    failed.and_then(|failed| failed.hosts.get(machine)).is_none_or(Option::is_none)
                }
            };
            if !is_repeated {
                problems.push(format!(
                    "machines.{machine}: {when}, no host can run it{}",
                    free(cluster, placement, machine)
                ));
            }
        }
    }
    problems
}

/// Returns what a machine needs, and what the hosts that are left have.
fn free(cluster: &CheckedCluster, placement: &Placement, machine: &str) -> String {
    let gone = match &placement.event {
        Event::FirstStart => None,
        Event::Failure(node) | Event::Drain(node) => Some(node),
    };
    let Some(needed) = cluster.machines.iter().find(|known| known.name == machine) else { return String::new() };
    let hosts = cluster.nodes.iter().filter(|node| Some(&node.name) != gone).map(|node| {
        let on_host = |name: &String| placement.hosts.get(name).and_then(Option::as_ref) == Some(&node.name);
        let there = || cluster.machines.iter().filter(|other| on_host(&other.name));
        let memory_mib = node.memory_mib.saturating_sub(there().map(|other| other.memory_mib).sum());
        let used_vcpus: u32 = there().map(|other| other.vcpus).sum();
        let vcpus = node
            .vcpus
            .map_or_else(String::new, |all| format!(" and {}", counted(all.saturating_sub(used_vcpus), "vCPU")));
        let is_apart =
            |one: &String, two: &String| (one == machine && on_host(two)) || (two == machine && on_host(one));
        let apart = cluster.apart.iter().find(|(one, two)| is_apart(one, two));
        let apart = apart.map(|(one, two)| format!(", but {} runs there", if one == machine { two } else { one }));
        format!("{} has {memory_mib} MiB{vcpus} left{}", node.name, apart.unwrap_or_default())
    });
    let hosts: Vec<String> = hosts.collect();
    format!(": it needs {} MiB and {}; {}", needed.memory_mib, counted(needed.vcpus, "vCPU"), hosts.join("; "))
}

/// Lets Pacemaker verify the configuration. On a cluster without any status, crm_verify prints warnings.
fn verify(started: &Element) -> Result<(), SimulationError> {
    let mut cib = started.clone();
    let properties = cib.child_mut("configuration").child_mut("crm_config");
    properties.children.retain(|set| set.attribute("id") != Some(WITHOUT_PROBES));
    match run("crm_verify", &["--xml-pipe"], Some(&cib.to_text()?)) {
        Err(EngineError::Failed { program, status, message }) => {
            Err(SimulationError::Refused(EngineError::Failed { program, status, message }))
        }
        result => Ok(result.map(drop)?),
    }
}

/// Returns a whole cluster of which all hosts are online and all machines have been started, if they can be.
fn started_cluster(cluster: &CheckedCluster) -> Result<Element, SimulationError> {
    let mut cib = cib(cluster)?;
    // A real cluster first asks every host whether it runs each machine. Simulating that multiplies the time: 50
    // machines on 8 hosts take ten times as long.
    let probes = [("id", "simulated-probes"), ("name", "enable-startup-probes"), ("value", "false")];
    let set = Element::new("cluster_property_set", [("id", WITHOUT_PROBES)]).with([Element::new("nvpair", probes)]);
    cib.child_mut("configuration").child_mut("crm_config").children.push(set);
    let up: Vec<String> = cluster.nodes.iter().map(|node| format!("--node-up={}", node.name)).collect();
    let mut arguments = vec!["--xml-pipe", "--simulate", "--save-output=/proc/self/fd/1", "--output-to=/dev/null"];
    arguments.extend(up.iter().map(String::as_str));
    Ok(run_for_xml("crm_simulate", &arguments, Some(&cib.to_text()?))?)
}

/// Returns the document that Pacemaker stores, without any status.
///
/// # Errors
/// Fails if the configuration cannot be written as XML.
pub fn cib(cluster: &CheckedCluster) -> Result<Element, XmlError> {
    let attributes = [
        ("validate-with", "pacemaker-3.0"),
        ("admin_epoch", "0"),
        ("epoch", "1"),
        ("num_updates", "0"),
        ("have-quorum", "1"),
    ];
    Ok(Element::new("cib", attributes).with([configuration(cluster)?, Element::new("status", [])]))
}

/// Returns where the machines are after an event: each runs where it did, unless the scheduler plans something else.
/// Letting crm_simulate also carry the plan out would take three times as long.
fn planned(
    cluster: &CheckedCluster,
    event: &Event,
    (cib, arguments): (&str, &[&str]),
) -> Result<Placement, SimulationError> {
    let arguments = [&["--xml-pipe", "--run", "--output-as=xml"], arguments].concat();
    let document = run_for_xml("crm_simulate", &arguments, Some(cib))?;
    let before = document.find(&["cluster_status"]).map(Status::of).ok_or(XmlError::Incomplete)?;
    let actions: Vec<&Element> =
        document.find(&["actions"]).map(|actions| actions.all("rsc_action").collect()).unwrap_or_default();
    let host = |name: &str| {
        let mut of_machine = actions.iter().filter(|action| action.attribute("resource") == Some(name));
        match of_machine.next() {
            Some(action) => host_after(action),
            None => before.machine(name).filter(|machine| machine.is_running())?.nodes.first().cloned(),
        }
    };
    let hosts = cluster.machines.iter().map(|machine| (machine.name.clone(), host(&machine.name)));
    Ok(Placement { event: event.clone(), hosts: hosts.collect() })
}

/// Returns the host of a machine after an action of the scheduler; `None` if it is stopped or must wait.
fn host_after(action: &Element) -> Option<String> {
    let is_stopped = action.attribute("action") == Some("stop") || action.is("blocked");
    let host = action.attribute("dest").or_else(|| action.attribute("node"));
    host.filter(|_| !is_stopped).map(str::to_owned)
}

fn with_standby(cib: &Element, name: &str) -> Element {
    let mut cib = cib.clone();
    let nodes = cib.child_mut("configuration").child_mut("nodes");
    for node in nodes.children.iter_mut().filter(|node| node.attribute("uname") == Some(name)) {
        let standby = Element::new("nvpair", [("id", "simulated-standby"), ("name", "standby"), ("value", "on")]);
        node.children.push(Element::new("instance_attributes", [("id", "simulated")]).with([standby]));
    }
    cib
}
