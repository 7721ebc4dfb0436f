//! The configuration file of Corosync for a cluster: corosync.conf(5).

use super::checked::CheckedCluster;
use super::spec::QdeviceAlgorithm;
use std::fmt::Write;

/// Returns the text of corosync.conf. All names and addresses are checked, so none of them contains a brace or a newline.
pub fn corosync_conf(cluster: &CheckedCluster) -> String {
    let mut text = String::new();
    totem(&mut text, cluster);
    text.push_str("\nnodelist {\n");
    for node in &cluster.nodes {
        let mut entry = format!("  node {{\n    nodeid: {}\n    name: {}\n", node.id, node.name);
        for (link, address) in node.addresses.iter().enumerate() {
            line(&mut entry, 4, &format!("ring{link}_addr"), address);
        }
        text.push_str(&entry);
        text.push_str("  }\n");
    }
    text.push_str("}\n\nquorum {\n");
    line(&mut text, 2, "provider", "corosync_votequorum");
    // `two_node` is never set: with it, each of two hosts has a majority, and it excludes a qdevice.
    if let Some(qdevice) = &cluster.qdevice {
        let algorithm = match qdevice.algorithm {
            QdeviceAlgorithm::Ffsplit => "ffsplit",
            QdeviceAlgorithm::Lms => "lms",
        };
        text.push_str("  device {\n");
        line(&mut text, 4, "model", "net");
        // votequorum(5): with `lms`, the server has one vote less than there are hosts.
        let votes = match qdevice.algorithm {
            QdeviceAlgorithm::Ffsplit => 1,
            QdeviceAlgorithm::Lms => cluster.nodes.len().saturating_sub(1),
        };
        line(&mut text, 4, "votes", &votes.to_string());
        text.push_str("    net {\n");
        line(&mut text, 6, "host", &qdevice.host);
        line(&mut text, 6, "algorithm", algorithm);
        line(&mut text, 6, "tls", "on");
        text.push_str("    }\n  }\n");
    }
    text.push_str("}\n\nlogging {\n");
    line(&mut text, 2, "to_syslog", "yes");
    line(&mut text, 2, "to_stderr", "no");
    text.push_str("}\n");
    text
}

fn totem(text: &mut String, cluster: &CheckedCluster) {
    text.push_str("totem {\n");
    line(text, 2, "version", "2");
    line(text, 2, "cluster_name", &cluster.name);
    line(text, 2, "transport", "knet");
    // Hosts without the key can neither read nor send messages.
    line(text, 2, "crypto_cipher", "aes256");
    line(text, 2, "crypto_hash", "sha256");
    if let Some(file) = &cluster.auth_key_file {
        line(text, 2, "keyfile", file.as_str());
    }
    for (name, value) in [
        ("token", cluster.totem.token_ms),
        ("token_coefficient", cluster.totem.token_coefficient_ms),
        ("consensus", cluster.totem.consensus_ms),
    ] {
        if let Some(value) = value {
            line(text, 2, name, &value.to_string());
        }
    }
    text.push_str("}\n");
}

fn line(text: &mut String, indent: usize, name: &str, value: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{:indent$}{name}: {value}", "");
}
