//! The NixOS module refuses what the launcher would refuse, from the same table: a file that this test keeps equal to it.

use launcher::capability::{Feature, Lenience, Support};
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
            "refuse": feature.lenience() == Lenience::Refuse,
            "hypervisors": hypervisors,
        });
        features.insert(format!("{feature:?}"), row);
    }
    Value::Object(features)
}

/// Run with `MICROVM_TEST_BLESS=1` to write the file again.
#[test]
fn the_nixos_module_has_the_launchers_capabilities() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nixos-modules/microvm/capabilities.json");
    let expected = format!("{:#}\n", table());
    if std::env::var_os("MICROVM_TEST_BLESS").is_some() {
        std::fs::write(&file, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap();
    assert!(found == expected, "{} is stale; run this test with MICROVM_TEST_BLESS=1", file.display());
}
