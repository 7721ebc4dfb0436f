//! The generated configurations of Pacemaker and Corosync, and the exact text of every refusal of a cluster.

use crate::fixtures;
use launcher::cluster::merge::merged;
use launcher::cluster::xml::Element;
use launcher::cluster::{CheckedCluster, check, cib::configuration, corosync::corosync_conf, spec::ClusterSpec};
use launcher::spec::{MachineSpec, parse::parse, parse::parse_document};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A machine spec of the fixture's machines, with these fields.
fn machine(name: &str, fields: Value) -> MachineSpec {
    let mut document = json!({"version": 1, "name": name, "kernel": "/k/bzImage", "initrd": "/k/initrd"});
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    parse(&document.to_string()).unwrap_or_else(|problems| panic!("{name}: {problems:#?}"))
}

fn machines() -> BTreeMap<String, Result<MachineSpec, String>> {
    let tap = |number: u32| json!([{"type": "tap", "id": format!("vm-{number}"), "mac": format!("02:00:00:00:00:0{number}")}]);
    let volume = |name: &str| json!([{"image": format!("/srv/vm/{name}.img"), "size": 64, "autoCreate": false}]);
    let all = [
        machine(
            "web",
            json!({"mem": 512, "vcpu": 2, "interfaces": tap(1), "volumes": volume("web"), "vsock": {"cid": 3, "notify": true}}),
        ),
        machine("web2", json!({"mem": 512, "hotplugMem": 1024, "interfaces": tap(2), "volumes": volume("web2")})),
        machine("files", json!({"hypervisor": "kvmtool", "interfaces": tap(3)})),
    ];
    all.into_iter().map(|spec| (spec.name.clone(), Ok(spec))).collect()
}

fn rack() -> Value {
    let text = fs::read_to_string(fixtures().join("clusters/rack.json")).expect("the fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn checked(cluster: &Value) -> Result<CheckedCluster, Vec<String>> {
    let texts = |problems: Vec<String>| problems;
    let spec: ClusterSpec = parse_document(&cluster.to_string())
        .map_err(|errors| texts(errors.iter().map(ToString::to_string).collect()))?;
    check(&spec, &machines()).map_err(|problems| texts(problems.iter().map(ToString::to_string).collect()))
}

/// Compares a text with a file, or writes the file.
fn assert_golden(path: &Path, text: &str) {
    if std::env::var_os("MICROVM_TEST_BLESS").is_some() {
        fs::write(path, text).expect("written");
    }
    let golden = fs::read_to_string(path).unwrap_or_default();
    assert!(golden == text, "{} differs; MICROVM_TEST_BLESS=1 writes it:\n{text}", path.display());
}

#[test]
fn a_cluster_has_the_expected_configurations_and_all_names_are_escaped() {
    let cluster = checked(&rack()).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(cluster.warnings, [""; 0]);
    let cib = configuration(&cluster).expect("XML").to_text().expect("XML");
    assert_golden(&fixtures().join("clusters/rack.cib.xml"), &cib);
    assert_golden(&fixtures().join("clusters/rack.corosync.conf"), &corosync_conf(&cluster));
}

#[test]
fn applying_a_configuration_keeps_what_others_have_configured() {
    let running = r#"<configuration>
        <crm_config>
          <cluster_property_set id="cib-bootstrap-options">
            <nvpair id="a" name="stonith-enabled" value="false"/><nvpair id="b" name="cluster-delay" value="60s"/>
          </cluster_property_set>
        </crm_config>
        <nodes><node id="2" uname="host2">
          <instance_attributes id="nodes-2"><nvpair id="s" name="standby" value="on"/></instance_attributes>
          <utilization id="u"><nvpair id="v" name="memory" value="1"/></utilization>
        </node></nodes>
        <resources>
          <primitive id="storage" class="ocf" provider="heartbeat" type="Filesystem"/>
          <primitive id="gone" class="ocf" provider="microvm" type="MicroVM">
            <instance_attributes id="microvm__machine__gone__parameters"/>
          </primitive>
          <primitive id="by-hand" class="ocf" provider="microvm" type="MicroVM">
            <instance_attributes id="by-hand-parameters"/>
          </primitive>
          <primitive id="web" class="ocf" provider="microvm" type="MicroVM">
            <instance_attributes id="microvm__machine__web__parameters"/>
            <meta_attributes id="microvm__machine__web__meta">
              <nvpair id="microvm__machine__web__meta-is-managed" name="is-managed" value="false"/>
            </meta_attributes>
          </primitive>
          <primitive id="microvm__fence__ipmi1" class="stonith" type="fence_ipmilan">
            <meta_attributes id="of-ipmi1">
              <nvpair id="microvm__fence__ipmi1__meta__failure-timeout" name="failure-timeout" value="120s"/>
              <nvpair id="p" name="priority" value="7"/>
            </meta_attributes>
          </primitive>
          <primitive id="microvm__fence__pdu" class="stonith" type="fence_apc_snmp">
            <meta_attributes id="microvm__fence__pdu__meta">
              <nvpair id="microvm__fence__pdu__meta__failure-timeout" name="failure-timeout" value="120s"/>
            </meta_attributes>
          </primitive>
        </resources>
        <constraints>
          <rsc_location id="cli-ban-gone" rsc="gone" node="host1" score="-INFINITY"/>
          <rsc_order id="storage-first" first="storage" then="web"/>
          <rsc_colocation id="microvm__apart__a__b" rsc="a" with-rsc="b" score="-INFINITY"/>
        </constraints>
        <alerts/>
      </configuration>"#;
    let generated = configuration(&checked(&rack()).expect("a cluster")).expect("XML");
    let result = merged(Element::parse(running).expect("XML"), &generated);
    let text = result.to_text().expect("XML");
    for kept in [
        "cluster-delay",
        "standby",
        "storage-first",
        "Filesystem",
        "alerts",
        "is-managed",
        "\"by-hand\"",
        "id=\"of-ipmi1\"",
        "priority",
    ] {
        assert!(text.contains(kept), "{kept} is kept: {text}");
    }
    // The devices of an earlier release had a setting that is gone.
    for removed in [
        "failure-timeout\" value=\"120s",
        "pdu__meta",
        "\"gone\"",
        "microvm__apart__a__b",
        "value=\"1\" /",
        "id=\"a\"",
        "id=\"v\"",
    ] {
        assert!(!text.contains(removed), "{removed} is removed: {text}");
    }
    assert_eq!(merged(result.clone(), &generated), result, "applying it again changes nothing");
}

#[test]
fn two_fence_devices_of_one_host_are_reported_because_one_of_them_is_enough() {
    let mut cluster = rack();
    let devices = cluster["fencing"]["devices"].as_object_mut().expect("devices");
    devices.insert("second".to_owned(), json!({"agent": "fence_apc", "targets": ["host1"]}));
    let warnings = checked(&cluster).expect("a cluster").warnings;
    assert!(
        matches!(&warnings[..], [warning] if warning.starts_with("nodes.host1: 2 fence devices cover")),
        "{warnings:?}"
    );
}

#[test]
fn a_volume_that_a_host_without_the_shared_storage_would_create_is_reported() {
    let mut specs = machines();
    let volumes = json!({"volumes": [{"image": "/srv/vm/new.img", "size": 8}]});
    specs.insert("files".to_owned(), Ok(machine("files", volumes)));
    let spec: ClusterSpec = parse_document(&rack().to_string()).expect("a cluster");
    let warnings = check(&spec, &specs).expect("a cluster").warnings;
    assert!(
        warnings.iter().any(|warning| warning.starts_with("machines.files: volumes[0].autoCreate: ")),
        "{warnings:?}"
    );
}

/// Returns the problems of the fixture with one value replaced.
fn problems_with(pointer: &str, value: Value) -> String {
    let mut cluster = rack();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    cluster.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object").insert(key.to_owned(), value);
    checked(&cluster).err().unwrap_or_default().join("\n")
}

#[test]
fn clusters_that_cannot_work_are_refused_with_what_to_do() {
    let store = "/nix/store/0-key";
    let device = |parameter: &str| json!({"agent": "fence_x", "targets": ["host1"], "parameters": {parameter: "x"}});
    let cases = [
        ("/nmae", json!(1), "nmae: unknown field; did you mean `name`?"),
        ("/version", json!(2), "version: this program reads cluster specs of version 1, but this one has 2"),
        ("/name", json!("a b"), "name: `a b` contains ' '"),
        ("/nodes/host2/id", json!(1), "nodes.host2.id: 1 is already the id of `host1`"),
        ("/nodes/host2/addresses", json!(["10.0.0.2"]), "number of addresses: 1 of `host2`, but 2 of `host1`"),
        ("/nodes/host2/addresses", json!(["10.0.0.1", "10.1.0.2"]), "`10.0.0.1` is already an address of `host1`"),
        ("/nodes/host2/addresses", json!(["host2", "10.1.0.2"]), "`host2` is not an IP address"),
        ("/nodes/host2/addresses", json!(["fd00::2", "10.1.0.2"]), "link 0 has IPv4 and IPv6 addresses"),
        (
            "/nodes/host__4",
            json!({"id": 4, "addresses": ["10.0.0.4", "10.1.0.4"], "memory": 1}),
            "neither contain `__`",
        ),
        (
            "/fencing/devices/x_",
            device("x"),
            "fencing.devices.x_: `x_` must neither contain `__`, which separates the parts of derived names, nor end with `_`",
        ),
        (
            "/nodes/host4",
            json!({"id": 4, "addresses": ["10.0.0.4", "10.1.0.4"], "memory": 1}),
            "nodes.host4: no fence device covers this host",
        ),
        ("/nodes", json!({}), "nodes: a cluster has at least 2 hosts, but this one has 0"),
        ("/totem", json!({"token": 99}), "totem.token: must be at least 100 milliseconds"),
        ("/totem", json!({"token": 1000, "consensus": 1500}), "totem.consensus: must be at least 1980"),
        ("/qdevice/host", json!("host1"), "qdevice.host: `host1` is a host of the cluster"),
        ("/qdevice/host", json!("a}b"), "qdevice.host: `a}b` is not a host name"),
        (
            "/authKeyFile",
            json!(store),
            "authKeyFile: `/nix/store/0-key` is in the Nix store, which every user can read",
        ),
        (
            "/fencing/devices/ipmi1/passwordFile",
            json!(store),
            "fencing.devices.ipmi1.passwordFile: `/nix/store/0-key` is in the Nix store",
        ),
        (
            "/fencing/devices/x",
            device("passwd"),
            "fencing.devices.x.parameters.passwd: would be readable by every user of the host",
        ),
        ("/fencing/devices/x", device("pcmk_host_list"), "is set by the cluster; use `targets` and `ports`"),
        ("/fencing/devices/x", device("a\"b"), "is not the name of a parameter"),
        (
            "/fencing/devices/pdu/targets",
            json!(["host2", "host33"]),
            "there is no host `host33`; did you mean `host3`?",
        ),
        (
            "/fencing/devices/pdu/ports",
            json!({"host2": "4;host1:5"}),
            "`4;host1:5` contains characters other than letters",
        ),
        ("/fencing/devices/pdu/agent", json!("../fence_x"), "`../fence_x` is not a fence agent"),
        ("/fencing/devices", json!({}), "nodes.host1: no fence device covers this host"),
        ("/sharedPaths", json!(["/"]), "sharedPaths[0]: the root directory is not shared"),
        ("/sharedPaths", json!(["/srv/v"]), "volumes[0].image: `/srv/vm/web.img` is not in `sharedPaths`"),
        ("/migration/directory", json!("/tmp"), "migration.directory: must be in one of `sharedPaths`"),
        ("/cache", json!("file:///a b"), "cache: a URL contains no spaces"),
        ("/cache", json!("a\u{1}"), "cache: contains '\\u{1}', which is not allowed"),
        ("/machines/web/prefer", json!(["host9"]), "machines.web.prefer: there is no host `host9`"),
        ("/machines/web/prefer", json!(["host1", "host1"]), "machines.web.prefer: `host1` is listed twice"),
        ("/migration/command", json!("ssh root@nodes receive"), "migration.command: has no word NODE or USER@NODE"),
        ("/machines/web/apartFrom", json!(["web"]), "machines.web.apartFrom: a machine cannot be apart from itself"),
        ("/machines/web/apartFrom", json!(["wbe2"]), "there is no machine `wbe2`; did you mean `web2`?"),
        (
            "/machines/files/migrate",
            json!("live"),
            "machines.files.migrate: hypervisor: kvmtool cannot save the memory",
        ),
        ("/machines/files/migrate", json!("suspend"), "machines.files.migrate: hypervisor: kvmtool"),
        ("/machines/web2/timeouts", json!({"ready": 60}), "machines.web2.timeouts.ready: requires `vsock.notify`"),
        (
            "/machines/web2/timeouts",
            json!({"drain": 120}),
            "machines.web2.timeouts.drain: must be less than `stop`, 120 seconds",
        ),
        ("/machines/web2/timeouts", json!({"start": 0}), "machines.web2.timeouts.start: must be at least 1"),
        ("/machines/web2/runner", json!("result"), "machines.web2.runner: `result` must be an absolute path"),
        (
            "/machines/booted-web",
            json!({"runner": "/nix/store/x"}),
            "machines.booted-web: would have the same garbage collection root as `web`; rename one of them",
        ),
        ("/machines/7up", json!({"runner": "/nix/store/x"}), "machines.7up: `7up` must start with a letter or `_`"),
    ];
    for (pointer, value, expected) in cases {
        let found = problems_with(pointer, value.clone());
        assert!(found.contains(expected), "{pointer} = {value}: {found}");
    }
    let mut two = rack();
    two["nodes"].as_object_mut().expect("nodes").remove("host3");
    two["fencing"]["devices"]["pdu"]["targets"] = json!(["host2"]);
    two["fencing"]["devices"]["pdu"]["ports"] = json!({});
    two["machines"]["web"]["prefer"] = json!([]);
    assert_eq!(checked(&two).err(), None, "two hosts and a qdevice are a cluster");
    two["qdevice"] = Value::Null;
    let found = checked(&two).expect_err("no majority").join("\n");
    assert!(found.contains("add a third host, or set `qdevice`"), "{found}");
}

#[test]
fn machines_that_cannot_run_on_every_host_or_next_to_each_other_are_refused() {
    let spec: ClusterSpec = parse_document(&rack().to_string()).expect("a spec");
    let problems = |changed: MachineSpec| {
        let mut all = machines();
        all.insert(changed.name.clone(), Ok(changed));
        let problems = check(&spec, &all).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let interface = |fields: Value| json!({"interfaces": [fields]});
    for (fields, expected) in [
        (
            json!({"volumes": [{"image": "var.img", "size": 8}]}),
            "volumes[0].image: `/var/lib/microvms/files/var.img` is not in `sharedPaths`",
        ),
        (json!({"volumes": [{"image": "/srv/vm/../x.img", "size": 8}]}), "`/srv/vm/../x.img` is not in `sharedPaths`"),
        (
            json!({"volumes": [{"image": "/srv/vm/web.img", "size": 8}]}),
            "the image `/srv/vm/web.img` is used by files's",
        ),
        (
            json!({"shares": [{"tag": "home", "source": "/home", "mountPoint": "/home"}]}),
            "shares[0].source: `/home` is not in `sharedPaths`",
        ),
        (
            interface(json!({"type": "tap", "id": "vm-9", "mac": "02:00:00:00:00:01"})),
            "the MAC address `02:00:00:00:00:01` is used by",
        ),
        (
            interface(json!({"type": "tap", "id": "vm-1", "mac": "02:00:00:00:00:09"})),
            "the network interface `vm-1` is used by",
        ),
        (json!({"vsock": {"cid": 3}}), "the vsock address `3` is used by"),
        (
            json!({"hypervisor": "qemu", "interfaces": [{"type": "bridge", "id": "a", "mac": "02:00:00:00:00:09", "bridge": "br1"}]}),
            "interfaces[0].bridge: `br1` is not in `bridges`",
        ),
        (json!({"vcpu": 0}), "machines.files.runner: vcpu:"),
    ] {
        let fields = if fields["hypervisor"].is_null() {
            json!({"hypervisor": "kvmtool"})
                .as_object()
                .cloned()
                .map(|mut all| {
                    all.extend(fields.as_object().cloned().unwrap_or_default());
                    Value::Object(all)
                })
                .unwrap_or_default()
        } else {
            fields
        };
        let found = problems(machine("files", fields.clone()));
        assert!(found.contains(expected), "{fields}: {found}");
    }
    let allowed = json!({"hypervisor": "kvmtool", "shares": [{"tag": "store", "source": "/nix/store", "mountPoint": "/nix/.ro"}]});
    assert_eq!(problems(machine("files", allowed)), "", "every host has a store");
    let mut all = machines();
    all.insert("web".to_owned(), Err("`/nix/store/x` is not a runner on this host".to_owned()));
    let found = check(&spec, &all).expect_err("no runner");
    assert_eq!(found[0].to_string(), "machines.web.runner: `/nix/store/x` is not a runner on this host");
}
