//! `cluster.json`: what the user wrote about a cluster. Every object refuses unknown fields. Only types are checked
//! here; `check` checks the rest and returns another type.

use crate::ocf::parameters::{DEFAULT_STATE_DIR, MigrationMode};
use crate::path::HostPath;
use crate::spec::parse::Document;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of `cluster.json` that this program reads.
pub const CLUSTER_VERSION: u32 = 1;

/// Hosts that run machines together: when a host fails, its machines start on the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// Version of this format; 1.
    pub version: u32,
    /// The cluster's name. Hosts only join a cluster with the same name.
    pub name: String,
    /// The hosts, by the names that the cluster has for them.
    pub nodes: BTreeMap<String, Node>,
    /// The key with which the hosts encrypt their messages, made by `corosync-keygen`: a file on every host, readable
    /// for root only; null means `/etc/corosync/authkey`.
    #[serde(default)]
    pub auth_key_file: Option<HostPath>,
    /// How the hosts detect that one of them has failed.
    #[serde(default)]
    pub totem: Totem,
    /// A server outside of the cluster that has a vote, for clusters with an even number of hosts; null means none.
    #[serde(default)]
    pub qdevice: Option<Qdevice>,
    /// How a failed host is prevented from writing to shared storage.
    #[serde(default)]
    pub fencing: Fencing,
    /// The directories that all hosts share. Volumes and shares of the machines must be in one of them.
    #[serde(default)]
    pub shared_paths: Vec<HostPath>,
    /// The bridges that every host has, for interfaces of type `bridge`.
    #[serde(default)]
    pub bridges: Vec<String>,
    /// The URL of the store from which a host copies a runner that it does not have; null means that every host must
    /// have all runners.
    #[serde(default)]
    pub cache: Option<String>,
    /// The directory that contains the state directories of the machines, the same on every host.
    #[serde(default = "state_directory")]
    pub state_directory: HostPath,
    /// How machines move to another host while they run.
    #[serde(default)]
    pub migration: Migration,
    /// The machines, by name.
    #[serde(default)]
    pub machines: BTreeMap<String, Machine>,
}

impl Document for ClusterSpec {
    const SUBJECT: &'static str = "cluster";
    const VERSION: u32 = CLUSTER_VERSION;

    fn version(&self) -> u32 {
        self.version
    }
}

fn state_directory() -> HostPath {
    HostPath::from(DEFAULT_STATE_DIR)
}

/// A host of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// The number of the host, at least 1; unique, and never changed.
    pub id: u32,
    /// The host's IP addresses, one for each link. Corosync uses another link when one fails. Every host has the same
    /// number of them, at most 8.
    pub addresses: Vec<String>,
    /// The memory in MiB that machines can use on the host.
    #[serde(rename = "memory")]
    pub memory_mib: u64,
    /// The number of virtual CPUs of machines that the host runs; null means any number.
    #[serde(default)]
    pub vcpus: Option<u32>,
}

/// Settings of Corosync's protocol; null means Corosync's default, see corosync.conf(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Totem {
    /// The time in milliseconds without a token after which a host counts as failed, at least 100. `tokenCoefficient`
    /// is added for each host beyond two.
    #[serde(default, rename = "token")]
    pub token_ms: Option<u32>,
    /// The time in milliseconds that is added to `token` for each host beyond two.
    #[serde(default, rename = "tokenCoefficient")]
    pub token_coefficient_ms: Option<u32>,
    /// The time in milliseconds in which the hosts must agree on a new membership, at least 1.2 times `token`.
    #[serde(default, rename = "consensus")]
    pub consensus_ms: Option<u32>,
}

/// A server that runs corosync-qnetd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Qdevice {
    /// Its name or IP address.
    pub host: String,
    /// Which half of the cluster gets its vote.
    #[serde(default)]
    pub algorithm: QdeviceAlgorithm,
}

/// Which half of a cluster gets the vote of the qdevice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QdeviceAlgorithm {
    /// One of two equal halves.
    #[default]
    Ffsplit,
    /// The last host that still reaches the server.
    Lms,
}

/// How failed hosts are prevented from writing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fencing {
    /// The devices that fence hosts, by name.
    #[serde(default)]
    pub devices: BTreeMap<String, FenceDevice>,
    /// Whether a failed host is switched off and on again, or only off.
    #[serde(default)]
    pub action: FenceAction,
    /// Whether to accept that a host without a device cannot be fenced. Without any device, the cluster starts machines
    /// again although the failed host may still write to their volumes, which destroys data. If other hosts have
    /// devices, the machines of a host without one wait until somebody confirms that it is off.
    #[serde(default)]
    pub accept_data_loss: bool,
}

/// What a fence device does with a failed host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FenceAction {
    /// Switches it off and on again.
    #[default]
    Reboot,
    /// Switches it off. Somebody must switch it on again.
    Off,
}

/// A device that can switch hosts off, such as a management controller or a switched power strip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FenceDevice {
    /// The fence agent, such as `fence_ipmilan`.
    pub agent: String,
    /// The hosts that it can fence.
    pub targets: Vec<String>,
    /// For each host, its outlet or name on the device, if that differs from the host's name.
    #[serde(default)]
    pub ports: BTreeMap<String, String>,
    /// The parameters of the agent. Passwords are refused: every user of the host could read them.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// A file on every host with the device's password, readable by root only. The agent reads it through its parameter
    /// `password_script`.
    #[serde(default)]
    pub password_file: Option<HostPath>,
    /// The time limit in seconds for fencing a host.
    #[serde(default = "fence_timeout_seconds", rename = "timeout")]
    pub timeout_seconds: u32,
}

fn fence_timeout_seconds() -> u32 {
    60
}

/// How machines move to another host while they run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Migration {
    /// A directory in `sharedPaths` for machines that are suspended on one host and resumed on another. It contains
    /// their memory, so only root may have access to it.
    #[serde(default)]
    pub directory: Option<HostPath>,
    /// The command that runs `microvm ocf receive` on another host, for live migration; the word NODE is replaced with
    /// the host. Null means ssh as root. Machines that do not set `migrate` migrate live only if this is set.
    #[serde(default)]
    pub command: Option<String>,
}

/// A machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// The machine's runner, a store path.
    pub runner: HostPath,
    /// The memory in MiB that the machine uses of its host's; null means the memory of the machine spec, including
    /// `hotplugMem`.
    #[serde(default, rename = "memory")]
    pub memory_mib: Option<u64>,
    /// The hosts on which the machine runs if possible, the best first.
    #[serde(default)]
    pub prefer: Vec<String>,
    /// The machines that never run on the same host as this one.
    #[serde(default)]
    pub apart_from: Vec<String>,
    /// How the machine moves to another host. Null means `live` if it supports that and `migration.command` is set,
    /// otherwise `suspend` if it supports that and `migration.directory` is set, otherwise `cold`.
    #[serde(default)]
    pub migrate: Option<MigrationMode>,
    /// How long the machine's operations may take.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// How long operations may take, in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// The start, until the hypervisor runs; includes copying the runner.
    #[serde(default = "start_seconds", rename = "start")]
    pub start_seconds: u32,
    /// The stop. If it takes longer, the host is fenced.
    #[serde(default = "stop_seconds", rename = "stop")]
    pub stop_seconds: u32,
    /// How long the guest may take to shut down before its hypervisor is killed; null means two thirds of `stop`.
    #[serde(default, rename = "drain")]
    pub drain_seconds: Option<u32>,
    /// One check whether the machine runs. There is one every 10 seconds.
    #[serde(default = "monitor_seconds", rename = "monitor")]
    pub monitor_seconds: u32,
    /// The move to another host; null means 120 seconds, and 64 more for each GiB of memory.
    #[serde(default, rename = "migrate")]
    pub migrate_seconds: Option<u32>,
    /// How long the guest may take to boot. A guest that has not reported by then that it is ready is restarted; null
    /// means that the guest is not checked. Requires `vsock.notify` of the machine.
    #[serde(default, rename = "ready")]
    pub ready_seconds: Option<u32>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            start_seconds: start_seconds(),
            stop_seconds: stop_seconds(),
            drain_seconds: None,
            monitor_seconds: monitor_seconds(),
            migrate_seconds: None,
            ready_seconds: None,
        }
    }
}

fn start_seconds() -> u32 {
    180
}

fn stop_seconds() -> u32 {
    120
}

fn monitor_seconds() -> u32 {
    20
}
