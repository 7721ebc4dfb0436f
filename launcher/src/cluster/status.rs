//! The status of a cluster, from the output of crm_mon.

use super::cib::PREFIX;
use super::xml::Element;
use crate::ocf::parameters::AGENT;
use serde::Serialize;

/// The status of a cluster, as one of its hosts sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether this part of the cluster has a majority.
    pub has_quorum: bool,
    /// The host that makes the decisions; `None` while the hosts elect one.
    pub coordinator: Option<String>,
    /// The hosts.
    pub nodes: Vec<NodeStatus>,
    /// The machines.
    pub machines: Vec<MachineStatus>,
    /// The fence devices.
    pub fence_devices: Vec<DeviceStatus>,
    /// What was fenced, the newest first.
    pub fencing: Vec<Fenced>,
    /// Operations that failed.
    pub failures: Vec<FailedOperation>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Whether it is a member of the cluster now.
    pub is_online: bool,
    /// Whether it is drained: machines leave it and none starts on it.
    pub is_drained: bool,
    /// Whether the cluster does not touch its machines.
    pub is_in_maintenance: bool,
    /// Whether it has failed and must be fenced before its machines start elsewhere.
    pub is_unclean: bool,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// Its role in Pacemaker's words: Started, Stopped, Migrating and so on.
    pub role: String,
    /// The hosts on which it runs: one, or none. More than one is a failure.
    pub nodes: Vec<String>,
    /// Whether the cluster starts, stops and moves it.
    pub is_managed: bool,
    /// Whether its last operation failed.
    pub has_failed: bool,
}

/// A fence device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Whether a host has checked that it answers.
    pub is_working: bool,
}

/// A host that was fenced, or could not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fenced {
    /// The host.
    pub node: String,
    /// Whether it was switched off, or off and on.
    pub action: String,
    /// `success`, `failed` or `pending`.
    pub status: String,
    /// When; empty while it is pending.
    pub completed: String,
}

/// An operation on a machine or fence device that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedOperation {
    /// The resource and the operation, such as `web_start_0`.
    pub operation: String,
    /// The host.
    pub node: String,
    /// The reason.
    pub reason: String,
}

impl Status {
    /// Reads the output of `crm_mon --output-as=xml`.
    pub fn of(document: &Element) -> Self {
        let children = |path: &[&str]| document.find(path).map(|found| found.children.as_slice()).unwrap_or_default();
        let coordinator = document.find(&["summary", "current_dc"]);
        let named = |element: &Element, name: &str| element.attribute(name).unwrap_or_default().to_owned();
        let mut resources = Vec::new();
        if let Some(all) = document.find(&["resources"]) {
            all.walk(&mut |element| {
                if element.name == "resource" {
                    resources.push(element);
                }
            });
        }
        let fenced = children(&["fence_history"]).iter().filter(|event| event.name == "fence_event");
        let fence_devices: Vec<_> =
            resources.iter().filter_map(|resource| DeviceStatus::of(resource, document)).collect();
        // Pacemaker keeps a failure until an administrator deletes it.
        let is_over = |failure: &Element| {
            // RESOURCE_OPERATION_INTERVAL
            let resource = failure.attribute("op_key").and_then(|key| key.rsplitn(3, '_').nth(2));
            let device = resource.and_then(DeviceStatus::name_in);
            fence_devices.iter().any(|found| found.is_working && Some(found.name.as_str()) == device)
        };
        let failures = children(&["failures"]).iter().filter(|failure| failure.name == "failure" && !is_over(failure));
        let failures = failures
            .map(|failure| FailedOperation {
                operation: named(failure, "op_key"),
                node: named(failure, "node"),
                reason: Some(named(failure, "exitreason"))
                    .filter(|reason| !reason.is_empty())
                    .unwrap_or_else(|| named(failure, "exitstatus")),
            })
            .collect();
        Self {
            has_quorum: coordinator.is_some_and(|coordinator| coordinator.is("with_quorum")),
            coordinator: coordinator.and_then(|coordinator| coordinator.attribute("name")).map(str::to_owned),
            nodes: children(&["nodes"]).iter().filter(|node| node.name == "node").map(NodeStatus::of).collect(),
            machines: resources.iter().filter_map(|resource| MachineStatus::of(resource)).collect(),
            fence_devices,
            fencing: fenced
                .map(|event| Fenced {
                    node: named(event, "target"),
                    action: named(event, "action"),
                    status: named(event, "status"),
                    completed: named(event, "completed"),
                })
                .collect(),
            failures,
        }
    }

    /// Returns the host of this name.
    pub fn node(&self, name: &str) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Returns the machine of this name.
    pub fn machine(&self, name: &str) -> Option<&MachineStatus> {
        self.machines.iter().find(|machine| machine.name == name)
    }
}

impl NodeStatus {
    /// Returns why no machine can start on the host, as an adjective.
    pub fn obstacle(&self) -> Option<&'static str> {
        match self {
            Self { is_online: false, .. } => Some("offline"),
            Self { is_unclean: true, .. } => Some("waiting to be fenced"),
            Self { is_drained: true, .. } => Some("drained"),
            Self { is_in_maintenance: true, .. } => Some("in maintenance"),
            _ => None,
        }
    }

    fn of(node: &Element) -> Self {
        Self {
            name: node.attribute("name").unwrap_or_default().to_owned(),
            is_online: node.is("online"),
            is_drained: node.is("standby"),
            is_in_maintenance: node.is("maintenance"),
            is_unclean: node.is("unclean"),
        }
    }
}

impl MachineStatus {
    /// Returns the status of a resource that is a machine.
    fn of(resource: &Element) -> Option<Self> {
        // Older releases of Pacemaker write two colons.
        let agent = resource.attribute("resource_agent")?.replace("::", ":");
        if agent != AGENT.join(":") {
            return None;
        }
        Some(Self {
            name: resource.attribute("id")?.to_owned(),
            role: resource.attribute("role").unwrap_or_default().to_owned(),
            nodes: resource.all("node").filter_map(|node| node.attribute("name")).map(str::to_owned).collect(),
            is_managed: resource.is("managed"),
            has_failed: resource.is("failed"),
        })
    }

    /// Whether it runs on one host.
    pub fn is_running(&self) -> bool {
        self.nodes.len() == 1 && self.role != "Stopped"
    }
}

impl DeviceStatus {
    /// Returns the name of the fence device that has this identifier in the configuration.
    fn name_in(id: &str) -> Option<&str> {
        id.strip_prefix(PREFIX)?.strip_prefix("fence__")
    }

    /// Pacemaker counts a device that does not answer as started, because [`super::cib`] makes it ignore failures. What its
    /// last operation has returned is in the history of the host on which it runs.
    fn of(resource: &Element, document: &Element) -> Option<Self> {
        resource.attribute("resource_agent")?.strip_prefix("stonith:")?;
        let id = resource.attribute("id")?;
        let has_answered = |host: &str| {
            let hosts = document.find(&["node_history"]).into_iter().flat_map(|hosts| hosts.all("node"));
            let resources =
                hosts.filter(|node| node.attribute("name") == Some(host)).flat_map(|node| node.all("resource_history"));
            let operations = resources
                .filter(|item| item.attribute("id") == Some(id))
                .flat_map(|item| item.all("operation_history"));
            // A probe asks Pacemaker whether it has started the device, and not the device.
            let is_probe = |operation: &Element| {
                operation.attribute("task") == Some("monitor") && operation.attribute("interval").is_none()
            };
            operations.filter(|operation| !is_probe(operation)).last().and_then(|operation| operation.attribute("rc"))
                == Some("0")
        };
        let mut hosts = resource.all("node").filter_map(|node| node.attribute("name"));
        Some(Self {
            name: Self::name_in(id).unwrap_or(id).to_owned(),
            is_working: resource.attribute("role") == Some("Started")
                && !resource.is("failed")
                && hosts.any(has_answered),
        })
    }
}
