//! The configurations for firecracker and cloud-hypervisor, validated against the schemas that these projects publish.

#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by failing")]

use jsonschema::{Draft, Validator};
use launcher::facts::HostFacts;
use launcher::hypervisor::lower;
use launcher::launch::{ForcedStop, GracefulStep, HttpRequest, Launch};
use launcher::path::HostPath;
use launcher::spec::{Hypervisor, parse::parse};
use launcher::validate::check;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn published(file: &str) -> Value {
    let text = fs::read_to_string(fixtures().join("api").join(file)).expect("a published schema");
    serde_saphyr::from_str(&text).expect("YAML")
}

/// Returns the validator of one definition. Objects with listed properties accept no others: firecracker fails on an
/// unknown field, and cloud-hypervisor would ignore it.
fn validator(mut document: Value, definition: &str) -> Validator {
    forbid_unknown_fields(&mut document);
    document["$ref"] = json!(format!("#/{definition}"));
    jsonschema::options().with_draft(Draft::Draft4).build(&document).expect("a schema")
}

fn forbid_unknown_fields(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(forbid_unknown_fields);
            // A property may itself be named `properties`; a schema has the type object.
            if fields.get("type") == Some(&json!("object")) && fields.contains_key("properties") {
                fields.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_unknown_fields),
        _ => {}
    }
}

/// Returns the launches of all specs in fixtures/specs that the hypervisor supports.
fn launches(hypervisor: Hypervisor) -> Vec<Launch> {
    let entries = fs::read_dir(fixtures().join("specs")).expect("fixtures/specs");
    let mut launches = Vec::new();
    for entry in entries {
        let path = entry.expect("an entry").path();
        let spec = parse(&fs::read_to_string(&path).expect("a spec")).expect("a spec");
        let facts = HostFacts::assumed(HostPath::new(format!("/var/lib/microvms/{}", spec.name)));
        launches.extend(lower(&check(&spec).expect("a checked spec"), &facts, hypervisor));
    }
    assert!(launches.len() > 10, "{hypervisor} runs most specs");
    launches
}

fn assert_valid(validator: &Validator, document: &Value, machine: &str) {
    let errors: Vec<_> =
        validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{machine}: {errors:#?}\n{document:#}");
}

#[test]
fn every_configuration_is_valid_for_firecrackers_schema() {
    let validator = validator(published("firecracker.yaml"), "definitions/FullVmConfiguration");
    for launch in launches(Hypervisor::Firecracker) {
        let document: Value = serde_json::from_str(&launch.files[0].content).expect("JSON");
        assert_valid(&validator, &document, &launch.name);
        assert_eq!(Some(&document), launch.expected_configuration.as_ref());
        let mut misspelt = document.clone();
        misspelt["machine-config"]["vcpus"] = json!(1);
        assert!(!validator.is_valid(&misspelt), "the schema accepts anything");
    }
}

#[test]
fn firecracker_gets_the_boot_arguments_that_a_nixos_initrd_needs() {
    for launch in launches(Hypervisor::Firecracker) {
        let document = launch.expected_configuration.expect("a configuration");
        let boot_args = document["boot-source"]["boot_args"].as_str().expect("boot_args are always set");
        assert!(!boot_args.contains("nomodule") && !boot_args.contains("i8042.nopnp"), "{boot_args}");
        let drives = document["drives"].as_array().expect("drives are always there");
        assert!(drives.iter().all(|drive| drive["is_root_device"] == json!(false)));
        // Persistent memory is not a drive, and a disk that is served has a socket instead of a path.
        let disks = launch.disks.iter().filter(|disk| !disk.device.starts_with("/dev/pmem"));
        let (devices, images): (Vec<_>, Vec<_>) = disks
            .zip(drives)
            .filter(|(_, drive)| drive["socket"].is_null())
            .map(|(disk, drive)| (disk.image.as_str(), drive["path_on_host"].as_str().expect("a path")))
            .unzip();
        assert_eq!(images, devices, "drives are in guest order");
    }
}

#[test]
fn every_configuration_is_valid_for_cloud_hypervisors_schema() {
    let validator = validator(published("cloud-hypervisor.yaml"), "components/schemas/VmConfig");
    for launch in launches(Hypervisor::CloudHypervisor) {
        let document = launch.expected_configuration.expect("a configuration");
        assert_valid(&validator, &document, &launch.name);
        let mut misspelt = document.clone();
        misspelt["memory"]["sise"] = json!(1);
        assert!(!validator.is_valid(&misspelt), "the schema accepts anything");
    }
}

#[test]
fn cloud_hypervisors_command_line_equals_its_configuration() {
    for launch in launches(Hypervisor::CloudHypervisor) {
        let printed = configuration_of(&launch.arguments);
        assert_eq!(Some(printed), launch.expected_configuration, "{}", launch.name);
    }
}

#[test]
fn the_requests_that_stop_a_machine_are_in_the_published_apis() {
    let (firecracker, cloud_hypervisor) = (published("firecracker.yaml"), published("cloud-hypervisor.yaml"));
    let action = validator(firecracker.clone(), "definitions/InstanceActionInfo");
    for (hypervisor, api, prefix) in
        [(Hypervisor::Firecracker, &firecracker, ""), (Hypervisor::CloudHypervisor, &cloud_hypervisor, "/api/v1")]
    {
        for launch in launches(hypervisor) {
            for request in requests(&launch) {
                let path = request.path.strip_prefix(prefix).expect("below the API's root");
                let method = request.method.to_ascii_lowercase();
                assert!(api["paths"][path][&method].is_object(), "{} {}", request.method, request.path);
                if let Some(body) = &request.body {
                    assert_valid(&action, body, &launch.name);
                }
            }
        }
    }
}

fn requests(launch: &Launch) -> Vec<HttpRequest> {
    let graceful = launch.shutdown.graceful.iter().filter_map(|step| match step {
        GracefulStep::Http(request) => Some(request.clone()),
        _ => None,
    });
    let forced = match &launch.shutdown.forced {
        ForcedStop::Http(request) => Some(request.clone()),
        _ => None,
    };
    let requests: Vec<_> = graceful.chain(forced).collect();
    assert!(!requests.is_empty(), "{}: stops by its API", launch.name);
    requests
}

/// Converts cloud-hypervisor's command line to a configuration in the terms of its API.
fn configuration_of(arguments: &[String]) -> Value {
    let mut document = json!({"disks": [], "net": [], "fs": [], "devices": [], "payload": {}, "watchdog": false});
    let mut words = arguments.iter();
    while let Some(option) = words.next() {
        if let "--watchdog" | "--landlock" = option.as_str() {
            document[if option == "--watchdog" { "watchdog" } else { "landlock_enable" }] = json!(true);
            continue;
        }
        let value = words.next().expect("every other option has a value");
        match option.as_str() {
            "--api-socket" | "--seccomp" | "--event-monitor" => {}
            "--kernel" => document["payload"]["kernel"] = json!(value),
            "--initramfs" => document["payload"]["initramfs"] = json!(value),
            "--cmdline" => document["payload"]["cmdline"] = json!(value),
            "--serial" | "--console" => {
                let mode = if value == "tty" { "Tty" } else { "Off" };
                document[option.trim_start_matches('-')] = json!({"mode": mode});
            }
            "--disk" => push(
                &mut document["disks"],
                fields(value, &json!({"readonly": false, "direct": false, "num_queues": 1})),
            ),
            "--net" => push(&mut document["net"], fields(value, &json!({"vhost_user": false, "num_queues": 2}))),
            "--pmem" => {
                if document["pmem"].is_null() {
                    document["pmem"] = json!([]);
                }
                push(&mut document["pmem"], fields(value, &json!({})));
            }
            "--fs" => push(&mut document["fs"], fields(value, &json!({}))),
            "--landlock-rules" => {
                if document["landlock_rules"].is_null() {
                    document["landlock_rules"] = json!([]);
                }
                push(&mut document["landlock_rules"], fields(value, &json!({})));
            }
            "--device" => push(&mut document["devices"], fields(value, &json!({}))),
            "--cpus" => document["cpus"] = fields(value, &json!({})),
            "--memory" => {
                document["memory"] = fields(value, &json!({"shared": false, "mergeable": false, "hugepages": false}));
            }
            "--balloon" | "--rng" | "--vsock" | "--platform" => {
                document[option.trim_start_matches('-')] = fields(value, &json!({}));
            }
            other => panic!("an option that this test does not know: {other}"),
        }
    }
    document
}

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().expect("a list").push(item);
}

/// The pairs of an option string over its defaults, with the names and values of the API.
fn fields(text: &str, defaults: &Value) -> Value {
    let mut fields: Map<String, Value> = defaults.as_object().expect("an object").clone();
    for pair in split_outside(text) {
        let (key, value) = pair.split_once('=').expect("a pair");
        let is_served = defaults.get("vhost_user").is_some() || text.contains("vhost_user=on");
        let (key, value) = match (key, value) {
            ("fd", _) => continue,
            ("boot", _) => ("boot_vcpus", number(value)),
            ("max", _) => ("max_vcpus", number(value)),
            ("socket", _) if is_served => ("vhost_socket", json!(value)),
            ("hotplug_method", "virtio-mem") => (key, json!("VirtioMem")),
            ("image_type", "raw") => (key, json!("Raw")),
            ("image_type", "qcow2") => (key, json!("Qcow2")),
            ("image_type", "vhdx") => (key, json!("Vhdx")),
            ("oem_strings", _) => (key, value.trim_matches(['[', ']']).split(',').collect()),
            ("cid" | "num_queues" | "queue_size" | "size" | "hotplug_size" | "hotplugged_size", _) => {
                (key, number(value))
            }
            (_, "on") => (key, json!(true)),
            (_, "off") => (key, json!(false)),
            _ => (key, json!(value)),
        };
        fields.insert(key.to_owned(), value);
    }
    Value::Object(fields)
}

/// A number, in MiB if an M follows it.
fn number(text: &str) -> Value {
    match text.strip_suffix('M') {
        Some(mib) => json!(mib.parse::<u64>().expect("a number") << 20),
        None => json!(text.parse::<u64>().expect("a number")),
    }
}

/// The parts between commas that stand neither in quotes nor in brackets, without the quotes.
fn split_outside(text: &str) -> Vec<String> {
    let (mut parts, mut quoted, mut open) = (vec![String::new()], false, 0);
    for character in text.chars() {
        match character {
            '"' => {
                quoted = !quoted;
                continue;
            }
            '[' if !quoted => open += 1,
            ']' if !quoted => open -= 1,
            ',' if !quoted && open == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("at least one part").push(character);
    }
    parts
}
