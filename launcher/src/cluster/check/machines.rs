//! The checks of machines: they must be able to run on every host, and next to each other.

use super::{Findings, is_below};
use crate::cluster::checked::CheckedMachine;
use crate::cluster::migration::decide;
use crate::cluster::spec::{ClusterSpec, Machine, Timeouts};
use crate::path::HostPath;
use crate::spec::MachineSpec;
use crate::validate::{self, CheckedSpec, DiskRole, InterfaceKind, check_across};
use program::plural::counted;
use std::collections::{BTreeMap, BTreeSet};

const STORE: &str = "/nix/store";

pub(super) fn check(
    cluster: &ClusterSpec,
    specs: &BTreeMap<String, Result<MachineSpec, String>>,
    findings: &mut Findings,
) -> Vec<CheckedMachine> {
    let (mut machines, mut checked) = (Vec::new(), Vec::new());
    for (name, machine) in &cluster.machines {
        let place = format!("machines.{name}");
        findings.name(&place, name);
        let booted = format!("booted-{name}");
        let reason = format!("would have the same garbage collection root as `{name}`; rename one of them");
        findings.unless(!cluster.machines.contains_key(&booted), format!("machines.{booted}"), reason);
        findings.path(&format!("{place}.runner"), &machine.runner);
        for node in &machine.prefer {
            findings.known(&format!("{place}.prefer"), "host", node, cluster.nodes.keys());
        }
        findings.once(&format!("{place}.prefer"), &machine.prefer);
        check_timeouts(&format!("{place}.timeouts"), &machine.timeouts, findings);
        let Some(spec) = checked_spec(name, specs, findings) else { continue };
        runs_anywhere(cluster, name, &spec, findings);
        let needs_notification = machine.timeouts.ready_seconds.is_some();
        let notifies = spec.vsock.as_ref().is_some_and(|vsock| vsock.notify_port.is_some());
        let reason = "requires `vsock.notify` of the machine, through which the guest reports that it is ready";
        findings.unless(!needs_notification || notifies, format!("{place}.timeouts.ready"), reason);
        if let Some(machine) = combined(cluster, (name, machine), &spec, findings) {
            machines.push(machine);
        }
        checked.push(spec);
    }
    for problem in check_across(&checked.iter().collect::<Vec<_>>()) {
        findings.problem(format!("machines ({})", problem.machine), problem.reason);
    }
    machines
}

/// Returns the pairs of machines that never run on the same host.
pub(super) fn pairs_apart(cluster: &ClusterSpec, findings: &mut Findings) -> BTreeSet<(String, String)> {
    let mut pairs = BTreeSet::new();
    for (name, machine) in &cluster.machines {
        let place = format!("machines.{name}.apartFrom");
        findings.once(&place, &machine.apart_from);
        for other in &machine.apart_from {
            findings.known(&place, "machine", other, cluster.machines.keys());
            findings.unless(other != name, &place, "a machine cannot be apart from itself");
            let (one, two) = if name < other { (name, other) } else { (other, name) };
            pairs.insert((one.clone(), two.clone()));
        }
    }
    pairs
}

/// Returns the machine's spec, with the machine's name in the cluster.
fn checked_spec(
    name: &str,
    specs: &BTreeMap<String, Result<MachineSpec, String>>,
    findings: &mut Findings,
) -> Option<CheckedSpec> {
    let place = format!("machines.{name}.runner");
    match specs.get(name)? {
        Err(reason) => {
            findings.problem(place, reason);
            None
        }
        Ok(spec) => {
            let spec = MachineSpec { name: name.to_owned(), ..spec.clone() };
            let problems = match validate::check(&spec) {
                Ok(checked) => return Some(checked),
                Err(problems) => problems,
            };
            for problem in problems {
                findings.problem(&place, format!("{}: {}", problem.option, problem.reason));
            }
            None
        }
    }
}

fn combined(
    cluster: &ClusterSpec,
    (name, machine): (&str, &Machine),
    spec: &CheckedSpec,
    findings: &mut Findings,
) -> Option<CheckedMachine> {
    let place = format!("machines.{name}");
    let migrate = match decide(spec, machine.migrate, &cluster.migration) {
        Ok(way) => way,
        Err(reason) => {
            findings.problem(format!("{place}.migrate"), reason);
            return None;
        }
    };
    let hotplug_mib = spec.memory.hotplug.as_ref().map_or(0, |hotplug| hotplug.max_mib);
    let memory_mib = machine.memory_mib.unwrap_or(spec.memory.mem_mib + hotplug_mib);
    findings.unless(memory_mib > 0, format!("{place}.memory"), "must be at least 1, or null");
    Some(CheckedMachine {
        name: name.to_owned(),
        runner: machine.runner.clone(),
        memory_mib,
        vcpus: spec.vcpu,
        prefer: machine.prefer.clone(),
        migrate,
        timeouts: machine.timeouts.clone(),
    })
}

/// Checks that the machine finds its disks, shares and bridges on every host.
fn runs_anywhere(cluster: &ClusterSpec, name: &str, spec: &CheckedSpec, findings: &mut Findings) {
    let state = HostPath::new(name).below(&cluster.state_directory);
    let is_shared = |path: &HostPath| {
        let path = path.below(&state);
        let has_parent = path.as_str().split('/').any(|part| part == "..");
        !has_parent && cluster.shared_paths.iter().any(|shared| is_below(path.as_str(), shared.as_str()))
    };
    let place = format!("machines.{name}.runner");
    let remedy =
        "is not in `sharedPaths`, so it would be a different one on each host; put it on storage that all hosts share";
    for disk in spec.disks.iter().filter(|disk| disk.role == DiskRole::Volume) {
        let reason = format!("{}.image: `{}` {remedy}", disk.option, disk.image.below(&state));
        // Every host has the runner's closure.
        let is_in_store = disk.read_only && is_below(disk.image.as_str(), STORE);
        findings.unless(is_in_store || is_shared(&disk.image), &place, reason);
    }
    for (index, _) in spec.volumes.iter().enumerate().filter(|(_, volume)| volume.creation_size_mib.is_some()) {
        findings.warnings.push(format!(
            "machines.{name}: volumes[{index}].autoCreate: a host on which the shared storage is not mounted starts the machine \
             with a new, empty volume; create the image once, and set autoCreate = false"
        ));
    }
    for (index, share) in spec.shares.iter().enumerate() {
        let source = &share.share.source;
        let reason = format!("shares[{index}].source: `{}` {remedy}", source.below(&state));
        findings.unless(is_below(source.as_str(), STORE) || is_shared(source), &place, reason);
    }
    for (index, interface) in spec.interfaces.iter().enumerate() {
        if let InterfaceKind::Bridge { bridge } = &interface.kind {
            let reason = format!(
                "interfaces[{index}].bridge: `{bridge}` is not in `bridges`; list the bridges that every host has"
            );
            findings.unless(cluster.bridges.contains(bridge), &place, reason);
        }
    }
    if !spec.devices.is_empty() {
        let warning = "has devices of its host; every host needs the same devices at the same addresses";
        findings.warnings.push(format!("machines.{name}: {warning}"));
    }
}

fn check_timeouts(place: &str, timeouts: &Timeouts, findings: &mut Findings) {
    let optional = |seconds: Option<u32>| seconds.unwrap_or(1);
    for (field, seconds) in [
        ("start", timeouts.start_seconds),
        ("stop", timeouts.stop_seconds),
        ("monitor", timeouts.monitor_seconds),
        ("migrate", optional(timeouts.migrate_seconds)),
        ("ready", optional(timeouts.ready_seconds)),
    ] {
        findings.unless(seconds > 0, format!("{place}.{field}"), "must be at least 1");
    }
    let drain = timeouts.drain_seconds.unwrap_or_default();
    let reason = format!(
        "must be less than `stop`, {}, so that there is time to kill the hypervisor",
        counted(timeouts.stop_seconds, "second")
    );
    findings.unless(drain < timeouts.stop_seconds.max(1), format!("{place}.drain"), reason);
}
