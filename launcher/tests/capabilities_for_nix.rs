//! The NixOS modules refuse the same as the launcher. They read copies of its tables, which these tests compare.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use launcher::capability::{Condition, Feature, Support, Unsupported, conditions};
use launcher::cluster::secrets::{PLACES, WORDS};
use launcher::hypervisor::support;
use launcher::spec::Hypervisor;
use serde_json::{Map, Value, json};
use std::path::Path;

fn table() -> Value {
    let mut features = Map::new();
    for feature in Feature::ALL {
        let mut hypervisors = Map::new();
        for hypervisor in Hypervisor::ALL {
            let answer = match support(hypervisor, feature) {
                Support::Yes => json!({"can": true}),
                Support::With(note) | Support::Partly(note) => json!({"can": true, "note": note}),
                Support::No(reason) => json!({"can": false, "reason": reason}),
            };
            hypervisors.insert(hypervisor.to_string(), answer);
        }
        let row = json!({
            "name": feature.row(),
            "option": feature.option(),
            "refuse": feature.when_unsupported() == Unsupported::Refuse,
            "uses": conditions(feature).map(Condition::to_json).collect::<Vec<_>>(),
            "hypervisors": hypervisors,
        });
        features.insert(format!("{feature:?}"), row);
    }
    Value::Object(features)
}

/// `MICROVM_TEST_BLESS=1` rewrites the file.
#[test]
fn the_capabilities_of_the_nixos_module_equal_the_launchers() {
    assert_copied("microvm/capabilities.json", &table());
}

/// `MICROVM_TEST_BLESS=1` rewrites the file.
#[test]
fn the_words_for_secrets_of_the_cluster_module_equal_the_launchers() {
    assert_copied("cluster/secret-parameters.json", &json!({"words": WORDS, "places": PLACES}));
}

fn assert_copied(name: &str, table: &Value) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nixos-modules").join(name);
    let expected = format!("{table:#}\n");
    if std::env::var_os("MICROVM_TEST_BLESS").is_some() {
        std::fs::write(&file, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap();
    assert!(found == expected, "{} is stale; run this test with MICROVM_TEST_BLESS=1", file.display());
}
