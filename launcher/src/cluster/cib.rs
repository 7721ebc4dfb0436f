//! The configuration of Pacemaker for a cluster: properties, hosts, fence devices, machines and constraints.
//!
//! Everything here has an identifier that contains `__`, except the machines' resources, which have the machines' names.
//! Names neither contain `__` nor end with `_`, so identifiers never collide, and [`super::merge`] recognises them.

use super::checked::{CheckedCluster, CheckedDevice, CheckedMachine, CheckedNode};
use super::spec::FenceAction;
use super::xml::{Element, XmlError};
use crate::ocf::parameters::{
    AGENT, CACHE, DRAIN_TIMEOUT, MIGRATE, MIGRATE_COMMAND, MIGRATE_DIR, MigrationMode, NAME, RUNNER, STATE_DIR,
};
use crate::shell::quote;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The prefix of every identifier that is not the name of a machine.
pub const PREFIX: &str = "microvm__";
/// The property with the hash of the configuration that was applied last.
pub const HASH_PROPERTY: &str = "microvm-configuration";
/// The identifier of the property set.
pub const PROPERTY_SET: &str = "microvm__properties";
/// How much a machine prefers to stay where it is. It is more than any preference for a host, so a machine does not move
/// back when its host has recovered: a move interrupts it.
const STICKINESS: &str = "1000";
/// The preference for the first host in `prefer`; each further one is weaker.
const FIRST_PREFERENCE: usize = 100;
/// The capacity of a host that runs any number of virtual CPUs.
const ANY_NUMBER: u32 = 1_000_000;
/// How often Pacemaker checks that a machine runs, and that a fence device answers, in seconds.
const MONITOR_INTERVAL: &str = "10s";
const READY_INTERVAL: &str = "30s";
const DEVICE_INTERVAL: &str = "60s";

/// Returns the element `configuration`, with the hash of the rest as a property.
///
/// # Errors
/// Fails if the configuration cannot be written as XML.
pub fn configuration(cluster: &CheckedCluster) -> Result<Element, XmlError> {
    let mut configuration = Element::new("configuration", []).with([
        Element::new("crm_config", []).with([properties(cluster)]),
        Element::new("nodes", []).with(cluster.nodes.iter().map(|item| node(cluster, item))),
        Element::new("resources", [])
            .with(cluster.devices.iter().map(device))
            .with(cluster.machines.iter().map(|item| machine(cluster, item))),
        Element::new("constraints", []).with(constraints(cluster)),
    ]);
    let hash = Sha256::digest(configuration.to_text()?.as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let set = configuration.child_mut("crm_config").child_mut("cluster_property_set");
    set.children.push(pair(&format!("{PREFIX}property__{HASH_PROPERTY}"), HASH_PROPERTY, &hash));
    Ok(configuration)
}

/// Returns the hash in a configuration, which may be that of a running cluster.
pub fn hash_of(configuration: &Element) -> Option<&str> {
    let sets = configuration.find(&["crm_config"])?.all("cluster_property_set");
    let mut pairs = sets.flat_map(|set| set.all("nvpair"));
    pairs.find(|pair| pair.attribute("name") == Some(HASH_PROPERTY))?.attribute("value")
}

fn pair(id: &str, name: &str, value: &str) -> Element {
    Element::new("nvpair", [("id", id), ("name", name), ("value", value)])
}

/// Returns an element with name-value pairs.
fn pairs<'a>(element: &str, id: &str, values: impl IntoIterator<Item = (&'a str, String)>) -> Element {
    let children = values.into_iter().map(|(name, value)| pair(&format!("{id}__{name}"), name, &value));
    Element::new(element, [("id", id)]).with(children)
}

fn properties(cluster: &CheckedCluster) -> Element {
    let action = match cluster.fence_action {
        FenceAction::Reboot => "reboot",
        FenceAction::Off => "off",
    };
    let slowest = cluster.devices.iter().map(|device| device.timeout_seconds).max().unwrap_or(60);
    let properties = [
        // A part of the cluster without a majority stops its machines, because the other part may start them.
        ("no-quorum-policy", "stop".to_owned()),
        ("placement-strategy", "balanced".to_owned()),
        // A start that fails counts like other failures: see the migration threshold of machines.
        ("start-failure-is-fatal", "false".to_owned()),
        ("stonith-action", action.to_owned()),
        // Pacemaker 3 renames it to `fencing-enabled` and accepts the old name.
        ("stonith-enabled", cluster.is_fencing.to_string()),
        ("stonith-timeout", format!("{slowest}s")),
    ];
    let set = Element::new("cluster_property_set", [("id", PROPERTY_SET)]);
    set.with(properties.map(|(name, value)| pair(&format!("{PREFIX}property__{name}"), name, &value)))
}

/// Whether the hosts' CPUs are counted.
fn counts_vcpus(cluster: &CheckedCluster) -> bool {
    cluster.nodes.iter().any(|node| node.vcpus.is_some())
}

fn node(cluster: &CheckedCluster, node: &CheckedNode) -> Element {
    let mut capacity = vec![("memory", node.memory_mib.to_string())];
    if counts_vcpus(cluster) {
        // Pacemaker takes a missing capacity for none.
        capacity.push(("vcpus", node.vcpus.unwrap_or(ANY_NUMBER).to_string()));
    }
    let utilization = pairs("utilization", &format!("{PREFIX}node__{}", node.name), capacity);
    Element::new("node", [("id", &node.id.to_string()), ("uname", &node.name)]).with([utilization])
}

fn device(device: &CheckedDevice) -> Element {
    let id = format!("{PREFIX}fence__{}", device.name);
    let mut parameters: BTreeMap<&str, String> =
        device.parameters.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let targets: Vec<&str> = device.targets.keys().map(String::as_str).collect();
    parameters.insert("pcmk_host_check", "static-list".to_owned());
    parameters.insert("pcmk_host_list", targets.join(" "));
    if device.targets.iter().any(|(target, port)| target != port) {
        let map: Vec<_> = device.targets.iter().map(|(target, port)| format!("{target}:{port}")).collect();
        parameters.insert("pcmk_host_map", map.join(";"));
    }
    if let Some(file) = &device.password_file {
        // Fence agents run this in a shell. So the password is neither in the configuration, which every member of the group
        // haclient can read, nor in an argument.
        parameters.insert("password_script", format!("cat {}", quote(file.as_str())));
    }
    let timeout = format!("{}s", device.timeout_seconds);
    // A device that does not answer still counts as started, and is used when a host must be fenced. Otherwise Pacemaker
    // restarts it all the time, and a cluster whose hosts are busy carries out one action at a time: the fencing of a host and
    // the start of its machines would never happen.
    let operations = [("start", "0s"), ("monitor", DEVICE_INTERVAL)].map(|(name, interval)| {
        let mut operation = operation(&id, name, interval, &timeout);
        operation.set("on-fail", "ignore");
        operation
    });
    Element::new("primitive", [("id", &id), ("class", "stonith"), ("type", &device.agent)]).with([
        pairs("instance_attributes", &format!("{id}__parameters"), parameters),
        Element::new("operations", []).with(operations),
    ])
}

fn machine(cluster: &CheckedCluster, machine: &CheckedMachine) -> Element {
    let id = format!("{PREFIX}machine__{}", machine.name);
    let parameters = pairs("instance_attributes", &format!("{id}__parameters"), parameters(cluster, machine));
    let moves_alive = machine.migrate != MigrationMode::Cold;
    let meta = [
        ("allow-migrate", moves_alive.to_string()),
        // A machine that fails three times in a day on a host moves to another one. A short time would hide failures of a
        // machine that is not managed from Pacemaker.
        ("failure-timeout", "86400s".to_owned()),
        ("migration-threshold", "3".to_owned()),
        ("resource-stickiness", STICKINESS.to_owned()),
    ];
    let mut use_of_host = vec![("memory", machine.memory_mib.to_string())];
    if counts_vcpus(cluster) {
        use_of_host.push(("vcpus", machine.vcpus.to_string()));
    }
    let [class, provider, agent] = AGENT;
    let attributes = [("id", machine.name.as_str()), ("class", class), ("provider", provider), ("type", agent)];
    Element::new("primitive", attributes).with([
        parameters,
        pairs("meta_attributes", &format!("{id}__meta"), meta),
        pairs("utilization", &format!("{id}__utilization"), use_of_host),
        Element::new("operations", []).with(operations(&id, machine)),
    ])
}

fn parameters<'a>(cluster: &CheckedCluster, machine: &CheckedMachine) -> Vec<(&'a str, String)> {
    let mut parameters = vec![
        (NAME, machine.name.clone()),
        (RUNNER, machine.runner.to_string()),
        (STATE_DIR, cluster.state_directory.to_string()),
        (MIGRATE, machine.migrate.as_str().to_owned()),
    ];
    parameters.extend(machine.timeouts.drain_seconds.map(|seconds| (DRAIN_TIMEOUT, seconds.to_string())));
    parameters.extend(cluster.cache.iter().map(|cache| (CACHE, cache.clone())));
    match machine.migrate {
        MigrationMode::Live => {
            parameters.extend(cluster.migration.command.iter().map(|command| (MIGRATE_COMMAND, command.clone())));
        }
        MigrationMode::Suspend => {
            let directory = cluster.migration.directory.iter();
            parameters.extend(directory.map(|directory| (MIGRATE_DIR, directory.to_string())));
        }
        MigrationMode::Cold => {}
    }
    parameters
}

fn operations(id: &str, machine: &CheckedMachine) -> Vec<Element> {
    let timeouts = &machine.timeouts;
    let seconds = |seconds: u32| format!("{seconds}s");
    let migrate = format!("{}s", machine.migrate_seconds());
    let mut operations = vec![
        operation(id, "start", "0s", &seconds(timeouts.start_seconds)),
        operation(id, "stop", "0s", &seconds(timeouts.stop_seconds)),
        operation(id, "monitor", MONITOR_INTERVAL, &seconds(timeouts.monitor_seconds)),
    ];
    if machine.migrate != MigrationMode::Cold {
        operations.push(operation(id, "migrate_to", "0s", &migrate));
        operations.push(operation(id, "migrate_from", "0s", &migrate));
    }
    if let Some(ready) = timeouts.ready_seconds {
        let mut monitor = operation(id, "monitor", READY_INTERVAL, &seconds(timeouts.monitor_seconds));
        // A guest that still boots has not failed. Counting this as part of the start would restart guests on slow hosts over
        // and over.
        monitor.attributes.push(("start-delay".to_owned(), seconds(ready)));
        let depth = pairs("instance_attributes", &format!("{id}__ready"), [("OCF_CHECK_LEVEL", "10".to_owned())]);
        operations.push(monitor.with([depth]));
    }
    operations
}

fn operation(id: &str, name: &str, interval: &str, timeout: &str) -> Element {
    let id = format!("{id}__{name}__{interval}");
    Element::new("op", [("id", &id), ("name", name), ("interval", interval), ("timeout", timeout)])
}

fn constraints(cluster: &CheckedCluster) -> Vec<Element> {
    let mut constraints = Vec::new();
    for device in &cluster.devices {
        // A host does not switch itself off.
        if let (1, Some(target)) = (device.targets.len(), device.targets.keys().next()) {
            let resource = format!("{PREFIX}fence__{}", device.name);
            constraints.push(location(&resource, target, "-INFINITY"));
        }
    }
    for machine in &cluster.machines {
        for (index, node) in machine.prefer.iter().enumerate() {
            let score = FIRST_PREFERENCE.saturating_sub(index).max(1).to_string();
            constraints.push(location(&machine.name, node, &score));
        }
    }
    for (one, other) in &cluster.apart {
        let id = format!("{PREFIX}apart__{one}__{other}");
        let attributes = [("id", id.as_str()), ("rsc", one), ("with-rsc", other), ("score", "-INFINITY")];
        constraints.push(Element::new("rsc_colocation", attributes));
    }
    constraints
}

fn location(resource: &str, node: &str, score: &str) -> Element {
    let id = format!("{PREFIX}location__{}__{node}", resource.trim_start_matches(PREFIX));
    Element::new("rsc_location", [("id", &id), ("rsc", resource), ("node", node), ("score", score)])
}
