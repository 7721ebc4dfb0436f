//! The checks of fence devices.

use super::Findings;
use crate::cluster::checked::CheckedDevice;
use crate::cluster::secrets::is_secret;
use crate::cluster::spec::{ClusterSpec, FenceDevice};

/// Parameters that the generator sets, or that Pacemaker passes itself.
const RESERVED: [&str; 8] =
    ["action", "nodename", "pcmk_host_argument", "pcmk_host_check", "pcmk_host_list", "pcmk_host_map", "plug", "port"];

pub(super) fn check(cluster: &ClusterSpec, findings: &mut Findings) -> Vec<CheckedDevice> {
    coverage(cluster, findings);
    let devices = cluster.fencing.devices.iter().map(|(name, device)| {
        let place = format!("fencing.devices.{name}");
        findings.name(&place, name);
        targets(cluster, &place, device, findings);
        let agent = device.agent.strip_prefix("fence_").unwrap_or_default();
        let is_agent =
            !agent.is_empty() && agent.chars().all(|each| each.is_ascii_alphanumeric() || "_-".contains(each));
        let reason = format!("`{}` is not a fence agent, such as fence_ipmilan", device.agent);
        findings.unless(is_agent, format!("{place}.agent"), reason);
        for (parameter, value) in &device.parameters {
            check_parameter(&format!("{place}.parameters.{parameter}"), parameter, value, findings);
        }
        if let Some(file) = &device.password_file {
            findings.secret_file(&format!("{place}.passwordFile"), file);
        }
        findings.unless(device.timeout_seconds > 0, format!("{place}.timeout"), "must be at least 1");
        let port_of = |target: &String| device.ports.get(target).unwrap_or(target).clone();
        CheckedDevice {
            name: name.clone(),
            agent: device.agent.clone(),
            targets: device.targets.iter().map(|target| (target.clone(), port_of(target))).collect(),
            parameters: device.parameters.clone(),
            password_file: device.password_file.clone(),
            timeout_seconds: device.timeout_seconds,
        }
    });
    devices.collect()
}

/// Every host has a device, unless the user accepts the consequences.
fn coverage(cluster: &ClusterSpec, findings: &mut Findings) {
    let devices = &cluster.fencing.devices;
    for name in cluster.nodes.keys() {
        let count = devices.values().filter(|device| device.targets.contains(name)).count();
        if count > 1 {
            findings.warnings.push(format!(
                "nodes.{name}: {count} fence devices cover this host, and Pacemaker needs only one of them; each must switch it off \
                 alone, which an outlet for one of two power supplies does not"
            ));
        }
    }
    let is_covered = |name: &String| devices.values().any(|device| device.targets.contains(name));
    for name in cluster.nodes.keys().filter(|name| !is_covered(name)) {
        let place = format!("nodes.{name}");
        if !cluster.fencing.accept_data_loss {
            let reason = "no fence device covers this host, so the cluster cannot know that it no longer writes; add one to \
                          `fencing.devices`, or set `fencing.acceptDataLoss`";
            findings.problem(place, reason);
        } else if devices.is_empty() {
            findings.warnings.push(format!("{place}: is not fenced; after a failure, its machines can run twice"));
        } else {
            let remedy = "its machines wait until somebody confirms that it is off, with `microvm cluster ack-fence`";
            findings.warnings.push(format!("{place}: no fence device covers this host; {remedy}"));
        }
    }
}

fn targets(cluster: &ClusterSpec, place: &str, device: &FenceDevice, findings: &mut Findings) {
    findings.unless(!device.targets.is_empty(), format!("{place}.targets"), "must not be empty");
    for target in &device.targets {
        findings.known(&format!("{place}.targets"), "host", target, cluster.nodes.keys());
    }
    findings.once(&format!("{place}.targets"), &device.targets);
    for (target, port) in &device.ports {
        let place = format!("{place}.ports.{target}");
        findings.unless(device.targets.contains(target), &place, "is not in `targets`");
        // Pacemaker separates the entries of `pcmk_host_map` with `;`, `,` and spaces, and the parts of one with `:` or `=`.
        let is_port =
            !port.is_empty() && port.chars().all(|each| each.is_ascii_alphanumeric() || "._-/".contains(each));
        findings.unless(
            is_port,
            place,
            format!("`{port}` contains characters other than letters, digits, `.`, `_`, `-` and `/`"),
        );
    }
}

fn check_parameter(place: &str, name: &str, value: &str, findings: &mut Findings) {
    let is_name = name.chars().all(|each| each.is_ascii_alphanumeric() || "_-".contains(each));
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
    findings.unless(is_name && starts_well, place, "is not the name of a parameter");
    findings.text(place, value);
    let plain = name.to_ascii_lowercase().replace('-', "_");
    if RESERVED.contains(&plain.as_str()) {
        findings.problem(place, "is set by the cluster; use `targets` and `ports`");
    }
    if is_secret(name) {
        let remedy =
            "would be readable by every user of the host; write the password into a file and set `passwordFile`";
        findings.problem(place, remedy);
    }
}
