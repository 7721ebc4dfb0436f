//! The checks of hosts, links and votes.

use super::Findings;
use crate::cluster::checked::CheckedNode;
use crate::cluster::spec::ClusterSpec;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The most links of knet: `KNET_MAX_LINK` in libknet.h.
const MAX_LINKS: usize = 8;
/// The fewest hosts of which a majority remains when one fails.
const MIN_NODES: usize = 3;

pub(super) fn check(cluster: &ClusterSpec, findings: &mut Findings) -> Vec<CheckedNode> {
    votes(cluster, findings);
    let mut ids = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for (name, node) in &cluster.nodes {
        let place = format!("nodes.{name}");
        findings.name(&place, name);
        findings.unless(node.id > 0, format!("{place}.id"), "must be at least 1");
        if let Some(other) = ids.insert(node.id, name) {
            findings.problem(format!("{place}.id"), format!("{} is already the id of `{other}`", node.id));
        }
        for (link, address) in node.addresses.iter().enumerate() {
            let place = format!("{place}.addresses[{link}]");
            if address.parse::<IpAddr>().is_err() {
                findings.problem(&place, format!("`{address}` is not an IP address"));
            }
            if let Some(other) = addresses.insert(address, &**name) {
                findings.problem(place, format!("`{address}` is already an address of `{other}`"));
            }
        }
        let links = node.addresses.len();
        findings.unless(
            (1..=MAX_LINKS).contains(&links),
            format!("{place}.addresses"),
            format!("a host has 1 to {MAX_LINKS} addresses, one for each link, but this one has {links}"),
        );
        findings.unless(node.memory_mib > 0, format!("{place}.memory"), "must be at least 1");
        findings.unless(node.vcpus != Some(0), format!("{place}.vcpus"), "must be at least 1, or null");
    }
    same_links(cluster, findings);
    timing(cluster, findings);
    let nodes = cluster.nodes.iter().map(|(name, node)| CheckedNode {
        name: name.clone(),
        id: node.id,
        addresses: node.addresses.clone(),
        memory_mib: node.memory_mib,
        vcpus: node.vcpus,
    });
    nodes.collect()
}

fn votes(cluster: &ClusterSpec, findings: &mut Findings) {
    let count = cluster.nodes.len();
    if count < 2 {
        findings.problem("nodes", format!("a cluster has at least 2 hosts, but this one has {count}"));
    } else if count < MIN_NODES && cluster.qdevice.is_none() {
        let reason = "when one of two hosts fails, the other one cannot know whether it has a majority; add a third host, or \
                      set `qdevice` to a server outside of the cluster that has a vote";
        findings.problem("nodes", reason);
    }
    if let Some(qdevice) = &cluster.qdevice {
        let is_allowed = |character: char| character.is_ascii_alphanumeric() || ".:-_".contains(character);
        let is_host =
            !qdevice.host.is_empty() && qdevice.host.chars().all(is_allowed) && !qdevice.host.starts_with('-');
        findings.unless(is_host, "qdevice.host", format!("`{}` is not a host name or an IP address", qdevice.host));
        let is_node = |node: &str| cluster.nodes.contains_key(node);
        let is_address = cluster.nodes.values().any(|node| node.addresses.contains(&qdevice.host));
        let reason =
            "is a host of the cluster, so its vote would be lost together with the host; use a server outside of it";
        findings.unless(!is_node(&qdevice.host) && !is_address, "qdevice.host", format!("`{}` {reason}", qdevice.host));
    }
}

/// Every host has the same links, and each link has one version of IP.
fn same_links(cluster: &ClusterSpec, findings: &mut Findings) {
    let Some((first_name, first)) = cluster.nodes.iter().next() else { return };
    for (name, node) in &cluster.nodes {
        let (count, wanted) = (node.addresses.len(), first.addresses.len());
        if count != wanted {
            let reason = format!(
                "number of addresses: {count} of `{name}`, but {wanted} of `{first_name}`; each link needs one of every host"
            );
            findings.problem(format!("nodes.{name}.addresses"), reason);
            continue;
        }
        for (link, (one, other)) in node.addresses.iter().zip(&first.addresses).enumerate() {
            let version = |address: &str| address.parse().map(|address: IpAddr| address.is_ipv4());
            if let (Ok(one), Ok(other)) = (version(one), version(other))
                && one != other
            {
                let reason = format!("link {link} has IPv4 and IPv6 addresses, but a link uses one of them");
                findings.problem(format!("nodes.{name}.addresses[{link}]"), reason);
            }
        }
    }
}

/// Corosync refuses a consensus that is shorter than 1.2 times the token: corosync.conf(5).
fn timing(cluster: &ClusterSpec, findings: &mut Findings) {
    let totem = &cluster.totem;
    let least = 100;
    let token = totem.token_ms.unwrap_or(least);
    findings.unless(token >= least, "totem.token", format!("must be at least {least} milliseconds"));
    let (Some(token), Some(consensus)) = (totem.token_ms, totem.consensus_ms) else { return };
    let more_hosts = u64::try_from(cluster.nodes.len().saturating_sub(2)).unwrap_or_default();
    let total = u64::from(token) + more_hosts * u64::from(totem.token_coefficient_ms.unwrap_or(650));
    let needed = (total * 12).div_ceil(10);
    let reason = format!("must be at least {needed}, which is 1.2 times the token for this number of hosts");
    findings.unless(u64::from(consensus) >= needed, "totem.consensus", reason);
}
