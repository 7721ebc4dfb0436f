//! A cluster after validation: names are valid, machines and hosts refer to each other, and every machine can run on
//! every host.

use super::spec::{FenceAction, Migration, Qdevice, Timeouts, Totem};
use crate::ocf::parameters::MigrationMode;
use crate::path::HostPath;
use std::collections::{BTreeMap, BTreeSet};

/// A valid cluster. Only [`super::check()`] creates one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckedCluster {
    /// The cluster's name.
    pub name: String,
    /// The hosts, in the order of their names.
    pub nodes: Vec<CheckedNode>,
    /// The key with which the hosts encrypt their messages.
    pub auth_key_file: Option<HostPath>,
    /// Settings of Corosync's protocol.
    pub totem: Totem,
    /// The server with an additional vote.
    pub qdevice: Option<Qdevice>,
    /// The fence devices, in the order of their names.
    pub devices: Vec<CheckedDevice>,
    /// What a fence device does with a failed host.
    pub fence_action: FenceAction,
    /// Whether the cluster waits until a failed host is fenced. Without any device, it does not.
    pub is_fencing: bool,
    /// The store from which a host copies runners.
    pub cache: Option<String>,
    /// The directory that contains the state directories of the machines.
    pub state_directory: HostPath,
    /// How machines move while they run.
    pub migration: Migration,
    /// The machines, in the order of their names.
    pub machines: Vec<CheckedMachine>,
    /// The pairs of machines that never run on the same host; the first name is the smaller one.
    pub apart: BTreeSet<(String, String)>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedNode {
    /// Its host name.
    pub name: String,
    /// Its number; at least 1.
    pub id: u32,
    /// Its addresses, one for each link.
    pub addresses: Vec<String>,
    /// The memory that machines can use, in MiB.
    pub memory_mib: u64,
    /// The virtual CPUs that it runs; `None` for any number.
    pub vcpus: Option<u32>,
}

/// A fence device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedDevice {
    /// Its name.
    pub name: String,
    /// The fence agent.
    pub agent: String,
    /// The hosts that it can fence, and their outlets; at least one.
    pub targets: BTreeMap<String, String>,
    /// The parameters of the agent.
    pub parameters: BTreeMap<String, String>,
    /// The file with its password.
    pub password_file: Option<HostPath>,
    /// The time in which it must have fenced a host.
    pub timeout_seconds: u32,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedMachine {
    /// Its name, which is also the name of its resource.
    pub name: String,
    /// Its runner.
    pub runner: HostPath,
    /// The memory that it uses, in MiB.
    pub memory_mib: u64,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// The hosts that it prefers, the best first.
    pub prefer: Vec<String>,
    /// How it moves to another host.
    pub migrate: MigrationMode,
    /// How long its operations may take.
    pub timeouts: Timeouts,
}

impl CheckedMachine {
    /// Returns how long a move to another host may take, in seconds.
    pub fn migrate_seconds(&self) -> u64 {
        let by_size = 120 + 64 * self.memory_mib.div_ceil(1024);
        self.timeouts.migrate_seconds.map_or(by_size, u64::from)
    }
}
