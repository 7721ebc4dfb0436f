//! Invariant: for any bytes, a cluster is refused with reasons, or becomes configurations of Pacemaker and Corosync. The
//! former is unchanged when it is read back, and applying it again changes nothing. In the latter, no name or address adds
//! a line. Any XML that is read is unchanged when it is written and read again.

#![no_main]

use launcher::cluster::cib::configuration;
use launcher::cluster::corosync::corosync_conf;
use launcher::cluster::merge::merged;
use launcher::cluster::spec::ClusterSpec;
use launcher::cluster::status::Status;
use launcher::cluster::xml::Element;
use launcher::cluster::{CheckedCluster, check};
use launcher::spec::parse::{parse, parse_document};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(element) = Element::parse(text) {
        let written = element.to_text().expect("an element can be written");
        let read = Element::parse(&written).expect("what was written can be read");
        assert_eq!(read.to_text().expect("an element can be written"), written);
        Status::of(&element);
    }
    let Ok(cluster) = parse_document::<ClusterSpec>(text) else { return };
    let machine = parse(r#"{"version": 1, "name": "web", "kernel": "/k"}"#).expect("a spec");
    let specs = cluster.machines.keys().map(|name| (name.clone(), Ok(machine.clone()))).collect();
    match check(&cluster, &specs) {
        Ok(checked) => read_fields(&checked),
        Err(problems) => {
            assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.to_string().is_empty()))
        }
    }
});

fn read_fields(cluster: &CheckedCluster) {
    let generated = configuration(cluster).expect("a configuration");
    let text = generated.to_text().expect("a configuration can be written");
    assert_eq!(Element::parse(&text).expect("what was written can be read"), generated);
    let first = merged(Element::new("configuration", []), &generated);
    assert_eq!(merged(first.clone(), &generated), first);
    let addresses: usize = cluster.nodes.iter().map(|node| node.addresses.len()).sum();
    let conf = corosync_conf(cluster);
    assert_eq!(conf.lines().filter(|line| line.contains("_addr: ")).count(), addresses);
    assert_eq!(conf.lines().filter(|line| line.trim_start().starts_with("name: ")).count(), cluster.nodes.len());
}
